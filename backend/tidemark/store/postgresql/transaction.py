"""A transaction of the PostgreSQL store, and the one seam where the driver's exceptions become the port's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import asyncpg
import msgspec
from msgspec.structs import astuple

from tidemark.store import sql
from tidemark.store.base import (
    ConstraintFailed,
    FeedRow,
    Held,
    Identity,
    InboxEntry,
    JournalEntry,
    JournalRow,
    RowImage,
    RowKey,
    RowTaken,
    Saved,
    ScopeState,
    TableAway,
    TableRow,
    Unavailable,
)
from tidemark.store.entities import by_entity, identities_by_entity, images_by_entity

from . import sql as statements
from .sql import PostgresTable

_KINDS: Final = {FeedRow: statements.FEED_KINDS, ScopeState: statements.STATE_KINDS}

_GONE: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What a connection raises that was cut: asyncpg calls it internal when the cut is noticed within a statement."""
DRIVER: Final = (asyncpg.PostgresError, *_GONE)
_DATA_CLASSES: Final = frozenset({"22", "23", "44", "54", "P0"})
"""SQLSTATE classes in which the data is to blame; P0 is what another program's trigger raises."""
_TABLE_CLASSES: Final = frozenset({"0A", "42"})
"""Those of a table that was changed: it lacks a column, say, or a statement was prepared for other types."""
_AWAY_CLASSES: Final = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58"})


class PostgresTransaction:
    """A `Transaction` on one connection."""

    def __init__(self, connection: asyncpg.Connection, tables: dict[str, PostgresTable]) -> None:
        self._connection = connection
        self._tables = tables
        self.failure: Exception | None = None
        self._waits_for_others = False

    async def lock(self, scopes: Collection[str], create: Collection[str]) -> dict[str, ScopeState]:
        wanted = {*scopes, *create}
        locked = await self._locked(wanted)
        missing = [scope for scope in create if scope not in locked]
        if missing:
            made = await self._fetch(statements.CREATE, missing)
            locked |= {record[0]: ScopeState(*record) for record in made}
            # What is missing still was made by someone else: it is there now, or locked.
            left = [scope for scope in missing if scope not in locked]
            locked |= await self._locked(left) if left else {}
        return locked

    async def roles(self, members: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        if not members:
            return {}
        scopes, users = zip(*members, strict=True)
        return {(scope, user): role for scope, user, role in await self._fetch(statements.ROLES, scopes, users)}

    async def load(self, keys: Collection[RowKey]) -> list[FeedRow]:
        shared = {key[1:] for key in keys if not self._tables[key.entity].table.entity.key.per_scope}
        exact = {key for key in keys if key[1:] not in shared}
        found = await self._fetch(statements.LOAD, *zip(*shared, strict=True)) if shared else []
        found += await self._fetch(statements.LOAD_EXACT, *zip(*exact, strict=True)) if exact else []
        return feed_rows(found)

    async def spent(self, hashes: Collection[int]) -> list[JournalRow]:
        if not hashes:
            return []
        return [JournalRow(*record) for record in await self._fetch(statements.SPENT, list(hashes))]

    async def entries_of(self, scope: str, rows: Collection[int], since: int, limit: int) -> list[JournalRow]:
        if not rows:
            return []
        found = await self._fetch(statements.ENTRIES, scope, list(rows), since, limit)
        return [JournalRow(*record) for record in found]

    async def referring(self, scope: str, entity: str, field: str, targets: Collection[str]) -> list[tuple[str, str]]:
        if not targets:
            return []
        table = self._tables[entity]
        with self._using(entity):
            found = await self._fetch(table.referring(field), table.table.scope_value(scope), list(targets))
        return [(target, row) for target, row in found]

    async def holders(
        self, scope: str, entity: str, fields: tuple[str, ...], values: Collection[tuple[Any, ...]]
    ) -> list[tuple[tuple[Any, ...], str]]:
        if not values:
            return []
        asked = list(values)
        table = self._tables[entity]
        columns = table.values(fields, asked)
        with self._using(entity):
            found = await self._fetch(table.holders(fields), table.table.scope_value(scope), *columns)
        return [(asked[number - 1], row) for number, row in found]

    async def set_role(self, scope: str, user: str, role: str | None) -> None:
        if role is None:
            await self._execute('DELETE FROM sync_member WHERE scope = $1 AND "user" = $2', scope, user)
        else:
            await self._execute(statements.SET_ROLE, scope, user, role)

    async def table_rows(
        self, identities: Collection[Identity], lock: Collection[Identity]
    ) -> tuple[list[TableRow], set[Identity]]:
        locked: set[Identity] = set()
        for entity, some in identities_by_entity(lock).items():
            table = self._tables[entity]
            with self._using(entity):
                await self._wait_briefly(f"LOCK TABLE ONLY {table.table.name} IN ROW EXCLUSIVE MODE")
                found = await self._fetch(table.lock, *table.identities(some))
            locked.update(Identity(entity, record[0]) for record in found)
        rows: list[TableRow] = []
        for entity, some in identities_by_entity(identities).items():
            table = self._tables[entity]
            with self._using(entity):
                await self._wait_briefly()
                found = await self._fetch(table.read, *table.identities(some))
            rows += [table.table.table_row(record) for record in found]
        wanted = set(lock)
        return rows, {row.identity for row in rows if row.identity in wanted and row.identity not in locked}

    async def captured(self, identities: Collection[Identity]) -> list[InboxEntry]:
        if not identities:
            return []
        found = await self._fetch(statements.CAPTURED, *zip(*identities, strict=True))
        return [InboxEntry(*record) for record in found]

    async def save(self, saved: Saved) -> None:
        written = {image.key.entity for image in saved.images} | {key.entity for key in saved.gone}
        if any(self._tables[entity].table.entity.capture for entity in written):
            await self._wait_briefly()
        if saved.drained:
            named = [entry[:3] for entry in saved.drained]
            await self._execute(statements.DRAINED, *zip(*named, strict=True))
        with self._failing():
            for entity, keys in self._removed(saved).items():
                table = self._tables[entity]
                with self._using(entity, whole=False):
                    await self._execute(table.delete, *table.keys(keys))
                    if table.table.entity.capture:
                        await self._execute(table.report_kept, *table.keys(keys), entity)
            for entity, images in images_by_entity(saved.images).items():
                with self._using(entity, whole=False):
                    await self._write(self._tables[entity], images)
            await self._execute(
                statements.SAVE,
                *columns_of(saved.feed, FeedRow),
                *_journal_columns(saved.journal),
                *columns_of(saved.scopes, ScopeState),
            )

    def _removed(self, saved: Saved) -> dict[str, list[RowKey]]:
        return by_entity(sql.removed(saved, {name: table.table for name, table in self._tables.items()}))

    async def _write(self, table: PostgresTable, images: list[RowImage]) -> None:
        entity = table.table.entity
        left = await self._update(table, images) if entity.adopted or entity.capture else images
        if left:
            await self._upsert(table, left)
        if entity.capture:
            await self._execute(table.report_changed, *table.rows(images), entity.name)

    async def _upsert(self, table: PostgresTable, images: list[RowImage]) -> None:
        count = count_of(await self._execute(table.upsert, *table.rows(images)))
        if count < len(images):
            raise RowTaken(
                f"{len(images) - count} rows of {table.table.entity.name} are in use, in other scopes perhaps"
            )

    async def _update(self, table: PostgresTable, images: list[RowImage]) -> list[RowImage]:
        """Change rows in place, for a table may have columns that are not ours; gives those it does not hold."""
        known = [image for image in images if not image.new]
        if not known:
            return images
        numbers = await self._fetch(table.update, *table.rows(known))
        changed = {known[record[0] - 1].key for record in numbers}
        return [image for image in images if image.key not in changed]

    async def _locked(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        return {record[0]: ScopeState(*record) for record in await self._fetch(statements.LOCK, list(scopes))}

    async def _wait_briefly(self, then: str = "") -> None:
        """From now on wait for other programs no longer than a moment; `then` is another statement."""
        if then or not self._waits_for_others:
            self._waits_for_others = True
            await self._execute(f"{statements.WAIT_BRIEFLY}; {then}")

    @contextmanager
    def _using(self, entity: str, *, whole: bool = True) -> Iterator[None]:
        """Tell what makes a table itself unusable: that it is not what it was, or held where `whole`."""
        try:
            yield
        except Exception as failure:
            changed = isinstance(failure, asyncpg.PostgresError) and (failure.sqlstate or "")[:2] in _TABLE_CLASSES
            if not changed and not (whole and isinstance(failure, Held)):
                raise
            self.failure = TableAway(str(failure), entity)
            raise self.failure from failure

    async def _fetch(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        with self._failing():
            found: list[asyncpg.Record] = await self._connection.fetch(statement, *values)
            return found

    async def _execute(self, statement: str, *values: Any) -> str:
        with self._failing():
            status: str = await self._connection.execute(statement, *values)
            return status

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Translate what fails, and remember it: a transaction that has failed can only end."""
        try:
            with translated():
                yield
        except Unavailable as failure:
            held = self._waits_for_others and isinstance(failure.__cause__, asyncpg.LockNotAvailableError)
            self.failure = Held(str(failure)) if held else failure
            raise self.failure from failure
        except Exception as failure:
            self.failure = failure
            raise


@contextmanager
def translated() -> Iterator[None]:
    """The one seam where the driver's exceptions become the port's."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        # An index of ours that is a table's key ends so: the one uniqueness that reaches beyond a scope.
        if (error.constraint_name or "").endswith("_pkey"):
            raise RowTaken(str(error)) from error
        raise ConstraintFailed(str(error), unique=True) from error
    except asyncpg.CardinalityViolationError as error:  # one save puts a key into two scopes
        raise RowTaken(str(error)) from error
    except asyncpg.PostgresError as error:
        kind = (error.sqlstate or "")[:2]
        if kind in _DATA_CLASSES:
            raise ConstraintFailed(str(error), unique=False) from error
        if kind in _AWAY_CLASSES:
            raise Unavailable(str(error)) from error
        raise
    except _GONE as error:
        raise Unavailable(str(error) or type(error).__name__) from error


def columns_of(rows: Sequence[msgspec.Struct], kind: type[msgspec.Struct]) -> list[Any]:
    columns = zip(*map(astuple, rows), strict=True) if rows else ([] for _ in kind.__struct_fields__)
    return statements.packed(_KINDS[kind], columns)


def _journal_columns(entries: Sequence[JournalEntry]) -> list[Any]:
    columns = (
        [entry.scope for entry in entries],
        [entry.arrived for entry in entries],
        [entry.events for entry in entries],
        ["{" + ",".join(map(str, entry.rows)) + "}" for entry in entries],
        [entry.spent for entry in entries],
    )
    return statements.packed(statements.JOURNAL_KINDS, columns)


def feed_rows(records: Iterable[asyncpg.Record]) -> list[FeedRow]:
    return [FeedRow(*record) for record in records]


def count_of(status: str) -> int:
    return int(status.rpartition(" ")[2])
