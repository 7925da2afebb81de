"""The MySQL store, for MariaDB too: asyncmy, set-based statements, READ COMMITTED, any number of service processes."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

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
from tidemark.store.schema.fit import mysql_faults
from tidemark_protocol.model import Declaration

from . import sql as statements
from .pool import Again, Pool, Session
from .sql import MysqlTable, any_of, behind
from .transaction import MAKING, MysqlTransaction

T = TypeVar("T")

_ATTEMPTS: Final = 4
"""How often a transaction is begun again that the database ended for the sake of another."""
_PARAMETER: Final = re.compile(r"\$\d+")
_PAGE_ROWS: Final = 16
"""A page may always read this many changes ahead, however large the last ones were."""


class MysqlStore:
    """A `Store` on MySQL or MariaDB. `chance(n)` gives n random bytes.

    `writers` bounds the transactions under way at a time, `readers` the queries beside them.
    """

    exclusive = False
    pace = 100

    def __init__(
        self,
        url: str,
        declaration: Declaration,
        *,
        chance: Callable[[int], bytes],
        writers: int = 2,
        readers: int = 4,
    ) -> None:
        self.epoch = ""
        self.warnings: list[str] = []
        self._url = url
        self._declaration = declaration
        self._chance = chance
        self._sizes = {"writers": writers, "readers": readers}
        self._tables = {name: MysqlTable(table) for name, table in tables_of(declaration).items()}
        self._captured = tuple(entity.name for entity in declaration.entities.values() if entity.capture)
        self._change_size = 1024
        self._writers: Pool | None = None
        self._readers: Pool | None = None

    async def open(self) -> None:
        faults = await mysql_faults(self._url, self._declaration)
        if faults:
            raise Unfit("; ".join(faults))
        self._writers = Pool(self._url, self._sizes["writers"], autocommit=False)
        self._readers = Pool(self._url, self._sizes["readers"], autocommit=True)
        self.epoch = await self._settle_epoch()

    async def close(self) -> None:
        pools, self._writers, self._readers = (self._writers, self._readers), None, None
        for pool in pools:
            if pool is not None:
                await pool.close()

    async def renew_epoch(self) -> str:
        """Draw a new epoch, as belongs to every restore; every replica starts anew (SPEC 1)."""
        drawn = sql.new_epoch(self._chance)
        await self._write(lambda session: session.execute(statements.META_SET, drawn, "epoch"))
        self.epoch = drawn
        return drawn

    async def transact(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        async def work(session: Session) -> T:
            transaction = MysqlTransaction(session, self._tables)
            result = await body(transaction)
            if transaction.failure is not None:
                raise transaction.failure
            return result

        return await self._write(work)

    async def memberships(self, users: Collection[str]) -> dict[str, dict[str, str]]:
        return sql.by_user(await self._fetch(statements.MEMBERSHIPS, tuple(users)) if users else [])

    async def members(self, scope: str) -> dict[str, str]:
        return dict(await self._fetch('SELECT "user", role FROM sync_member WHERE scope = %s', scope))

    async def states(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        found = await self._fetch(statements.STATES, tuple(scopes)) if scopes else []
        return {row[0]: ScopeState(*row) for row in found}

    async def run(self, scope: str, after: int, base: int, limit: int, max_bytes: int) -> Run | None:
        # Every change read is sent here: of large ones no more than fit, going by those read before.
        ahead = min(limit + 1, max(_PAGE_ROWS, max_bytes // self._change_size))
        found = await self._fetch(statements.RUN, scope, scope, after, base, ahead)
        if not found:
            return None
        (_, told), *changes = found
        *numbers, clock = told.decode().split(" ")
        head, floor, live, total, members, horizon = map(int, numbers)
        state = ScopeState(scope, head, floor, clock, live, total, members, horizon)
        page: list[bytes] = []
        size = 0
        for _, change in changes[:limit]:
            size += len(change) + 1
            if page and size - 1 > max_bytes:
                break
            page.append(change)
        if page:
            self._change_size = (self._change_size + sum(map(len, page)) // len(page)) // 2 + 1
        all_read = len(page) == len(changes) < ahead
        return Run(state, len(page), head if all_read else changes[len(page) - 1][0], b",".join(page))

    async def events(self, query: EventQuery) -> list[JournalRow]:
        if (query.scopes is not None and not query.scopes) or (query.rows is not None and not query.rows):
            return []

        def listed(values: Sequence[Any]) -> Any:
            return statements.pattern(values) if values is query.rows else tuple(values)

        statement, values = sql.journal_query(query, "$", statements.AMONG, statements.NAMING, listed)
        return [JournalRow(*row) for row in await self._fetch(_PARAMETER.sub("%s", statement), *values)]

    async def rows_of(self, scope: str) -> Iterable[FeedRow]:
        return sql.feed_rows(await self._fetch(statements.ROWS_OF, scope))

    async def residues(self, before: int, latest: str, limit: int) -> list[FeedRow]:
        return sql.feed_rows(await self._fetch(statements.RESIDUES, before, latest, limit))

    async def forget(self, scope: str, horizon: int, dropped: Sequence[FeedRow], rewritten: Sequence[FeedRow]) -> int:
        async def work(session: Session) -> int:
            if not await session.fetch(statements.LOCK, (scope,)):
                return 0
            gone = await self._forgettable(session, scope, dropped)
            if gone:
                where, values = any_of(["entity", '"row"'], {(row.entity, row.row) for row in gone})
                await session.execute(statements.FORGET.format(where), scope, *values)
            kept = await session.each(
                statements.REWRITE,
                [
                    (row.doc, row.root, row.clocks, row.residue, row.entity, row.row, scope, row.version, row.arrived)
                    for row in rewritten
                ],
            )
            floor = max((row.version for row in gone), default=0)
            await session.execute(statements.RAISE_FLOOR, floor, horizon, scope)
            return len(gone) + kept

        return await self._write(work)

    async def forget_journal(self, before: int, limit: int) -> int:
        return await self._write(lambda session: session.execute(statements.FORGET_JOURNAL, before, limit))

    async def lease(self, name: str, owner: str, now: int, until: int) -> bool:
        value = msgspec.json.encode({"owner": owner, "until": until}).decode()
        unheld = msgspec.json.encode({"owner": "", "until": 0}).decode()

        async def work(session: Session) -> bool:
            await session.insert(statements.META_KEEP, [(f"lease:{name}", unheld)])
            return await session.execute(statements.LEASE, value, f"lease:{name}", owner, now) == 1

        return await self._write(work)

    async def inbox(
        self, passed: Collection[int], limit: int, without: Collection[str] = (), *, newest: bool = False
    ) -> list[InboxEntry]:
        wanted = tuple(name for name in self._captured if name not in without)
        if not wanted:
            return []
        others = " AND id NOT IN %s" if passed else ""
        order = "id DESC" if newest else "id"
        statement = f"{statements.ENTRY} WHERE entity IN %s{others} ORDER BY {order} LIMIT {int(limit)}"
        found = await self._fetch(statement, wanted, *([tuple(passed)] if passed else []))
        return [InboxEntry(*row) for row in found]

    async def backlog(self) -> Backlog:
        return Backlog(*(await self._fetch(statements.BACKLOG))[0])

    def connections(self) -> Connections:
        pools = [pool for pool in (self._writers, self._readers) if pool is not None]
        return Connections(sum(pool.used for pool in pools), sum(self._sizes.values()))

    async def report(self, identities: Collection[Identity], at: int) -> None:
        async def work(session: Session) -> None:
            ((who,),) = await session.fetch(statements.WHO)
            await session.insert(statements.REPORT, [(*identity, at, who) for identity in identities])

        await self._write(work)

    async def sweep(self, entity: str, after: Identity | None, limit: int) -> list[TableRow]:
        table = self._tables[entity]
        statement, values = table.sweep(after, limit)
        return [table.table.table_row(row) for row in await self._fetch(statement, *values)]

    async def live(self, entity: str, after: tuple[str, str] | None, limit: int) -> list[FeedRow]:
        where, values = behind(['"row"', "scope"], after or ("", ""))
        statement = (
            f'{statements.LOAD} entity = %s AND NOT deleted AND {where} ORDER BY "row", scope LIMIT {int(limit)}'
        )
        return sql.feed_rows(await self._fetch(statement, entity, *values))

    async def _write(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Do `work` in a transaction; again, if the database ends it for the sake of another."""
        for _ in range(_ATTEMPTS):
            with suppress(Again):
                return await self._attempt(work)
        return await self._attempt(work)

    async def _attempt(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async with _open(self._writers).session() as session:
            try:
                result = await work(session)
                await session.commit()
            except BaseException:
                await session.rollback()
                raise
            return result

    async def _fetch(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        async with _open(self._readers).session() as session:
            return await session.fetch(statement, *values)

    async def _forgettable(self, session: Session, scope: str, dropped: Sequence[FeedRow]) -> list[FeedRow]:
        """Those that still are as they were given."""
        if not dropped:
            return []
        where, values = any_of(["entity", '"row"'], {(row.entity, row.row) for row in dropped})
        found = sql.feed_rows(await session.fetch(f"{statements.LOAD} scope = %s AND ({where})", scope, *values))
        held = {(row.entity, row.row): row for row in found}
        return [
            now
            for row in dropped
            if (now := held.get((row.entity, row.row)))
            and (now.root, now.clocks, now.arrived) == (row.root, row.clocks, row.arrived)
        ]

    async def _settle_epoch(self) -> str:
        """Keep the epoch while the database is the one it was drawn for, else draw another (SPEC 1)."""
        fingerprint = await self._fingerprint()
        drawn = sql.new_epoch(self._chance)

        async def work(session: Session) -> str:
            names = ("epoch", "fingerprint")
            await session.insert(statements.META_KEEP, [*zip(names, (drawn, fingerprint), strict=True)])
            held = dict(await session.fetch(statements.META, names))
            if held["fingerprint"] != fingerprint:
                await session.each(statements.META_SET, [(drawn, "epoch"), (fingerprint, "fingerprint")])
                return drawn
            return str(held["epoch"])

        held = {name for (name,) in await self._fetch(statements.META_HELD, MAKING)}
        await self._write(
            lambda session: session.insert(statements.META_KEEP, [(name, "") for name in MAKING if name not in held])
        )
        return await self._write(work)

    async def _fingerprint(self) -> str:
        async with _open(self._readers).session() as session:
            cluster = [value for _, value in await session.fetch(statements.CLUSTER) if value.strip("0-")]
            ((database, made),) = await session.fetch(statements.PLACE)
            if cluster:
                return f"{cluster[0]}/{database}"
            server = "" if session.mariadb else (await session.fetch(statements.SERVER))[0][0]
            return f"{server}/{database}/{made}"


def _open(pool: Pool | None) -> Pool:
    if pool is None:
        raise Unavailable("the store is not open")
    return pool
