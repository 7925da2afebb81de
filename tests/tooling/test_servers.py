"""The servers that tests start for themselves."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from tests.servers import PostgresServer, ServerError, TidemarkServer, free_port

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_POSTGRESQL = """
from tests.servers import PostgresServer

PostgresServer.missing = staticmethod(lambda: "PostgreSQL is gone")

def test_on_both(database_url): ...
"""


def test_a_free_port_can_be_listened_on() -> None:
    """A port given out is free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen()


def test_postgresql_is_durable_and_takes_200_connections(postgres_server: PostgresServer) -> None:
    """The throw-away cluster keeps its promises, as a real one does."""
    assert postgres_server.sql("SHOW fsync").strip() == "on"
    assert postgres_server.sql("SHOW max_connections").strip() == "200"


async def test_every_database_is_fresh(postgresql_url: str, postgres_server: PostgresServer) -> None:
    """A database given to a test is empty and its own, and can be dropped while somebody is connected."""
    connection = await asyncpg.connect(postgresql_url)
    assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    second = await asyncio.to_thread(postgres_server.create_database)
    assert second != postgresql_url
    await asyncio.to_thread(postgres_server.drop_database, second)
    await asyncio.to_thread(postgres_server.drop_database, postgresql_url)
    with pytest.raises((asyncpg.PostgresError, OSError, asyncpg.InterfaceError)):
        await connection.fetchval("SELECT 1")


def test_each_database_has_its_url(database_url: str) -> None:
    """A test that asks for a database runs on SQLite and on PostgreSQL."""
    assert database_url.startswith(("sqlite:////", "postgresql://"))


def test_a_failing_statement_is_an_error(postgres_server: PostgresServer) -> None:
    """Mistakes in SQL are not passed over."""
    with pytest.raises(ServerError, match="syntax error"):
        postgres_server.sql("SELEC 1")


def test_a_server_that_cannot_start_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The end of the log is part of the error."""
    folder = tmp_path_factory.mktemp("server")
    server = TidemarkServer(folder / "none.yaml", f"sqlite:///{folder}/x.db", folder=folder)
    with pytest.raises(ServerError, match="ended instead of starting"):
        server.start()


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 passed, 1 skipped"), ("true", "1 passed, 1 error")])
def test_a_missing_postgresql_is_never_passed_over(tmp_path: Path, ci: str, outcome: str) -> None:
    """Without PostgreSQL its tests are skipped with a line that says so; in CI they fail."""
    inner = tmp_path / "test_inner.py"
    inner.write_text(WITHOUT_POSTGRESQL)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-n", "1", str(inner)],
        cwd=ROOT,
        env=os.environ | {"CI": ci},
        check=False,
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout
    assert ("NOT RUN: 1 tests: PostgreSQL is gone" in done.stdout) == (ci == "")
