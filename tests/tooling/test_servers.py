"""The servers that tests start for themselves."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncmy
import asyncmy.errors
import asyncpg
import jwt
import pytest

from tests.servers import MariadbServer, NatsServer, PostgresServer, RedisServer, ServerError, TidemarkServer, free_port

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_ONE = """
from tests.servers import {server}

{server}.missing = staticmethod(lambda: "the server is gone")

def test_sqlite(): ...
def test_{fixture}({fixture}): ...
"""

STAND_IN = """
import http.server, os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("secret:", os.environ.get("TIDEMARK_JWT_SECRET"), "retention:", os.environ.get("TIDEMARK_RETENTION"), flush=True)
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""


class StandIn(TidemarkServer):
    """Runs a few lines of Python, with a child, in place of the service."""

    def command(self) -> list[str]:
        """A program that knows no options but the port."""
        return [sys.executable, "-c", STAND_IN, str(self.port)]


def ended(group: int) -> bool:
    """Wait until no process of a group is left: what is killed has yet to be reaped by whoever inherits it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
    return False


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in that has not been started."""
    monkeypatch.setenv("TIDEMARK_RETENTION", "the caller's own")
    server = StandIn(tmp_path / "schema.yaml", "sqlite:////nowhere", folder=tmp_path)
    yield server
    server.kill()


def test_a_free_port_can_be_listened_on() -> None:
    """A port given out is free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen()


def test_postgresql_is_durable_and_takes_200_connections(postgres_server: PostgresServer) -> None:
    """The throw-away cluster keeps its promises, as a real one does."""
    assert postgres_server.sql("SHOW fsync").strip() == "on"
    assert postgres_server.sql("SHOW max_connections").strip() == "200"


def test_mariadb_is_durable_and_takes_200_connections(mariadb_server: MariadbServer) -> None:
    """The throw-away MariaDB keeps its promises too."""
    assert mariadb_server.sql("SELECT @@innodb_flush_log_at_trx_commit, @@max_connections").split() == ["1", "200"]


async def test_every_mariadb_database_is_fresh(mariadb_url: str, mariadb_server: MariadbServer) -> None:
    """A database given to a test is empty and its own, and can be dropped while somebody writes to it."""
    name = mariadb_url.rpartition("/")[2]
    connection = await asyncmy.connect(host="127.0.0.1", port=mariadb_server.port, user="root", database=name)
    async with connection.cursor() as cursor:
        assert await cursor.execute("SHOW TABLES") == 0
        await cursor.execute("CREATE TABLE held (id INT)")
        await cursor.execute("INSERT INTO held VALUES (1)")
        second = await asyncio.to_thread(mariadb_server.create_database)
        assert second != mariadb_url
        await asyncio.to_thread(mariadb_server.drop_database, second)
        await asyncio.to_thread(mariadb_server.drop_database, mariadb_url)
        with pytest.raises(asyncmy.errors.OperationalError):
            await cursor.execute("SELECT 1")
    connection.close()


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
    """A test that asks for a database runs on SQLite, on PostgreSQL and on MariaDB."""
    assert database_url.startswith(("sqlite:////", "postgresql://", "mariadb://"))


@pytest.mark.parametrize("fixture", ["postgres_server", "mariadb_server"])
def test_a_failing_statement_is_an_error(request: pytest.FixtureRequest, fixture: str) -> None:
    """Mistakes in SQL are not passed over."""
    server: PostgresServer | MariadbServer = request.getfixturevalue(fixture)
    with pytest.raises(ServerError, match=r"error.* syntax|syntax error"):
        server.sql("SELEC 1")


def test_a_server_that_cannot_start_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The end of the log is part of the error."""
    folder = tmp_path_factory.mktemp("server")
    server = TidemarkServer(folder / "none.yaml", f"sqlite:///{folder}/x.db", folder=folder)
    with pytest.raises(ServerError, match="ended instead of starting"):
        server.start()


@pytest.mark.parametrize(
    ("server", "fixture"),
    [
        ("PostgresServer", "postgres_server"),
        ("MariadbServer", "mariadb_server"),
        ("RedisServer", "redis_server"),
        ("NatsServer", "nats_server"),
    ],
)
@pytest.mark.parametrize(("ci", "outcome"), [("", "1 passed, 1 skipped"), ("true", "1 passed, 1 error")])
def test_a_missing_server_is_never_passed_over(
    tmp_path: Path, server: str, fixture: str, ci: str, outcome: str
) -> None:
    """Without one of the servers its tests are skipped with a line that says so; in CI they fail."""
    inner = tmp_path / "test_inner.py"
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    inner.write_text(WITHOUT_ONE.format(server=server, fixture=fixture))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-n", "1", str(inner)],
        cwd=ROOT,
        env=os.environ | {"CI": ci},
        check=False,
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout
    assert ("NOT RUN: 1 tests: the server is gone" in done.stdout) == (ci == "")


@pytest.mark.parametrize("kind", [RedisServer, NatsServer])
def test_a_broker_comes_back_where_it_was(kind: type[RedisServer | NatsServer]) -> None:
    """One that was killed refuses connections until it is started again, on the same port; a held one says nothing."""
    if missing := kind.missing():
        pytest.skip(f"cannot run here: {missing}")
    with kind() as server:
        server.kill()
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port)):
            pass
        server.revive()
        server.hold()
        with socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as connection:
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(1)
            server.release()
            connection.settimeout(5)
            assert connection.recv(1)
    assert not server.folder.exists()


def test_killing_ends_the_whole_group(stand_in: StandIn) -> None:
    """After a kill no process of the server's group is left, and its port can be used again."""
    group = stand_in.start().pid
    stand_in.kill()
    assert ended(group)
    stand_in.restart()
    assert stand_in.pid != group


def test_the_servers_environment_is_its_own(stand_in: StandIn) -> None:
    """It gets the secret it is given and no settings of the caller."""
    stand_in.start()
    assert stand_in.log.read_text().startswith(f"secret: {stand_in.secret} retention: None")


def test_stopping_asks_first(stand_in: StandIn) -> None:
    """A stopped server has ended by SIGTERM, with all it started; one that is not running cannot be stopped."""
    group = stand_in.start().pid
    assert stand_in.stop() == -15
    assert ended(group)
    with pytest.raises(ServerError, match="not running"):
        stand_in.stop()


def test_tokens_are_signed_with_the_servers_secret(stand_in: StandIn) -> None:
    """A token carries the user, the role if any, and when it ends."""
    assert stand_in.secret
    claims = jwt.decode(stand_in.token("ada", role="admin", ttl=60), stand_in.secret, algorithms=["HS256"])
    assert (claims["sub"], claims["role"]) == ("ada", "admin")
    with pytest.raises(jwt.ExpiredSignatureError):
        jwt.decode(stand_in.token("ada", ttl=-60), stand_in.secret, algorithms=["HS256"])
