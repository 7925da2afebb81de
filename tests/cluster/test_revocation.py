"""A membership that ends on one process while all three write and follow (SPEC sections 6 and 9)."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.cluster.conftest import Cluster, Joined
from tests.cluster.peers import Tab, Writer, living, until, writing
from tests.contract.client import Device

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

POLL = 1.0
SLACK = 2.0
AFTERWARDS = 1.5
"""Seconds that everybody goes on writing after the end, for something to leak."""


async def expel_in_a_storm(cluster: Cluster, at: int, busy: int, within: float) -> None:
    """End a membership on process `at` while so many write; everywhere its streams end soon, and get nothing more."""
    owner, member = cluster.services[0].device(), cluster.services[0].device()
    scope = cluster.services[0].workspace(owner=owner, viewer=member)
    writers = [Writer(device, scope) for device in cluster.devices(owner)[:busy]]
    tabs = [_tab(device, scope) for device in cluster.devices(member)]
    control = [_tab(device, scope) for device in cluster.devices(owner)]
    async with living(tabs + control), writing(writers, 0.003):
        await until(lambda: all(tab.arrived for tab in tabs + control), 20, "everybody has something")
        begun = time.monotonic()
        await asyncio.to_thread(owner.on(cluster.services[at]).expel, scope, member.user)
        answered = time.monotonic()
        await until(lambda: all(tab.revoked for tab in tabs), within, "all streams of the member end")
        print(f"revoked {time.monotonic() - begun:.3f} s after it was asked for")  # noqa: T201
        await asyncio.sleep(AFTERWARDS)
    secret = {row for writer in writers for row, sent in writer.begun.items() if sent > answered}
    assert len(secret) > 20
    assert [tab.arrived.keys() & secret for tab in tabs] == [set()] * len(tabs)
    assert all(len(tab.arrived.keys() & secret) > 10 for tab in control)
    assert [fault for tab in tabs + control for fault in tab.faults] == []
    for device in cluster.devices(member):
        pulled = await asyncio.to_thread(device.pull)
        assert scope not in [run["scope"] for run in pulled["scopes"]]
    assert cluster.errors() == []


def _tab(device: Device, scope: str) -> Tab:
    return Tab(device, device.service.address[1], scope)


@pytest.mark.parametrize("at", range(3))
async def test_a_membership_that_ends_on_one_process_ends_on_all(joined: Joined, at: int) -> None:
    """Streams of the former member end within a second on every process, and get nothing written since (I39)."""
    await expel_in_a_storm(joined.cluster, at, busy=3, within=1.0)


@pytest.mark.parametrize("busy", [1, 3])
async def test_a_membership_ends_without_a_broker(joined: Joined, busy: int) -> None:
    """With the broker dead it takes a poll interval; what was written since does not come even then (I39)."""
    joined.broker.kill()
    try:
        await expel_in_a_storm(joined.cluster, 1, busy, within=POLL + SLACK)
    finally:
        joined.broker.revive()
        joined.cluster.wait_joined()
