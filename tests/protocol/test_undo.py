"""Back in time: what a row held before a write, from what it overwrote (SPEC 7)."""

from __future__ import annotations

from hypothesis import given, settings

from tests.properties.histories import arrivals
from tidemark_protocol.merge import RowState, Write, apply, same_value
from tidemark_protocol.undo import before, value_at, with_value


@settings(max_examples=150)
@given(arrivals())
def test_every_write_can_be_undone(order: list[Write]) -> None:
    """From the fields after a write and what it overwrote come the fields before it, in any order of arrival; a delete
    overwrites all of them, and a put all of whose fields later writes kept tells nothing of what it met.
    """
    state: RowState | None = None
    for write in order:
        effect = apply(state, write)
        shown = None if state is None or state.deleted else state.fields
        if effect.took_effect and not effect.hidden and (shown is None or effect.overwritten):
            told = before(effect.state.fields, write.op, effect.overwritten)
            assert (told is None) == (shown is None)
            assert same_value(told, shown)
        if effect.took_effect and write.op == "delete" and shown is not None:
            assert same_value(effect.overwritten, shown)
        state = effect.state


def test_values_are_found_and_laid_by_their_path() -> None:
    """A field, a key of a map, escaped or absent; None removes a key."""
    fields = {"name": None, "labels": {"a/b": 1}}
    assert value_at(fields, "name") is None
    assert value_at(fields, "labels/a~1b") == 1
    assert value_at(fields, "labels/c") is None
    assert with_value(fields, "labels/a~1b", None) == {"name": None, "labels": {}}
    assert with_value(fields, "labels/c", 2)["labels"] == {"a/b": 1, "c": 2}
    assert fields == {"name": None, "labels": {"a/b": 1}}
