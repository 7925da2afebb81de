"""What a single write does (SPEC 3); the laws over many are in `tests/properties/test_merge_laws.py`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol import clock
from tidemark_protocol.merge import RowState, Write, apply, escape, same_value, split, unescape

NODE = "00000000000000aa"


def at(number: int) -> str:
    """A reading by its number."""
    return clock.reading(number, 0, NODE)


def put(number: int, **values: Any) -> Write:
    """A put of a row with a name, a color and labels."""
    return Write("put", at(number), {"name": "n", "color": "blue", "labels": {}, **values})


def patch(number: int, values: dict[str, Any]) -> Write:
    """A patch of some paths."""
    return Write("patch", at(number), values)


def delete(number: int) -> Write:
    """A delete."""
    return Write("delete", at(number), {})


def after(*writes: Write) -> RowState:
    """The row after these writes, in this order."""
    state: RowState | None = None
    for write in writes:
        state = apply(state, write).state
    assert state is not None
    return state


def test_a_put_makes_a_row() -> None:
    """It is created and updated at the put's time."""
    state = after(put(5, name="x"))
    assert (state.visible, state.fields["name"], state.root, state.latest) == (True, "x", at(5), at(5))
    assert state.created_at == clock.instant(at(5))


def test_a_delete_of_what_never_existed_leaves_a_tombstone() -> None:
    """So an earlier put that arrives later stays hidden."""
    state = after(delete(5))
    assert (state.deleted, state.fields, state.created_at) == (True, {}, "")
    effect = apply(state, put(4))
    assert (effect.verdict, effect.state is state) == ("superseded", True)


def test_a_patch_needs_a_row() -> None:
    """One of a row never heard of is refused before it comes here."""
    with pytest.raises(ValueError, match="a patch needs a row"):
        apply(None, patch(5, {"name": "x"}))


def test_a_patch_is_told_which_paths_lost_and_what_it_overwrote() -> None:
    """`applied` for those it took; those a later write holds are named."""
    state = after(put(1, name="a", color="b"), patch(5, {"name": "later"}))
    effect = apply(state, patch(4, {"name": "x", "color": "y"}))
    assert (effect.verdict, effect.superseded_paths, effect.overwritten) == ("applied", ("name",), {"color": "b"})
    assert (effect.state.fields["name"], effect.state.fields["color"]) == ("later", "y")


def test_a_patch_below_the_root_is_superseded() -> None:
    """A path above it holds a clock at or above its own."""
    state = after(put(5))
    for number in (4, 5):
        effect = apply(state, patch(number, {"name": "x"}))
        assert (effect.verdict, effect.state is state, effect.hidden) == ("superseded", True, False)


def test_a_put_keeps_what_later_patches_set() -> None:
    """It takes everything else, and drops the clocks it passes."""
    state = after(put(1), patch(3, {"color": "old"}), patch(9, {"name": "kept", "labels/a": 1}))
    effect = apply(state, put(5, name="x", color="y", labels={"a": 0, "b": 2}))
    assert effect.state.fields == {"name": "kept", "color": "y", "labels": {"a": 1, "b": 2}}
    assert effect.state.clocks == {"name": at(9), "labels/a": at(9)}
    assert effect.overwritten == {"color": "old", "labels": {"a": 1}}


def test_created_at_is_kept_while_the_row_is_visible() -> None:
    """A put over a visible row keeps it; one that revives a row starts anew."""
    assert after(put(5), put(6)).created_at == clock.instant(at(5))
    assert after(put(5), delete(6), put(7)).created_at == clock.instant(at(7))


def test_a_patch_on_a_tombstone_is_kept_but_hidden() -> None:
    """It shows again when a put from before it arrives that is later than the delete."""
    state = after(put(1), delete(5))
    effect = apply(state, patch(8, {"name": "late", "labels/a": 1}))
    assert (effect.verdict, effect.hidden, effect.took_effect, effect.overwritten) == ("applied", True, True, {})
    assert (effect.state.deleted, effect.state.fields) == (True, {"name": "late", "labels": {"a": 1}})
    revived = apply(effect.state, put(6, labels={"b": 2})).state
    assert revived.fields == {"name": "late", "color": "blue", "labels": {"a": 1, "b": 2}}


def test_a_later_delete_of_a_visible_row_keeps_later_patches_only() -> None:
    """A delete that arrives late takes all but what came after it."""
    state = after(put(1, labels={"x": 1}), patch(9, {"labels/a": 1, "color": "late"}), delete(5))
    assert (state.deleted, state.fields) == (True, {"labels": {"a": 1}, "color": "late"})


def test_map_keys_merge_one_by_one() -> None:
    """Two devices that label one row both see both labels (I9); a whole map takes the keys from before it."""
    state = after(put(1), patch(3, {"labels/a": 1}), patch(2, {"labels/b": 2}))
    assert state.fields["labels"] == {"a": 1, "b": 2}
    state = apply(state, patch(5, {"labels": {"c": 3}})).state
    assert (state.fields["labels"], state.clocks) == ({"c": 3}, {"labels": at(5)})
    assert apply(state, patch(4, {"labels/a": 9})).verdict == "superseded"


def test_a_whole_map_keeps_the_keys_from_after_it() -> None:
    """Removed ones stay removed."""
    state = after(put(1, labels={"a": 1, "b": 2}), patch(8, {"labels/a": None, "labels/c": 3}))
    assert state.fields["labels"] == {"b": 2, "c": 3}
    state = apply(state, patch(5, {"labels": {"a": 9, "d": 4}})).state
    assert state.fields["labels"] == {"c": 3, "d": 4}
    assert state.clocks == {"labels": at(5), "labels/a": at(8), "labels/c": at(8)}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (put(5, name="x"), put(5, name="y")),
        (put(5, name=1), put(5, name=True)),
        (put(5), delete(5)),
        (delete(5), put(5)),
    ],
)
def test_another_write_at_the_root_s_clock_is_reused(first: Write, second: Write) -> None:
    """An equal clock means this very write; anything else is refused and changes nothing."""
    state = after(first)
    effect = apply(state, second)
    assert (effect.verdict, effect.state is state, effect.took_effect) == ("clock_reused", True, False)
    assert apply(state, first).verdict == "applied"


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ({"name": "x"}, {"name": "y"}),
        ({"name": 0}, {"name": False}),
        ({"labels/a": 1}, {"labels/a": None}),
        ({"labels/a": None}, {"labels/a": 1}),
        ({"labels": {"a": 1}}, {"labels": {"a": 2}}),
        ({"labels": {"a": [0]}}, {"labels": {"a": [False]}}),
    ],
)
def test_another_write_at_a_path_s_clock_is_reused(values: dict[str, Any], others: dict[str, Any]) -> None:
    """A patch with a value other than the one that stands there under its clock."""
    state = after(put(1), patch(5, values))
    assert apply(state, patch(5, others)).verdict == "clock_reused"
    assert apply(state, patch(5, values)).verdict == "applied"


def test_a_replay_is_known_although_keys_changed_since() -> None:
    """What later writes did below a path is not held against the write that set it."""
    whole = patch(5, {"labels": {"a": 1, "b": 2}})
    state = after(put(1), whole, patch(6, {"labels/a": None}), patch(7, {"labels/z": 3}))
    assert apply(state, whole).verdict == "applied"
    root = put(1, labels={"a": 1})
    state = after(root, patch(6, {"labels/a": None, "name": "new"}))
    assert apply(state, root).verdict == "applied"


@given(st.text(max_size=20))
def test_keys_are_escaped_as_in_json_pointer(key: str) -> None:
    """Any key stands in a path without a slash of its own, and comes back."""
    token = escape(key)
    assert "/" not in token
    assert unescape(token) == key
    assert split(f"labels/{token}") == ("labels", key)


def test_paths_are_split() -> None:
    """A field alone has no key; an empty key is one."""
    assert (split("labels"), split("labels/"), split("labels/a~1b~0c")) == (
        ("labels", None),
        ("labels", ""),
        ("labels", "a/b~c"),
    )


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (1, 1.0, True),
        (0, -0.0, True),
        (1, True, False),
        (0, False, False),
        (True, True, True),
        (None, None, True),
        (None, False, False),
        ("1", 1, False),
        ("a", "a", True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": None}, {}, False),
        ([1, [2]], [1, [2.0]], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ([], {}, False),
        ([], None, False),
        ({}, None, False),
        ({"a": [True]}, {"a": [1]}, False),
    ],
)
def test_values_are_compared_as_json(left: Any, right: Any, same: bool) -> None:
    """Both ways alike."""
    assert same_value(left, right) is same
    assert same_value(right, left) is same
