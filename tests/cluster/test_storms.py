"""Hundreds of clients that lose their process at once, and all come back at once (SPEC section 6)."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster, start_cluster
from tests.cluster.peers import Tab, Writer, all_have, living, until, writing
from tests.contract.client import Device, Service
from tests.proxy import Proxy
from tests.servers import PostgresServer, TidemarkServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLIENTS = int(os.environ.get("TIDEMARK_STORM_CLIENTS", "600"))
TABS = 50
"""Of one user."""
PAUSE = CLIENTS / 4_000
"""Seconds between two writes: these clients take in some thousands of frames a second, all together."""
MISSED = 30
"""Writes while everybody is away."""
WITHIN = 20.0
"""Seconds, from the moment that the process serves again, within which everybody is back and has everything."""
PATIENCE = 8.0
"""Seconds that another request may take meanwhile."""
MEBIBYTE = 1024 * 1024
MOST_MEMORY = 400 * MEBIBYTE


def highest_memory(server: TidemarkServer) -> int:
    """The most resident memory that a process has had, in bytes."""
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@dataclass
class Crowd:
    """Many tabs of some users in one scope, and who writes there on a process that stays."""

    tabs: list[Tab]
    writer: Writer

    async def caught_up(self, seconds: float) -> None:
        """Wait until all are here and have what is written by then."""
        await until(lambda: all(tab.here for tab in self.tabs), seconds, "all are back")
        await all_have(self.tabs, max(self.writer.versions.values()), seconds)

    def check(self) -> None:
        """Everybody has everything, in order and once."""
        assert [fault for tab in self.tabs for fault in tab.faults] == []
        missing = [self.writer.answered.keys() - tab.arrived.keys() for tab in self.tabs]
        assert missing == [set()] * len(self.tabs)
        assert all(tab.proved for tab in self.tabs)


def crowd(clients: int, writer_at: Service, port: int) -> Crowd:
    """So many tabs that connect to a port, in a new scope."""
    writer = writer_at.device()
    users = [writer_at.device() for _ in range(clients // TABS)]
    scope = writer_at.workspace(editor=writer)
    admin = writer_at.admin()
    for user in users:
        admin.grant(scope, user.user, "viewer")
    tabs = [Tab(user.again(), port, scope) for user in users for _ in range(TABS)]
    return Crowd(tabs, Writer(writer, scope))


def ask(device: Device, over: threading.Event) -> float:
    """Pull again and again, as somebody else who is not in the storm; the longest that an answer took, in seconds."""
    longest = 0.0
    while not over.wait(0.05):
        begun = time.monotonic()
        device.pull()
        longest = max(longest, time.monotonic() - begun)
    return longest


async def come_back(people: Crowd, server: TidemarkServer, end: Callable[[], object], other: Device) -> None:
    """End a process with all its clients, write, start it again: all come back soon and miss nothing."""
    over = threading.Event()
    async with living(people.tabs, 60):
        await asyncio.to_thread(end)
        for _ in range(MISSED):
            await people.writer.put()
        async with writing([people.writer], PAUSE):
            await asyncio.to_thread(server.start)
            asking = asyncio.create_task(asyncio.to_thread(ask, other, over))
            try:
                took = await until(lambda: all(tab.here for tab in people.tabs), WITHIN, "all are back")
            finally:
                over.set()
        await people.caught_up(WITHIN)
        longest = await asking
    people.check()
    print(  # noqa: T201
        f"{len(people.tabs)} back after {took:.2f} s, another request took {longest:.2f} s at most, "
        f"{highest_memory(server) / MEBIBYTE:.0f} MiB, {sum(tab.welcomes for tab in people.tabs)} welcomes"
    )
    assert longest < PATIENCE
    assert highest_memory(server) < MOST_MEMORY


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
async def test_all_come_back_after_a_restart(cluster: Cluster, signal: str) -> None:
    """After a restart everybody is back and gets what was written meanwhile, others being served all along (I45)."""
    server, service = cluster.servers[0], cluster.services[0]
    people = await asyncio.to_thread(crowd, CLIENTS, cluster.services[1], server.port)
    end = server.stop if signal == "SIGTERM" else server.kill
    await come_back(people, server, end, service.device())
    if signal == "SIGTERM":
        assert {code for tab in people.tabs for code in tab.endings} == {1012}
        assert all(tab.hints for tab in people.tabs)
    assert cluster.errors() == []


async def test_a_process_that_dies_is_taken_over_by_the_others(cluster: Cluster) -> None:
    """Behind the balancer everybody of a process that is killed goes to the others, which take them in."""
    people = await asyncio.to_thread(crowd, CLIENTS, cluster.services[1], cluster.balancer.port)
    async with living(people.tabs, 60):
        async with writing([people.writer], PAUSE):
            await asyncio.to_thread(cluster.servers[0].kill)
            await until(lambda: any(tab.endings for tab in people.tabs), 5, "somebody notices")
            await people.caught_up(WITHIN)
        await people.caught_up(WITHIN)
    people.check()
    moved = sum(1 for tab in people.tabs if tab.endings)
    assert moved > CLIENTS / 5
    await asyncio.to_thread(cluster.servers[0].start)
    assert cluster.errors() == []


async def test_all_come_back_with_a_slow_database(
    postgres_server: PostgresServer, postgresql_url: str, tmp_path: Path
) -> None:
    """A database that answers 50 ms late delays everybody's return, and prevents nobody's."""
    async with Proxy(postgres_server.port) as between:
        url = postgresql_url.replace(f":{postgres_server.port}/", f":{between.port}/")
        with ThreadPoolExecutor(1) as pool:
            loop = asyncio.get_running_loop()
            starting = start_cluster(url, tmp_path, {}, processes=1)
            cluster = await loop.run_in_executor(pool, starting.__enter__)
            try:
                async with Proxy(cluster.ports[0]) as front:
                    await cut_off(cluster, front, between)
            finally:
                between.delay = 0
                await loop.run_in_executor(pool, starting.__exit__, None, None, None)
    assert cluster.errors() == []


async def cut_off(cluster: Cluster, front: Proxy, between: Proxy) -> None:
    """Cut everybody off at once while the database is slow."""
    service = cluster.services[0]
    people = await asyncio.to_thread(crowd, CLIENTS // 2, service, front.port)
    async with living(people.tabs, 60):
        between.delay = 0.025
        async with writing([people.writer], PAUSE):
            front.cut()
            await until(lambda: all(tab.welcomes == 2 for tab in people.tabs), WITHIN, "all are back")
        await people.caught_up(WITHIN)
    people.check()
