"""The merge of a batch: from prepared mutations and known facts to verdicts and all that is written (SPEC 3 and 4).

Pure but for the rules it calls: no await, no clock, no database. Running it twice on the same facts gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Final

from msgspec import UNSET

from tidemark.store.base import JournalEntry, RowKey, ScopeState
from tidemark_protocol import clock, merge
from tidemark_protocol.errors import Postponed, Rejection
from tidemark_protocol.merge import Effect, RowState, Write
from tidemark_protocol.messages import Result, VerdictError
from tidemark_protocol.schema import Declaration, Entity

from . import feed, journal
from .access import Access, Principal, allows
from .batch import Cell, Done, Limits, Stop, Unit
from .capture import Reader
from .differences import Differences
from .facts import Facts, Needs
from .integrity import Integrity
from .journal import Event, ToldAgain
from .prepare import RANK, Prepared
from .verdicts import FirstVerdicts, reused

_AFTER_ACCESS: Final = RANK["forbidden"]
_AFTER_CLOCK: Final = RANK["clock_ahead"]


class Settlement:
    """One run of the merge over a batch."""

    def __init__(
        self,
        *,
        declaration: Declaration,
        access: Access,
        facts: Facts,
        limits: Limits,
        reader: Reader,
        now: int,
        node: str,
    ) -> None:
        self.declaration = declaration
        self.access = access
        self.facts = facts
        self.limits = limits
        self.now = now
        self.node = node
        self.needs = Needs()
        self.cells: dict[RowKey, Cell] = {}
        self.scopes = {name: copy(state) for name, state in facts.scopes.items()}
        self.failures: list[Exception] = []
        self._undo: dict[RowKey, Cell | None] = {}
        self._marks: dict[str, tuple[int, str]] = {}
        self.events: dict[str, list[Event]] = {}
        self.rejections: list[JournalEntry] = []
        self.first = FirstVerdicts(facts, self.needs, self.events)
        self._horizon = now - limits.retention
        self.integrity = Integrity(self)
        self.differences = Differences(self, reader)

    # ── units ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def unit(self, unit: Unit) -> list[Result]:
        """Settle one unit: its verdicts in order. A `retry` among them means that nothing behind it may be settled."""
        if unit.captured is not None:
            return [self.differences.verdict(unit.captured, unit.doomed)]
        pinned: dict[int, Result] = {}
        while True:
            try:
                results = self._attempt(unit, pinned)
            except Stop as stop:
                self.roll_back()
                first = self.first.verdict(unit, unit.mutations[stop.index], stop.fault)
                if isinstance(first, Result):
                    pinned[stop.index] = first
                    continue
                return self._refuse(unit, stop.index, first)
            except Exception as bug:  # noqa: BLE001 - told with the outcome; neighbours must not suffer
                self.roll_back()
                bug.add_note(f"while settling {_names(unit)} of client {unit.client}")
                self.failures.append(bug)
                return [_retry(p.sent.seq, "unavailable", "it cannot be decided now") for p in unit.mutations]
            self.keep()
            return results

    def _attempt(self, unit: Unit, pinned: Mapping[int, Result]) -> list[Result]:
        results: list[Result] = []
        events: list[tuple[str, Event]] = []
        done: list[Done] = []
        for index, prepared in enumerate(unit.mutations):
            if index in pinned:
                results.append(pinned[index])
                continue
            try:
                if unit.doomed is not None:
                    raise unit.doomed
                results.append(self._one(unit, index, prepared, done, events))
            except (Rejection, Postponed) as fault:
                first = self.first.verdict(unit, prepared, fault)
                if not isinstance(first, Result):
                    raise Stop(index, first) from fault
                results.append(first)
        self.integrity.check(unit, done, events)
        for scope, event in events:
            self.note(scope, event)
        return results

    def _refuse(self, unit: Unit, index: int, fault: Rejection | Postponed) -> list[Result]:
        """One mutation of a unit is not accepted: none is, but for those that had been before."""
        if isinstance(fault, Postponed):
            kept = Postponed("unavailable", "waits with its group")
            errors = [fault if i == index else kept for i in range(len(unit.mutations))]
            return [_retry(p.sent.seq, e.code, e.message) for p, e in zip(unit.mutations, errors, strict=True)]
        with_it = Rejection("group_rejected", f"mutation {unit.mutations[index].sent.seq} of its group was rejected")
        results = []
        for i, prepared in enumerate(unit.mutations):
            why: Result | Rejection | Postponed = fault
            if i != index:
                why = self.first.told_again(unit.principal.user, prepared) or self.first.verdict(
                    unit, prepared, with_it
                )
            if isinstance(why, Rejection):
                self._record_rejection(unit, prepared, why)
                why = journal.rejected(prepared.sent.seq, why)
            if isinstance(why, Result):
                results.append(why)
        return results

    def _record_rejection(self, unit: Unit, prepared: Prepared, why: Rejection) -> None:
        """Once: what is told again is there already. What its author may not write is the author's own affair."""
        if isinstance(why, ToldAgain):
            return
        principal = unit.principal
        foreign = prepared.is_malformed or not self._may_write(principal, prepared.scope)
        event = journal.rejection(unit, prepared, why)
        scope = principal.own if foreign else prepared.scope
        entry = journal.rejection_entry(scope, self.now, event, prepared.reading)
        self.rejections.append(entry)
        self.first.spend(prepared.reading, event)

    def roll_back(self) -> None:
        for key, cell in self._undo.items():
            if cell is None:
                self.cells.pop(key, None)
            else:
                self.cells[key] = cell
        for scope, (head, at) in self._marks.items():
            state = self.scopes[scope]
            state.head, state.clock = head, at
        self.keep()

    def note(self, scope: str, event: Event) -> None:
        """Tell the journal of a scope."""
        self.events.setdefault(scope, []).append(event)

    def keep(self) -> None:
        """What was done so far is not undone any more."""
        self._undo.clear()
        self._marks.clear()

    # ── one mutation ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _one(
        self, unit: Unit, index: int, prepared: Prepared, done: list[Done], events: list[tuple[str, Event]]
    ) -> Result:
        """The checks in the protocol's order, then the clock rule."""
        self.first.check_spent(unit.principal.user, prepared)
        self._check_schema(unit.schema)
        scope = self._check_static(unit.principal, prepared)
        write, entity = prepared.write, prepared.declared
        if write is None or entity is None:
            raise AssertionError("a mutation without a fault has a write")
        key = RowKey(prepared.scope, prepared.entity, prepared.row)
        cell = self.cell(key, entity)
        self._check_row(key, cell, write, max(self._horizon, scope.horizon))
        if (
            cell.state is None
            and write.op == "delete"
            and clock.millis_of(write.at) < max(self._horizon, scope.horizon)
        ):
            return self._superseded(unit, prepared, Effect("superseded", RowState("", True, {})), events)
        effect = merge.apply(cell.state, write)
        if effect.verdict == "clock_reused":
            raise reused()
        if effect.verdict == "superseded":
            return self._superseded(unit, prepared, effect, events)
        if not effect.took_effect:
            return self._applied(prepared, effect, cell.version)
        after = self.store(key, cell, effect.state, write.at, self.limits.max_doc)
        done.append(Done(index, key, after, cell.state, effect, write))
        events.append((key.scope, self._event(unit, prepared, effect, after.version)))
        return self._applied(prepared, effect, after.version)

    def _check_schema(self, number: int) -> None:
        if not self.limits.oldest_schema <= number <= self.limits.schema:
            raise Postponed(
                "schema_mismatch",
                f"this service speaks schema {self.limits.oldest_schema} to {self.limits.schema}, not {number}",
            )

    def _check_static(self, principal: Principal, prepared: Prepared) -> ScopeState:
        """The faults found before, access and the clock, each in its place."""
        fault = prepared.fault
        rank = RANK[fault.code] if fault is not None else len(RANK)
        if fault is not None and rank < _AFTER_ACCESS:
            raise fault
        scope = self._check_access(principal, prepared.scope)
        if fault is not None and rank < _AFTER_CLOCK:
            raise fault
        at = prepared.at
        if clock.millis_of(at) > self.now + self.limits.max_drift and at > scope.clock:
            raise Postponed("clock_ahead", f"at lies more than {self.limits.max_drift} ms ahead of the service's time")
        if fault is not None:
            raise fault
        return scope

    def _check_access(self, principal: Principal, scope: str) -> ScopeState:
        if not self._may_write(principal, scope):
            raise Rejection("forbidden", "no such scope, or it may not be written")
        return self.scopes[scope]

    def _may_write(self, principal: Principal, scope: str) -> bool:
        if scope == principal.own:
            return True
        role = self.facts.roles.get((scope, principal.user))
        return scope in self.scopes and allows(self.access.grant_of(scope, role), "write")

    def _check_row(self, key: RowKey, cell: Cell, write: Write, horizon: int) -> None:
        if cell.entity.capture:
            self.differences.check_writable(key)
        if not cell.entity.key.per_scope and self._lives_elsewhere(key):
            raise Rejection("row_taken", "the key is in use in another scope")
        if cell.state is None and write.op == "patch":
            raise Rejection("row_unknown", "the row never existed")
        if clock.millis_of(write.at) >= horizon:
            return
        if cell.state is None and write.op == "put":
            raise Rejection("too_old", "the write lies before the retention horizon")
        if cell.state is not None and any(
            _forgotten(cell.state, path, write.at) for path in write.values if "/" in path
        ):
            raise Rejection("too_old", "the write of a map key lies before the retention horizon")

    def _lives_elsewhere(self, key: RowKey) -> bool:
        for scope in self.facts.places.get((key.entity, key.row), ()):
            other = RowKey(scope, key.entity, key.row)
            touched = self.cells.get(other)
            held = self.facts.rows.get(other)
            if scope != key.scope and (
                touched.visible if touched is not None else held is not None and not held.deleted
            ):
                return True
        return False

    def _superseded(self, unit: Unit, prepared: Prepared, effect: Effect, events: list[tuple[str, Event]]) -> Result:
        write = prepared.write
        reason = "deleted" if effect.state.deleted and write is not None and write.op == "patch" else None
        event = self._event(unit, prepared, effect, 0)
        event.outcome, event.values, event.reason = "superseded", prepared.sent.fields, reason
        if effect.state.root and write is not None and (write.values or write.op != "patch"):
            event.won = _winners(effect.state, write.values, prepared)
        events.append((prepared.scope, event))
        return Result(prepared.sent.seq, "superseded", reason=UNSET if reason is None else reason)

    def _applied(self, prepared: Prepared, effect: Effect, version: int) -> Result:
        seq = prepared.sent.seq
        if effect.hidden:
            return Result(seq, "superseded", reason="deleted")
        lost = [*map(prepared.as_sent, effect.superseded_paths), *prepared.dropped]
        return Result(seq, "applied", scope=prepared.scope, version=version, superseded_fields=lost or UNSET)

    def _event(self, unit: Unit, prepared: Prepared, effect: Effect, version: int) -> Event:
        write = prepared.write
        patch = write is not None and write.op == "patch"
        event = Event(
            outcome="applied",
            op=prepared.sent.op,
            entity=prepared.entity,
            row=prepared.row,
            at=prepared.at,
            user=unit.principal.user,
            client=unit.client,
            version=version,
            content=prepared.content,
            names=[path for path in prepared.write.values if path not in effect.superseded_paths]
            if patch and prepared.write is not None
            else None,
            overwrote=effect.overwritten or None,
            schema=unit.schema,
        )
        if effect.hidden:
            event.outcome, event.reason, event.values = "superseded", "deleted", prepared.sent.fields
            return event
        lost = [*map(prepared.as_sent, effect.superseded_paths), *prepared.dropped]
        if lost:
            event.values = {path: prepared.sent.fields[path] for path in lost}
        if effect.superseded_paths:
            event.won = _winners(effect.state, effect.superseded_paths, prepared)
        return event

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def cell(self, key: RowKey, entity: Entity | None = None) -> Cell:
        """A row as the batch has left it so far."""
        touched = self.cells.get(key)
        if touched is not None:
            return touched
        entity = entity if entity is not None else self.declaration.entities[key.entity]
        if key not in self.facts.rows:
            self.needs.rows.add(key)
        held = self.facts.rows.get(key)
        if held is None:
            return Cell(entity, None, 0, None)
        return Cell(entity, feed.from_feed(entity, held), held.version, held)

    def store(self, key: RowKey, cell: Cell, after: RowState, at: str, max_doc: int | None = None) -> Cell:
        """Put a row's new state in place; it takes a version if the visible document changes."""
        scope = self.scopes[key.scope]
        version, doc = cell.version, cell.doc
        shows = _shows(cell.state, after)
        if shows and after.visible:
            text = feed.document(cell.entity, key.row, after)
            if max_doc is not None and len(text) > max_doc:
                raise Rejection("too_large", f"the document would hold more than {max_doc} bytes")
            doc = text.decode()
        self._undo.setdefault(key, self.cells.get(key))
        self._marks.setdefault(key.scope, (scope.head, scope.clock))
        if shows:
            scope.head += 1
            version = scope.head
        scope.clock = max(scope.clock, at)
        stored = Cell(cell.entity, after, version, cell.held, doc)
        self.cells[key] = stored
        self.facts.places[key.entity, key.row].add(key.scope)
        self.integrity.noted(key, stored)
        return stored

    def write_for(self, unit: Unit, key: RowKey, op: str, values: dict[str, Any], above: str) -> tuple[str, Event]:
        """A write of the server's own (`cascade`, `set_null`), with a reading above every clock of the row."""
        cell = self.cell(key)
        if cell.state is None:
            raise AssertionError("only rows that are there are written on")
        if cell.entity.capture:
            self.differences.check_writable(key)
        at = self.above(max(above, cell.state.latest), self.now)
        write = Write("delete" if op == "cascade" else "patch", at, values)
        effect = merge.apply(cell.state, write)
        after = self.store(key, cell, effect.state, at)
        event = journal.own_write(unit, key, write.op, values, at, after.version, effect, op)
        return key.scope, event

    def above(self, at: str, now: int) -> str:
        """A reading of the server's at wall time `now`, above `at` ("" for none)."""
        return clock.Clock(self.node, at or None).issue(now)

    def undone(self, key: RowKey) -> Cell:
        """A row as it was before the present unit."""
        before = self._undo.get(key)
        if before is not None:
            return before
        held = self.facts.rows.get(key)
        entity = self.declaration.entities[key.entity]
        return Cell(entity, None if held is None else feed.from_feed(entity, held), 0, held)


def _names(unit: Unit) -> str:
    return ", ".join(f"{p.sent.seq} ({p.entity}/{p.row})" for p in unit.mutations[:5])


def _retry(seq: int, code: str, message: str) -> Result:
    return Result(seq, "retry", error=VerdictError(code, message))


def _shows(before: RowState | None, after: RowState) -> bool:
    """Whether the visible document changes: it appears, goes, or differs (in `updated_at` at least)."""
    was = before is not None and before.visible
    if not (was and after.visible) or before is None:
        return was or after.visible
    if clock.millis_of(before.latest) != clock.millis_of(after.latest):
        return True
    return not merge.same_value(before.fields, after.fields)


def _forgotten(state: RowState, path: str, at: str) -> bool:
    """Whether a map key's clock may have been forgotten: it has none, and no later clock stands above it."""
    field = path.partition("/")[0]
    return path not in state.clocks and state.clocks.get(field, "") <= at and state.root <= at


def _winners(state: RowState, paths: Iterable[str], prepared: Prepared) -> dict[str, str]:
    """For each path, as it was sent, the clock that won over it."""
    winners: dict[str, str] = {}
    for path in list(paths) or ("",):
        field = path.partition("/")[0]
        winners[prepared.as_sent(path)] = max(state.root, state.clocks.get(field, ""), state.clocks.get(path, ""))
    return winners
