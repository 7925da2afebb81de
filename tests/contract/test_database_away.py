"""The database away for a while, and one of two processes killed (SPEC sections 7 and 9). PostgreSQL alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.contract.client import Device, Service, assert_problem
from tests.contract.conftest import Launcher, Running
from tests.contract.replica import Replica
from tests.contract.storm import Writer, deleted, storm
from tests.contract.stream import following
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def two(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Running]]:
    """Two processes on one database, both to be troubled."""
    with ExitStack() as stack:
        launcher = Launcher(stack, postgres_server.create_database, tmp_path_factory)
        database = launcher.new_database()
        yield launcher(database=database), launcher(database=database)


@contextmanager
def away(postgres: PostgresServer, url: str) -> Iterator[None]:
    """Cut every connection to a database and let no new one in."""
    name = url.rpartition("/")[2]
    postgres.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    postgres.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    try:
        yield
    finally:
        postgres.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def within(seconds: float, ask: Callable[[], bool]) -> None:
    """Ask until the answer is yes."""
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.1)


def test_a_database_away_is_a_503_that_passes(two: tuple[Running, Running], postgres_server: PostgresServer) -> None:
    """While the database is away pushes and pulls are 503 with Retry-After; sent again later they are served."""
    running = two[0]
    device = running.service.device()
    device.apply(device.put("notes", title="before"))
    put = device.put("notes", title="meanwhile")
    with away(postgres_server, running.server.database):
        for response in (
            device.post("/sync/push", device.envelope([put])),
            device.post("/sync/pull", device.pull_body()),
            device.get("/sync/events"),
        ):
            assert_problem(response, 503)
            assert int(response.headers["retry-after"]) >= 0
        assert device.get("/health/live").status_code == 200
        within(10, lambda: device.get("/health/ready").status_code == 503)
    within(20, lambda: device.post("/sync/push", device.envelope([put])).status_code == 200)
    assert len(device.docs()) == 2
    within(10, lambda: device.get("/health/ready").status_code == 200)


def test_streams_go_on_after_the_database_was_away(
    two: tuple[Running, Running], postgres_server: PostgresServer
) -> None:
    """After the database was away, writes through one process arrive on streams of the other again."""
    here, there = two
    device = here.service.device()
    remote = device.on(there.service)
    with away(postgres_server, here.server.database):
        assert device.post("/sync/pull", device.pull_body()).status_code == 503
    within(20, lambda: device.post("/sync/pull", device.pull_body()).status_code == 200)
    within(20, lambda: remote.post("/sync/pull", remote.pull_body()).status_code == 200)
    with following(remote) as follower:
        for _ in range(5):
            (result,) = device.apply(device.put("notes", title="n"))
            follower.reach(device.scope, result["version"])


def mixed(services: tuple[Service, Service], user: Device) -> list[Writer]:
    """Four writers of one user, two on each process."""
    return [Writer(user.again().on(services[number % 2]), random.Random(number)) for number in range(4)]


def test_one_of_two_processes_is_killed(two: tuple[Running, Running]) -> None:
    """Killing one of two processes in a storm loses nothing acknowledged, and the other one serves on at once."""
    here, there = two
    user = here.service.device()
    scope = here.service.workspace(editor=user)
    writers = mixed((here.service, there.service), user)
    replica = Replica()
    for _ in range(2):
        storm(writers, scope, 0.5, there.server.kill)
        started = time.monotonic()
        writers[0].settle(scope)
        assert time.monotonic() - started < 8
        there.server.start()
        for writer in writers:
            writer.settle(scope)
        replica.pull(user, scopes=[scope])
        held = {row for _, row in replica.versions(scope)}
        gone = {row for writer in writers for row in deleted(writer)}
        assert {mutation["row"] for writer in writers for mutation, _ in writer.acknowledged} <= held | gone
        assert replica.proved
