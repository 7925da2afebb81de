"""No change is ever skipped (SPEC 9.5): a reader that follows racing writers sees every commit once, in order."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conformance.declared import DECLARATION
from tests.race.load import SCOPES, Reader, Versions, block, shared, suspend, write
from tests.servers import MariadbServer, PostgresServer
from tidemark.store.base import Store
from tidemark.store.schema.migrate import migrate
from tidemark.store.sqlite import SqliteStore
from tidemark_protocol import digest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SQLITE_COMMITS = 1_500
COMMITS = {"postgresql": 10_200, "mariadb": 1_500}
"""In each of two tests, so that more than 20,000 are made on PostgreSQL."""


class Racing(NamedTuple):
    """Where a test writes, and how often."""

    url: str
    commits: int


@pytest.fixture
def racing_postgresql_url(postgres_server: PostgresServer, postgresql_url: str) -> str:
    """A database with the tables. What others see of a commit does not depend on its way to the disk: none waits."""
    name = postgresql_url.rpartition("/")[2]
    postgres_server.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    migrate(postgresql_url, DECLARATION, None)
    return postgresql_url


@pytest.fixture
def racing_mariadb_url(own_mariadb_server: MariadbServer) -> str:
    """The same on MariaDB, where this is a setting of the server."""
    own_mariadb_server.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    url = own_mariadb_server.create_database()
    migrate(url, DECLARATION, None)
    return url


@pytest.fixture(params=["postgresql", "mariadb"])
def racing(request: pytest.FixtureRequest) -> Racing:
    """A database that any number of processes share, and how many commits are made on it in one test."""
    return Racing(request.getfixturevalue(f"racing_{request.param}_url"), COMMITS[request.param])


async def check(store: Store, committed: list[Versions], readers: list[Versions]) -> None:
    """Versions are those of a single sequence, every reader saw exactly them, and the digest proves it."""
    states = await store.states(SCOPES)
    for scope in SCOPES:
        expected = sorted((version, row) for versions in committed for version, row in versions.get(scope, []))
        assert [version for version, _ in expected] == list(range(1, states[scope].head + 1))
        for seen in readers:
            assert seen[scope] == expected
        proof = digest.text(states[scope].live, states[scope].total)
        assert proof == digest.of_rows(("states", row, version) for version, row in expected)


async def test_one_process_on_sqlite(tmp_path: Path) -> None:
    """Eight writers and a reader on one file (I27)."""
    url = f"sqlite:///{tmp_path / 'tidemark.db'}"
    await asyncio.to_thread(migrate, url, DECLARATION, None)
    store = SqliteStore(url, DECLARATION, chance=secrets.token_bytes)
    await store.open()
    reader, end = Reader(store, 1), asyncio.Event()
    following = asyncio.ensure_future(reader.follow(end))
    committed = await write(store, 8, SQLITE_COMMITS, 1, block)
    end.set()
    await following
    await check(store, [committed], [reader.seen])
    await store.close()


async def test_one_process_on_a_server(racing: Racing) -> None:
    """Eight writers and a reader in one process (I27)."""
    store = shared(racing.url, 8)
    await store.open()
    reader, end = Reader(store, 1), asyncio.Event()
    following = asyncio.ensure_future(reader.follow(end))
    committed = await write(store, 8, racing.commits, 1, suspend)
    end.set()
    await following
    await check(store, [committed], [reader.seen])
    await store.close()


async def test_two_processes_on_a_server(racing: Racing) -> None:
    """Four writers and a reader in each of two processes; both readers see what both wrote (I27)."""
    share = racing.commits // 2
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.race.load", racing.url, "4", str(share), str(seed)),
            cwd=ROOT,
            stdin=PIPE,
            stdout=PIPE,
        )
        for seed in (1, 2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"written\n"
        outcomes = [json.loads((await process.communicate(b""))[0]) for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
    store = shared(racing.url, 1)
    await store.open()
    committed: list[Versions] = [_versions(outcome[0]) for outcome in outcomes]
    await check(store, committed, [_versions(outcome[1]) for outcome in outcomes])
    await store.close()


def _versions(read: dict[str, list[list[object]]]) -> Versions:
    return {scope: [(int(str(version)), str(row)) for version, row in pairs] for scope, pairs in read.items()}
