"""For several processes without a channel between them: each looks at the heads it follows, often."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from .base import OnMessage, OnWake


class PollingWake:
    """Says every `interval` milliseconds that anything may have moved."""

    spans = False

    def __init__(self, interval: int) -> None:
        self._interval = interval / 1_000
        self._task: asyncio.Task[None] | None = None

    async def start(self, on_wake: OnWake, on_message: OnMessage, namespace: str) -> None:  # noqa: ARG002  (no channel)
        self._task = asyncio.create_task(self._tick(on_wake))

    def publish(self, scope: str, head: int, members: int) -> None:
        """The others will see it when they look."""

    def send(self, message: bytes) -> None:
        """There is no way to the others."""

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _tick(self, on_wake: OnWake) -> None:
        while True:
            await asyncio.sleep(self._interval)
            on_wake(None)
