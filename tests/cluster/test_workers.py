"""Several workers of one command, and processes that nothing joins (SPEC section 6)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster, start_cluster
from tests.cluster.peers import Tab, Writer, all_have, living, until, writing
from tests.contract.stream import Stream, welcomed
from tests.servers import MariadbServer, PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MANY = 40
"""Connections, of which no worker gets all."""


def busiest_worker(cluster: Cluster) -> int:
    """Of the processes that serve for the first command, the one that holds the most connections."""
    command = ["pgrep", "-f", "-P", str(cluster.servers[0].pid), "spawn_main"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return max(map(int, found.stdout.split()), key=lambda pid: len(list(Path(f"/proc/{pid}/fd").iterdir())))


@pytest.fixture(scope="module")
def one_command(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One command of three workers."""
    database = postgres_server.create_database()
    with start_cluster(database, tmp_path_factory.mktemp("workers"), {}, processes=1, workers=3) as cluster:
        yield cluster


def test_rooms_of_one_command(one_command: Cluster) -> None:
    """Rooms span the workers of a command."""
    user = one_command.services[0].device()
    streams: list[Stream] = []
    with ExitStack() as stack:
        while len({stream.session[:16] for stream in streams}) < 2:
            assert len(streams) < 100, "one worker gets all connections"
            streams += stack.enter_context(welcomed(user.again()))
        rooms = [stream.join(user.scope) for stream in streams]
        for room in rooms:
            room.sees(*(stream.session for stream in streams))


async def test_workers_of_one_command(one_command: Cluster) -> None:
    """Clients of all workers get all changes, also when one of these dies and another takes its place (I38)."""
    service = one_command.services[0]
    user = service.device()
    scope = service.workspace(editor=user)
    tabs = [Tab(user.again(), service.address[1], scope) for _ in range(MANY)]
    writers = [Writer(user.again(), scope) for _ in range(3)]
    async with living(tabs):
        assert len({tab.session[:16] for tab in tabs}) > 1
        async with writing(writers, 0.01):
            await until(lambda: tabs[0].arrived, 5, "writers write")
            os.kill(busiest_worker(one_command), signal.SIGKILL)
            await until(lambda: any(tab.endings for tab in tabs), 5, "somebody notices")
            await until(lambda: all(tab.here for tab in tabs), 20, "all are back")
        await all_have(tabs, sum(len(writer.versions) for writer in writers), 5)
    assert [fault for tab in tabs for fault in tab.faults] == []
    assert all(tab.proved for tab in tabs)
    assert one_command.errors() == []


@pytest.fixture(scope="module")
def two(mariadb_server: MariadbServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two processes on MariaDB, which nothing joins."""
    with start_cluster(mariadb_server.create_database(), tmp_path_factory.mktemp("two"), {}, processes=2) as cluster:
        yield cluster


async def test_processes_that_nothing_joins(two: Cluster) -> None:
    """On MariaDB each process looks for itself: changes of others arrive in a moment, rooms are a process's own."""
    user = two.services[0].device()
    scope = two.services[0].workspace(editor=user)
    here, there = two.devices(user)
    tabs = [Tab(device, device.service.address[1], scope) for device in (here, there, here, there)]
    writers = [Writer(here, scope), Writer(there, scope)]
    async with living(tabs):
        async with writing(writers, 0.01):
            await asyncio.sleep(2)
        await all_have(tabs, sum(len(writer.versions) for writer in writers), 3)
    answered = {row: at for writer in writers for row, at in writer.answered.items()}
    assert [fault for tab in tabs for fault in tab.faults] == []
    assert all(tab.proved for tab in tabs)
    assert max(tab.arrived[row] - at for tab in tabs for row, at in answered.items()) < 2.0


def test_rooms_of_processes_that_nothing_joins(two: Cluster) -> None:
    """Without a channel between them rooms are a process's own, and the service says so at start."""
    user = two.services[0].device()
    with welcomed(*two.devices(user)) as (here, there):
        rooms = [here.join(user.scope), there.join(user.scope)]
        here.broadcast(user.scope, "e")
        there.ping()
        rooms[0].sees(here.session)
        rooms[1].sees(there.session)
        assert there.heard() == []
    assert [line for line in two.log() if "rooms" in line]
