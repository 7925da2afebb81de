"""A transaction of the SQLite store, and the one seam where the driver's exceptions become the port's."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from msgspec.structs import astuple

from tidemark.store import sql
from tidemark.store.base import (
    ConstraintFailed,
    FeedRow,
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
    Unavailable,
)
from tidemark.store.entities import by_entity, images_by_entity

from . import capture
from . import sql as statements
from .sql import SqliteTable

_AWAY: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)


class SqliteTransaction:
    """A `Transaction` in the thread that writes: its methods never wait."""

    def __init__(self, connection: sqlite3.Connection, tables: dict[str, SqliteTable]) -> None:
        self._connection = connection
        self._tables = tables
        self.failure: Exception | None = None

    async def lock(self, scopes: Collection[str], create: Collection[str]) -> dict[str, ScopeState]:
        # The transaction holds the whole database.
        self._connection.executemany(statements.CREATE, [(scope,) for scope in create])
        found = self._connection.execute(statements.STATES, (array({*scopes, *create}),))
        return {state[0]: ScopeState(*state) for state in found}

    async def roles(self, members: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        ask = self._connection.execute
        return {member: role for member in members for (role,) in ask(statements.ROLE, member)}

    async def load(self, keys: Collection[RowKey]) -> list[FeedRow]:
        shared = {key[1:] for key in keys if not self._tables[key.entity].table.entity.key.per_scope}
        found = [row for pair in shared for row in self._connection.execute(statements.LOAD, pair)]
        for scope, entity, row in {key for key in keys if key[1:] not in shared}:
            found += self._connection.execute(statements.LOAD_EXACT, (entity, row, scope))
        return sql.feed_rows(found)

    async def spent(self, hashes: Collection[int]) -> list[JournalRow]:
        return [JournalRow(*found) for found in self._connection.execute(statements.SPENT, (array(hashes),))]

    async def entries_of(self, scope: str, rows: Collection[int], since: int, limit: int) -> list[JournalRow]:
        values = (scope, since, array(rows), limit)
        return [JournalRow(*found) for found in self._connection.execute(statements.ENTRIES, values)]

    async def referring(self, scope: str, entity: str, field: str, targets: Collection[str]) -> list[tuple[str, str]]:
        found = await self.holders(scope, entity, (field,), [(target,) for target in targets])
        return [(values[0], row) for values, row in found]

    async def holders(
        self, scope: str, entity: str, fields: tuple[str, ...], values: Collection[tuple[Any, ...]]
    ) -> list[tuple[tuple[Any, ...], str]]:
        table = self._tables[entity]
        if not values:
            return []
        statement, place = table.holders(fields), table.table.scope_value(scope)
        parameters = zip(*table.table.encoded(fields, values), strict=True)
        with self._using(entity):
            return [
                (asked, row)
                for asked, given in zip(values, parameters, strict=True)
                for (row,) in self._connection.execute(statement, (place, *given))
            ]

    async def set_role(self, scope: str, user: str, role: str | None) -> None:
        if role is None:
            self._connection.execute('DELETE FROM sync_member WHERE scope = ? AND "user" = ?', (scope, user))
        else:
            self._connection.execute(statements.SET_ROLE, (scope, user, role))

    async def table_rows(
        self,
        identities: Collection[Identity],
        lock: Collection[Identity],  # noqa: ARG002
    ) -> tuple[list[TableRow], set[Identity]]:
        # No other program writes while this transaction lasts, so none holds a row.
        found: list[TableRow] = []
        for identity in dict.fromkeys(identities):
            with self._using(identity.entity):
                row = capture.find(self._connection, self._tables[identity.entity], identity)
            if row is not None:
                found.append(row)
        return found, set()

    async def captured(self, identities: Collection[Identity]) -> list[InboxEntry]:
        return [
            entry
            for identity in dict.fromkeys(identities)
            for entry in capture.entries(self._connection, statements.CAPTURED, (identity.text, identity.entity))
        ]

    async def save(self, saved: Saved) -> None:
        try:
            with translated():
                self._save(saved)
        except Exception as failure:
            # What was written before it stands: the transaction can only end.
            self.failure = failure
            raise

    def _save(self, saved: Saved) -> None:
        write = self._connection.executemany
        for entity, keys in by_entity(sql.removed(saved, {n: t.table for n, t in self._tables.items()})).items():
            table = self._tables[entity]
            with self._using(entity):
                write(table.delete, zip(*table.table.key_arguments(keys), strict=True))
        for entity, images in images_by_entity(saved.images).items():
            with self._using(entity):
                self._write_images(self._tables[entity], images)
        write(statements.FEED_UPSERT, map(astuple, saved.feed))
        write(
            statements.JOURNAL,
            [(e.scope, e.arrived, e.events, f" {' '.join(map(str, e.rows))} ", e.spent) for e in saved.journal],
        )
        self._connection.execute(statements.DRAINED, (array([entry.id for entry in saved.drained]),))
        write(statements.SCOPE, [(*astuple(state)[1:], state.scope) for state in saved.scopes])

    @contextmanager
    def _using(self, entity: str) -> Iterator[None]:
        """Tell that a table is not what it was."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            self.failure = TableAway(str(error), entity)
            raise self.failure from error

    def _write_images(self, table: SqliteTable, images: list[RowImage]) -> None:
        if table.table.entity.adopted:
            images = [image for image in images if image.new or not self._update(table, image)]
        if not images:
            return
        count = self._connection.executemany(table.upsert, zip(*table.table.arguments(images), strict=True)).rowcount
        if count < len(images):
            raise RowTaken(f"{len(images) - count} rows of {table.table.entity.name} are in use in other scopes")

    def _update(self, table: SqliteTable, image: RowImage) -> bool:
        """Change a row in place, for its table may have columns that are not ours; False if it is not there."""
        values = [column[0] for column in table.table.arguments([image])]
        keyed = len(table.table.key) + 1
        return self._connection.execute(table.update, (*values[keyed:], *values[:keyed])).rowcount == 1


@contextmanager
def translated() -> Iterator[None]:
    """The one seam where the driver's exceptions become the port's."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
            raise RowTaken(str(error)) from error
        unique = error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_UNIQUE
        raise ConstraintFailed(str(error), unique=unique) from error
    except (sqlite3.DataError, OverflowError) as error:
        raise ConstraintFailed(str(error), unique=False) from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in _AWAY:
            raise Unavailable(str(error)) from error
        raise


def array(values: Collection[Any]) -> str:
    return msgspec.json.encode(list(values)).decode()
