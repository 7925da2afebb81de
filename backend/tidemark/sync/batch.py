"""The vocabulary of a batch: units, rows as the merge sees them, and what a unit did."""

from __future__ import annotations

from msgspec import Struct

from tidemark.store.base import FeedRow, RowKey
from tidemark_protocol.errors import Postponed, Rejection
from tidemark_protocol.merge import Effect, RowState, Write
from tidemark_protocol.schema import Entity

from .access import Principal
from .capture import Captured
from .prepare import Prepared


class Limits(Struct, frozen=True):
    """Bounds of a merge: milliseconds, bytes, rows."""

    max_drift: int
    max_doc: int
    retention: int
    cascade: int
    oldest_schema: int
    schema: int


class Unit(Struct):
    """Neighbours that take effect together or not at all: a group, or one mutation (SPEC 4); or, without mutations,
    what SQL did to one row (`captured`).

    `doomed` is set when the database refused the unit as it stood alone, or a table that it names.
    """

    principal: Principal
    client: str
    schema: int
    mutations: list[Prepared]
    doomed: Rejection | Postponed | None = None
    captured: Captured | None = None

    def names(self, entity: str) -> bool:
        """Whether it concerns rows of an entity by itself."""
        if self.captured is not None:
            return self.captured.identity.entity == entity
        return any(prepared.entity == entity for prepared in self.mutations)


class Cell(Struct):
    """A row during the merge: `held` is what the database holds, `doc` the document if it was made here."""

    entity: Entity
    state: RowState | None
    version: int
    held: FeedRow | None
    doc: str | None = None

    @property
    def visible(self) -> bool:
        return self.state is not None and self.state.visible


class Done(Struct):
    """One mutation that took effect within a unit."""

    index: int
    key: RowKey
    cell: Cell
    before: RowState | None
    effect: Effect
    write: Write


class Stop(Exception):
    """A mutation of a unit is not accepted: `fault` says whether for good or for now."""

    def __init__(self, index: int, fault: Rejection | Postponed) -> None:
        super().__init__(fault.message)
        self.index = index
        self.fault = fault
