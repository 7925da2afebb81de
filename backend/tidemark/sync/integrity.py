"""What a unit must leave whole: references, uniqueness, rules (SPEC 4 and 10), checked as the unit leaves its rows.

References and uniqueness never look beyond the row's scope.
"""

from __future__ import annotations

from collections import defaultdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import proxy

from tidemark.store.base import RowKey
from tidemark_protocol.errors import Postponed, Rejection
from tidemark_protocol.model import Entity, Field

from . import rules
from .batch import Cell, Done, Stop, Unit
from .facts import Holding, Referring
from .feed import target_of, values_of
from .journal import Event

if TYPE_CHECKING:
    from .settle import Settlement


class Integrity:
    """The checks at the end of each unit, with an index of what the batch has put where.

    Entries of the index may be stale (a row moved on, a unit was rolled back): each is held against the row when read.
    """

    def __init__(self, settlement: Settlement) -> None:
        # Its owner: a strong reference back would leave every batch to the garbage collector.
        self._merge: Settlement = proxy(settlement)
        self._referring: dict[Referring, set[str]] = defaultdict(set)
        self._holding: dict[Holding, set[str]] = defaultdict(set)

    def noted(self, key: RowKey, cell: Cell) -> None:
        """Remember what a row refers to and which unique values it holds."""
        state, entity = cell.state, cell.entity
        if state is None or not state.visible:
            return
        for field in entity.refs:
            target = target_of(state, field)
            if target is not None:
                self._referring[key.scope, key.entity, field.name, target].add(key.row)
        for fields in entity.unique:
            values = values_of(state.fields, fields)
            if values is not None:
                self._holding[key.scope, key.entity, fields, values].add(key.row)

    def check(self, unit: Unit, done: list[Done], events: list[tuple[str, Event]]) -> None:
        """Raise Stop at the first mutation that the outcome does not bear; carries out `cascade` and `set_null`.

        These come first: everything is checked as the unit leaves it.
        """
        gone = {
            deed.index: self.follow(unit, deed.index, deed.key, deed.write.at, events)
            for deed in done
            if self._takes_away(deed)
        }
        for deed in done:
            entity = deed.cell.entity
            try:
                if entity.refs:
                    self._check_references(deed)
                if deed.index in gone:
                    self._check_restricted(gone[deed.index])
                if entity.unique:
                    self._check_unique(deed)
                if rules.has_rules(entity):
                    self._check_rules(unit, deed)
            except Rejection as fault:
                raise Stop(deed.index, unit.mutations[deed.index].told(fault)) from fault

    # ── references ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_references(self, deed: Done) -> None:
        """A reference set by this write, and by none that came later, names a visible row of the scope."""
        left = self._merge.cell(deed.key).state
        if left is None or not left.visible:
            return
        for field in deed.cell.entity.refs:
            target = target_of(left, field)
            if target is None or field.ref is None or left.clocks.get(field.name, left.root) != deed.write.at:
                continue
            key = RowKey(deed.key.scope, field.ref, target)
            unknown = key not in self._merge.facts.rows and key not in self._merge.cells
            if not self._merge.cell(key).visible and not unknown:
                raise Rejection("ref_missing", f"{field.name} names no row of {field.ref}", field.name)

    def _takes_away(self, deed: Done) -> bool:
        """Whether this write took away a visible row that others may refer to, and the unit left it so."""
        return (
            deed.write.op == "delete"
            and bool(self._merge.declaration.referrers[deed.key.entity])
            and deed.before is not None
            and deed.before.visible
            and not self._merge.cell(deed.key).visible
        )

    def follow(self, unit: Unit, index: int, went: RowKey, at: str, events: list[tuple[str, Event]]) -> list[RowKey]:
        """Carry out what follows from a row that went at `at`; gives it and the rows that went with it.

        Raises Stop for the unit's mutation at `index`.
        """
        gone = [went]
        budget = self._merge.limits.cascade
        for key in gone:
            for entity, field in self._merge.declaration.referrers[key.entity]:
                if field.on_delete not in {"cascade", "set_null"}:
                    continue
                for other in self._referrers(key, entity.name, field):
                    budget -= 1
                    if budget < 0:
                        fault = Rejection("constraint_violation", "the delete reaches more rows than a cascade may")
                        raise Stop(index, fault)
                    values = {} if field.on_delete == "cascade" else {field.name: None}
                    try:
                        events.append(self._merge.write_for(unit, other, field.on_delete, values, at))
                    except Postponed as held:
                        raise Stop(index, held) from held
                    if field.on_delete == "cascade":
                        gone.append(other)
        return gone

    def _check_restricted(self, gone: list[RowKey]) -> None:
        """No visible row refers by `restrict` to one that went."""
        for key in gone:
            for entity, field in self._merge.declaration.referrers[key.entity]:
                if field.on_delete == "restrict" and self._referrers(key, entity.name, field):
                    raise Rejection("ref_in_use", f"rows of {entity.name} refer to it by {field.name}")

    def _referrers(self, gone: RowKey, entity: str, field: Field) -> list[RowKey]:
        """Visible rows that name the row that went."""
        merge = self._merge
        need: Referring = (gone.scope, entity, field.name, gone.row)
        if need not in merge.facts.referring:
            merge.needs.referring.add(need)
        rows = dict.fromkeys(merge.facts.referring.get(need, ()))
        rows.update(dict.fromkeys(sorted(self._referring.get(need, ()))))
        found = []
        for row in rows:
            key = RowKey(gone.scope, entity, row)
            state = merge.cell(key).state
            if state is not None and state.visible and target_of(state, field) == gone.row:
                found.append(key)
        return found

    # ── uniqueness ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_unique(self, deed: Done) -> None:
        """No other visible row of the scope holds the unique values that this row took in this unit."""
        merge, key = self._merge, deed.key
        left = merge.cell(key).state
        if left is None or not left.visible:
            return
        before = merge.undone(key).state
        for fields in deed.cell.entity.unique:
            values = values_of(left.fields, fields)
            if values is None or (before is not None and before.visible and values_of(before.fields, fields) == values):
                continue
            need: Holding = (key.scope, key.entity, fields, values)
            if need not in merge.facts.holders:
                merge.needs.holders.add(need)
            for row in {*merge.facts.holders.get(need, ()), *self._holding.get(need, ())} - {key.row}:
                other = merge.cell(RowKey(key.scope, key.entity, row)).state
                if other is not None and other.visible and values_of(other.fields, fields) == values:
                    raise Rejection("unique_violation", f"another row holds the same {', '.join(fields)}", fields[0])

    def swapped(self) -> set[RowKey]:
        """Live rows whose unique values pass to another row within the batch: the table must let go of them first.

        Not for adopted tables, whose rows hold more than is known here.
        """
        found: set[RowKey] = set()
        for (scope, entity, fields, values), rows in self._merge.facts.holders.items():
            if self._merge.declaration.entities[entity].adopted:
                continue
            for row in rows:
                key = RowKey(scope, entity, row)
                cell = self._merge.cells.get(key)
                if cell is None or not cell.visible or self._holds_now(key, fields, values):
                    continue
                if any(
                    self._holds_now(RowKey(scope, entity, other), fields, values)
                    for other in self._taken(key, fields, values)
                ):
                    found.add(key)
        return found

    def _taken(self, key: RowKey, fields: tuple[str, ...], values: tuple[Any, ...]) -> set[str]:
        return self._holding.get((key.scope, key.entity, fields, values), set()) - {key.row}

    def _holds_now(self, key: RowKey, fields: tuple[str, ...], values: tuple[Any, ...]) -> bool:
        cell = self._merge.cells.get(key)
        state = None if cell is None else cell.state
        return state is not None and state.visible and values_of(state.fields, fields) == values

    # ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_rules(self, unit: Unit, deed: Done) -> None:
        entity: Entity = deed.cell.entity
        before = deed.before.fields if deed.before is not None and deed.before.visible else None
        after = deed.effect.state
        if deed.write.op == "delete":
            if before is None:
                return
            when: rules.When = "delete"
            row = before
        elif not after.visible:
            return
        else:
            when = "patch" if before is not None else "put"
            row = after.fields
        rules.check(
            entity,
            rules.Deed(
                when,
                deed.key.scope,
                entity.name,
                deed.key.row,
                unit.principal.user,
                MappingProxyType(row),
                None if before is None else MappingProxyType(before),
            ),
        )
