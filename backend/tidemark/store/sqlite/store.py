"""The SQLite store: one thread writes, a whole transaction in one hop; a few read. One service process only."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Final, TypeVar

import msgspec

from tidemark.store import sql
from tidemark.store.base import (
    Backlog,
    Connections,
    EventQuery,
    FeedRow,
    Identity,
    InboxEntry,
    JournalRow,
    Run,
    ScopeState,
    TableRow,
    Transaction,
    Unavailable,
    Unfit,
)
from tidemark.store.entities import tables_of
from tidemark.store.schema.fit import claim, faults, sqlite_engine, sqlite_path
from tidemark_protocol.model import Declaration

from . import capture
from . import sql as statements
from .sql import SqliteTable
from .transaction import SqliteTransaction, array, translated

T = TypeVar("T")

FAULTY_WAL: Final = ((3, 7, 0), (3, 51, 2))
_WRITER: Final = ("wal_autocheckpoint = 4000", "cache_size = -65536")
"""Pages of 4 KiB, and KiB: with the defaults, keys in no order cost twice as much."""
_WRITE: Final = ("BEGIN IMMEDIATE",)
_READ: Final = ("BEGIN", "SELECT 1 FROM sync_meta LIMIT 1")
"""The first look takes the lock that the whole transaction reads under."""
_PATIENCE: Final = 5.0
"""Seconds that another program may stand in the way."""
_LOOK_AGAIN: Final = 0.001
_GAP: Final = 0.12
"""Seconds: more than the longest pause of another program that waits in SQLite's own way for its turn to write."""
_STRETCH: Final = 0.5
"""Seconds of writing nearly without a pause after which others get their turn."""


class SqliteStore:
    """A `Store` on a SQLite file. `chance(n)` gives n random bytes; `readers` read beside the
    one that writes. `shared` opens a file that a service may have at the same time.
    """

    pace = 50

    def __init__(
        self,
        url: str,
        declaration: Declaration,
        *,
        chance: Callable[[int], bytes],
        readers: int = 2,
        shared: bool = False,
    ) -> None:
        self.epoch = ""
        self.warnings: list[str] = []
        self.path = Path(sqlite_path(url)).absolute()
        self._declaration = declaration
        self._chance = chance
        self._tables = {name: SqliteTable(table) for name, table in tables_of(declaration).items()}
        self._captured = [name for name, entity in declaration.entities.items() if entity.capture]
        self._turns = Turns()
        self._write_thread = ThreadPoolExecutor(1, "tidemark-sqlite-writer")
        self._read_threads = ThreadPoolExecutor(readers, "tidemark-sqlite-reader")
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._readers = readers
        self.exclusive = not shared
        self._writer: sqlite3.Connection | None = None
        self._claim: IO[bytes] | None = None

    async def open(self) -> None:
        await self._in_thread(self._write_thread, self._open)

    async def close(self) -> None:
        self._read_threads.shutdown()
        if self._writer is not None:
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

    async def memberships(self, users: Collection[str]) -> dict[str, dict[str, str]]:
        return sql.by_user(await self._fetch(statements.MEMBERSHIPS, array(users)))

    async def members(self, scope: str) -> dict[str, str]:
        return dict(await self._fetch('SELECT "user", role FROM sync_member WHERE scope = ?', scope))

    async def states(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        return {found[0]: ScopeState(*found) for found in await self._fetch(statements.STATES, array(scopes))}

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
        statement, values = sql.journal_query(query, "?", statements.AMONG, statements.NAMING, array)
        return [JournalRow(*found) for found in await self._fetch(statement, *values)]

    async def rows_of(self, scope: str) -> Iterable[FeedRow]:
        return sql.feed_rows(await self._fetch(statements.ROWS_OF, scope))

    async def residues(self, before: int, latest: str, limit: int) -> list[FeedRow]:
        return sql.feed_rows(await self._fetch(statements.RESIDUES, before, latest, limit))

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

    async def inbox(
        self, passed: Collection[int], limit: int, without: Collection[str] = (), *, newest: bool = False
    ) -> list[InboxEntry]:
        statement = statements.NEWEST if newest else statements.INBOX
        values = (array([name for name in self._captured if name not in without]), array(passed), limit)
        return await self._read(lambda connection: capture.entries(connection, statement, values))

    async def backlog(self) -> Backlog:
        return Backlog(*(await self._fetch(statements.BACKLOG))[0])

    def connections(self) -> Connections:
        return Connections(0, 0)

    async def report(self, identities: Collection[Identity], at: int) -> None:
        values = [(*identity, at) for identity in identities]
        await self._write(lambda connection: connection.executemany(statements.REPORT, values))

    async def sweep(self, entity: str, after: Identity | None, limit: int) -> list[TableRow]:
        table = self._tables[entity]
        return await self._read(lambda connection: capture.sweep(connection, table, after, limit))

    async def live(self, entity: str, after: tuple[str, str] | None, limit: int) -> list[FeedRow]:
        return sql.feed_rows(await self._fetch(statements.LIVE, entity, *(after or ("", "")), limit))

    def _open(self) -> None:
        self._claim = claim(self.path) if self.exclusive else None
        try:
            with translated():
                self._check()
                # Two programs that checkpoint at once are what releases with the faulty log do not bear.
                sharing = () if self.exclusive else ("wal_autocheckpoint = 0",)
                self._writer = self._connect(*_WRITER, *sharing)
                if self.exclusive:
                    self._settle_journal(self._writer)
                for _ in range(self._readers):
                    self._idle.put(self._connect("wal_autocheckpoint = 0", "query_only = ON"))
                self.epoch = self._settle_epoch(self._writer)
        except BaseException:
            self._close()
            raise

    def _check(self) -> None:
        if self._wal_is_faulty:
            remedy = (
                "other programs write captured tables, so its rollback journal is used, where readers and writers wait "
                "for each other"
                if self._captured
                else "let this service alone write the file"
            )
            self.warnings.append(
                f"SQLite {sqlite3.sqlite_version} can damage a database in WAL mode when several programs write it "
                f"(mended in 3.51.3): {remedy}"
            )
        if not self.path.exists():
            raise Unfit(f"{self.path} does not exist: migrate first (--migrate)")
        with sqlite_engine(str(self.path), "BEGIN").connect() as connection:
            found = faults(connection, self._declaration)
        if found:
            raise Unfit("; ".join(found))

    @property
    def _wal_is_faulty(self) -> bool:
        first, last = FAULTY_WAL
        return first <= sqlite3.sqlite_version_info <= last

    def _settle_journal(self, connection: sqlite3.Connection) -> None:
        """WAL, but not where its fault could strike, for other programs write the file too."""
        wanted = "delete" if self._captured and self._wal_is_faulty else "wal"
        if _patiently(connection, "PRAGMA journal_mode") == [(wanted,)]:
            return
        try:
            held = connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone()
        except sqlite3.OperationalError:
            held = None
        if held != (wanted,):
            raise Unfit(f"{self.path} is open in another program: close it once, for its journal must become {wanted}")

    def _connect(self, *pragmas: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=1000
        )
        for pragma in ("synchronous = FULL", "foreign_keys = ON", "recursive_triggers = ON", *pragmas):
            _patiently(connection, f"PRAGMA {pragma}")  # some look into the file
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
        with _transaction(connection, *_WRITE):
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
            if self._captured:
                self._turns.leave()
            with translated(), _transaction(connection, *_WRITE), self._turns.taken():
                return work(connection)

        return await self._in_thread(self._write_thread, hop)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def hop() -> T:
            connection = self._idle.get()
            try:
                with translated(), _transaction(connection, *_READ):
                    return work(connection)
            finally:
                self._idle.put(connection)

        return await self._in_thread(self._read_threads, hop)

    async def _fetch(self, statement: str, *values: Any) -> list[Any]:
        return await self._read(lambda connection: connection.execute(statement, values).fetchall())

    async def _in_thread(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, copy_context().run, work)


class Turns:
    """Leaves other programs their turn to write. SQLite keeps no queue: who waits looks ever more rarely, every 100 ms
    at last, whether the lock is free, and might never find it so.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._busy = 0.0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While the lock is ours."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._busy += time.monotonic() - begun

    def leave(self) -> None:
        """Wait long enough for anybody, if the lock was ours most of the time lately."""
        lately = time.monotonic() - self._since
        if lately < _STRETCH:
            return
        if self._busy > lately / 2:
            time.sleep(_GAP)
        self._since, self._busy = time.monotonic(), 0.0


@contextmanager
def _transaction(connection: sqlite3.Connection, *begin: str) -> Iterator[None]:
    _patiently(connection, *begin)
    try:
        yield
        _patiently(connection, "COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _patiently(connection: sqlite3.Connection, *statements: str) -> list[Any]:
    """Execute statements once no other program is in the way; the rows of the last one.

    SQLite would look for it ever more rarely, and never find a gap between the transactions of one that hurries.
    """
    given_up = time.monotonic() + _PATIENCE
    while True:
        try:
            found = [connection.execute(statement).fetchall() for statement in statements]
        except sqlite3.OperationalError as busy:
            if busy.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > given_up:
                raise
            if statements[0] != "COMMIT" and connection.in_transaction:
                connection.execute("ROLLBACK")
            time.sleep(_LOOK_AGAIN)
        else:
            return found[-1]


@contextmanager
def _closing(cursor: sqlite3.Cursor) -> Iterator[sqlite3.Cursor]:
    try:
        yield cursor
    finally:
        cursor.close()


def _run_to_end(work: Awaitable[T]) -> T:
    """The result of something that awaits nothing but methods of SqliteTransaction, which never wait."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("the body of a transaction awaited something other than its transaction")
