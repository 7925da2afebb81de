"""Membership: who may change it, what is recorded, and what it means for writes under way (SPEC 7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.backend.engine_world import Device, World, fates, key, running
from tidemark.store.memory import MemoryTransaction
from tidemark.sync.commit import Commit
from tidemark_protocol.errors import RequestError

W = "workspace:7"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world with a workspace of an owner, an editor and a viewer."""
    async with running(World()) as world:
        await world.grant(W, olga="owner", ed="editor", vic="viewer")
        yield world


async def code(call: object) -> str:
    """What a call is refused with."""
    with pytest.raises(RequestError) as refused:
        await call  # type: ignore[misc]
    return refused.value.code


def put(device: Device, scope: str, user: str, role: str) -> object:
    """A device gives a user a role."""
    return device.engine.put_member(device.principal, scope, user, role)


def delete(device: Device, scope: str, user: str) -> object:
    """A device takes a user's role away."""
    return device.engine.delete_member(device.principal, scope, user)


async def test_members_are_shown_to_those_who_manage(world: World) -> None:
    """Owners and admins see who belongs to a scope; to all others it might as well not be there (I20)."""
    for device in (world.device("olga"), world.device("root", admin=True)):
        assert await world.engine.members(device.principal, W) == {"olga": "owner", "ed": "editor", "vic": "viewer"}
    for user, scope in (("ed", W), ("vic", W), ("mallory", W), ("olga", "workspace:404"), ("olga", "user:olga")):
        assert await code(world.engine.members(world.device(user).principal, scope)) == "forbidden"
    root = world.device("root", admin=True).principal
    assert await code(world.engine.members(root, "workspace:404")) == "forbidden"


@pytest.mark.parametrize("scope", ["workspace", "workspace:\0", "workspace:%00", "Workspace:7", "workspace:%41"])
async def test_a_scope_s_name_is_checked_before_it_is_looked_for(world: World, scope: str) -> None:
    """What cannot be a scope is `malformed`, whatever is asked."""
    root = world.device("root", admin=True)
    assert await code(world.engine.members(root.principal, scope)) == "malformed"
    assert await code(put(root, scope, "ada", "editor")) == "malformed"
    assert await code(delete(root, scope, "ada")) == "malformed"


async def test_only_who_manages_gives_and_takes(world: World) -> None:
    """Owners and admins change roles; others may only leave; nobody manages a user's own scope."""
    olga, ed, root = world.device("olga"), world.device("ed"), world.device("root", admin=True)
    assert await code(put(ed, W, "ed", "owner")) == "forbidden"
    assert await code(delete(ed, W, "vic")) == "forbidden"
    assert await code(delete(world.device("mallory"), W, "mallory")) == "forbidden"
    assert await code(put(root, "user:ed", "olga", "owner")) == "forbidden"
    assert await code(put(olga, "workspace:new", "olga", "owner")) == "forbidden"
    assert await code(delete(root, "workspace:404", "ed")) == "forbidden"
    assert await code(put(olga, W, "ed", "ruler")) == "unknown_role"
    assert await code(put(olga, W, "", "viewer")) == "malformed"
    assert await code(put(root, "garden:1", "ed", "viewer")) == "malformed"
    await world.engine.delete_member(ed.principal, W, "ed")
    await world.engine.put_member(olga.principal, W, "vic", "editor")
    await world.engine.delete_member(olga.principal, W, "nobody")
    assert world.memory.roles == {(W, "olga"): "owner", (W, "vic"): "editor"}


async def test_each_change_raises_both_numbers_and_is_told_once(world: World) -> None:
    """A change moves the number of members of the scope and of the user's own scope; none moves without one."""
    told: list[Commit] = []
    world.engine._members._committed = told.append
    before = await world.store.states([W, "user:ed"])
    await world.grant(W, ed="viewer")
    await world.grant(W, ed="viewer")
    after = await world.store.states([W, "user:ed"])
    assert [after[s].members - before[s].members for s in (W, "user:ed")] == [1, 1]
    assert [(commit.state.scope, commit.count, commit.after) for commit in told] == [("user:ed", 0, 0), (W, 0, 0)]
    (event,) = [e for e in await world.device("olga").events(scope=W) if e["overwrote"]]
    assert (event["outcome"], event["user"]) == ("member", "root")
    assert (event["values"], event["overwrote"]) == ({"ed": "viewer"}, {"ed": "editor"})


async def test_an_admin_makes_a_scope_and_sees_nothing_of_it(world: World) -> None:
    """The role of admin lets nobody read: neither rows nor the journal (SPEC 8)."""
    root, ed = world.device("root", admin=True), world.device("ed")
    await ed.apply(ed.put("nodes", key(1), scope=W))
    assert (await root.pull()).readable == ["user:root"]
    assert await root.events() == []
    assert await code(root.events(scope=W)) == "forbidden"
    assert fates(await root.push(root.put("nodes", key(2), scope=W))) == ["forbidden"]


async def test_after_a_membership_s_end_was_answered_nothing_is_written(world: World) -> None:
    """Pushes and an expulsion at once: whatever was applied has a version below what the scope had at the end, and
    nothing is applied afterwards (I39).
    """
    for round_ in range(20):
        user = f"u{round_}"
        await world.grant(W, **{user: "editor"})
        device = world.device(user)
        pushes = [
            asyncio.create_task(device.push(device.put("nodes", key(100 * round_ + n), scope=W))) for n in range(3)
        ]
        await asyncio.gather(world.grant(W, **{user: None}), *pushes)
        head = (await world.store.states([W]))[W].head
        assert fates(await device.push(device.put("nodes", key(99), scope=W))) == ["forbidden"]
        verdicts = [result for push in pushes for result in push.result()]
        assert {result.status for result in verdicts} <= {"applied", "rejected"}
        assert all(result.version <= head for result in verdicts if isinstance(result.version, int))


async def test_a_scope_held_elsewhere_is_waited_for_and_given_up(world: World) -> None:
    """A change of members waits for a writer that has the scope, and is `unavailable` when that one does not end."""
    holder = MemoryTransaction(world.memory)
    world.memory.locks[W] = holder
    asyncio.get_running_loop().call_later(0.01, lambda: world.memory.locks.pop(W))
    await world.grant(W, ed="viewer")
    world.engine._members._patience = 0.02
    world.memory.locks[W] = holder
    assert await code(world.grant(W, ed="owner")) == "unavailable"
    assert world.memory.roles[W, "ed"] == "viewer"
