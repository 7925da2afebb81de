"""The wake of a lone process."""

from __future__ import annotations

from tidemark.wake.base import Wakeup
from tidemark.wake.local import LocalWake


async def test_it_wakes_nobody() -> None:
    """What is published alone stays unheard."""
    heard: list[Wakeup | None] = []
    wake = LocalWake()
    await wake.start(heard.append)
    wake.publish("user:ada", 1, 0)
    await wake.stop()
    assert heard == []
