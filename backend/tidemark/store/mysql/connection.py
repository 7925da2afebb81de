"""Connections to MySQL and MariaDB: how a URL is read, and what every session of ours is set to."""

from __future__ import annotations

from typing import Any, Final

import asyncmy
from asyncmy.connection import Connection
from asyncmy.errors import Error
from sqlalchemy.dialects.mysql.asyncmy import MySQLDialect_asyncmy
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from tidemark.store.base import Unfit

DRIVER: Final = (Error, OSError, TimeoutError)
"""What the driver raises when it connects."""
MYSQL: Final = "mysql"
MARIADB: Final = "mariadb"

SQL_MODE: Final = (
    "ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,"
    "NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO"
)
"""Identifiers, literals and `||` as in the other databases, and no value is ever mended."""
_LOCK_PATIENCE: Final = 3
_CONNECT_WITHIN: Final = 10
_SETTINGS: Final = (
    f"sql_mode = '{SQL_MODE}'",
    "time_zone = '+00:00'",
    "sql_notes = 0",
    "max_error_count = 0",  # the driver would fetch and log each warning: strict, there are none but of names
    f"innodb_lock_wait_timeout = {_LOCK_PATIENCE}",
)
_SESSION: Final = (f"SET SESSION {', '.join(_SETTINGS)}", "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")


async def connect(url: str) -> Connection:
    """A connection with the session that all our statements expect.

    Raises Unfit for a URL that makes no sense, and the driver's own errors.
    """
    connection = await asyncmy.connect(**parameters(url))
    try:
        async with connection.cursor() as cursor:
            for statement in _SESSION:
                await cursor.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


def parameters(url: str) -> dict[str, Any]:
    """The driver's arguments for `mysql://user:password@host:port/database?ssl_ca=…`, as SQLAlchemy reads it.

    Unfit if it makes no sense.
    """
    try:
        found = make_url(url)
    except (ArgumentError, ValueError) as fault:
        raise Unfit(f"the database's URL cannot be read: {fault}") from None
    if not found.database:
        raise Unfit("the database's URL names no database: mysql://user:password@host:port/database is expected")
    _, arguments = MySQLDialect_asyncmy().create_connect_args(found)
    return {"charset": "utf8mb4", "connect_timeout": _CONNECT_WITHIN, **arguments}


async def product(connection: Connection) -> str:
    """`MYSQL` or `MARIADB`, whatever the URL calls it."""
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT VERSION()")
        (version,) = await cursor.fetchone()
    return MARIADB if "mariadb" in str(version).lower() else MYSQL
