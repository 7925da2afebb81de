"""The shared suite runs on every store; tests of overlapping transactions on those that declare them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conformance.declared import DECLARATION
from tests.conformance.stores import KINDS, Database, empty
from tests.servers import MariadbServer, PostgresServer
from tidemark.store.base import Store
from tidemark.store.schema.migrate import migrate


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on every kind of store that has what the test asks for."""
    if "kind" in metafunc.fixturenames:
        overlap = "overlapping" in metafunc.fixturenames
        metafunc.parametrize("kind", [name for name, kind in KINDS.items() if kind.overlapping or not overlap])


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the tables, to be copied."""
    path = tmp_path_factory.mktemp("template") / "tidemark.db"
    migrate(f"sqlite:///{path}", DECLARATION, None)
    return path


@pytest.fixture(scope="session")
def migrated_postgresql_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the tables, for all tests: making one takes longer than most tests do."""
    url = postgres_server.create_database()
    migrate(url, DECLARATION, None)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def emptied_postgresql_url(postgres_server: PostgresServer, migrated_postgresql_url: str) -> str:
    """The same, its rows removed."""
    empty(postgres_server, migrated_postgresql_url)
    return migrated_postgresql_url


@pytest.fixture(scope="session")
def migrated_mariadb_url(mariadb_server: MariadbServer) -> Iterator[str]:
    """The same on MariaDB."""
    url = mariadb_server.create_database()
    migrate(url, DECLARATION, None)
    yield url
    mariadb_server.drop_database(url)


@pytest.fixture
def emptied_mariadb_url(mariadb_server: MariadbServer, migrated_mariadb_url: str) -> str:
    """The same, its rows removed."""
    empty(mariadb_server, migrated_mariadb_url)
    return migrated_mariadb_url


@pytest.fixture
def database(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Database:
    """An empty database with its tables, of each kind."""
    return KINDS[kind](request, tmp_path)


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    """An open store on an empty database."""
    store = database.store()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def overlapping(store: Store) -> Store:
    """The same, of a kind that runs transactions at the same time."""
    return store
