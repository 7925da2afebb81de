"""The PostgreSQL store: asyncpg, prepared set-based statements, READ COMMITTED, any number of service processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypeVar

import asyncpg
import msgspec
from msgspec.structs import astuple

from tidemark_protocol.model import Declaration

from . import postgresql_sql as statements
from . import sql
from .base import (
    Backlog,
    ConstraintFailed,
    EventQuery,
    FeedRow,
    Held,
    Identity,
    InboxEntry,
    JournalEntry,
    JournalRow,
    RowImage,
    RowKey,
    RowTaken,
    Run,
    Saved,
    ScopeState,
    TableRow,
    Transaction,
    Unavailable,
)
from .entities import by_entity, identities_by_entity, images_by_entity, tables_of
from .fit import plain_url, postgres_faults
from .postgresql_sql import OWN, PostgresTable
from .tables import Unfit

T = TypeVar("T")

_KINDS: Final = {FeedRow: statements.FEED_KINDS, ScopeState: statements.STATE_KINDS}

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
_CLIENT_PATIENCE: Final = 40.0
"""Seconds for one statement: more than the server's own limit, for a server that went away without a word."""
_GONE: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What a connection raises that was cut: asyncpg calls it internal when the cut is noticed within a statement."""
_DRIVER: Final = (asyncpg.PostgresError, *_GONE)
_DATA_CLASSES: Final = frozenset({"22", "23", "44", "54", "P0"})
"""SQLSTATE classes in which the data is to blame; P0 is what another program's trigger raises."""
_AWAY_CLASSES: Final = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58"})


class PostgresStore:
    """A `Store` on PostgreSQL. `now` gives Unix milliseconds, `chance(n)` n random bytes.

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
        now: Callable[[], int],
        chance: Callable[[int], bytes],
        writers: int = 2,
        readers: int = 4,
        statement_cache: int = 1000,
    ) -> None:
        self.epoch = ""
        self.warnings: list[str] = []
        self._url = plain_url(url)
        self._declaration = declaration
        self._now = now
        self._chance = chance
        self._sizes = {"writers": writers, "readers": readers}
        self._statement_cache = statement_cache
        self._tables = {name: PostgresTable(table) for name, table in tables_of(declaration).items()}
        self._captured = [name for name, entity in declaration.entities.items() if entity.capture]
        self._writers: asyncpg.Pool | None = None
        self._readers: asyncpg.Pool | None = None

    async def open(self) -> None:
        with _translated():
            faults = await postgres_faults(self._url, self._declaration)
            if faults:
                raise Unfit("; ".join(faults))
            self._writers = await self._pool(self._sizes["writers"], _WRITERS)
            self._readers = await self._pool(self._sizes["readers"], _READERS)
        self.epoch = await self._settle_epoch()

    async def close(self) -> None:
        for pool in (self._writers, self._readers):
            if pool is not None:
                await pool.close()

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

    async def memberships(self, user: str) -> dict[str, str]:
        return dict(await self._fetch('SELECT scope, role FROM sync_member WHERE "user" = $1', user))

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
        return _feed(await self._fetch(f"SELECT {sql.FEED} FROM sync_feed WHERE scope = $1 ORDER BY version", scope))

    async def residues(self, before: int, latest: str, limit: int) -> list[FeedRow]:
        return _feed(await self._fetch(statements.RESIDUES, before, latest, limit))

    async def forget(self, scope: str, horizon: int, dropped: Sequence[FeedRow], rewritten: Sequence[FeedRow]) -> int:
        async with self._transaction() as connection:
            if not await connection.fetch(statements.LOCK, [scope]):
                return 0
            gone = await connection.fetch(statements.FORGET, scope, *_columns(dropped, FeedRow))
            kept = await connection.execute(statements.REWRITE, scope, *_columns(rewritten, FeedRow))
            floor = max((record[0] for record in gone), default=0)
            await connection.execute(statements.RAISE_FLOOR, scope, floor, horizon)
            return len(gone) + _count(kept)

    async def forget_journal(self, before: int, limit: int) -> int:
        async with self._transaction() as connection:
            return _count(await connection.execute(statements.FORGET_JOURNAL, before, limit))

    async def lease(self, name: str, owner: str, now: int, until: int) -> bool:
        value = msgspec.json.encode({"owner": owner, "until": until}).decode()
        async with self._transaction() as connection:
            return _count(await connection.execute(statements.LEASE, f"lease:{name}", value, owner, now)) == 1

    async def inbox(self, passed: Collection[int], limit: int) -> list[InboxEntry]:
        found = await self._fetch(statements.INBOX, self._captured, list(passed), limit)
        return [InboxEntry(*record) for record in found]

    async def backlog(self) -> Backlog:
        return Backlog(*(await self._fetch(statements.BACKLOG))[0])

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
        return _feed(await self._fetch(statements.LIVE, entity, *(after or ("", "")), limit))

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
        with _translated():
            connection = await pool.acquire(timeout=_CLIENT_PATIENCE)
        try:
            yield connection
        finally:
            with suppress(*_DRIVER):  # a connection that cannot be given back is closed
                await pool.release(connection)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._connection(self._writers) as connection:
            transaction = connection.transaction()
            with _translated():
                await transaction.start()
            try:
                with _translated():
                    yield connection
            except BaseException:
                with suppress(*_DRIVER):  # a connection that is gone has rolled back
                    await transaction.rollback()
                raise
            with _translated():
                await transaction.commit()

    async def _fetch(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        async with self._connection(self._readers) as connection:
            with _translated():
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
            with _translated():
                try:
                    system = await connection.fetchval("SELECT system_identifier FROM pg_control_system()")
                except asyncpg.InsufficientPrivilegeError:
                    system = "-"
                place = await connection.fetchrow(statements.PLACE)
        return "/".join(map(str, (system, *place)))


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
        return _feed(found)

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
            found = await self._fetch(table.lock, *table.identities(some))
            locked.update(Identity(entity, record[0]) for record in found)
        rows: list[TableRow] = []
        for entity, some in identities_by_entity(identities).items():
            table = self._tables[entity]
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
            await self._execute(statements.WAIT_BRIEFLY)
            self._waits_for_others = True
        if saved.drained:
            await self._execute(statements.DRAINED, list(saved.drained))
        with self._failing():
            for entity, keys in self._removed(saved).items():
                table = self._tables[entity]
                await self._execute(table.delete, *table.keys(keys))
                if table.table.entity.capture:
                    await self._execute(table.report_kept, *table.keys(keys), entity)
            for entity, images in images_by_entity(saved.images).items():
                await self._write(self._tables[entity], images)
            await self._execute(
                statements.SAVE,
                *_columns(saved.feed, FeedRow),
                *_journal_columns(saved.journal),
                *_columns(saved.scopes, ScopeState),
            )

    def _removed(self, saved: Saved) -> dict[str, list[RowKey]]:
        return by_entity(sql.removed(saved, {name: table.table for name, table in self._tables.items()}))

    async def _write(self, table: PostgresTable, images: list[RowImage]) -> None:
        left = await self._update(table, images) if table.table.entity.adopted else images
        if left:
            await self._upsert(table, left)
        if table.table.entity.capture:
            await self._execute(table.report_changed, *table.rows(images), table.table.entity.name)

    async def _upsert(self, table: PostgresTable, images: list[RowImage]) -> None:
        count = _count(await self._execute(table.upsert, *table.rows(images)))
        if count < len(images):
            raise RowTaken(f"{len(images) - count} rows of {table.table.entity.name} are in use in other scopes")

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
            with _translated():
                yield
        except Unavailable as failure:
            held = self._waits_for_others and isinstance(failure.__cause__, asyncpg.LockNotAvailableError)
            self.failure = Held(str(failure)) if held else failure
            raise self.failure from failure
        except Exception as failure:
            self.failure = failure
            raise


@contextmanager
def _translated() -> Iterator[None]:
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


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """We change no setting of a session, so nothing is to be put back when it returns to the pool."""


def _columns(rows: Sequence[msgspec.Struct], kind: type[msgspec.Struct]) -> list[Any]:
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


def _feed(records: Iterable[asyncpg.Record]) -> list[FeedRow]:
    return [FeedRow(*record) for record in records]


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])
