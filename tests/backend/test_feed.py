"""Between a row's state and its row in the feed (SPEC 3 and 5)."""

from __future__ import annotations

import json
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from tests.backend.engine_world import DECLARATION, key
from tidemark.store.base import RowKey
from tidemark.sync import feed
from tidemark_protocol import clock
from tidemark_protocol.merge import Op, RowState, Write, apply
from tidemark_protocol.model import Entity, Field, Key, ScopeColumn

NOTES = DECLARATION.entities["notes"]
KEY = RowKey("user:ada", "notes", key(1))

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
labels = st.dictionaries(st.sampled_from(["a", "b", "x/y", "~"]), st.integers(0, 3), max_size=3)
complete = st.fixed_dictionaries(
    {
        "title": texts,
        "body": texts,
        "count": st.integers(-5, 5),
        "labels": labels,
        "extra": st.none() | st.lists(st.integers(), max_size=2) | st.just({"a": {"b": None}}),
    }
)
patches = st.fixed_dictionaries(
    {}, optional={"title": texts, "labels/a": st.none() | st.integers(0, 3), "extra": st.none()}
)


@st.composite
def states(draw: st.DrawFn) -> RowState:
    """Any state that writes may leave."""
    state: RowState | None = None
    for n in range(draw(st.integers(1, 5))):
        op: Op = draw(st.sampled_from(get_args(Op))) if state is not None else "put"
        values = draw(complete) if op == "put" else draw(patches) if op == "patch" else {}
        if op != "patch" or values:
            state = apply(state, Write(op, clock.reading(1_000 * draw(st.integers(1, 9)), n, "a" * 16), values)).state
    assert state is not None
    return state


@given(states())
def test_a_state_comes_back_from_the_feed(state: RowState) -> None:
    """Nothing of a state is lost between two batches."""
    doc = feed.document(NOTES, KEY.row, state).decode() if state.visible else None
    row = feed.to_feed(KEY, state, 7, doc, 5)
    assert feed.from_feed(NOTES, row) == state
    assert (row.version, row.arrived, row.deleted) == (7, 5, state.deleted)
    again = feed.held_state(row)
    assert (again.root, again.deleted, again.clocks) == (state.root, state.deleted, state.clocks)
    assert again.fields.items() >= state.fields.items()


@given(states())
def test_a_residue_is_what_retention_may_forget(state: RowState) -> None:
    """A tombstone, or the clock of a map key that is not there."""
    row = feed.to_feed(KEY, state, 1, "{}", 5)
    removed = "labels/a" in state.clocks and "a" not in state.fields["labels"] if state.visible else False
    assert row.residue == (state.deleted or removed)


@given(states())
def test_a_change_is_the_document_and_nothing_else(state: RowState) -> None:
    """A document holds key, fields and times; a change wraps it, null for a deletion (I37)."""
    doc = feed.document(NOTES, KEY.row, state).decode() if state.visible else None
    told: Any = json.loads(feed.change(feed.to_feed(KEY, state, 7, doc, 5)))
    assert (told["entity"], told["row"], told["version"]) == ("notes", KEY.row, 7)
    if state.deleted:
        assert told["doc"] is None
    else:
        assert list(told["doc"]) == ["id", *NOTES.fields, "created_at", "updated_at"]
        assert {name: told["doc"][name] for name in NOTES.fields} == state.fields
        assert told["doc"]["updated_at"] == clock.instant(state.latest)


def test_a_key_of_several_columns_stands_there_in_parts() -> None:
    """Each column of a joined key has its text."""
    entity = Entity(
        "lines", "lines", ScopeColumn("user", "user_id"), {}, key=Key(("shop", "line"), ("text", "integer"))
    )
    assert feed.key_values(entity, "a.b:7") == {"shop": "a.b", "line": "7"}


def test_what_a_reference_names_is_text() -> None:
    """A number names the row whose key is its text; null names none."""
    field = Field("number", "integer", nullable=True, ref="numbers")
    assert feed.target_of(RowState("", False, {"number": -7}), field) == "-7"
    assert feed.target_of(RowState("", False, {"number": None}), field) is None


def test_null_collides_with_nothing() -> None:
    """A row with a null under a unique index holds no values there."""
    assert feed.values_of({"a": 1, "b": None}, ("a", "b")) is None
    assert feed.values_of({"a": 1, "b": ""}, ("a", "b")) == (1, "")


def test_hashes_fit_a_signed_column() -> None:
    """63 bits, the same every time."""
    assert all(0 <= feed.row_hash("notes", str(n)) < 1 << 63 for n in range(1_000))
    assert feed.row_hash("notes", "1") == feed.row_hash("notes", "1") != feed.row_hash("note", "s/1")
