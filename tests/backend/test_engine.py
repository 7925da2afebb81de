"""The engine as the routes see it: its clock, its limits, its beginning and its end (SPEC 2, 4 and 5)."""

from __future__ import annotations

import asyncio

import pytest

from tests.backend.engine_world import START, World, fates, key, running
from tidemark_protocol import clock
from tidemark_protocol.errors import RequestError


async def test_a_reading_is_above_wall_time_and_all_that_is_given() -> None:
    """The engine's clock is built from wall time and its arguments alone (I5)."""
    world = World()
    high = clock.reading(START + 9, 3, "b" * 16)
    assert clock.millis_of(world.engine.clock()) == START
    assert world.engine.clock(high, "") == high
    assert world.engine.clock(clock.reading(START - 9, 0, "b" * 16)) == world.engine.clock()
    assert clock.is_reading(world.engine.clock())


async def test_a_write_made_after_seeing_another_is_later() -> None:
    """Through push and pull, over two processes and clocks that differ, whoever saw a write wins over it (I4)."""
    async with running(World()) as world:
        await world.grant("workspace:7", ada="editor", bob="editor")
        ada, bob = world.device(), world.device("bob", engine=world.process())
        for turn in range(20):
            one, other = (ada, bob) if turn % 2 else (bob, ada)
            skew = 30_000 if one is ada else -30_000
            at = one.clock.issue(world.time + skew)
            mutation = one.put("nodes", key(1), scope="workspace:7", fields={"labels": {"turn": turn}}, at=at)
            await one.apply(mutation)
            page = await other.pull()
            other.clock.observe(page.clock)
            world.time += 10
        (doc,) = (await ada.rows("workspace:7")).values()
        assert doc["labels"] == {"turn": 19}


async def test_more_mutations_than_a_push_may_hold_are_refused_whole() -> None:
    """413, and nothing of it took effect (I18)."""
    async with running(World(max_mutations=2)) as world:
        ada = world.device()
        with pytest.raises(RequestError) as refused:
            await ada.push(*(ada.put("notes", key(n)) for n in range(3)))
        assert (refused.value.code, refused.value.status) == ("too_large", 413)
        assert await ada.rows() == {}
        await ada.apply(*(ada.put("notes", key(n)) for n in range(2)))


async def test_stopping_answers_and_ends_everything() -> None:
    """What was taken in is answered before the store is let go, and no task is left."""
    before = asyncio.all_tasks()
    world = World()
    await world.engine.start()
    await world.engine.ready()
    ada = world.device()
    push = asyncio.create_task(ada.push(ada.put("notes", key(1))))
    await asyncio.sleep(0)
    await world.engine.stop()
    assert fates(await push) == ["applied"]
    assert asyncio.all_tasks() == before
