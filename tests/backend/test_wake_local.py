"""The wake of a lone process."""

from __future__ import annotations

from tidemark.wake.base import Wakeup
from tidemark.wake.local import LocalWake


async def test_it_wakes_nobody() -> None:
    """What is published or sent alone stays unheard."""
    heard: list[Wakeup | bytes | None] = []
    wake = LocalWake()
    await wake.start(heard.append, heard.append, "0a")
    assert not wake.spans
    wake.publish("user:ada", 1, 0)
    wake.send(b"hello")
    await wake.stop()
    assert heard == []
