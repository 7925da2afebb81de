"""What SQL did to captured tables, taken into the feed before a batch builds on it (SPEC 10).

Whatever a table holds otherwise than the feed is a write of its own, later than every write of that row known so far:
for the table is what other programs see. Order, repetition and omission of the inbox's entries do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import proxy

from tidemark.store.base import Identity, InboxEntry, RowKey
from tidemark_protocol import merge, rows
from tidemark_protocol.errors import Postponed, Rejection
from tidemark_protocol.merge import Op, Values, Write
from tidemark_protocol.messages import Result, VerdictError

from . import journal
from .access import Principal
from .batch import Stop, Unit
from .capture import Captured, Image, Reader, UnfitRow, changed, identity_of, row_of, scope_of
from .feed import row_hash
from .journal import Event

if TYPE_CHECKING:
    from .settle import Settlement

BY = "sql"
"""What the journal says of writes that other programs made."""


class Differences:
    """Those of one batch: of the rows that the inbox named, and of the rows that mutations write."""

    def __init__(self, settlement: Settlement, reader: Reader) -> None:
        # Its owner: a strong reference back would leave every batch to the garbage collector.
        self._merge: Settlement = proxy(settlement)
        self._reader = reader
        self._read: dict[Identity, Image | UnfitRow] = {}
        self._left: set[Identity] = set()
        self._named: dict[Identity, Captured] = {}
        self.drained: list[InboxEntry] = []

    def take(self, units: Iterable[Unit]) -> None:
        """Take every difference of the rows known, then what follows from those that went; `units` are the inbox's.

        What follows is left undone where the database refused it before.
        """
        named = [unit for unit in units if unit.captured is not None]
        self._named = {unit.captured.identity: unit.captured for unit in named if unit.captured is not None}
        alone = {u.captured.identity for u in named if u.captured is not None and u.doomed is not None}
        went: list[tuple[Identity, RowKey, str]] = []
        for identity, row in self._merge.facts.tables.items():
            if identity in self._merge.facts.put_off:
                self._left.add(identity)
                continue
            if row is not None:
                self._read[identity] = self._reader.read(row)
            went += self._compare(identity)
        self._merge.keep()
        for identity, key, at in went:
            if identity not in alone:
                self._follow(identity, key, at)

    def verdict(self, captured: Captured, doomed: Rejection | Postponed | None) -> Result:
        """Whether the inbox may forget these entries: `applied`, else `retry`."""
        if isinstance(doomed, Postponed) or captured.identity in self._left:
            return Result(0, "retry", error=VerdictError("unavailable", "its scope or what depends on it is held"))
        read = self._read.get(captured.identity)
        if isinstance(read, UnfitRow) and read.scope is not None:
            self._record_unfit(read, captured)
        self.drained.extend(captured.entries)
        return Result(0, "applied")

    def check_writable(self, key: RowKey) -> None:
        """Before a row of a captured table is written: Postponed while another program holds it, Rejection when the
        table holds its key in another scope.
        """
        facts = self._merge.facts
        identity = identity_of(self._merge.declaration.entities[key.entity], key)
        if identity not in facts.writable:
            self._merge.needs.writable.add(identity)
            return
        if identity in facts.held or identity in facts.put_off:
            raise Postponed("unavailable", "a transaction of another program holds the row")
        row = facts.tables[identity]
        if row is not None and row.scope != rows.scope_id(key.scope):
            raise Rejection("row_taken", "the key is in use in another scope")

    def in_table(self, key: RowKey) -> Mapping[str, Any] | None:
        """What the table holds of a row; nothing that could be known if the feed cannot hold it, None if it is not
        there.
        """
        identity = identity_of(self._merge.declaration.entities[key.entity], key)
        row = self._merge.facts.tables.get(identity)
        if row is None or row.scope != rows.scope_id(key.scope):
            return None
        read = self._read[identity]
        return read.values if isinstance(read, Image) else {}

    # ── one row ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _compare(self, identity: Identity) -> list[tuple[Identity, RowKey, str]]:
        """Delete it where the feed has it and the table has not; put or patch it where the table has it. Gives what
        went, and when.
        """
        read = self._read.get(identity)
        entity = self._merge.declaration.entities[identity.entity]
        row = row_of(entity, identity)
        there = read.key.scope if isinstance(read, Image) else None
        own = scope_of(entity, identity)
        went: list[tuple[Identity, RowKey, str]] = []
        for scope in sorted(self._merge.facts.places.get((entity.name, row), ())):
            key = RowKey(scope, entity.name, row)
            if scope != there and own in {None, scope} and self._merge.cell(key).visible and self._may_write(key):
                went.append((identity, key, self._write(key, "delete", {})))
        if isinstance(read, Image) and self._may_write(read.key):
            # The feed was asked for this row in every scope.
            self._merge.facts.rows.setdefault(read.key, None)
            state = self._merge.cell(read.key).state
            if state is None or not state.visible:
                self._write(read.key, "put", read.values)
            elif values := changed(state, read.values):
                self._write(read.key, "patch", values)
        return went

    def _follow(self, identity: Identity, key: RowKey, at: str) -> None:
        """Carry out what follows from a row that went: all of it, or nothing where it reaches too far. Where another
        program holds a row of it, the difference itself is put off.
        """
        events: list[tuple[str, Event]] = []
        try:
            self._merge.integrity.follow(self._unit(identity), 0, key, at, events)
        except Stop as stop:
            self._merge.roll_back()
            if isinstance(stop.fault, Postponed):
                self._merge.needs.put_off.add(identity)
            return
        self._merge.keep()
        for scope, event in events:
            self._merge.note(scope, event)

    def _may_write(self, key: RowKey) -> bool:
        """Whether its scope is locked; otherwise the difference is left to the next round."""
        if key.scope in self._merge.facts.scopes:
            return True
        self._left.add(identity_of(self._merge.declaration.entities[key.entity], key))
        return False

    def _write(self, key: RowKey, op: Op, values: Values) -> str:
        """Apply a write with the time of capture as its clock, raised above every clock of the row; gives its reading.

        A database's clock far ahead of ours must not hold up the clients of a scope.
        """
        settled = self._merge
        cell = settled.cell(key)
        identity = identity_of(cell.entity, key)
        captured_at, _ = self._origin(identity)
        latest = cell.state.latest if cell.state is not None else ""
        at = settled.above(latest, min(captured_at, settled.now + settled.limits.max_drift))
        effect = merge.apply(cell.state, Write(op, at, values))
        after = settled.store(key, cell, effect.state, at)
        unit = self._unit(identity)
        settled.note(key.scope, journal.own_write(unit, key, op, values, at, after.version, effect, BY))
        return at

    def _unit(self, identity: Identity) -> Unit:
        """In whose name the difference is written: the database's user."""
        _, who = self._origin(identity)
        return Unit(Principal(who, "", admin=False, expires=0), "", self._merge.limits.schema, [])

    def _origin(self, identity: Identity) -> tuple[int, str]:
        """When (ms) SQL changed the row last, and who; now, where no trigger told."""
        known = self._merge.facts.captured
        if identity not in known:
            self._merge.needs.captured.add(identity)
        named, latest = self._named.get(identity), known.get(identity)
        if latest is not None and (named is None or latest.captured_at >= named.at):
            return latest.captured_at, latest.who or ""
        return (self._merge.now, "") if named is None else (named.at, named.who)

    def _record_unfit(self, unfit: UnfitRow, captured: Captured) -> None:
        entity = self._merge.declaration.entities[unfit.identity.entity]
        event = Event(
            outcome="rejected",
            op="put",
            entity=entity.name,
            row=row_of(entity, unfit.identity),
            at="",
            user=captured.who,
            client="",
            version=0,
            content=0,
            code=unfit.why.code,
            message=unfit.why.message,
            field=unfit.why.field,
            scope=unfit.scope,
            by=BY,
        )
        entry = journal.rejection_entry(unfit.scope or "", self._merge.now, event, None)
        entry.rows.append(row_hash(event.entity, event.row))
        self._merge.rejections.append(entry)
