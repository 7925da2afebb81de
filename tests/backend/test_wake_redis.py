"""What is peculiar to wakes over Redis and Valkey: one connection says, another hears."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from tests.backend.wake_world import IMPATIENT, QUICK, SPACE, joined, reached
from tests.proxy import Proxy
from tests.servers import RedisServer
from tidemark.wake.channel import CHANNEL
from tidemark.wake.redis import RedisWake


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server of the test's own, where there is one at all."""
    with type(redis_server)() as server:
        yield server


async def test_one_that_can_say_but_not_hear_is_found_out(redis: RedisServer) -> None:
    """When only the connection that hears is half dead, what is said to oneself does not come back: connect again."""
    async with Proxy(redis.port) as proxy, joined(redis.wake) as (there, _):
        beyond = f"redis://127.0.0.1:{proxy.port}"
        async with joined(beyond, timing=IMPATIENT) as (_, ear):
            assert proxy.accepted == 2
            proxy.hold_one(0, up=False)
            await ear.until(lambda: ear.looks == 2, 2 * IMPATIENT.ping_every + 3)
            there.send(b"hello")
            await ear.until(lambda: ear.messages == [b"hello"])


@pytest.mark.parametrize("which", ["pubsub", "normal"])
async def test_either_connection_may_be_killed(redis: RedisServer, which: str) -> None:
    """Losing the connection that hears means to look; losing the one that says, at a quiet time, does no harm."""
    async with joined(redis.wake) as (here, own), joined(redis.wake) as (_, ear), Redis.from_url(redis.wake) as client:
        assert len(await client.client_list(_type="pubsub")) == 2
        assert await client.client_kill_filter(_type=which) >= 2
        if which == "pubsub":
            await own.until(lambda: own.looks >= 2)
            await ear.until(lambda: ear.looks >= 2)
        await reached(here, ear)


async def test_a_strange_message_says_look(redis: RedisServer) -> None:
    """What nobody of ours has written on the channel does no harm."""
    async with joined(redis.wake) as (_, ear), Redis.from_url(redis.wake) as client:
        await client.publish(f"{CHANNEL}.{SPACE}", b"\xff\0 hello there, you")
        await ear.until(lambda: ear.heard == [None, None])


async def test_valkey_is_served(redis: RedisServer) -> None:
    """The scheme `valkey:` is the same by another name."""
    wake = RedisWake(redis.wake.replace("redis:", "valkey:"), chance=os.urandom, timing=QUICK)
    async with joined(redis.wake) as (_, ear):
        await wake.start(lambda _: None, lambda _: None, SPACE)
        wake.send(b"hello")
        await ear.until(lambda: ear.messages == [b"hello"])
        await wake.stop()
