"""Fixtures for every test: fresh databases on throw-away servers (see `tests/servers`)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from tests.servers import MariadbServer, NatsServer, PostgresServer, RedisServer

Server = TypeVar("Server", PostgresServer, MariadbServer, RedisServer, NatsServer)

_RUN = pytest.StashKey[Path]()
_NOT_RUN = "cannot run here: "

# How long an example takes on a machine that has other work to do says nothing of what is tested.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """Give the processes of this run a folder to meet in; the controller makes it, its workers are told."""
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    config.stash[_RUN] = Path(worker["meeting"] if worker else tempfile.mkdtemp(prefix="tidemark-run-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where to meet."""
    node.workerinput["meeting"] = str(node.config.stash[_RUN])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the run has started, once all workers are done."""
    if hasattr(config, "workerinput"):
        return
    _stop(config, PostgresServer)
    _stop(config, MariadbServer)
    _stop(config, RedisServer)
    _stop(config, NatsServer)
    shutil.rmtree(config.stash[_RUN])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line each what this machine could not run."""
    reasons = Counter(
        report.longrepr[2].partition(_NOT_RUN)[2]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and _NOT_RUN in report.longrepr[2]
    )
    for reason, count in reasons.items():
        terminalreporter.write_line(f"NOT RUN: {count} tests: {reason}", yellow=True)


@pytest.fixture(scope="session")
def meeting(pytestconfig: pytest.Config) -> Path:
    """The folder in which the workers of this run meet."""
    return pytestconfig.stash[_RUN]


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> PostgresServer:
    """The PostgreSQL cluster of this run, shared by all its workers; started when the first test asks for it."""
    return _shared(pytestconfig, PostgresServer)


@pytest.fixture(scope="session")
def mariadb_server(pytestconfig: pytest.Config) -> MariadbServer:
    """The MariaDB server of this run, shared and started in the same way."""
    return _shared(pytestconfig, MariadbServer)


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> RedisServer:
    """The Redis of this run, shared and started in the same way: one to be killed is a test's own."""
    return _shared(pytestconfig, RedisServer)


@pytest.fixture(scope="session")
def nats_server(pytestconfig: pytest.Config) -> NatsServer:
    """The NATS of this run, shared and started in the same way: one to be killed is a test's own."""
    return _shared(pytestconfig, NatsServer)


@pytest.fixture
def postgresql_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a fresh, empty PostgreSQL database."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def mariadb_url(mariadb_server: MariadbServer) -> Iterator[str]:
    """The URL of a fresh, empty MariaDB database."""
    url = mariadb_server.create_database()
    yield url
    mariadb_server.drop_database(url)


@pytest.fixture
def own_mariadb_server() -> Iterator[MariadbServer]:
    """A MariaDB that no other test sees: one whose global variables are set."""
    need(MariadbServer.missing())
    with MariadbServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh, empty database: the test runs once on SQLite, on PostgreSQL and on MariaDB."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tidemark.db'}"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def need(missing: str | None) -> None:
    """Leave the test out for want of something, if there is a reason; where everything must be there, that fails."""
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    if missing:
        pytest.skip(_NOT_RUN + missing)


def _shared(config: pytest.Config, kind: type[Server]) -> Server:
    need(kind.missing())
    state = _state(config, kind)
    with FileLock(state.with_suffix(".lock")):
        if not state.exists():
            server = kind().start()
            state.write_text(json.dumps({"port": server.port, "folder": str(server.folder)}))
    return _attach(kind, state)


def _stop(config: pytest.Config, kind: type[Server]) -> None:
    state = _state(config, kind)
    if state.exists():
        _attach(kind, state).stop()


def _state(config: pytest.Config, kind: type[Server]) -> Path:
    return config.stash[_RUN] / f"{kind.__name__}.json"


def _attach(kind: type[Server], state: Path) -> Server:
    found = json.loads(state.read_text())
    return kind.attach(found["port"], Path(found["folder"]))
