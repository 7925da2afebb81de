"""The port to what tells a process that another one has committed.

A wake is a hint, the feed is the truth. What an implementation gives, and what it may not be asked for:

* **It may lose, repeat, delay and reorder.** Every process looks at the heads now and then all the same.
* **It says when it may have lost.** After it was deaf (a lost connection) it calls `on_wake(None)`: look at all.
* **It wakes after the commit**, never inside the data's transaction, and never blocks or fails the caller of `publish`.
* **What a process published itself may come back to it.**
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class Wakeup(NamedTuple):
    """A scope stands at least at `head` and at this number of its last change of members."""

    scope: str
    head: int
    members: int


OnWake = Callable[[Wakeup | None], None]
"""Called in the event loop's thread; None: anything may have moved."""


class Wake(Protocol):
    """Joins the processes that serve one database."""

    async def start(self, on_wake: OnWake) -> None:
        """Begin to listen; returns at once, even while there is no connection."""

    def publish(self, scope: str, head: int, members: int) -> None:
        """Tell the other processes, soon."""

    async def stop(self) -> None:
        """Let go of everything."""
