"""The PostgreSQL store: asyncpg, prepared set-based statements, READ COMMITTED, any number of service processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import asyncpg
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
from tidemark.store.schema.fit import plain_url, postgres_faults
from tidemark.store.schema.triggers_sql import OWN
from tidemark_protocol.model import Declaration

from . import sql as statements
from .sql import PostgresTable
from .transaction import DRIVER, PostgresTransaction, columns_of, count_of, feed_rows, translated

T = TypeVar("T")

_SESSION: Final = {
    "application_name": "tidemark",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "3s",
    "statement_timeout": "30s",
    "TimeZone": "UTC",
    "jit": "off",
    "work_mem": "16MB",  # a page of the largest size is put together in memory
    # Every statement goes by an index, whatever old statistics say of tables that were small a moment ago: with plans
    # made for each set of values, a pull would sort the whole rest of its scope for each page.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
}
_WRITERS: Final = _SESSION | {"enable_hashjoin": "off", "enable_mergejoin": "off", OWN: "on"}
_READERS: Final = _SESSION | {"enable_sort": "off"}
CLOSE_WITHIN: Final = 3.0
"""Seconds that connections in use may take to come back."""
_CLIENT_PATIENCE: Final = 40.0
"""Seconds for one statement: more than the server's own limit, for a server that went away without a word."""


class PostgresStore:
    """A `Store` on PostgreSQL. `chance(n)` gives n random bytes.

    `writers` bounds the transactions under way at a time, `readers` the queries beside them. `statement_cache` of 0
    is for a PgBouncer below 1.21 in front.
    """

    exclusive = False
    pace = 10

    def __init__(
        self,
        url: str,
        declaration: Declaration,
        *,
        chance: Callable[[int], bytes],
        writers: int = 2,
        readers: int = 4,
        statement_cache: int = 1000,
    ) -> None:
        self.epoch = ""
        self.warnings: list[str] = []
        self._url = plain_url(url)
        self._declaration = declaration
        self._chance = chance
        self._sizes = {"writers": writers, "readers": readers}
        self._statement_cache = statement_cache
        self._tables = {name: PostgresTable(table) for name, table in tables_of(declaration).items()}
        self._captured = [name for name, entity in declaration.entities.items() if entity.capture]
        self._writers: asyncpg.Pool | None = None
        self._readers: asyncpg.Pool | None = None

    async def open(self) -> None:
        with translated():
            faults = await postgres_faults(self._url, self._declaration)
            if faults:
                raise Unfit("; ".join(faults))
            self._writers = await self._pool(self._sizes["writers"], _WRITERS)
            self._readers = await self._pool(self._sizes["readers"], _READERS)
        self.epoch = await self._settle_epoch()

    async def close(self) -> None:
        for pool in (self._writers, self._readers):
            if pool is not None:
                # Given up, it cuts off its connections, and what waits for them fails.
                with suppress(TimeoutError):
                    await asyncio.wait_for(pool.close(), CLOSE_WITHIN)

    async def renew_epoch(self) -> str:
        """Draw a new epoch, as belongs to every restore; every replica starts anew (SPEC 1)."""
        async with self._transaction() as connection:
            self.epoch = sql.new_epoch(self._chance)
            await connection.execute(statements.META_SET, ["epoch"], [self.epoch])
        return self.epoch

    async def transact(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        async with self._transaction() as connection:
            transaction = PostgresTransaction(connection, self._tables)
            result = await body(transaction)
            if transaction.failure is not None:
                raise transaction.failure
            return result

    async def memberships(self, users: Collection[str]) -> dict[str, dict[str, str]]:
        wanted = 'SELECT "user", scope, role FROM sync_member WHERE "user" = ANY($1::text[])'
        return sql.by_user(await self._fetch(wanted, list(users)))

    async def members(self, scope: str) -> dict[str, str]:
        return dict(await self._fetch('SELECT "user", role FROM sync_member WHERE scope = $1', scope))

    async def states(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        found = await self._fetch(f"SELECT {sql.STATE} FROM sync_scope WHERE scope = ANY($1::text[])", list(scopes))
        return {record[0]: ScopeState(*record) for record in found}

    async def run(self, scope: str, after: int, base: int, limit: int, max_bytes: int) -> Run | None:
        found = await self._fetch(statements.RUN, scope, after, base, limit, max_bytes)
        if not found:
            return None
        *state, seen, count, last, body = found[0]
        head = ScopeState(*state)
        return Run(head, count, last if count < seen else head.head, body or b"")

    async def events(self, query: EventQuery) -> list[JournalRow]:
        statement, values = sql.journal_query(query, "$", statements.AMONG, statements.NAMING, list)
        if query.rows is None:
            return [JournalRow(*record) for record in await self._fetch(statement, *values)]
        async with self._transaction() as connection:  # what an index of row hashes finds has to be sorted
            return [JournalRow(*record) for record in await connection.fetch(statement, *values)]

    async def rows_of(self, scope: str) -> Iterable[FeedRow]:
        return feed_rows(await self._fetch(statements.ROWS_OF, scope))

    async def residues(self, before: int, latest: str, limit: int) -> list[FeedRow]:
        return feed_rows(await self._fetch(statements.RESIDUES, before, latest, limit))

    async def forget(self, scope: str, horizon: int, dropped: Sequence[FeedRow], rewritten: Sequence[FeedRow]) -> int:
        async with self._transaction() as connection:
            if not await connection.fetch(statements.LOCK, [scope]):
                return 0
            gone = await connection.fetch(statements.FORGET, scope, *columns_of(dropped, FeedRow))
            kept = await connection.execute(statements.REWRITE, scope, *columns_of(rewritten, FeedRow))
            floor = max((record[0] for record in gone), default=0)
            await connection.execute(statements.RAISE_FLOOR, scope, floor, horizon)
            return len(gone) + count_of(kept)

    async def forget_journal(self, before: int, limit: int) -> int:
        async with self._transaction() as connection:
            return count_of(await connection.execute(statements.FORGET_JOURNAL, before, limit))

    async def lease(self, name: str, owner: str, now: int, until: int) -> bool:
        value = msgspec.json.encode({"owner": owner, "until": until}).decode()
        async with self._transaction() as connection:
            return count_of(await connection.execute(statements.LEASE, f"lease:{name}", value, owner, now)) == 1

    async def inbox(
        self, passed: Collection[int], limit: int, without: Collection[str] = (), *, newest: bool = False
    ) -> list[InboxEntry]:
        wanted = [name for name in self._captured if name not in without]
        found = await self._fetch(statements.NEWEST if newest else statements.INBOX, wanted, list(passed), limit)
        return [InboxEntry(*record) for record in found]

    async def backlog(self) -> Backlog:
        return Backlog(*(await self._fetch(statements.BACKLOG))[0])

    def connections(self) -> Connections:
        pools = [pool for pool in (self._writers, self._readers) if pool is not None]
        return Connections(sum(pool.get_size() - pool.get_idle_size() for pool in pools), sum(self._sizes.values()))

    async def report(self, identities: Collection[Identity], at: int) -> None:
        if identities:
            async with self._transaction() as connection:
                await connection.execute(statements.REPORT, *zip(*identities, strict=True), at)

    async def sweep(self, entity: str, after: Identity | None, limit: int) -> list[TableRow]:
        table = self._tables[entity]
        behind = [] if after is None else [column[0] for column in table.table.identity_arguments([after])]
        found = await self._fetch(table.sweep(after is not None), *map(str, behind), limit)
        return [table.table.table_row(record) for record in found]

    async def live(self, entity: str, after: tuple[str, str] | None, limit: int) -> list[FeedRow]:
        return feed_rows(await self._fetch(statements.LIVE, entity, *(after or ("", "")), limit))

    async def _pool(self, size: int, settings: dict[str, str]) -> asyncpg.Pool:
        return await asyncpg.create_pool(
            self._url,
            min_size=1,
            max_size=size,
            reset=_leave_as_it_is,
            command_timeout=_CLIENT_PATIENCE,
            statement_cache_size=self._statement_cache,
            max_cached_statement_lifetime=0,
            server_settings=settings,
        )

    @asynccontextmanager
    async def _connection(self, pool: asyncpg.Pool | None) -> AsyncIterator[asyncpg.Connection]:
        if pool is None:
            raise Unavailable("the store is not open")
        with translated():
            connection = await pool.acquire(timeout=_CLIENT_PATIENCE)
        try:
            yield connection
        finally:
            with suppress(*DRIVER):  # a connection that cannot be given back is closed
                await pool.release(connection)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._connection(self._writers) as connection:
            transaction = connection.transaction()
            with translated():
                await transaction.start()
            try:
                with translated():
                    yield connection
            except BaseException:
                with suppress(*DRIVER):  # a connection that is gone has rolled back
                    await transaction.rollback()
                raise
            with translated():
                await transaction.commit()

    async def _fetch(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        async with self._connection(self._readers) as connection:
            with translated():
                found: list[asyncpg.Record] = await connection.fetch(statement, *values)
                return found

    async def _settle_epoch(self) -> str:
        """Keep the epoch while the database is the one it was drawn for, else draw another (SPEC 1)."""
        fingerprint = await self._fingerprint()
        async with self._transaction() as connection:
            drawn = sql.new_epoch(self._chance)
            await connection.execute(statements.META_KEEP, ["epoch", "fingerprint"], [drawn, fingerprint])
            held = dict(await connection.fetch(statements.META_LOCK, ["epoch", "fingerprint"]))
            if held["fingerprint"] != fingerprint:
                await connection.execute(statements.META_SET, ["epoch", "fingerprint"], [drawn, fingerprint])
                return drawn
            return str(held["epoch"])

    async def _fingerprint(self) -> str:
        async with self._connection(self._readers) as connection:
            with translated():
                try:
                    system = await connection.fetchval("SELECT system_identifier FROM pg_control_system()")
                except asyncpg.InsufficientPrivilegeError:
                    system = "-"
                place = await connection.fetchrow(statements.PLACE)
        return "/".join(map(str, (system, *place)))


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """We change no setting of a session, so nothing is to be put back when it returns to the pool."""
