"""A pool of connections to MySQL and MariaDB, and the one seam where the driver's exceptions become the port's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from types import NoneType
from typing import Any, Final

import asyncmy
from asyncmy import converters, errors
from asyncmy.constants import CLIENT, FIELD_TYPE

from tidemark.store.base import ConstraintFailed, RowTaken, Unavailable

from .connection import SQL_MODE, parameters

_SESSION: Final = (
    f"sql_mode = '{SQL_MODE}'",
    "sql_notes = 0",  # asyncmy would ask for each
    "time_zone = '+00:00'",
    "collation_connection = 'utf8mb4_bin'",
    "lock_wait_timeout = 1",  # for a table that is being changed
)
_MARIADB: Final = (
    "max_statement_time = 30",
    "idle_transaction_timeout = 5",
    "in_predicate_conversion_threshold = 0",  # long lists are looked up by the index, never joined
)
_MYSQL: Final = ("max_execution_time = 30000",)
LOCK_PATIENCE: Final = 3
"""Seconds for one lock of a row."""
_CLIENT_PATIENCE: Final = 40.0
"""Seconds for one statement: more than the server's own limit, for a server that went away without a word."""
_PARCEL: Final = 1 << 21
"""Characters sent at a time, about: the server refuses more than 16 MiB, unless told otherwise."""
_DECODERS: Final = {**converters.conversions, FIELD_TYPE.TIME: converters.convert_time}

_AGAIN: Final = frozenset({1020, 1213, 1412, 3101})
"""A deadlock, a conflict in a cluster, a table that was altered meanwhile: the transaction can be run again."""
_WAITED: Final = 1205
_UNFITTING: Final = frozenset({1054, 1142, 1143, 1146})
"""No such column or table, or none for us."""
_TAKEN: Final = 1062
_DATA: Final = frozenset({1118, 1153, 1265, 1364, 1366, 1526, 1644, 3140, 3819, 4025})
_DATA_CLASSES: Final = frozenset({"22", "23", "44", "45"})
"""SQLSTATE classes in which the data is to blame; many errors have none, and are named. 1644 is what another program's
trigger raises.
"""
_AWAY: Final = frozenset(
    {1021, 1037, 1038, 1040, 1041, 1044, 1045, 1047, 1049, 1053, 1114, 1129, 1130, 1135, 1180, 1203, 1205, 1206, 1226}
    | {1290, 1317, 1615, 1698, 1792, 1836, 1877, 1878, 1927, 1969, 3024, 3100, 3169, 4031}
)
_AWAY_CLASSES: Final = frozenset({"08", "40", "70"})
_PRIMARY: Final = re.compile(r"for key '(?:[^']*\.)?PRIMARY'")


class Again(Unavailable):
    """The database ended the transaction for the sake of another: run it again."""


class Waited(Unavailable):
    """A lock was waited for in vain."""


class Unfitting(Exception):
    """A table or column is missing, or not ours to use."""


class Session:
    """One connection, and whether it may be used again."""

    def __init__(self, connection: asyncmy.Connection) -> None:
        self._connection = connection
        self._whole = True
        self._patience = 0
        self.mariadb = "MariaDB" in connection.get_server_info()

    @property
    def whole(self) -> bool:
        """False once a statement was cut short: the server may still be at it."""
        broken: bool = self._connection._stream_broken  # type: ignore[attr-defined]  # as the driver's pool asks
        return self._whole and not broken

    async def fetch(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement; a value may be a tuple, for a list in parentheses."""
        async with self._cursor() as cursor:
            await cursor.execute(self._spelled(statement, values))
            return list(await cursor.fetchall())

    async def execute(self, statement: str, *values: Any) -> int:
        """How many rows a statement wrote, or found to be written already."""
        async with self._cursor() as cursor:
            await cursor.execute(self._spelled(statement, values))
            return int(cursor.rowcount)

    async def insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run an `INSERT … VALUES (%s, …)` for all rows together."""
        for parcel in _parcels(rows):
            async with self._cursor() as cursor:
                await cursor.executemany(statement, parcel)

    async def each(self, statement: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run a statement once for each row of values, sent together; how many rows it found in all."""
        count = 0
        for parcel in _parcels(rows):
            async with self._cursor() as cursor:
                if self.mariadb and _uniform(parcel):
                    await cursor.executemany(statement, parcel)
                    count += cursor.rowcount
                else:
                    await cursor.execute("; ".join(self._spelled(statement, row) for row in parcel))
                    count += cursor.rowcount
                    while await cursor.nextset():
                        count += cursor.rowcount
        return count

    async def wait_at_most(self, seconds: int = LOCK_PATIENCE) -> None:
        """Set how long a statement waits for a lock; a rollback sets it back."""
        if seconds != self._patience:
            await self.execute("SET innodb_lock_wait_timeout = %s", seconds)
            self._patience = seconds

    async def commit(self) -> None:
        """End the transaction."""
        await self.execute("COMMIT")

    async def rollback(self) -> None:
        """End the transaction without effect; a connection that is not whole does so by being closed."""
        if self.whole:
            with suppress(Unavailable):
                await self.execute("ROLLBACK")
                await self.wait_at_most()

    async def close(self) -> None:
        """Say goodbye where somebody listens."""
        if self.whole:
            with suppress(OSError, errors.MySQLError, TimeoutError):
                async with asyncio.timeout(1):
                    await self._connection.ensure_closed()
        self.drop()

    def drop(self) -> None:
        """Close the connection as it is."""
        self._connection.close()

    def _spelled(self, statement: str, values: Sequence[Any]) -> str:
        literal: Callable[[Any], str] = self._connection.literal
        spelled = (
            f"({', '.join(map(literal, value))})" if isinstance(value, tuple) else literal(value) for value in values
        )
        return statement % tuple(spelled)

    @asynccontextmanager
    async def _cursor(self) -> AsyncIterator[Any]:
        self._whole = False
        try:
            with translated():
                async with asyncio.timeout(_CLIENT_PATIENCE), self._connection.cursor() as cursor:
                    yield cursor
        except (ConstraintFailed, RowTaken, Again, Waited, Unfitting):
            self._whole = True
            raise
        self._whole = True


class Pool:
    """Up to `size` connections to a URL, made when there is none to spare; those of `autocommit` only read."""

    def __init__(self, url: str, size: int, *, autocommit: bool) -> None:
        self._url = url
        self._autocommit = autocommit
        self._free = asyncio.Semaphore(size)
        self.used = 0
        self._idle: list[Session] = []
        self._closed = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection for the block; Unavailable when none comes free in time."""
        with translated():
            async with asyncio.timeout(_CLIENT_PATIENCE):
                await self._free.acquire()
        self.used += 1
        try:
            session = self._spare() or await connect(self._url, autocommit=self._autocommit)
            try:
                yield session
            finally:
                if session.whole and not self._closed:
                    self._idle.append(session)
                else:
                    session.drop()
        finally:
            self.used -= 1
            self._free.release()

    async def close(self) -> None:
        """Close the connections that are not in use, and the others when they come back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    def _spare(self) -> Session | None:
        while self._idle:
            session = self._idle.pop()
            if session.whole:
                return session
            session.drop()
        return None


async def connect(url: str, *, autocommit: bool) -> Session:
    """A connection with our settings."""
    arguments = parameters(url) | {
        "client_flag": CLIENT.FOUND_ROWS,
        "conv": _DECODERS,
        "stmt_cache_size": 500,
        "program_name": "tidemark",
    }
    with translated():
        async with asyncio.timeout(_CLIENT_PATIENCE):
            session = Session(await asyncmy.connect(**arguments, autocommit=None))
    try:
        settings = (*_SESSION, *(_MARIADB if session.mariadb else _MYSQL), f"autocommit = {int(autocommit)}")
        await session.execute(f"SET {', '.join(settings)}")
        await session.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        await session.wait_at_most()
    except BaseException:
        session.drop()
        raise
    return session


@contextmanager
def translated() -> Iterator[None]:
    """The one seam where the driver's exceptions become the port's."""
    try:
        yield
    except errors.MySQLError as error:
        meant = _meaning(error)
        if meant is None:
            raise
        raise meant from error
    except (OSError, TimeoutError) as error:
        raise Unavailable(str(error) or type(error).__name__) from error


def _meaning(error: errors.MySQLError) -> Exception | None:
    code, kind, text = error.args[0], str(error.sqlstate or "")[:2], str(error.args[-1])
    if code == _TAKEN:
        return RowTaken(text) if _PRIMARY.search(text) else ConstraintFailed(text, unique=True)
    if code in _AGAIN:
        return Again(text)
    if code == _WAITED:
        return Waited(text)
    if code in _UNFITTING:
        return Unfitting(text)
    if code in _DATA or kind in _DATA_CLASSES:
        return ConstraintFailed(text, unique=False)
    if code in _AWAY or kind in _AWAY_CLASSES or not isinstance(code, int) or code < 1000 or 2000 <= code < 3000:
        return Unavailable(text)  # what begins with 2 is the client's own, as are those without a number
    return None


def _uniform(rows: Sequence[Sequence[Any]]) -> bool:
    """Whether MariaDB takes rows in bulk: a column has values, of one type, and NULLs beside them at most."""
    return all(len({type(value) for value in column} - {NoneType}) == 1 for column in zip(*rows, strict=True))


def _parcels(rows: Sequence[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    """Rows in parts that fit into one message, in order."""
    parcel: list[Sequence[Any]] = []
    size = 0
    for row in rows:
        length = sum(len(value) for value in row if type(value) is str)
        if parcel and size + length > _PARCEL:
            yield parcel
            parcel, size = [], 0
        parcel.append(row)
        size += length
    if parcel:
        yield parcel
