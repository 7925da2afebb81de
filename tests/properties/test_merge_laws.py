"""The laws of merging (SPEC 3, 9.3): any order, any repetition, one outcome."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.properties.fold import fold
from tests.properties.histories import MAPS, arrivals, arrive, patches
from tidemark_protocol import clock
from tidemark_protocol.merge import RowState, Write, apply, same_value


@settings(max_examples=400)
@given(arrivals())
def test_the_outcome_is_the_fold_in_clock_order(order: list[Write]) -> None:
    """Whatever the order of arrival and however often each write comes, the row is what section 3 says (I7)."""
    state, effects = arrive(order)
    folded = fold(order)
    assert state.deleted == (folded.doc is None)
    assert same_value(state.fields, folded.kept if folded.doc is None else folded.doc)
    assert (state.root, state.clocks) == (folded.root, folded.clocks)
    assert state.latest == folded.updated_at
    assert not any(effect.verdict == "clock_reused" for effect in effects)


@settings(max_examples=100)
@given(arrivals(), st.data())
def test_order_does_not_matter(order: list[Write], data: st.DataObject) -> None:
    """Two replicas that got the same writes in different orders hold the same (I7)."""
    other = data.draw(st.permutations(order))
    assume(other[0].op != "patch")
    one, two = arrive(order)[0], arrive(other)[0]
    two.created_at = one.created_at  # the one thing that may depend on the order
    assert one == two


@settings(max_examples=100)
@given(arrivals())
def test_replay_changes_nothing(order: list[Write]) -> None:
    """Every write delivered again is known, and leaves the very same state (I8)."""
    state, _ = arrive(order)
    before = copy.deepcopy(state)
    for write in order:
        again = apply(state, write)
        assert again.state is state
        assert not again.took_effect
        assert again.overwritten == {}
        assert again.verdict in {"applied", "superseded"}
    assert state == before


@settings(max_examples=100)
@given(arrivals())
def test_a_replay_is_applied_while_some_path_survives(order: list[Write]) -> None:
    """`applied` if a clock of it stands on the row, `superseded` with all its paths otherwise (SPEC 4)."""
    state, _ = arrive(order)
    for write in order:
        effect = apply(state, write)
        if write.op != "patch":
            assert (effect.verdict == "applied") == (state.root == write.at)
            continue
        lost = [path for path in write.values if state.clocks.get(path) != write.at]
        assert (effect.verdict == "superseded") == (len(lost) == len(write.values))
        if effect.verdict == "applied":
            assert list(effect.superseded_paths) == lost


@settings(max_examples=100)
@given(arrivals())
def test_nothing_given_is_changed(order: list[Write]) -> None:
    """`apply` is pure: neither the state nor the write given to it moves, nor do earlier states."""
    kept: list[tuple[Any, Any]] = []
    state: RowState | None = None
    for write in order:
        kept += [(write, copy.deepcopy(write)), (state, copy.deepcopy(state))]
        state = apply(state, write).state
    assert all(given == before for given, before in kept)


@settings(max_examples=100)
@given(arrivals())
def test_what_took_effect_is_told(order: list[Write]) -> None:
    """`took_effect` says that clocks moved; `overwritten` holds what showed at each path taken, and nothing else."""
    state, _ = arrive(order[:1])
    for write in order[1:]:
        effect = apply(state, write)
        moved = (effect.state.root, effect.state.clocks) != (state.root, state.clocks)
        assert effect.took_effect == moved
        assert effect.state is state or moved
        if state.deleted or not moved:
            assert effect.overwritten == {}
        elif write.op == "patch":
            assert set(effect.overwritten) == set(write.values) - set(effect.superseded_paths)
        state = effect.state


@settings(max_examples=100)
@given(arrivals(), patches(), patches())
def test_patches_of_different_fields_both_survive(order: list[Write], one: dict[str, Any], two: dict[str, Any]) -> None:
    """Concurrent patches without a common path are both on the row, whichever came first (I9)."""
    one = {path: value for path, value in one.items() if not any(_overlap(path, other) for other in two)}
    assume(one)
    state, _ = arrive(order)
    assume(state.visible)
    first, second = (
        Write("patch", clock.reading(2_000, 0, "0" * 16), one),
        Write("patch", clock.floor_reading(2_001), two),
    )
    there, back = arrive([first, second], state)[0], arrive([second, first], state)[0]
    assert there == back
    assert there.clocks.items() >= {**dict.fromkeys(one, first.at), **dict.fromkeys(two, second.at)}.items()


@settings(max_examples=100)
@given(arrivals(), st.data())
def test_a_reading_with_another_value_is_reused(order: list[Write], data: st.DataObject) -> None:
    """A write at a surviving path's clock that sets it to something else is `clock_reused` and does nothing."""
    state, _ = arrive(order)
    path = data.draw(st.sampled_from(sorted(state.clocks)) if state.clocks else st.nothing())
    field, slash, _ = path.partition("/")
    value: Any = "something else" if slash or field not in MAPS else {"else": 1}
    effect = apply(state, Write("patch", state.clocks[path], {path: value}))
    assert (effect.verdict, effect.state is state) == ("clock_reused", True)


@settings(max_examples=100)
@given(arrivals())
def test_a_delete_beats_what_is_earlier_and_a_later_put_revives(order: list[Write]) -> None:
    """After the last clock, a delete hides the row from every patch, and a put brings it back as it says (I10)."""
    delete = Write("delete", clock.floor_reading(2_000), {})
    patch = Write("patch", clock.floor_reading(2_001), {"name": "late"})
    put = Write("put", clock.floor_reading(2_002), {"name": "n", "color": None, "labels": {}, "links": {}})
    gone, effects = arrive([delete, patch], arrive(order)[0])
    assert (gone.deleted, effects[1].hidden, effects[1].overwritten) == (True, True, {})
    back, _ = arrive([put], gone)
    assert (back.deleted, back.fields, back.clocks) == (False, put.values, {})
    assert back.created_at == clock.instant(put.at)


def _overlap(one: str, two: str) -> bool:
    return one == two or one.startswith(f"{two}/") or two.startswith(f"{one}/")
