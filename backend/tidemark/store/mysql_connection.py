"""Connections to MySQL and MariaDB: how a URL is read, and what every session of ours is set to."""

from __future__ import annotations

import ssl
from typing import Any, Final

import asyncmy
from asyncmy.connection import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from .tables import Unfit

MYSQL: Final = "mysql"
MARIADB: Final = "mariadb"

SQL_MODE: Final = (
    "ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,"
    "NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO"
)
"""Identifiers, literals and `||` as in the other databases, and no value is ever mended."""
_LOCK_PATIENCE: Final = 3
_CONNECT_WITHIN: Final = 10
_SESSION: Final = (
    f"SET SESSION sql_mode = '{SQL_MODE}', time_zone = '+00:00', innodb_lock_wait_timeout = {_LOCK_PATIENCE}",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
)


async def connect(url: str, *, autocommit: bool = False) -> Connection:
    """A connection with the session that all our statements expect.

    Raises Unfit for a URL that makes no sense, and the driver's own errors.
    """
    connection = await asyncmy.connect(**parameters(url), autocommit=autocommit)
    try:
        async with connection.cursor() as cursor:
            for statement in _SESSION:
                await cursor.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


def parameters(url: str) -> dict[str, Any]:
    """The driver's arguments for `mysql://user:password@host:port/database`.

    Known behind a `?`: `unix_socket` (a path), `ssl` (`true`: encrypted, the server's certificate checked) and `ssl_ca`
    (the same by the authorities in a file).
    """
    try:
        found = make_url(url)
    except (ArgumentError, ValueError) as fault:
        raise Unfit(f"the database's URL cannot be read: {fault}") from None
    options = {name: value for name, value in found.query.items() if isinstance(value, str)}
    unknown = found.query.keys() - {"unix_socket", "ssl", "ssl_ca"}
    if unknown or not found.database:
        why = f"does not take {', '.join(sorted(unknown))}" if unknown else "names no database"
        raise Unfit(f"the database's URL {why}: mysql://user:password@host:port/database is expected")
    arguments: dict[str, Any] = {
        "host": found.host or "127.0.0.1",
        "port": found.port or 3306,
        "user": found.username,
        "password": found.password or "",
        "database": found.database,
        "charset": "utf8mb4",
        "connect_timeout": _CONNECT_WITHIN,
    }
    if "unix_socket" in options:
        arguments["unix_socket"] = options["unix_socket"]
    if options.get("ssl", "false") != "false" or "ssl_ca" in options:
        arguments["ssl"] = ssl.create_default_context(cafile=options.get("ssl_ca"))
    return arguments


async def product(connection: Connection) -> str:
    """`MYSQL` or `MARIADB`, whatever the URL calls it."""
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT VERSION()")
        (version,) = await cursor.fetchone()
    return MARIADB if "mariadb" in str(version).lower() else MYSQL
