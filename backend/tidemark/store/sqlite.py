"""The SQLite store: one thread writes, a whole transaction in one hop; a few read. One service process only."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Final, TypeVar

import msgspec
from msgspec.structs import astuple

from tidemark_protocol.model import Declaration

from . import sql
from . import sqlite_sql as statements
from .base import (
    ConstraintFailed,
    EventQuery,
    FeedRow,
    JournalRow,
    RowImage,
    RowKey,
    RowTaken,
    Run,
    Saved,
    ScopeState,
    Transaction,
    Unavailable,
)
from .entities import by_entity, images_by_entity, tables_of
from .fit import claim, faults, sqlite_engine, sqlite_path
from .sqlite_sql import SqliteTable
from .tables import Unfit

T = TypeVar("T")

_FAULTY_WAL: Final = ((3, 7, 0), (3, 51, 2))
_WRITER: Final = ("wal_autocheckpoint = 4000", "cache_size = -65536")
"""Pages of 4 KiB, and KiB: with the defaults, keys in no order cost twice as much."""
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


class SqliteStore:
    """A `Store` on a SQLite file. `now` gives Unix milliseconds, `chance(n)` n random bytes; `readers` read beside the
    one that writes.
    """

    exclusive = True
    pace = 50

    def __init__(
        self,
        url: str,
        declaration: Declaration,
        *,
        now: Callable[[], int],
        chance: Callable[[int], bytes],
        readers: int = 2,
    ) -> None:
        self.epoch = ""
        self.warnings: list[str] = []
        self.path = Path(sqlite_path(url)).absolute()
        self._declaration = declaration
        self._now = now
        self._chance = chance
        self._tables = {name: SqliteTable(table) for name, table in tables_of(declaration).items()}
        self._write_thread = ThreadPoolExecutor(1, "tidemark-sqlite-writer")
        self._read_threads = ThreadPoolExecutor(readers, "tidemark-sqlite-reader")
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._readers = readers
        self._writer: sqlite3.Connection | None = None
        self._claim: IO[bytes] | None = None

    async def open(self) -> None:
        await self._in_thread(self._write_thread, self._open)

    async def close(self) -> None:
        self._read_threads.shutdown()
        if self._claim is not None:
            await self._in_thread(self._write_thread, self._close)
        self._write_thread.shutdown()

    async def renew_epoch(self) -> str:
        """Draw a new epoch, as belongs to every restore; every replica starts anew (SPEC 1)."""
        drawn = sql.new_epoch(self._chance)
        await self._write(lambda connection: connection.execute(statements.META_SET, ("epoch", drawn)))
        self.epoch = drawn
        return drawn

    async def transact(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        def work(connection: sqlite3.Connection) -> T:
            transaction = SqliteTransaction(connection, self._tables)
            result = _run_to_end(body(transaction))
            if transaction.failure is not None:
                raise transaction.failure
            return result

        return await self._write(work)

    async def memberships(self, user: str) -> dict[str, str]:
        return dict(await self._fetch('SELECT scope, role FROM sync_member WHERE "user" = ?', user))

    async def members(self, scope: str) -> dict[str, str]:
        return dict(await self._fetch('SELECT "user", role FROM sync_member WHERE scope = ?', scope))

    async def states(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        return {found[0]: ScopeState(*found) for found in await self._fetch(statements.STATES, _array(scopes))}

    async def run(self, scope: str, after: int, base: int, limit: int, max_bytes: int) -> Run | None:
        def read(connection: sqlite3.Connection) -> Run | None:
            found = connection.execute(statements.STATE, (scope,)).fetchone()
            if found is None:
                return None
            state = ScopeState(*found)
            page: list[bytes] = []
            to = size = 0
            with _closing(connection.execute(statements.CHANGES, (scope, after, base))) as changes:
                for version, change in changes:
                    size += len(change) + 1
                    if len(page) == limit or (page and size - 1 > max_bytes):
                        break
                    page.append(change)
                    to = version
                else:
                    to = state.head
            return Run(state, len(page), to, b",".join(page))

        return await self._read(read)

    async def events(self, query: EventQuery) -> list[JournalRow]:
        statement, values = sql.journal_query(query, "?", statements.AMONG, statements.NAMING, _array)
        return [JournalRow(*found) for found in await self._fetch(statement, *values)]

    async def rows_of(self, scope: str) -> Iterable[FeedRow]:
        return _feed(await self._fetch(f"SELECT {sql.FEED} FROM sync_feed WHERE scope = ? ORDER BY version", scope))

    async def residues(self, before: int, latest: str, limit: int) -> list[FeedRow]:
        return _feed(await self._fetch(statements.RESIDUES, before, latest, limit))

    async def forget(self, scope: str, horizon: int, dropped: Sequence[FeedRow], rewritten: Sequence[FeedRow]) -> int:
        def work(connection: sqlite3.Connection) -> int:
            if connection.execute(statements.STATE, (scope,)).fetchone() is None:
                return 0
            gone = [
                version
                for row in dropped
                for (version,) in connection.execute(
                    statements.FORGET, (row.entity, row.row, scope, row.root, row.clocks, row.arrived)
                ).fetchall()
            ]
            kept = connection.executemany(
                statements.REWRITE,
                [
                    (row.doc, row.root, row.clocks, row.residue, row.entity, row.row, scope, row.version, row.arrived)
                    for row in rewritten
                ],
            ).rowcount
            connection.execute(statements.RAISE_FLOOR, (max(gone, default=0), horizon, scope))
            return len(gone) + max(kept, 0)

        return await self._write(work)

    async def forget_journal(self, before: int, limit: int) -> int:
        values = (before, limit)
        return await self._write(lambda connection: connection.execute(statements.FORGET_JOURNAL, values).rowcount)

    async def lease(self, name: str, owner: str, now: int, until: int) -> bool:
        value = msgspec.json.encode({"owner": owner, "until": until}).decode()
        values = (f"lease:{name}", value, owner, now)
        return await self._write(lambda connection: connection.execute(statements.LEASE, values).rowcount == 1)

    def _open(self) -> None:
        self._claim = claim(self.path)
        try:
            with _translated():
                self._check()
                self._writer = self._connect("journal_mode = WAL", *_WRITER)
                for _ in range(self._readers):
                    self._idle.put(self._connect("wal_autocheckpoint = 0", "query_only = ON"))
                self.epoch = self._settle_epoch(self._writer)
        except BaseException:
            self._close()
            raise

    def _check(self) -> None:
        first, last = _FAULTY_WAL
        if first <= sqlite3.sqlite_version_info <= last:
            self.warnings.append(
                f"SQLite {sqlite3.sqlite_version} can damage a database in WAL mode when several programs write it "
                "(mended in 3.51.3): let this service alone write the file"
            )
        if not self.path.exists():
            raise Unfit(f"{self.path} does not exist: migrate first (--migrate)")
        with sqlite_engine(str(self.path)).connect() as connection:
            found = faults(connection, self._declaration)
        if found:
            raise Unfit("; ".join(found))

    def _connect(self, *pragmas: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=5, isolation_level=None, check_same_thread=False, cached_statements=1000
        )
        for pragma in ("synchronous = FULL", "foreign_keys = ON", "recursive_triggers = ON", *pragmas):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _close(self) -> None:
        while not self._idle.empty():
            self._idle.get().close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def _settle_epoch(self, connection: sqlite3.Connection) -> str:
        """Keep the epoch while the file is the one it was drawn for, else draw another (SPEC 1)."""
        fingerprint = str(self.path.stat().st_ino)
        with _transaction(connection):
            held = dict(connection.execute("SELECT name, value FROM sync_meta WHERE name IN ('epoch', 'fingerprint')"))
            if held.get("fingerprint") != fingerprint:
                held = {"epoch": sql.new_epoch(self._chance), "fingerprint": fingerprint}
                connection.executemany(statements.META_SET, held.items())
        return str(held["epoch"])

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def hop() -> T:
            connection = self._writer
            if connection is None:
                raise Unavailable("the store is not open")
            with _translated(), _transaction(connection):
                return work(connection)

        return await self._in_thread(self._write_thread, hop)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def hop() -> T:
            connection = self._idle.get()
            try:
                with _translated(), _transaction(connection, "BEGIN"):
                    return work(connection)
            finally:
                self._idle.put(connection)

        return await self._in_thread(self._read_threads, hop)

    async def _fetch(self, statement: str, *values: Any) -> list[Any]:
        return await self._read(lambda connection: connection.execute(statement, values).fetchall())

    async def _in_thread(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, copy_context().run, work)


class SqliteTransaction:
    """A `Transaction` in the thread that writes: its methods never wait."""

    def __init__(self, connection: sqlite3.Connection, tables: dict[str, SqliteTable]) -> None:
        self._connection = connection
        self._tables = tables
        self.failure: Exception | None = None

    async def lock(self, scopes: Collection[str], create: Collection[str]) -> dict[str, ScopeState]:
        # The transaction holds the whole database.
        self._connection.executemany(statements.CREATE, [(scope,) for scope in create])
        found = self._connection.execute(statements.STATES, (_array({*scopes, *create}),))
        return {state[0]: ScopeState(*state) for state in found}

    async def roles(self, members: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        ask = self._connection.execute
        return {member: role for member in members for (role,) in ask(statements.ROLE, member)}

    async def load(self, keys: Collection[RowKey]) -> list[FeedRow]:
        shared = {key[1:] for key in keys if not self._tables[key.entity].table.entity.key.per_scope}
        found = [row for pair in shared for row in self._connection.execute(statements.LOAD, pair)]
        for scope, entity, row in {key for key in keys if key[1:] not in shared}:
            found += self._connection.execute(statements.LOAD_EXACT, (entity, row, scope))
        return _feed(found)

    async def spent(self, hashes: Collection[int]) -> list[JournalRow]:
        return [JournalRow(*found) for found in self._connection.execute(statements.SPENT, (_array(hashes),))]

    async def entries_of(self, scope: str, rows: Collection[int], since: int, limit: int) -> list[JournalRow]:
        values = (scope, since, _array(rows), limit)
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
        return [
            (asked, row)
            for asked, parameters in zip(values, zip(*table.table.encoded(fields, values), strict=True), strict=True)
            for (row,) in self._connection.execute(statement, (place, *parameters))
        ]

    async def set_role(self, scope: str, user: str, role: str | None) -> None:
        if role is None:
            self._connection.execute('DELETE FROM sync_member WHERE scope = ? AND "user" = ?', (scope, user))
        else:
            self._connection.execute(statements.SET_ROLE, (scope, user, role))

    async def save(self, saved: Saved) -> None:
        try:
            with _translated():
                self._save(saved)
        except Exception as failure:
            # What was written before it stands: the transaction can only end.
            self.failure = failure
            raise

    def _save(self, saved: Saved) -> None:
        write = self._connection.executemany
        for entity, keys in by_entity(sql.removed(saved, {n: t.table for n, t in self._tables.items()})).items():
            table = self._tables[entity]
            write(table.delete, zip(*table.table.key_arguments(keys), strict=True))
        for entity, images in images_by_entity(saved.images).items():
            self._write_images(self._tables[entity], images)
        write(statements.FEED_UPSERT, map(astuple, saved.feed))
        write(
            statements.JOURNAL,
            [(e.scope, e.arrived, e.events, f" {' '.join(map(str, e.rows))} ", e.spent) for e in saved.journal],
        )
        write(statements.SCOPE, [(*astuple(state)[1:], state.scope) for state in saved.scopes])

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
def _transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _closing(cursor: sqlite3.Cursor) -> Iterator[sqlite3.Cursor]:
    try:
        yield cursor
    finally:
        cursor.close()


@contextmanager
def _translated() -> Iterator[None]:
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


def _run_to_end(work: Awaitable[T]) -> T:
    """The result of something that awaits nothing but methods of SqliteTransaction, which never wait."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("the body of a transaction awaited something other than its transaction")


def _array(values: Collection[Any]) -> str:
    return msgspec.json.encode(list(values)).decode()


def _feed(found: Iterable[Any]) -> list[FeedRow]:
    return [
        FeedRow(scope, entity, row, version, bool(deleted), doc, root, clocks, arrived, bool(residue))
        for scope, entity, row, version, deleted, doc, root, clocks, arrived, residue in found
    ]
