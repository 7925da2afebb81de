"""Whether a database fits a declaration: every table there, with what it needs (SPEC 10)."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from tidemark.store.base import InUse, Unavailable, Unfit
from tidemark.store.entities import EntityTable
from tidemark_protocol.model import Declaration, Entity

from .mysql_types import BINARY, too_wide
from .tables import metadata_for

T = TypeVar("T")

_TAKES: Final[dict[str, tuple[type[Any], ...]]] = {
    "text": (sa.String,),
    "enum": (sa.String,),
    "integer": (sa.Integer, sa.Numeric),
    "number": (sa.Numeric, sa.Float),
    "decimal": (sa.Numeric,),
    "boolean": (sa.Boolean,),
    "date": (sa.Date,),
    "time": (sa.Time,),
    "datetime": (sa.DateTime,),
    "uuid": (sa.Uuid,),
    "json": (sa.JSON,),
    "map": (sa.JSON,),
}
"""Types that a column of another program may have, by the declared type."""
_MYSQL_TAKES: Final[dict[str, tuple[type[Any], ...]]] = {
    "boolean": (sa.Boolean, mysql.TINYINT),
    "uuid": (sa.Uuid, sa.String),
    "json": (sa.JSON, sa.String),
    "map": (sa.JSON, sa.String),
}
"""What MySQL and MariaDB have instead: a JSON of MariaDB is a text, and few tables have its UUID."""
OLDEST: Final = {"mysql": (8, 0, 17), "mariadb": (10, 6)}
"""By dialect, the first version of a server that will do."""
_UUID_LENGTH: Final = 36
_PASSING: Final = frozenset({1040, 1053, 1203, 1205, 1213, 1927})
"""Errors of a MySQL server that go by: too many connections, a shutdown, a lock waited for in vain."""


def plain_url(url: str) -> str:
    """A database URL without the name of a driver."""
    kind, mark, rest = url.partition("://")
    return kind.partition("+")[0] + mark + rest


def is_mysql(url: str) -> bool:
    """Whether a URL names a database of MySQL or MariaDB."""
    return plain_url(url).startswith(("mysql:", "mariadb:"))


def sqlite_path(url: str) -> str:
    """The file of a SQLite URL, or a path as it is."""
    path = make_url(url).database if "://" in url else url
    if not path or path == ":memory:" or path.startswith("file:"):
        raise Unfit("SQLite needs a file: sqlite:////absolute/path or sqlite:///relative/path")
    return path


def sqlite_engine(path: str, begin: str = "BEGIN IMMEDIATE") -> sa.Engine:
    """An engine whose transactions hold schema changes too, and take the write lock at once unless told otherwise."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=NullPool)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def claim(path: Path) -> IO[bytes]:
    """Hold a database file for this process alone, until the handle is closed."""
    lock = Path(f"{path}.lock").open("ab")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InUse(
            f"{path} is in use by another process: SQLite serves one process; use PostgreSQL for several"
        ) from None
    return lock


def once(_: object) -> bool:
    """Work that is done when it has been done once."""
    return False


async def with_postgres(url: str, work: Callable[[Connection], T], again: Callable[[T], bool] = once) -> T:
    """Do synchronous `work` in a transaction of a connection of its own, and in another `again` as its result says."""
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda **_: asyncpg.connect(plain_url(url)), poolclass=NullPool
    )
    try:
        return await _transactions(engine, work, again)
    finally:
        await engine.dispose()


async def _transactions(engine: AsyncEngine, work: Callable[[Connection], T], again: Callable[[T], bool]) -> T:
    async with engine.connect() as connection:
        while True:
            async with connection.begin():
                result = await connection.run_sync(work)
            if not again(result):
                return result


async def with_mysql(url: str, work: Callable[[Connection], T], again: Callable[[T], bool] = once) -> T:
    """The same on MySQL or MariaDB, where a statement that changes tables ends the transaction before and after it.

    Raises Unavailable when nothing answers, Unfit when whoever answers refuses, beside what `work` raises.
    """
    from tidemark.store.mysql.connection import DRIVER, connect, product  # noqa: PLC0415

    try:
        opened = await connect(url)
        kind = await product(opened)
    except DRIVER as error:
        raise (Unfit if refused(error) else Unavailable)(f"{type(error).__name__}: {error}") from error

    async def creator(**_: Any) -> Any:
        return opened

    engine = create_async_engine(f"{kind}+asyncmy://", async_creator=creator, poolclass=NullPool)
    try:
        return await _transactions(engine, work, again)
    finally:
        await engine.dispose()
        opened.close()


def refused(error: Exception) -> bool:
    """Whether a MySQL server was there and said no, and will again."""
    cause: Any = getattr(error, "orig", error)
    number = cause.args[0] if cause is not None and cause.args else None
    if not isinstance(number, int):
        return False
    return (1000 <= number < 2000 or number >= 3000) and number not in _PASSING  # 2000 to 2999 are the client's own


async def mysql_faults(url: str, declaration: Declaration) -> list[str]:
    """`faults` of a MySQL or MariaDB database, its server included."""
    return await with_mysql(url, lambda connection: [*_server(connection), *faults(connection, declaration)])


async def postgres_faults(url: str, declaration: Declaration) -> list[str]:
    """`faults` of a PostgreSQL database, its settings included."""
    return await with_postgres(url, lambda connection: [*_settings(connection), *faults(connection, declaration)])


def faults(connection: Connection, declaration: Declaration) -> list[str]:
    """What is missing, each in a sentence; empty when the database fits."""
    inspector = sa.inspect(connection)
    wanted = list(metadata_for(declaration).tables.values())
    held = {name: columns for (_, name), columns in inspector.get_multi_columns().items()}
    own = [name for table in wanted for name in _lacking(table, held)]
    found = [f"the database is not up to date, migrate it (--migrate): {', '.join(own)} missing"] if own else []
    if connection.dialect.name in BINARY:
        found += too_wide(declaration)
    return found + misfits(connection, declaration)


def misfits(connection: Connection, declaration: Declaration) -> list[str]:
    """Why tables of other programs do not fit their declaration, each in a sentence."""
    inspector = sa.inspect(connection)
    held = {name: columns for (_, name), columns in inspector.get_multi_columns().items()}
    return [
        misfit
        for entity in declaration.entities.values()
        if entity.adopted
        for misfit in _misfits(inspector, entity, {c["name"]: c["type"] for c in held.get(entity.table, [])})
    ]


def _settings(connection: Connection) -> Iterator[str]:
    if connection.exec_driver_sql("SHOW server_encoding").scalar() != "UTF8":
        yield "the database's encoding is not UTF8"
    if connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar():
        yield "the server is a standby: it takes no writes"


def _server(connection: Connection) -> Iterator[str]:
    version = tuple(part for part in connection.dialect.server_version_info or () if isinstance(part, int))
    kind, oldest = "MariaDB" if connection.dialect.name == "mariadb" else "MySQL", OLDEST[connection.dialect.name]
    if version < oldest:
        yield f"{kind} {'.'.join(map(str, oldest))} or newer is needed, not {'.'.join(map(str, version))}"
    if connection.exec_driver_sql("SELECT @@global.read_only").scalar():
        yield "the server takes no writes (read_only)"


def _lacking(table: sa.Table, held: dict[str, Any]) -> list[str]:
    if table.name not in held:
        return [f"table {table.name}"]
    names = {column["name"] for column in held[table.name]}
    return [f"column {table.name}.{column.name}" for column in table.columns if column.name not in names]


def _misfits(inspector: sa.Inspector, entity: Entity, types: dict[str, Any]) -> Iterator[str]:
    """Why a table of another program does not fit its declaration."""
    if not types:
        yield f"table {entity.table} of {entity.name} is missing; it is named by `table:`, so it is not made here"
        return
    kinds: dict[str, str] = dict(zip(entity.key.columns, entity.key.types, strict=True))
    kinds[entity.scope.column] = entity.scope.type
    kinds |= {name: field.type for name, field in entity.fields.items()}
    for name, kind in kinds.items():
        if name not in types:
            yield f"table {entity.table} has no column {name}"
        elif inspector.dialect.name != "sqlite" and not _takes(inspector.dialect.name, types[name], kind):
            yield f"column {entity.table}.{name} is {types[name]}, which does not hold a declared {kind}"
    for name, field in entity.fields.items():
        scale = getattr(types.get(name), "scale", None)
        if field.type == "decimal" and scale is not None and scale < (field.scale or 0):
            yield f"column {entity.table}.{name} rounds to {scale} digits after the point, {field.scale} are declared"
    identity = {c.name.strip('"') for c in EntityTable(entity).identity}
    if not any(identity == columns for columns in _unique_columns(inspector, entity.table)):
        yield f"table {entity.table} has neither a primary key nor a unique index on {', '.join(sorted(identity))}"


def _takes(dialect: str, held: Any, kind: str) -> bool:
    if isinstance(held, postgresql.ENUM | mysql.SET) or (isinstance(held, sa.Enum) and kind != "enum"):
        return False
    if kind == "decimal" and isinstance(held, sa.Float):
        return False
    if kind == "uuid" and isinstance(held, sa.String) and (held.length or 0) < _UUID_LENGTH:
        return False
    return isinstance(held, _MYSQL_TAKES.get(kind, _TAKES[kind]) if dialect in BINARY else _TAKES[kind])


def _unique_columns(inspector: sa.Inspector, table: str) -> Iterator[set[str | None]]:
    yield set(inspector.get_pk_constraint(table)["constrained_columns"])
    for constraint in inspector.get_unique_constraints(table):
        yield set(constraint["column_names"])
    for index in inspector.get_indexes(table):
        if index["unique"] and not index.get("dialect_options", {}).get("postgresql_where"):
            yield set(index["column_names"])
