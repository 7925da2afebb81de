"""Wakes that join processes, by each kind of broker, and ears that keep what they say."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from tidemark.wake.base import Wakeup
from tidemark.wake.channel import ChannelWake, Timing
from tidemark.wake.nats import NatsWake
from tidemark.wake.postgresql import PostgresWake
from tidemark.wake.redis import RedisWake

SPACE = "0a1b2c3d"
QUICK = Timing(longest_delay=0.2)
IMPATIENT = Timing(ping_every=0.1, answer_within=0.4, longest_delay=0.2)
"""For networks that are to be found half dead; on a busy machine they may seem so without being it."""
WAKES: dict[str, Callable[..., ChannelWake]] = {"postgresql": PostgresWake, "redis": RedisWake, "nats": NatsWake}


class Ear:
    """Keeps what a wake says, and waits for it."""

    def __init__(self) -> None:
        self.heard: list[Wakeup | None] = []
        self.messages: list[bytes] = []
        self._more = asyncio.Event()

    def on_wake(self, wakeup: Wakeup | None) -> None:
        """Called by the wake."""
        self.heard.append(wakeup)
        self._more.set()

    def on_message(self, message: bytes) -> None:
        """Called by the wake."""
        self.messages.append(message)
        self._more.set()

    @property
    def looks(self) -> int:
        """How often it was told to look at everything."""
        return self.heard.count(None)

    async def until(self, done: Callable[[], object], seconds: float = 10) -> None:
        """Wait until `done` finds what it looks for in what was heard."""
        async with asyncio.timeout(seconds):
            while not done():
                self._more.clear()
                await self._more.wait()


def wake_at(url: str, timing: Timing = QUICK) -> ChannelWake:
    """The wake that a URL names."""
    return WAKES[urlsplit(url).scheme](url, chance=os.urandom, timing=timing)


@asynccontextmanager
async def listening(
    url: str, *, namespace: str = SPACE, timing: Timing = QUICK
) -> AsyncIterator[tuple[ChannelWake, Ear]]:
    """A wake that has been started; whether it hears is another matter."""
    wake, ear = wake_at(url, timing), Ear()
    await wake.start(ear.on_wake, ear.on_message, namespace)
    try:
        yield wake, ear
    finally:
        await wake.stop()


@asynccontextmanager
async def joined(url: str, *, namespace: str = SPACE, timing: Timing = QUICK) -> AsyncIterator[tuple[ChannelWake, Ear]]:
    """A wake that hears."""
    async with listening(url, namespace=namespace, timing=timing) as (wake, ear):
        await ear.until(lambda: ear.looks)
        yield wake, ear


async def eventually(done: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something is so that nobody tells of."""
    async with asyncio.timeout(seconds):
        while True:
            if done():
                return
            await asyncio.sleep(0.01)


async def reached(wake: ChannelWake, ear: Ear) -> None:
    """Send until something new arrives."""
    number = len(ear.messages)

    def arrived() -> bool:
        if len(ear.messages) == number:
            wake.send(b"are you there?")
        return len(ear.messages) > number

    await eventually(arrived)
