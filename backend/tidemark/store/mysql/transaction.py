"""A transaction of the MySQL store."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final, TypeVar

from msgspec import json
from msgspec.structs import astuple

from tidemark.store import sql
from tidemark.store.base import (
    ConstraintFailed,
    FeedRow,
    Held,
    Identity,
    InboxEntry,
    JournalRow,
    RowImage,
    RowKey,
    RowTaken,
    Saved,
    ScopeState,
    TableAway,
    TableRow,
)
from tidemark.store.entities import by_entity, identities_by_entity, images_by_entity

from . import sql as statements
from .pool import Session, Unfitting, Waited
from .sql import MysqlTable, any_of

T = TypeVar("T")

MAKING: Final = tuple(f"making:{number:02x}" for number in range(256))
"""Names in `sync_meta`: whoever makes a scope locks the one that its name falls on, so that nobody waits for a scope
that is not committed yet.
"""
_BRIEFLY: Final = 1
"""Seconds that what is saved into a captured table waits for other programs."""


class MysqlTransaction:
    """A `Transaction` on one connection."""

    def __init__(self, session: Session, tables: dict[str, MysqlTable]) -> None:
        self._session = session
        self._tables = tables
        self.failure: Exception | None = None

    async def lock(self, scopes: Collection[str], create: Collection[str]) -> dict[str, ScopeState]:
        locked = await self._locked({*scopes, *create})
        missing = {scope for scope in create if scope not in locked}
        if missing:
            made = await self._make(missing)
            locked |= made
            # What is missing still was made by someone else: it is there now, or locked.
            locked |= await self._locked(missing - made.keys())
        return locked

    async def roles(self, members: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        if not members:
            return {}
        where, values = any_of(["scope", '"user"'], members)
        found = await self._fetch(f'SELECT scope, "user", role FROM sync_member WHERE {where}', *values)
        return {(scope, user): role for scope, user, role in found}

    async def load(self, keys: Collection[RowKey]) -> list[FeedRow]:
        shared = {key[1:] for key in keys if not self._tables[key.entity].table.entity.key.per_scope}
        exact = {(key.entity, key.scope, key.row) for key in keys if key[1:] not in shared}
        found: list[FeedRow] = []
        for columns, rows in ((["entity", '"row"'], shared), (["entity", "scope", '"row"'], exact)):
            if rows:
                where, values = any_of(columns, rows)
                found += sql.feed_rows(await self._fetch(statements.LOAD + where, *values))
        return found

    async def spent(self, hashes: Collection[int]) -> list[JournalRow]:
        if not hashes:
            return []
        return [JournalRow(*row) for row in await self._fetch(statements.SPENT, tuple(hashes))]

    async def entries_of(self, scope: str, rows: Collection[int], since: int, limit: int) -> list[JournalRow]:
        if not rows:
            return []
        ((earliest,),) = await self._fetch(statements.EARLIEST, since)
        if earliest is None:
            return []
        found = await self._fetch(statements.ENTRIES, scope, earliest, since, statements.pattern(rows), limit)
        return [JournalRow(*row) for row in found]

    async def referring(self, scope: str, entity: str, field: str, targets: Collection[str]) -> list[tuple[str, str]]:
        integer = self._tables[entity].table.fields[field].kind == "integer"
        found = await self.holders(
            scope, entity, (field,), [(int(target) if integer else target,) for target in targets]
        )
        return [(str(target), row) for (target,), row in found]

    async def holders(
        self, scope: str, entity: str, fields: tuple[str, ...], values: Collection[tuple[Any, ...]]
    ) -> list[tuple[tuple[Any, ...], str]]:
        if not values:
            return []
        table = self._tables[entity]
        statement, parameters = table.holders(scope, fields, values)
        asked = {each: each for each in values}
        with self._using(entity, whole=True):
            rows = await self._fetch(statement, *parameters)
        found = (table.held(fields, row) for row in rows)
        return [(asked[held], row) for held, row in found if held in asked]

    async def set_role(self, scope: str, user: str, role: str | None) -> None:
        if role is None:
            await self._execute('DELETE FROM sync_member WHERE scope = %s AND "user" = %s', scope, user)
        else:
            await self._execute(statements.SET_ROLE, scope, user, role, role)

    async def table_rows(
        self, identities: Collection[Identity], lock: Collection[Identity]
    ) -> tuple[list[TableRow], set[Identity]]:
        locked = {row.identity: row for row in await self._rows(lock, " FOR UPDATE SKIP LOCKED")}
        seen = await self._rows(set(identities) - locked.keys())
        return [*locked.values(), *seen], {row.identity for row in seen} & set(lock)

    async def captured(self, identities: Collection[Identity]) -> list[InboxEntry]:
        if not identities:
            return []
        where, values = any_of(["entity", "identity"], identities)
        return [InboxEntry(*row) for row in await self._fetch(statements.CAPTURED.format(where), *values)]

    async def save(self, saved: Saved) -> None:
        removed = by_entity(sql.removed(saved, {name: table.table for name, table in self._tables.items()}))
        images = images_by_entity(saved.images)
        captured = any(self._tables[entity].table.entity.capture for entity in (*removed, *images))
        if captured:
            await self._watched(self._session.wait_at_most(_BRIEFLY))
        try:
            for entity, keys in removed.items():
                table = self._tables[entity]
                with self._using(entity):
                    await self._each(table.delete, table.gone(keys))
            for entity, some in images.items():
                with self._using(entity):
                    await self._write(self._tables[entity], some, set(removed.get(entity, ())))
        except Waited as waited:
            self.failure = Held(str(waited)) if captured else waited
            raise self.failure from waited
        if captured:
            await self._watched(self._session.wait_at_most())
        await self._save(saved)

    async def _save(self, saved: Saved) -> None:
        if saved.drained:
            await self._execute(statements.DRAINED, json.encode([entry.id for entry in saved.drained]).decode())
        await self._insert(statements.feed_upsert(self._session.mariadb), [astuple(row) for row in saved.feed])
        await self._insert(
            statements.JOURNAL,
            [(e.scope, e.arrived, e.events, f" {' '.join(map(str, e.rows))} ", e.spent) for e in saved.journal],
        )
        await self._each(statements.SCOPE, [(*astuple(state)[1:], state.scope) for state in saved.scopes])

    async def _write(self, table: MysqlTable, images: list[RowImage], removed: set[RowKey]) -> None:
        """Change the rows that are said to be there, and insert the others; what is there against all odds is changed
        too, if it is in the same scope and no other program's.
        """
        known = [image for image in images if not image.new and image.key not in removed]
        left = images
        if known:
            found = await self._each(table.update, table.changes(known))
            there = {image.key for image in known} if found == len(known) else await self._there(table, known)
            left = [image for image in images if image.key not in there]
        if not left:
            return
        try:
            await self._insert(table.insert, table.rows(left))
        except (RowTaken, ConstraintFailed):
            there = await self._there(table, left)
            if not there:
                raise
            if table.table.entity.capture:
                self.failure = RowTaken(f"rows of {table.table.entity.name} have been made meanwhile")
                raise self.failure from None
            self.failure = None
            await self._each(table.update, table.changes([image for image in left if image.key in there]))
            rest = [image for image in left if image.key not in there]
            await self._insert(table.insert, table.rows(rest) if rest else [])

    async def _there(self, table: MysqlTable, images: Sequence[RowImage]) -> set[RowKey]:
        """The rows of these that the table holds; RowTaken if one is in another scope."""
        keys = [image.key for image in images]
        by_place = dict(zip(table.keys(keys), keys, strict=True))
        statement, values = table.places(keys)
        found = await self._fetch(statement, *values)
        by_name = {place[:-1] for place in by_place}
        if any(place not in by_place and place[:-1] in by_name for place in found):
            self.failure = RowTaken(f"rows of {table.table.entity.name} are in use in other scopes")
            raise self.failure
        return {by_place[place] for place in found if place in by_place}

    async def _make(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        """Scopes that are new, of these; none that is being made elsewhere, or was meanwhile."""
        marks = {scope: MAKING[blake2b(scope.encode(), digest_size=1).digest()[0]] for scope in scopes}
        free = {name for (name,) in await self._fetch(statements.META_FREE, tuple(set(marks.values())))}
        mine = {scope for scope, mark in marks.items() if mark in free}
        if mine:
            mine -= {row[0] for row in await self._fetch(statements.STATES, tuple(mine))}
        await self._insert(statements.CREATE, [(scope,) for scope in sorted(mine)])
        return {scope: ScopeState(scope) for scope in mine}

    async def _locked(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        found = await self._fetch(statements.LOCK, tuple(scopes)) if scopes else []
        return {row[0]: ScopeState(*row) for row in found}

    async def _rows(self, identities: Iterable[Identity], locking: str = "") -> list[TableRow]:
        found: list[TableRow] = []
        for entity, some in identities_by_entity(identities).items():
            table, wanted = self._tables[entity], set(some)
            query = table.read(some)
            if query is not None:
                with self._using(entity, whole=True):
                    rows = await self._fetch(query[0] + locking, *query[1])
                found += [row for row in map(table.table.table_row, rows) if row.identity in wanted]
        return found

    @contextmanager
    def _using(self, entity: str, *, whole: bool = False) -> Iterator[None]:
        """Tell what makes a table itself unusable: that it is not what it was, or held where `whole`."""
        try:
            yield
        except (Unfitting, Waited) as failure:
            if isinstance(failure, Waited) and not whole:
                raise
            self.failure = TableAway(str(failure), entity)
            raise self.failure from failure

    async def _fetch(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return await self._watched(self._session.fetch(statement, *values))

    async def _execute(self, statement: str, *values: Any) -> int:
        return await self._watched(self._session.execute(statement, *values))

    async def _insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        await self._watched(self._session.insert(statement, rows))

    async def _each(self, statement: str, rows: Sequence[Sequence[Any]]) -> int:
        return await self._watched(self._session.each(statement, rows))

    async def _watched(self, work: Awaitable[T]) -> T:
        """Remember what fails: a transaction that has failed can only end."""
        try:
            return await work
        except Exception as failure:
            self.failure = failure
            raise
