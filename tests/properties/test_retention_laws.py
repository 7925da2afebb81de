"""The laws of forgetting (SPEC 3): nothing that could still decide anything goes."""

from __future__ import annotations

import copy

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.properties.histories import arrivals, arrive, readings, writes
from tidemark.sync.retention import without_forgotten
from tidemark_protocol import clock
from tidemark_protocol.merge import RowState, Write, apply

horizons = st.integers(999, 1_010).map(clock.floor_reading)


def shown(state: RowState | None) -> object:
    """What anybody sees of a row."""
    return None if state is None or state.deleted else state.fields


@settings(max_examples=100)
@given(arrivals(), horizons)
def test_what_shows_is_never_forgotten(order: list[Write], horizon: str) -> None:
    """A visible row stays as it is, down to its put; the state given is not changed."""
    state = arrive(order)[0]
    before = copy.deepcopy(state)
    after = without_forgotten(state, horizon)
    assert state == before
    assert shown(after) == shown(state)
    if after is not None:
        assert (after.root, after.deleted, after.created_at) == (state.root, state.deleted, state.created_at)


@settings(max_examples=100)
@given(arrivals(), horizons)
def test_only_what_lies_before_the_horizon_is_forgotten(order: list[Write], horizon: str) -> None:
    """Whole tombstones, and clocks of keys that are not there; each with all its clocks below the horizon."""
    state = arrive(order)[0]
    after = without_forgotten(state, horizon)
    if after is None:
        assert state.deleted
        assert state.latest < horizon
        return
    forgotten = state.clocks.keys() - after.clocks.keys()
    assert after.clocks.items() <= state.clocks.items()
    assert all("/" in path and state.clocks[path] < horizon for path in forgotten)
    assert not (forgotten and state.deleted)


@settings(max_examples=100)
@given(arrivals(), horizons)
def test_everything_that_may_go_goes_at_once(order: list[Write], horizon: str) -> None:
    """A second look finds nothing more; a tombstone from before the horizon is gone after the first."""
    state = arrive(order)[0]
    after = without_forgotten(state, horizon)
    assert (after is None) == (state.deleted and state.latest < horizon)
    assert after is None or without_forgotten(after, horizon) == after


@settings(max_examples=200)
@given(arrivals(), readings, st.lists(writes(), min_size=1, max_size=4, unique_by=lambda write: write.at))
def test_forgetting_changes_no_later_outcome(order: list[Write], edge: str, later: list[Write]) -> None:
    """Writes at or above the horizon end in the same visible row, whether or not it was swept before them (I11)."""
    horizon = clock.floor_reading(clock.millis_of(edge))
    known = {write.at for write in order}
    later = [write for write in later if write.at >= horizon and write.at not in known]
    assume(later)
    state: RowState | None = arrive(order)[0]
    swept = without_forgotten(arrive(order)[0], horizon)
    for write in later:
        if swept is None and write.op == "patch":
            continue  # refused: the row is unknown
        state, swept = apply(state, write).state, apply(swept, write).state
        assert shown(swept) == shown(state)
