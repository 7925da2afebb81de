"""Wakes over LISTEN and NOTIFY, with connections that die."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg

from tests.servers import free_port
from tidemark.wake.base import Wakeup
from tidemark.wake.channel import CHANNEL, Timing
from tidemark.wake.postgresql import APPLICATION, PostgresWake

SPACE = "0a1b2c3d"


class Ear:
    """Keeps what a wake says, and waits for it."""

    def __init__(self) -> None:
        self.heard: list[Wakeup | None] = []
        self.messages: list[bytes] = []
        self._more = asyncio.Event()

    def __call__(self, wakeup: Wakeup | None) -> None:
        """Called by the wake."""
        self.heard.append(wakeup)
        self._more.set()

    async def until(self, done: Callable[[list[Wakeup | None]], bool], seconds: float = 10) -> None:
        """Wait until what was heard satisfies `done`."""
        async with asyncio.timeout(seconds):
            while not done(self.heard):
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def listening(url: str, **options: float) -> AsyncIterator[tuple[PostgresWake, Ear]]:
    """A wake that listens."""
    wake, ear = PostgresWake(url, chance=os.urandom, timing=Timing(**options)), Ear()
    await wake.start(ear, ear.messages.append, SPACE)
    try:
        yield wake, ear
    finally:
        await wake.stop()


async def ask(url: str, sql: str) -> object:
    """One value out of the database."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


KILL = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"


async def test_another_process_hears_what_is_published(postgresql_url: str) -> None:
    """What one publishes the other hears, after it was told to look at everything once."""
    async with listening(postgresql_url) as (here, _), listening(postgresql_url) as (_, ear):
        await ear.until(lambda heard: heard == [None])
        here.publish("workspace:1", 7, 2)
        await ear.until(lambda heard: Wakeup("workspace:1", 7, 2) in heard)


async def test_what_comes_together_travels_together(postgresql_url: str) -> None:
    """Many publications of one scope within the coalescing time are one, with the highest numbers."""
    async with listening(postgresql_url) as (here, _), listening(postgresql_url) as (_, ear):
        await ear.until(bool)
        for head in (1, 3, 2):
            here.publish("workspace:1", head, 4 - head)
        await ear.until(lambda heard: len(heard) > 1)
        assert ear.heard[1:] == [Wakeup("workspace:1", 3, 3)]


async def test_more_scopes_than_fit_say_look(postgresql_url: str) -> None:
    """A burst over very many scopes becomes one hint to look at everything."""
    async with listening(postgresql_url) as (here, _), listening(postgresql_url) as (_, ear):
        await ear.until(bool)
        for number in range(3_000):
            here.publish(f"workspace:{number:040}", 1, 0)
        await ear.until(lambda heard: len(heard) > 1)
        assert ear.heard[1:] == [None]


async def test_a_killed_connection_comes_back_and_looks(postgresql_url: str) -> None:
    """When its backend is killed the listener connects again, says look, and hears on; and so do the others."""
    async with listening(postgresql_url) as (here, own), listening(postgresql_url) as (_, ear):
        await ear.until(bool)
        await own.until(bool)
        assert await ask(postgresql_url, KILL) == 2
        await ear.until(lambda heard: heard.count(None) >= 2)
        await own.until(lambda heard: heard.count(None) >= 2)
        # What is published before the other was told to look is covered by that.
        for head in range(1, 100):
            here.publish("workspace:1", head, 0)
            with suppress(TimeoutError):
                await ear.until(any, 0.1)
                break
        assert any(ear.heard)


async def test_what_was_published_while_deaf_becomes_look(postgresql_url: str) -> None:
    """A process whose connection died tells the others to look, since what it published may be lost."""
    async with listening(postgresql_url) as (here, own), listening(postgresql_url) as (_, ear):
        await ear.until(bool)
        await own.until(bool)
        query = f"{KILL} AND pid = (SELECT min(pid) FROM pg_stat_activity WHERE application_name = '{APPLICATION}')"
        assert await ask(postgresql_url, query) == 1
        here.publish("workspace:1", 7, 0)
        await ear.until(lambda heard: heard.count(None) >= 2 or Wakeup("workspace:1", 7, 0) in heard)


async def test_a_silent_connection_is_pinged(postgresql_url: str) -> None:
    """On a connection where nothing happens something is said now and then, to hear whether it comes back."""
    async with listening(postgresql_url, ping_every=0.05) as (_, ear):
        await ear.until(bool)
        query = f"SELECT state_change FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"
        first = await ask(postgresql_url, query)
        async with asyncio.timeout(5):
            while await ask(postgresql_url, query) == first:
                pass
        assert ear.heard == [None]


async def test_a_strange_notification_says_look(postgresql_url: str) -> None:
    """What nobody of ours has written on the channel does no harm."""
    async with listening(postgresql_url) as (_, ear):
        await ear.until(bool)
        await ask(postgresql_url, f"SELECT pg_notify('{CHANNEL}.{SPACE}', 'hello there, you')")
        await ear.until(lambda heard: heard == [None, None])


async def test_without_a_database_nothing_fails() -> None:
    """Starting, publishing and stopping need no connection."""
    async with listening(f"postgresql://postgres@127.0.0.1:{free_port()}/none") as (wake, ear):
        wake.publish("user:ada", 1, 0)
        await asyncio.sleep(0.05)
        assert ear.heard == []
