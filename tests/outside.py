"""Another program: a connection of its own to the database under test, speaking plain SQL."""

from __future__ import annotations

import sqlite3
from typing import Any, Self

import asyncmy
import asyncpg
from sqlalchemy.engine import make_url


class Program:
    """One session. Statements commit by themselves, unless `begin` was called.

    Every transaction that this test suite holds open ends with its session.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.dialect = {"sqlite": "sqlite", "postgresql": "postgresql"}.get(url.partition(":")[0], "mysql")
        self._session: Any = None

    async def __aenter__(self) -> Self:
        where = make_url(self.url)
        if self.dialect == "sqlite":
            self._session = sqlite3.connect(where.database or "", isolation_level=None, timeout=5)
        elif self.dialect == "postgresql":
            self._session = await asyncpg.connect(self.url)
        else:
            self._session = await asyncmy.connect(
                host=where.host, port=where.port, user=where.username, db=where.database, autocommit=True
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.dialect == "sqlite":
            self._session.close()
        elif self.dialect == "postgresql":
            await self._session.close()
        else:
            self._session.close()

    @property
    def postgresql(self) -> asyncpg.Connection:
        """The driver's own connection, for what only this database has."""
        return self._session

    async def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements; the rows of the last one."""
        found: list[tuple[Any, ...]] = []
        for statement in statements:
            if self.dialect == "sqlite":
                found = self._session.execute(statement).fetchall()
            elif self.dialect == "postgresql":
                found = [tuple(record) for record in await self._session.fetch(statement)]
            else:
                async with self._session.cursor() as cursor:
                    await cursor.execute(statement)
                    found = list(await cursor.fetchall())
        return found

    async def begin(self) -> None:
        """Open a transaction; on SQLite it takes the write lock at once."""
        await self.run("BEGIN IMMEDIATE" if self.dialect == "sqlite" else "BEGIN")

    async def commit(self) -> None:
        """End the transaction."""
        await self.run("COMMIT")
