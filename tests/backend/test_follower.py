"""What one connection follows when looking up its rights fails, or crosses a change of them (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import repeat

import pytest

from tests.backend.hub_world import CLOCK, OTHER, SHARED, Peer, World, settle
from tidemark.sync import fanout
from tidemark.sync.fanout import Slice
from tidemark.sync.frames import Batch, encoded
from tidemark.sync.topic import Follower
from tidemark_protocol.messages import Pong

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
        world.hub.regroup(SHARED)  # as the hub does before it tells
        peer.follower.revoked(SHARED)
        await gone
        await settle(peer)
        assert peer.kinds[-1] == "ScopeRevoked"


async def test_who_becomes_slow_amid_a_fan_out_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a fan-out is not written straight to a reader who has become slow since, and is not lost."""
    async with amid_a_fan_out(monkeypatch) as (_, peer):
        peer.outgoing.put(encoded(Pong(CLOCK, "x" * 600)))
        await settle(peer)
        assert peer.kinds[-2:] == ["Pong", "Changes"]
        assert peer.rows[SHARED] == {"a": 1}


async def test_who_is_revoked_is_written_to_no_more_while_others_are() -> None:
    """One follower's revocation ends the shortest way for all, and what comes next is for those who are left (I39)."""
    async with opened() as (world, peer):
        bob = Bystander(world)
        await world.commit(SHARED, [("a", False)])
        await settle(peer)
        await world.set_member(SHARED, None, here=False)
        world.tell(SHARED)
        await settle(peer)
        await world.commit(SHARED, [("b", False)])
        await settle(peer)
        assert peer.kinds[-1] == "ScopeRevoked" and SHARED not in peer.rows
        assert [batch.to for batch in bob.told] == [1, 2]
        world.hub.detach(bob)


class Bystander:
    """Bob, who follows the shared scope too, and to whom nothing is written straight."""

    scope, user, own, schema = SHARED, "bob", "user:bob", 3

    def __init__(self, world: World) -> None:
        self.told: list[Batch] = []
        world.store.roles[SHARED, "bob"] = "viewer"
        assert world.hub.attach(self, world.store.scopes[SHARED])

    def offer(self, batch: Batch) -> None:
        """Remember it."""
        self.told.append(batch)

    def straight(self, after: int, schema: int) -> None:
        """Not to this one."""

    def enter(self, some: Slice[Follower]) -> None:
        """Never."""

    def leave(self) -> None:
        """Never."""

    def revoked(self) -> None:
        """Never."""
