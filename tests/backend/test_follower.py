"""What one connection follows when looking up its rights fails, or crosses a change of them (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import repeat

import pytest

from tests.backend.hub_world import OTHER, SHARED, Peer, World, settle
from tidemark.sync import fanout

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


@asynccontextmanager
async def amid_a_fan_out(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[World, Peer]]:
    """A world with a commit that one of two peers has been told of, and the other, who is given, is still to be."""
    monkeypatch.setattr(fanout, "SLICE", 1)
    async with opened() as (world, first):
        second = Peer(world)
        await second.open()
        await settle(second)
        await world.commit(SHARED, [("a", False)])
        yield world, first if second.waiting else second
        await second.close()


async def test_who_resumes_amid_a_fan_out_gets_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a fan-out is not for one who has unfollowed, and now follows anew and reads it."""
    async with amid_a_fan_out(monkeypatch) as (_, peer):
        peer.follower.pause([SHARED])
        await peer.follower.resume([SHARED], {})
        await settle(peer)
        assert peer.kinds.count("Changes") == 3
        assert peer.rows[SHARED] == {"a": 1}


async def test_who_is_revoked_amid_a_fan_out_hears_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a scope comes behind its `scope_revoked`, not even what was on its way before."""
    async with amid_a_fan_out(monkeypatch) as (world, peer):
        gone = asyncio.create_task(world.set_member(SHARED, None))
        peer.follower.revoked(SHARED)
        await gone
        await settle(peer)
        assert peer.kinds[-1] == "ScopeRevoked"
