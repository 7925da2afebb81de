"""Running services for the contract suite: one for most tests on each database, others where settings matter.

Tests share a service and keep apart by users and workspaces that nobody else has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.client import SECRET, Service
from tests.contract.shop import DECLARATION as SHOP
from tests.contract.shop import Shop, Sql, make_tables
from tests.servers import MariadbServer, PostgresServer, TidemarkServer

DECLARATION = Path(__file__).with_name("schema.yaml")
ORIGIN = "http://app.example"
SETTINGS = {"TIDEMARK_RATE_LIMIT": "0", "TIDEMARK_HELLO_TIMEOUT": "2s", "TIDEMARK_ORIGINS": ORIGIN}


@dataclass
class Running:
    """One process of the service and the way to speak to it."""

    server: TidemarkServer
    service: Service

    @property
    def resident(self) -> int:
        """The process's resident memory in bytes."""
        status = Path(f"/proc/{self.server.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


class Launcher:
    """Starts services for one module or session and ends them with it."""

    def __init__(self, stack: ExitStack, new_database: Callable[[], str], folders: pytest.TempPathFactory) -> None:
        self._stack = stack
        self._folders = folders
        self.new_database = new_database

    def __call__(
        self, *, database: str | None = None, schema: Path = DECLARATION, env: dict[str, str] | None = None
    ) -> Running:
        """Start a process, on a database of its own unless one is given."""
        database = database or self.new_database()
        folder = self._folders.mktemp("server")
        server = TidemarkServer(schema, database, env=SETTINGS | (env or {}), secret=SECRET, folder=folder)
        self._stack.enter_context(server)
        service = Service(server.url)
        self._stack.callback(service.close)
        return Running(server, service)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a kind of database cannot have: `databases` names those that a test is about."""
    left_out = [item for item in items if not _is_about(item)]
    items[:] = [item for item in items if _is_about(item)]
    config.hook.pytest_deselected(items=left_out)


def _is_about(item: pytest.Item) -> bool:
    marker, call = item.get_closest_marker("databases"), getattr(item, "callspec", None)
    return marker is None or call is None or call.params.get("new_database") in marker.args


@pytest.fixture(scope="session", params=["sqlite", "postgresql", "mariadb"])
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Makes URLs of empty databases: everything runs once on SQLite, on PostgreSQL and on MariaDB."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path_factory.mktemp('database') / 'tidemark.db'}"
    name = "postgres_server" if request.param == "postgresql" else "mariadb_server"
    server: PostgresServer | MariadbServer = request.getfixturevalue(name)
    return server.create_database


@pytest.fixture(scope="session")
def running(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The process that most tests share."""
    with ExitStack() as stack:
        yield Launcher(stack, new_database, tmp_path_factory)()


@pytest.fixture(scope="session")
def service(running: Running) -> Service:
    """The way to speak to the service that most tests share."""
    return running.service


@pytest.fixture(scope="session")
def unlimited(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A process that limits no rates of streams, which most tests that need one share."""
    rates = ("TIDEMARK_FRAME_RATE", "TIDEMARK_BROADCAST_RATE", "TIDEMARK_ROOM_RATE")
    with ExitStack() as stack:
        yield Launcher(stack, new_database, tmp_path_factory)(env=dict.fromkeys(rates, "0"))


@pytest.fixture(scope="session")
def shop(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A service beside another program that writes the same database in SQL, which most of its tests share."""
    with ExitStack() as stack:
        launcher = Launcher(stack, new_database, tmp_path_factory)
        database = launcher.new_database()
        sql = stack.enter_context(Sql(database))
        make_tables(sql)
        running = launcher(database=database, schema=SHOP)
        yield Shop(running.server, running.service, sql)


@pytest.fixture(scope="module")
def launch(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts processes with other settings; they end with the module."""
    with ExitStack() as stack:
        yield Launcher(stack, new_database, tmp_path_factory)


@pytest.fixture(scope="session")
def pair(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Service]]:
    """Two processes of the service on one PostgreSQL database."""
    with ExitStack() as stack:
        launcher = Launcher(stack, postgres_server.create_database, tmp_path_factory)
        database = launcher.new_database()
        yield launcher(database=database).service, launcher(database=database).service
