"""What the merge of a batch must know of the database, loaded in sets.

What the mutations themselves name is loaded before. The merge runs on what is known, notes what it misses (assuming
the best), and is run again when that has been loaded: so a batch costs a round trip for each depth of dependence, never
one for each row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from msgspec import Struct

from tidemark.store.base import FeedRow, Identity, InboxEntry, RowKey, ScopeState, TableRow, Transaction
from tidemark_protocol import clock
from tidemark_protocol.model import Declaration

from .capture import anywhere, identity_of
from .feed import row_hash, values_of
from .journal import Event, decode, events_of, spent_hash
from .prepare import Prepared

Referring = tuple[str, str, str, str]
"""(scope, entity, field, target): which rows of the entity name the target in that field."""
Holding = tuple[str, str, tuple[str, ...], tuple[Any, ...]]
"""(scope, entity, fields, values): which row holds these values."""
Recorded = tuple[str, str, str, str, str]
"""(scope, user, entity, row, at): what the journal recorded of this user's mutation."""

_ENTRIES: Final = 1_000
"""Entries of the journal read for the refused mutations of one user in one scope."""
_CLOCK_SKEW: Final = 10 * 60 * 1_000
"""How far (ms) the wall clocks of two processes, or of one at two times, may stand apart."""


class Needs(Struct):
    """Facts that the merge missed."""

    rows: set[RowKey] = set()
    recorded: set[Recorded] = set()
    referring: set[Referring] = set()
    holders: set[Holding] = set()
    writable: set[Identity] = set()
    captured: set[Identity] = set()
    put_off: set[Identity] = set()

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__struct_fields__)


class Facts:
    """What is known so far, within one transaction. `reach` bounds the rows that are loaded ahead of a cascade;
    `max_drift` (ms) is how far ahead of its arrival a reading may lie.
    """

    def __init__(self, declaration: Declaration, reach: int, max_drift: int) -> None:
        self._declaration = declaration
        self._reach = reach
        self._max_drift = max_drift
        self.scopes: dict[str, ScopeState] = {}
        self.roles: dict[tuple[str, str], str] = {}
        self.rows: dict[RowKey, FeedRow | None] = {}
        self.places: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.spent: dict[int, list[Event]] = {}
        self.recorded: dict[Recorded, list[Event]] = {}
        self.referring: dict[Referring, list[str]] = {}
        self.holders: dict[Holding, list[str]] = {}
        self.tables: dict[Identity, TableRow | None] = {}
        """What captured tables hold."""
        self.writable: set[Identity] = set()
        """Rows of captured tables that were asked for to be written: locked, or absent, or `held`."""
        self.held: set[Identity] = set()
        """Those that a transaction of another program holds."""
        self.put_off: set[Identity] = set()
        """Those whose difference has consequences that such a transaction holds up."""
        self.captured: dict[Identity, InboxEntry | None] = {}
        """The latest that the inbox tells of a row."""

    async def load_rows(self, tx: Transaction, keys: Iterable[RowKey]) -> None:
        wanted = [key for key in dict.fromkeys(keys) if key not in self.rows]
        if not wanted:
            return
        self.rows.update(dict.fromkeys(wanted))
        for row in await tx.load(wanted):
            self.rows[RowKey(row.scope, row.entity, row.row)] = row
            self.places[row.entity, row.row].add(row.scope)

    def named(self, mutations: Iterable[Prepared]) -> Needs:
        """What mutations of locked scopes will need as far as they say it themselves: the rows that they write and
        refer to, who holds the unique values that they set, and who refers to what they delete.
        """
        needs = Needs()
        for prepared in mutations:
            write, entity, scope = prepared.write, prepared.declared, prepared.scope
            if write is None or entity is None or scope not in self.scopes:
                continue
            needs.rows.add(RowKey(scope, entity.name, prepared.row))
            if entity.capture:
                needs.writable.add(identity_of(entity, RowKey(scope, entity.name, prepared.row)))
            for field in entity.refs:
                target = write.values.get(field.name)
                if target is not None and field.ref is not None:
                    needs.rows.add(RowKey(scope, field.ref, str(target)))
            for fields in entity.unique:
                values = values_of(write.values, fields)
                if values is not None:
                    needs.holders.add((scope, entity.name, fields, values))
            if write.op == "delete":
                needs.referring.update(self._referring_to(RowKey(scope, entity.name, prepared.row)))
        return needs

    def _referring_to(self, target: RowKey) -> Iterator[Referring]:
        for entity, field in self._declaration.referrers[target.entity]:
            if field.on_delete != "keep":
                yield target.scope, entity.name, field.name, target.row

    async def load_spent(self, tx: Transaction, hashes: set[int]) -> None:
        for row in await tx.spent(hashes) if hashes else ():
            for event in decode(row):
                self.spent.setdefault(spent_hash(event), []).append(event)

    async def load(self, tx: Transaction, needs: Needs) -> None:
        """Everything the merge missed, one query for each kind, scope and field."""
        self.put_off |= needs.put_off
        await self.load_tables(tx, needs.writable, writable=True)
        await self.load_rows(tx, needs.rows)
        await self.load_captured(tx, needs.captured)
        await self._load_recorded(tx, needs.recorded)
        await self._load_referring(tx, needs.referring)
        await self._load_holders(tx, needs.holders)

    async def load_tables(self, tx: Transaction, identities: Collection[Identity], *, writable: bool) -> None:
        """What captured tables hold of these rows, and the feed of them in any scope; `writable` locks them first."""
        wanted = [i for i in identities if i not in (self.writable if writable else self.tables)]
        if not wanted:
            return
        found, held = await tx.table_rows(wanted, wanted if writable else ())
        self.tables.update(dict.fromkeys(wanted))
        self.tables.update((row.identity, row) for row in found)
        if writable:
            self.writable.update(wanted)
            self.held |= held
        await self.load_rows(tx, [anywhere(self._declaration.entities[i.entity], i) for i in wanted])

    async def load_captured(self, tx: Transaction, identities: Collection[Identity]) -> None:
        """What the inbox tells of these rows, having looked at their tables: of whatever was found there, or later."""
        self.captured.update(dict.fromkeys(identities))
        for entry in await tx.captured(identities) if identities else ():
            self.captured[Identity(entry.entity, entry.identity)] = entry

    async def _load_recorded(self, tx: Transaction, needs: set[Recorded]) -> None:
        """What the journal recorded, oldest first; a question for each user, so that nobody's bound is used up by
        another.

        A mutation arrives `max_drift` before its reading at the earliest. Given up are verdicts behind `_ENTRIES`
        others of the rows asked about, counted from the earliest of the user's readings; and those of mutations that
        arrived earlier still: before `max_drift` was lowered, or while the clock of the scope, and so a reading, ran
        more than `_CLOCK_SKEW` further ahead.
        """
        by_user: dict[tuple[str, str], list[Recorded]] = defaultdict(list)
        for asked in needs:
            self.recorded[asked] = []
            by_user[asked[:2]].append(asked)
        for (scope, user), mutations in by_user.items():
            hashes = {row_hash(entity, row) for _, _, entity, row, _ in mutations}
            earliest = min(clock.millis_of(at) for *_, at in mutations)
            since = earliest - self._max_drift - _CLOCK_SKEW
            for event in events_of(user, await tx.entries_of(scope, hashes, since, _ENTRIES)):
                found = self.recorded.get((scope, user, event.entity, event.row, event.at))
                if found is not None:
                    found.append(event)

    async def _load_referring(self, tx: Transaction, needs: set[Referring]) -> None:
        """Who refers to these rows, and where that is a cascade, who refers to those in turn."""
        found = 0
        while needs and found <= self._reach:
            by_field: dict[tuple[str, str, str], set[str]] = defaultdict(set)
            for scope, entity, field, target in needs:
                self.referring[scope, entity, field, target] = []
                by_field[scope, entity, field].add(target)
            keys: list[RowKey] = []
            needs = set()
            for (scope, entity, field), targets in by_field.items():
                cascades = self._declaration.entities[entity].fields[field].on_delete == "cascade"
                for target, row in await tx.referring(scope, entity, field, targets):
                    self.referring[scope, entity, field, target].append(row)
                    keys.append(RowKey(scope, entity, row))
                    if cascades:
                        needs.update(self._referring_to(keys[-1]))
            await self.load_rows(tx, keys)
            needs -= self.referring.keys()
            found += len(keys)

    async def _load_holders(self, tx: Transaction, needs: set[Holding]) -> None:
        by_index: dict[tuple[str, str, tuple[str, ...]], set[tuple[Any, ...]]] = defaultdict(set)
        for scope, entity, fields, values in needs:
            self.holders[scope, entity, fields, values] = []
            by_index[scope, entity, fields].add(values)
        found: list[RowKey] = []
        for (scope, entity, fields), tuples in by_index.items():
            for values, row in await tx.holders(scope, entity, fields, tuples):
                self.holders[scope, entity, fields, values].append(row)
                found.append(RowKey(scope, entity, row))
        await self.load_rows(tx, found)
