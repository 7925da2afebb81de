"""Every store that keeps the port's promises, and how each is made for a test."""

from __future__ import annotations

import secrets
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Final

import pytest

from tests.conformance.declared import DECLARATION
from tests.servers import MariadbServer, PostgresServer
from tidemark.store.base import Store
from tidemark.store.memory import MemoryStore
from tidemark.store.mysql import MysqlStore
from tidemark.store.postgresql import PostgresStore
from tidemark.store.sqlite import SqliteStore
from tidemark_protocol.model import Declaration


def empty(server: PostgresServer | MariadbServer, url: str) -> None:
    """Remove all rows from a database with the tables; its epoch stays."""
    tables = ("sync_scope", "sync_feed", "sync_journal", "sync_inbox", "sync_member", *DECLARATION.entities)
    quoting = "SET sql_mode = 'ANSI_QUOTES'; " if isinstance(server, MariadbServer) else ""
    server.sql(quoting + "; ".join(f'DELETE FROM "{name}"' for name in tables), url.rpartition("/")[2])


class Database(ABC):
    """A database of a test's own, its tables made and empty. Differences between stores are declared here alone."""

    overlapping: ClassVar[bool]
    """Whether transactions of different scopes run at the same time, so that one may wait for what another does."""

    @abstractmethod
    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        """Make it, with the help of fixtures; `folder` is the test's own."""

    @abstractmethod
    def store(self, declaration: Declaration = DECLARATION) -> Store:
        """A store on this database, not opened yet: each as a process of its own would have it."""


class Memory(Database):
    """Contents live as long as the one store does."""

    overlapping = True

    def __init__(self, _request: pytest.FixtureRequest, _folder: Path) -> None:
        self._store = MemoryStore(DECLARATION, chance=secrets.token_bytes)

    def store(self, declaration: Declaration = DECLARATION) -> Store:
        """The one store, again and again."""
        self._store.declaration = declaration
        return self._store


class Sqlite(Database):
    """A file; one transaction at a time."""

    overlapping = False

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        template: Path = request.getfixturevalue("sqlite_template")
        self.url = f"sqlite:///{shutil.copy(template, folder / 'tidemark.db')}"

    def store(self, declaration: Declaration = DECLARATION) -> Store:
        """Only one may be open."""
        return SqliteStore(self.url, declaration, chance=secrets.token_bytes)


class Postgresql(Database):
    """The database that all tests of a process share."""

    overlapping = True

    def __init__(self, request: pytest.FixtureRequest, _folder: Path) -> None:
        self.url: str = request.getfixturevalue("emptied_postgresql_url")

    def store(self, declaration: Declaration = DECLARATION) -> Store:
        """Any number, as from any number of processes."""
        return PostgresStore(self.url, declaration, chance=secrets.token_bytes)


class Mariadb(Database):
    """The same on MariaDB."""

    overlapping = True

    def __init__(self, request: pytest.FixtureRequest, _folder: Path) -> None:
        self.url: str = request.getfixturevalue("emptied_mariadb_url")

    def store(self, declaration: Declaration = DECLARATION) -> Store:
        """Any number, as from any number of processes."""
        return MysqlStore(self.url, declaration, chance=secrets.token_bytes)


KINDS: Final[dict[str, type[Database]]] = {
    "memory": Memory,
    "sqlite": Sqlite,
    "postgresql": Postgresql,
    "mariadb": Mariadb,
}
