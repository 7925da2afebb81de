"""What every wake that spans processes promises, on real servers, with those that die and networks that half die."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.backend.wake_world import IMPATIENT, QUICK, Ear, eventually, joined, listening, reached, wake_at
from tests.cluster.brokers import PostgresBroker
from tests.conftest import need
from tests.proxy import Proxy
from tests.servers import NatsServer, RedisServer, free_port
from tidemark.wake.base import MAX_MESSAGE, Wakeup
from tidemark.wake.channel import ChannelWake, Timing

KINDS = ("postgresql", "redis", "nats")
NOTICED_WITHIN = 2 * IMPATIENT.ping_every + IMPATIENT.answer_within + 3
"""Seconds, with patience for a busy machine."""
Broker = PostgresBroker | RedisServer | NatsServer


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str:
    """Where wakes meet, once for each kind."""
    if request.param == "postgresql":
        database: str = request.getfixturevalue("postgresql_url")
        return database
    server: RedisServer | NatsServer = request.getfixturevalue(f"{request.param}_server")
    return server.wake


@pytest.fixture
def space() -> str:
    """A namespace of the test's own: servers are shared."""
    return uuid4().hex[:8]


@pytest.fixture(params=[PostgresBroker, RedisServer, NatsServer], ids=KINDS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A server of the test's own, to be killed, once for each kind."""
    kind: type[Broker] = request.param
    need(kind.missing())
    with kind() as server:
        yield server


@asynccontextmanager
async def through_proxy(url: str, space: str, timing: Timing = QUICK) -> AsyncIterator[tuple[Proxy, ChannelWake, Ear]]:
    """A wake that hears, over a proxy."""
    parts = urlsplit(url)
    assert parts.port
    async with Proxy(parts.port) as proxy:
        beyond = url.replace(f":{parts.port}", f":{proxy.port}")
        async with joined(beyond, namespace=space, timing=timing) as (wake, ear):
            yield proxy, wake, ear


async def test_each_hears_the_other_in_order(url: str, space: str) -> None:
    """Two processes are told to look, then hear each other's wakes, and all messages in the order they were sent in."""
    async with joined(url, namespace=space) as (here, hears), joined(url, namespace=space) as (there, ear):
        assert here.spans
        for number in range(500):
            here.send(b"from here %d" % number)
            there.send(b"from there %d" % number)
            here.publish("workspace:1", number, 2)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await ear.until(lambda: len(ear.messages) == 500 and Wakeup("workspace:1", 499, 2) in ear.heard)
        await hears.until(lambda: len(hears.messages) == 500)
        assert ear.messages == [b"from here %d" % number for number in range(500)]
        assert hears.messages == [b"from there %d" % number for number in range(500)]
        assert ear.heard[0] is None and hears.heard == [None]


async def test_what_comes_together_travels_together(url: str, space: str) -> None:
    """Many publications of one scope at once are one, with the highest numbers; very many scopes are a hint to look."""
    async with joined(url, namespace=space) as (here, _), joined(url, namespace=space) as (_, ear):
        for head in (1, 3, 2):
            here.publish("workspace:1", head, 4 - head)
        await ear.until(lambda: len(ear.heard) > 1)
        for number in range(3_000):
            here.publish(f"workspace:{number:040}", 1, 0)
        await ear.until(lambda: len(ear.heard) > 2)
        assert ear.heard == [None, Wakeup("workspace:1", 3, 3), None]


async def test_messages_of_any_size_and_content_arrive(url: str, space: str) -> None:
    """From nothing to 1 MiB, text in any script or bytes of any kind, arrive as they were sent; larger ones never."""
    chance = random.Random(7)
    sizes = [0, 1, 2, 7_779, 7_780, 7_781, 16_000, 65_416, 65_417, 300 << 10, MAX_MESSAGE]
    sent = [chance.randbytes(size) for size in sizes]
    sent += [("aä€😀"[size % 4] * size).encode() for size in sizes[:-1]]
    sent += ["aä€😀".encode() * 26_214, b"a\0b", b'{"a": "line\\nbreak"}\n\n', b"\n", b"wakes a\n*"]
    async with joined(url, namespace=space) as (here, _), joined(url, namespace=space) as (_, ear):
        here.send(bytes(MAX_MESSAGE + 1))
        for first in range(0, len(sent), 4):
            for message in sent[first : first + 4]:
                here.send(message)
            await ear.until(lambda: len(ear.messages) >= min(len(sent), first + 4))  # noqa: B023  (awaited at once)
        assert ear.messages == sent
        assert ear.heard == [None]


async def test_namespaces_are_apart(url: str, space: str) -> None:
    """On one server, processes of another database hear nothing, wakes and messages alike."""
    async with (
        joined(url, namespace=space) as (here, _),
        joined(url, namespace=space) as (_, ear),
        joined(url, namespace=f"{space}x") as (_, stranger),
    ):
        here.publish("workspace:1", 1, 0)
        here.send(b"hello")
        await ear.until(lambda: ear.messages and len(ear.heard) == 2)
        await reached(here, ear)
        assert stranger.heard == [None] and stranger.messages == []


async def test_a_server_that_was_killed_and_comes_back(
    broker: Broker, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both processes connect again by themselves, are told to look, and hear each other; no fault is logged."""
    url = broker.wake
    async with joined(url, namespace=space) as (here, hears), joined(url, namespace=space) as (there, ear):
        for wake in (here, there):
            wake.publish("workspace:1", 1, 0)
        await asyncio.to_thread(broker.kill)
        for wake in (here, there):
            wake.publish("workspace:1", 2, 0)
            wake.send(b"into the void")
        looks = hears.looks, ear.looks
        await asyncio.to_thread(broker.revive)
        await hears.until(lambda: hears.looks > looks[0])
        await ear.until(lambda: ear.looks > looks[1])
        await reached(here, ear)
        await reached(there, hears)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "silent"])
@pytest.mark.parametrize(("up", "down"), [(True, True), (True, False), (False, True)], ids=["both", "up", "down"])
async def test_a_half_open_connection_is_noticed(url: str, space: str, up: bool, down: bool, busy: bool) -> None:
    """A network that swallows everything, or one direction, is found out soon, by one who says much or nothing."""
    async with (
        joined(url, namespace=space) as (there, hears),
        through_proxy(url, space, IMPATIENT) as (proxy, wake, ear),
    ):
        connections, looks = proxy.accepted, ear.looks
        proxy.hold(up=up, down=down)

        def given_up() -> bool:
            if busy:
                wake.publish("workspace:1", 1, 0)
            return proxy.accepted > connections

        await eventually(given_up, NOTICED_WITHIN)
        proxy.release()
        await ear.until(lambda: ear.looks > looks)
        await reached(wake, hears)
        await reached(there, ear)


@pytest.mark.parametrize("waiting", [True, False], ids=["waiting", "idle"])
async def test_a_connection_that_ends_is_noticed_at_once(url: str, space: str, waiting: bool) -> None:
    """Long before a ping would tell, whether or not an answer is waited for."""
    async with through_proxy(url, space) as (proxy, wake, ear):
        if waiting:
            proxy.hold()
            wake.send(b"is this taken?")
            await eventually(lambda: proxy.holding)
        proxy.cut()
        proxy.release()
        await ear.until(lambda: ear.looks == 2, QUICK.ping_every / 2)


async def test_whoever_was_cut_off_tells_the_others_to_look(url: str, space: str) -> None:
    """What a process published just before it lost its connection may be lost: the others hear of that."""
    async with joined(url, namespace=space) as (_, ear), through_proxy(url, space) as (proxy, wake, own):
        looks, own_looks = ear.looks, own.looks
        proxy.cut()
        wake.publish("workspace:1", 7, 0)
        await own.until(lambda: own.looks > own_looks)
        await ear.until(lambda: ear.looks > looks)


@pytest.mark.parametrize("held", [True, False], ids=["half open", "refused"])
async def test_while_away_nothing_blocks_fails_or_piles_up(url: str, space: str, held: bool) -> None:
    """Publishing and sending take no time and little memory however long nobody takes it, and `stop` ends soon."""
    messages = 40
    tracemalloc.start()
    try:
        async with Proxy(urlsplit(url).port or 0) as proxy:
            beyond = url.replace(f":{urlsplit(url).port}", f":{proxy.port if held else free_port()}")
            proxy.hold()
            wake, ear = wake_at(beyond), Ear()
            await wake.start(ear.on_wake, ear.on_message, space)
            before, _ = tracemalloc.get_traced_memory()
            slowest = 0.0
            for number in range(messages):
                began = time.perf_counter()
                wake.send(os.urandom(MAX_MESSAGE))
                for scope in range(100):
                    wake.publish(f"workspace:{number}.{scope}", 1, 0)
                slowest = max(slowest, time.perf_counter() - began)
                await asyncio.sleep(0)
            used = tracemalloc.get_traced_memory()[0] - before
            began = time.monotonic()
            await wake.stop()
            assert time.monotonic() - began < 3
            assert used < 10 << 20
            assert slowest < 1
            assert ear.heard == []
    finally:
        tracemalloc.stop()


async def test_a_connection_that_takes_nothing_is_no_hoard(url: str, space: str) -> None:
    """When a connection goes half dead, what waits stays bounded; `stop` gives up on it soon."""
    async with through_proxy(url, space) as (proxy, wake, _):
        proxy.hold()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(40):
                wake.send(os.urandom(MAX_MESSAGE))
                await asyncio.sleep(0.005)
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert used < 20 << 20
        began = time.monotonic()
        await wake.stop()
        assert time.monotonic() - began < 4


async def test_a_fault_of_who_listens_costs_that_message_alone(url: str, space: str) -> None:
    """What fails on a message neither breaks the connection nor keeps the next ones away."""
    wake, ear = wake_at(url), Ear()

    def choosy(message: bytes) -> None:
        ear.on_message(message)
        if message == b"bad":
            raise RuntimeError("never seen such a message")

    await wake.start(ear.on_wake, choosy, space)
    await ear.until(lambda: ear.looks)
    async with joined(url, namespace=space) as (there, _):
        for message in (b"bad", b"good"):
            there.send(message)
        await ear.until(lambda: ear.messages == [b"bad", b"good"])
    await wake.stop()
    assert ear.heard == [None]


async def test_what_was_sent_last_still_goes_out(url: str, space: str) -> None:
    """`stop` says what waits before it lets go."""
    async with joined(url, namespace=space) as (_, ear):
        async with joined(url, namespace=space) as (wake, _):
            wake.publish("workspace:1", 1, 0)
            wake.send(b"goodbye")
            await wake.stop()
        await ear.until(lambda: ear.messages == [b"goodbye"] and Wakeup("workspace:1", 1, 0) in ear.heard)


async def test_without_a_server_nothing_fails(url: str) -> None:
    """Starting, publishing, sending and stopping need no connection; stopping needs no start."""
    away = url.replace(f":{urlsplit(url).port}", f":{free_port()}")
    async with listening(away) as (wake, ear):
        wake.publish("user:ada", 1, 0)
        wake.send(b"hello")
        await asyncio.sleep(0.05)
        assert ear.heard == []
    await wake_at(away).stop()
