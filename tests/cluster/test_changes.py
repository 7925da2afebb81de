"""Changes on three processes while what joins them is killed, held, and comes back (SPEC sections 5 and 6)."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Sequence

import pytest

from tests.cluster.conftest import Cluster, Joined
from tests.cluster.peers import Tab, Writer, all_have, living, writing
from tests.contract.client import Device

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS = float(os.environ.get("TIDEMARK_STORM_SECONDS", "5"))
POLL = 1.0
"""Seconds after which a process looks by itself, as these processes are set."""
SLACK = 2.0
"""Seconds that a look, a read and a busy machine may take."""
QUICK = 0.15
"""Seconds: far above what a wake takes, far below what looking now and then would take in the middle."""


def tabs_of(cluster: Cluster, user: Device, scope: str) -> list[Tab]:
    """Two tabs on each process."""
    return [Tab(device, device.service.address[1], scope) for device in cluster.devices(user) for _ in range(2)]


async def storm(cluster: Cluster, user: Device, scope: str, faults: Sequence[Callable[[], None]] = ()) -> list[Writer]:
    """Writers on all processes but the last, which so hears of nothing by itself, while faults happen in turn."""
    writers = [Writer(device, scope) for device in cluster.devices(user)[:-1]]
    async with writing(writers, 0.01):
        for fault in faults:
            await asyncio.sleep(SECONDS / (len(faults) + 1))
            await asyncio.to_thread(fault)
        await asyncio.sleep(SECONDS / (len(faults) + 1))
    return writers


def head_of(writers: list[Writer]) -> int:
    """The version of the last change that was acknowledged."""
    return max(version for writer in writers for version in writer.versions.values())


def check(tabs: list[Tab], writers: list[Writer]) -> float:
    """Everybody got every acknowledged row once, in order, and all hold the same; the longest delay in seconds."""
    answered = {row: at for writer in writers for row, at in writer.answered.items()}
    assert [fault for tab in tabs for fault in tab.faults] == []
    assert [answered.keys() - tab.arrived.keys() for tab in tabs] == [set()] * len(tabs)
    assert [tab.proved for tab in tabs] == [True] * len(tabs)
    return max(tab.arrived[row] - at for tab in tabs for row, at in answered.items())


async def delay(writer: Writer, tabs: list[Tab]) -> float:
    """Seconds from an answer to its arrival at all tabs, in the middle of ten."""
    delays = []
    for _ in range(10):
        row = await writer.put()
        await all_have(tabs, writer.versions[row], 10)
        delays.append(max(tab.arrived[row] for tab in tabs) - writer.answered[row])
    return statistics.median(delays)


async def quick_again(cluster: Cluster, user: Device, scope: str, tabs: list[Tab], seconds: float = 30) -> list[Writer]:
    """Write until wakes bring changes at once, from every process to every other; who wrote."""
    writers = [Writer(device, scope) for device in cluster.devices(user)]
    deadline = time.monotonic() + seconds
    for writer in writers:
        while (found := await delay(writer, tabs)) > QUICK:
            assert time.monotonic() < deadline, f"wakes take {found:.3f} s still"
    return writers


async def test_no_change_is_lost_while_the_broker_dies(joined: Joined) -> None:
    """The broker is killed and started twice while clients write: all get all, soon, and wakes recover (I27, I38)."""
    cluster, broker = joined.cluster, joined.broker
    user = cluster.services[0].device()
    scope = cluster.services[0].workspace(editor=user)
    tabs = tabs_of(cluster, user, scope)
    async with living(tabs):
        writers = await quick_again(cluster, user, scope, tabs)
        writers += await storm(cluster, user, scope, [broker.kill, broker.revive, broker.kill, broker.revive])
        await all_have(tabs, head_of(writers), POLL + SLACK)
        longest = check(tabs, writers)
        begun = time.monotonic()
        writers += await quick_again(cluster, user, scope, tabs)
        print(f"longest delay {longest:.3f} s, quick again after {time.monotonic() - begun:.3f} s")  # noqa: T201
        check(tabs, writers)
        assert longest < POLL + SLACK
        assert {tab.welcomes for tab in tabs} == {1}
    assert cluster.errors() == []


async def test_a_deaf_channel_costs_seconds(joined: Joined) -> None:
    """A broker that keeps its connections and carries nothing delays changes by a poll interval, and loses none."""
    cluster, broker = joined.cluster, joined.broker
    user = cluster.services[0].device()
    scope = cluster.services[0].workspace(editor=user)
    tabs = tabs_of(cluster, user, scope)
    async with living(tabs):
        await quick_again(cluster, user, scope, tabs)
        broker.hold()
        try:
            writers = await storm(cluster, user, scope)
            await all_have(tabs, head_of(writers), POLL + SLACK)
            assert check(tabs, writers) < POLL + SLACK
        finally:
            broker.release()
        writers += await quick_again(cluster, user, scope, tabs)
        check(tabs, writers)
    assert cluster.errors() == []
