"""Random histories of one row: valid writes in any order of arrival, some of them more than once."""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tidemark_protocol import clock
from tidemark_protocol.merge import Effect, RowState, Write, apply, escape

MAPS = frozenset({"labels", "links"})
PLAIN = ["name", "color"]
KEYS = ["a", "b", "x/y", "~", "~1", "a/"]

scalars = st.sampled_from([None, 0, 1, True, False, "", "text", 1.5])
entries = st.sampled_from([1, True, "v", ["w"], {"deep": 1}])
maps = st.dictionaries(st.sampled_from(KEYS), entries, max_size=3)
nodes = st.sampled_from(["00000000000000aa", "00000000000000bb"])
readings = st.builds(clock.reading, st.integers(1_000, 1_008), st.integers(0, 2), nodes)


@st.composite
def patches(draw: st.DrawFn) -> dict[str, Any]:
    """What a patch may set: plain fields, maps as a whole or some of their keys, never overlapping."""
    values: dict[str, Any] = draw(st.dictionaries(st.sampled_from(PLAIN), scalars, max_size=2))
    for field in MAPS:
        if draw(st.booleans()):
            values[field] = draw(maps)
        else:
            keyed = draw(st.dictionaries(st.sampled_from(KEYS), st.none() | entries, max_size=2))
            values |= {f"{field}/{escape(key)}": value for key, value in keyed.items()}
    assume(values)
    return values


@st.composite
def writes(draw: st.DrawFn) -> Write:
    """Any valid write of one row."""
    op = draw(st.sampled_from(["put", "patch", "patch", "patch", "delete"]))
    if op == "put":
        values = {field: draw(scalars) for field in PLAIN} | {field: draw(maps) for field in MAPS}
        return Write("put", draw(readings), values)
    if op == "patch":
        return Write("patch", draw(readings), draw(patches()))
    return Write("delete", draw(readings), {})


@st.composite
def arrivals(draw: st.DrawFn) -> list[Write]:
    """Writes of one row in the order they arrive, some more than once; the first is no patch (`row_unknown`)."""
    unique = draw(st.lists(writes(), min_size=1, max_size=9, unique_by=lambda write: write.at))
    repeated = draw(st.lists(st.sampled_from(unique), max_size=5))
    order = draw(st.permutations(unique + repeated))
    first = next((n for n, write in enumerate(order) if write.op != "patch"), None)
    assume(first is not None)
    assert first is not None
    return [order[first], *order[:first], *order[first + 1 :]]


def arrive(order: list[Write], state: RowState | None = None) -> tuple[RowState, list[Effect]]:
    """The row and the verdicts after writes have arrived in this order."""
    effects: list[Effect] = []
    for write in order:
        effects.append(apply(state, write))
        state = effects[-1].state
    assert state is not None
    return state, effects
