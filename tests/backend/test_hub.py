"""The hub and what follows it: no gap, no repetition, and nothing for former members, in whatever order things come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import cycle, repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.hub_world import OTHER, OWN, SCOPES, SHARED, Peer, World, settle
from tidemark.store.base import Unavailable
from tidemark.sync import hub
from tidemark.wake.base import Wakeup

BUFFER = 1_500

scopes = st.sampled_from(SCOPES)
shared = st.sampled_from((SHARED, OTHER))
rows = st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=3)
places = st.sampled_from(["here", "here", "here late", "elsewhere"])
actions = st.one_of(
    st.tuples(st.just("commit"), scopes, rows, st.sampled_from([0, 0, 400, 2_000]), places),
    st.tuples(st.just("commit"), scopes, rows, st.just(0), places),
    st.tuples(st.just("deliver")),
    st.tuples(st.just("tell"), scopes),
    st.tuples(st.just("look")),
    st.tuples(st.just("read"), st.integers(1, 4)),
    st.tuples(st.just("pause"), scopes),
    st.tuples(st.just("resume"), scopes, st.booleans()),
    st.tuples(st.just("again"), scopes, st.integers(0, 12)),
    st.tuples(st.just("member"), shared, st.booleans(), st.booleans()),
    st.tuples(st.just("away"), st.booleans()),
)


async def act(world: World, peer: Peer, action: tuple[Any, ...]) -> None:
    """Let one thing happen."""
    match action:
        case ("commit", scope, written, size, place):
            await world.commit(scope, written, size=size, here=place != "elsewhere", late=place == "here late")
        case ("deliver",):
            world.deliver()
        case ("tell", scope):
            world.tell(scope)
        case ("look",):
            world.look()
        case ("member", scope, joins, here):
            await world.set_member(scope, "viewer" if joins else None, here=here)
        case ("away", away):
            world.store.away = away
        case _:
            await ask(peer, action)


async def take_turns(peer: Peer, count: int) -> None:
    """Let everybody else go on; an eager peer reads whatever comes."""
    for _ in range(count):
        await asyncio.sleep(0)
        while peer.eager and peer.waiting:
            await peer.read()


async def ask(peer: Peer, action: tuple[Any, ...]) -> None:
    """Let the peer do one thing."""
    match action:
        case ("read", count):
            for _ in range(count):
                if peer.waiting:
                    await peer.read()
        case ("pause", scope):
            peer.follower.pause([scope])
        case ("again", scope, turns):
            peer.follower.pause([scope])
            await take_turns(peer, turns)
            await ask(peer, ("resume", scope, False))
        case ("resume", scope, from_own):
            marks = peer.watermark(scope) if from_own else {}
            peer.jumps.update(list(marks))
            with suppress(Unavailable):
                await peer.follower.resume([scope], marks)


async def converge(world: World, peer: Peer) -> None:
    """Let all be well again, and see that the replica is what the store holds."""
    world.store.away = False
    world.deliver()
    for _ in range(2):
        world.look()
        await settle(peer)
    await peer.follower.resume(SCOPES, {})
    await settle(peer)
    for scope in SCOPES:
        if world.is_member(scope):
            assert peer.rows.get(scope, {}) == world.rows(scope), scope
            assert peer.copies[scope].to == world.head(scope), scope
        else:
            assert scope not in peer.rows, scope


@settings(max_examples=300)
@given(
    turns=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    before=st.lists(st.tuples(scopes, rows), max_size=4),
    members=st.sets(shared),
    eager=st.booleans(),
    lanes=st.booleans(),
    history=st.lists(st.tuples(st.integers(0, 8), actions), min_size=15, max_size=60),
)
def test_a_replica_on_the_stream_holds_what_the_store_holds(
    turns: list[int],
    before: list[tuple[str, Any]],
    members: set[str],
    eager: bool,
    lanes: bool,
    history: list[tuple[int, Any]],
) -> None:
    """Whatever commits, wakes, readers, outages and members do, all is told once, and to members alone (I38, I39)."""

    async def scenario() -> None:
        world = World(cycle(turns), BUFFER, lanes=lanes)
        await world.hub.start()
        for scope in members:
            await world.set_member(scope, "viewer")
        for scope, written in before:
            await world.commit(scope, written)
        peer = Peer(world)
        peer.eager = eager
        await peer.open()
        for pause, action in history:
            await take_turns(peer, pause)
            await act(world, peer, action)
        await converge(world, peer)
        await peer.close()
        await world.hub.stop()

    asyncio.run(scenario())


@asynccontextmanager
async def opened(
    buffer: int = BUFFER, turns: Iterator[int] | None = None, **hello: Any
) -> AsyncIterator[tuple[World, Peer]]:
    """A world with one peer, a member of the shared scope, that has read its welcome and what follows it."""
    world = World(turns or repeat(0), buffer)
    await world.hub.start()
    await world.set_member(SHARED, "viewer")
    peer = Peer(world)
    await peer.open(**hello)
    await settle(peer)
    yield world, peer
    await peer.close()
    await world.hub.stop()


async def test_an_empty_scope_gets_a_run_and_a_known_one_nothing() -> None:
    """After hello a scope that the watermark does not name gets its run, one that is at its head gets none."""
    async with opened() as (world, peer):
        assert peer.kinds == ["Welcome", "Changes", "Changes"]
        again = Peer(world)
        await again.open(peer.watermark(OWN, SHARED))
        await settle(again)
        assert again.kinds == ["Welcome"]
        await again.close()


async def test_a_commit_is_sent_as_it_is() -> None:
    """What this process commits reaches its followers without a read."""
    async with opened() as (world, peer):
        world.store.away = True
        await world.commit(SHARED, [("a", False)])
        await peer.read()
        assert peer.rows[SHARED] == {"a": 1}


async def test_a_commit_of_another_process_is_read() -> None:
    """A wake brings what another process has committed, and what came before it."""
    async with opened() as (world, peer):
        await world.commit(SHARED, [("a", False)], here=False)
        await world.commit(SHARED, [("b", False)], here=False)
        world.tell(SHARED)
        await settle(peer)
        assert peer.rows[SHARED] == {"a": 1, "b": 2}
        assert peer.kinds[-1:] == ["Changes"] and peer.kinds.count("Changes") == 3


async def test_lost_wakes_cost_time_only() -> None:
    """A look at the heads finds what no wake told of."""
    async with opened() as (world, peer):
        await world.commit(SHARED, [("a", False)], here=False)
        await settle(peer)
        assert peer.rows[SHARED] == {}
        world.look()
        await settle(peer)
        assert peer.rows[SHARED] == {"a": 1}


async def test_a_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of one look at all heads, the next one finds what wakes have lost."""
    async with opened() as (world, peer):
        with monkeypatch.context() as patch:
            patch.setattr(world.hub, "_tidy", None)
            world.look()
            await settle(peer)
        await world.commit(OWN, [("a", False)], here=False)
        world.look()
        await settle(peer)
        assert peer.rows[OWN] == {"a": 1}


async def test_a_hint_that_is_not_true_does_no_harm() -> None:
    """A wake that tells of what never was neither stops the stream nor makes it read for ever."""
    async with opened() as (world, peer):
        world.wake.on_wake(world.wake.published[-1]._replace(scope=SHARED, head=99, members=99))
        await settle(peer)
        await world.commit(SHARED, [("a", False)])
        await settle(peer)
        assert peer.rows[SHARED] == {"a": 1}


async def test_a_commit_larger_than_the_buffer_is_behind() -> None:
    """What never fits is not sent; the next frame begins where `behind` said."""
    async with opened() as (world, peer):
        await world.commit(SHARED, [("a", False)], size=BUFFER)
        await world.commit(SHARED, [("b", False)])
        await settle(peer)
        assert peer.kinds[-2:] == ["Behind", "Changes"]
        assert peer.rows[SHARED] == {"a": 1, "b": 2}


async def test_a_slow_reader_is_told_behind_once() -> None:
    """Whatever a slow reader misses, its memory here stays bounded and one `behind` stands for it (I40)."""
    async with opened() as (world, peer):
        for _ in range(50):
            await world.commit(SHARED, [("a", False)], size=400)
            assert peer.outgoing.waiting <= BUFFER
        await settle(peer)
        assert peer.kinds.count("Behind") == 1
        await world.commit(SHARED, [("b", False)])
        await settle(peer)
        assert peer.rows[SHARED] == world.rows(SHARED)


async def test_too_far_behind_at_hello_is_told() -> None:
    """A first run that is larger than the buffer is left to pull."""
    async with opened() as (world, _):
        for name in "abcdef":
            await world.commit(SHARED, [(name, False)], size=400)
        late = Peer(world)
        await late.open()
        await settle(late)
        assert late.kinds == ["Welcome", "Changes", "Behind"]
        await late.close()


async def test_a_watermark_that_cannot_be_continued_resets() -> None:
    """In answer to a hello the run from 0 says that it is a reset."""
    async with opened() as (world, _):
        await world.commit(OWN, [("a", False)])
        late = Peer(world)
        await late.open({OWN: "strange.5.0.3"}, [OWN])
        await late.outgoing.take()
        late.outgoing.sent()
        text = await late.outgoing.take()
        assert '"from":0,"to":1,' in text and '"reset":true' in text
        await late.close()


async def test_a_narrowed_stream_follows_what_it_names() -> None:
    """With `scopes` only these are followed, later ones only if named."""
    async with opened(scopes=[SHARED, OTHER]) as (world, peer):
        assert list(peer.rows) == [SHARED]
        await world.set_member(OTHER, "viewer")
        await settle(peer)
        assert peer.kinds[-2:] == ["ScopeAdded", "Changes"]
        assert OWN not in peer.rows


async def test_a_paused_scope_resumes_where_it_stood() -> None:
    """Nothing comes while a scope is not followed; afterwards what was missed comes, once."""
    async with opened() as (world, peer):
        await world.commit(SHARED, [("a", False)])
        await settle(peer)
        peer.follower.pause([SHARED])
        await world.commit(SHARED, [("b", False)])
        await settle(peer)
        assert peer.rows[SHARED] == {"a": 1}
        await peer.follower.resume([SHARED], {})
        await settle(peer)
        assert peer.rows[SHARED] == {"a": 1, "b": 2}


@pytest.mark.parametrize("here", [True, False])
async def test_a_former_member_gets_nothing_more(here: bool) -> None:
    """A commit after the end of a membership is not sent, even if nobody told of that end (I39)."""
    async with opened() as (world, peer):
        await world.set_member(SHARED, None, here=False)
        await world.commit(SHARED, [("a", False)], here=here)
        world.tell(SHARED)
        await settle(peer)
        assert peer.kinds[-1] == "ScopeRevoked"
        assert SHARED not in peer.rows


@pytest.mark.parametrize("here", [True, False])
async def test_a_membership_that_ends_during_hello(here: bool) -> None:
    """Rights looked up before a membership ended do not count for what was committed after (I39)."""
    async with opened(scopes=[OWN]) as (world, _):

        async def end() -> None:
            await world.set_member(SHARED, None, here=here)
            await world.commit(SHARED, [("a", False)], here=here)

        world.store.after_memberships = end
        late = Peer(world)
        await late.open()
        await world.commit(SHARED, [("b", False)], here=here)
        world.tell(SHARED)
        await settle(late)
        assert SHARED not in late.rows
        await late.close()


async def test_a_gained_scope_comes_from_the_beginning() -> None:
    """A new membership is announced, and the scope's changes follow from 0."""
    async with opened() as (world, peer):
        await world.commit(OTHER, [("a", False)])
        await world.set_member(OTHER, "viewer")
        await settle(peer)
        assert peer.kinds[-2:] == ["ScopeAdded", "Changes"]
        assert peer.rows[OTHER] == {"a": 1}


async def test_a_follow_that_crosses_a_revocation() -> None:
    """A watermark sent before the peer has read of a revocation does not count: the scope comes again from 0."""
    async with opened() as (world, peer):
        await world.commit(SHARED, [("a", False)])
        await settle(peer)
        marks = peer.watermark(SHARED)
        await world.set_member(SHARED, None)
        for _ in range(20):
            await asyncio.sleep(0)
        await world.set_member(SHARED, "viewer", here=False)
        await peer.follower.resume([SHARED], marks)
        await settle(peer)
        assert peer.kinds[-3:] == ["ScopeRevoked", "ScopeAdded", "Changes"]
        assert peer.rows[SHARED] == {"a": 1}


async def test_a_watch_hears_of_commits_here_and_elsewhere() -> None:
    """A watch tells of a commit, a change of members, and of what a look finds; once for each."""
    async with opened() as (world, _):
        with world.hub.watch([SHARED]) as watch:
            assert not await watch.changed(0)
            await world.commit(SHARED, [("a", False)])
            assert await watch.changed(1)
            assert not await watch.changed(0)
            await world.commit(SHARED, [("b", False)], here=False)
            world.look()
            assert await watch.changed(1)
            await world.set_member(SHARED, None)
            assert await watch.changed(1)


async def test_a_watch_on_an_unknown_scope_misses_nothing() -> None:
    """Where nobody knew how a scope stood, a commit elsewhere is found by a look at once; and then there is peace."""
    async with opened() as (world, _):
        with world.hub.watch([OTHER]) as watch:
            await world.commit(OTHER, [("a", False)], here=False)
            assert await watch.changed(1)
        for _ in range(3):
            with world.hub.watch([OTHER]) as watch:
                assert not await watch.changed(0.01)


async def test_topics_that_nobody_follows_are_forgotten() -> None:
    """What is kept for a scope goes when nobody has cared for two looks."""
    async with opened() as (world, peer):
        await peer.close()
        for _ in range(3):
            world.look()
            await asyncio.sleep(0.01)
        assert world.hub.topics == 0


async def test_who_asks_while_members_cannot_be_looked_up_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights that cannot be looked up hold up whoever asks first for a while, and those who ask later no longer."""
    monkeypatch.setattr(hub, "_SETTLED_WITHIN", 0.05)
    async with opened() as (world, peer):
        assert await peer.follower.visit(SHARED)
        world.store.away = True
        world.wake.on_wake(Wakeup(SHARED, 0, 99))
        for _ in range(2):
            with pytest.raises(Unavailable):
                await world.hub.settled(SHARED)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await world.hub.settled(SHARED)
        assert asyncio.get_running_loop().time() - began < 0.05
        world.store.away = False
        world.look()
        await settle(peer)
        async with asyncio.timeout(5):
            await world.hub.settled(SHARED)
