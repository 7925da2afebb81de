"""What one connection follows when looking up its rights fails, or crosses a change of them (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import repeat

import pytest

from tests.backend.hub_world import OTHER, SHARED, Peer, World, settle

Members = Callable[[str], Awaitable[dict[str, str]]]


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[World, Peer]]:
    """A world with one peer, a member of the shared scope, that has read what comes at first."""
    world = World(repeat(0), 1_500)
    await world.hub.start()
    await world.set_member(SHARED, "viewer")
    peer = Peer(world)
    await peer.open()
    await settle(peer)
    yield world, peer
    await peer.close()
    await world.hub.stop()


async def test_a_membership_that_begins_while_the_database_goes_away() -> None:
    """A look-up of rights that fails is made again: the scope gained comes once the database is back."""
    async with opened() as (world, peer):

        async def leave() -> None:
            world.store.away = True

        world.store.after_memberships = leave
        await world.commit(OTHER, [("a", False)])
        await world.set_member(OTHER, "viewer")
        await settle(peer)
        assert OTHER not in peer.rows
        world.store.away = False
        world.look()
        await settle(peer)
        assert peer.kinds[-2:] == ["ScopeAdded", "Changes"]
        assert peer.rows[OTHER] == {"a": 1}


async def test_a_member_who_is_back_before_his_revocation_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roles read before a member came back, told after a survey had found him back, do not end his stream for good."""
    async with opened() as (world, peer):
        await world.commit(SHARED, [("a", False)])
        await settle(peer)
        members: Members = world.store.members

        async def late(scope: str) -> dict[str, str]:
            found = await members(scope)
            if scope == SHARED and "ada" not in found:
                await world.set_member(SHARED, "viewer")
                for _ in range(40):
                    await asyncio.sleep(0)
            return found

        monkeypatch.setattr(world.store, "members", late)
        await world.set_member(SHARED, None)
        await settle(peer)
        assert peer.kinds[-3:] == ["ScopeRevoked", "ScopeAdded", "Changes"]
        assert peer.rows[SHARED] == {"a": 1}
