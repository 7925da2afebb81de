"""A cluster that is restarted process by process, and one of several workers, under load (SPEC sections 4 to 6)."""

from __future__ import annotations

import asyncio

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.peers import Http, Tab, Writer, all_have, living, writing
from tests.contract.client import Device

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def check(tabs: list[Tab], writers: list[Writer]) -> None:
    """Every acknowledged write has one effect, and everybody has all of them."""
    versions = [version for writer in writers for version in writer.versions.values()]
    assert sorted(versions) == list(range(1, len(versions) + 1))
    assert [fault for tab in tabs for fault in tab.faults] == []
    answered = {row for writer in writers for row in writer.answered}
    assert [tab.arrived.keys() ^ answered for tab in tabs] == [set()] * len(tabs)
    assert [tab.proved for tab in tabs] == [True] * len(tabs)


def crowd(cluster: Cluster, user: Device, scope: str) -> tuple[list[Tab], list[Writer]]:
    """Tabs behind the balancer, and writers by HTTP and by some of the tabs."""
    port = cluster.balancer.port
    devices = [user.again().on(cluster.through) for _ in range(9)]
    tabs = [Tab(device, port, scope) for device in devices]
    writers = [Writer(device, scope, tab, twice=True) for device, tab in zip(devices[:3], tabs[:3], strict=True)]
    writers += [Writer(device, scope, Http(device, cluster.through.url), twice=True) for device in devices[3:6]]
    return tabs, writers


async def test_a_rolling_restart_loses_and_doubles_nothing(cluster: Cluster) -> None:
    """All processes are restarted in turn while clients push all twice, by stream and HTTP (I14, I15, I38)."""
    user = cluster.through.device()
    scope = cluster.through.workspace(editor=user)
    tabs, writers = crowd(cluster, user, scope)
    async with living(tabs):
        async with writing(writers, 0.01):
            for server in cluster.servers:
                assert await asyncio.to_thread(server.stop) == 0
                await asyncio.to_thread(server.start)
        await all_have(tabs, sum(len(writer.versions) for writer in writers), 10)
    check(tabs, writers)
    retries, slowest = sum(writer.retries for writer in writers), max(writer.slowest for writer in writers)
    print(f"{len(tabs[0].arrived)} writes, {retries} sent again, the slowest answered in {slowest:.2f} s")  # noqa: T201
    assert {code for tab in tabs for code in tab.endings} == {1012}
    assert slowest < 10
    assert cluster.errors() == []
