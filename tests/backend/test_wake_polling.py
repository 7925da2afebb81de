"""The wake of processes without a channel."""

from __future__ import annotations

import asyncio

from tidemark.wake.base import Wakeup
from tidemark.wake.polling import PollingWake


async def test_it_says_look_again_and_again_until_it_stops() -> None:
    """Every interval anything may have moved, and no message comes; after `stop` nothing is said any more."""
    heard: list[Wakeup | bytes | None] = []
    often = asyncio.Event()

    def on_wake(wakeup: Wakeup | None) -> None:
        heard.append(wakeup)
        if len(heard) == 3:
            often.set()

    wake = PollingWake(1)
    await wake.start(on_wake, heard.append, "0a")
    assert not wake.spans
    wake.publish("user:ada", 1, 0)
    wake.send(b"hello")
    async with asyncio.timeout(5):
        await often.wait()
    await wake.stop()
    said = len(heard)
    assert set(heard) == {None}
    await asyncio.sleep(0.01)
    assert len(heard) == said


async def test_it_may_be_stopped_before_it_was_started() -> None:
    """Stopping is always possible."""
    await PollingWake(1).stop()
