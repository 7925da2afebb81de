"""The port between the processes that serve one database: hints that a scope has moved, and messages.

A wake is a hint, the feed is the truth. What an implementation gives, and what it may not be asked for:

* **It may lose, repeat and delay.** Every process looks at the heads now and then all the same. Wakes may change
  places; the messages of one sender arrive in their order, whole, for as long as no connection is lost.
* **It says when it may have lost.** After it was deaf (a lost connection) it calls `on_wake(None)`: look at all.
* **It wakes after the commit**, never inside the data's transaction, and never blocks or fails the caller of `publish`
  or `send`. While it has no connection, messages are lost and wakes become one hint to look at all.
* **What a process said itself may come back to it.** Nothing comes from processes of another namespace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

MAX_MESSAGE: Final = 1 << 20
"""Bytes in one message; a larger one is not sent."""


class Wakeup(NamedTuple):
    """A scope stands at least at `head` and at this number of its last change of members."""

    scope: str
    head: int
    members: int


OnWake = Callable[[Wakeup | None], None]
"""Called in the event loop's thread; None: anything may have moved."""
OnMessage = Callable[[bytes], None]
"""Called in the event loop's thread, with what another process has sent."""


class Wake(Protocol):
    """Joins the processes that serve one database."""

    @property
    def spans(self) -> bool:
        """Whether messages reach other processes."""

    async def start(self, on_wake: OnWake, on_message: OnMessage, namespace: str) -> None:
        """Begin to listen; returns at once, even while there is no connection.

        `namespace` is the database's own (letters and digits): several may share one channel, and hear only their own.
        """

    def publish(self, scope: str, head: int, members: int) -> None:
        """Tell the other processes, soon."""

    def send(self, message: bytes) -> None:
        """Hand a message to all other processes, soon."""

    async def stop(self) -> None:
        """Send what waits, if that takes a moment only, and let go of everything."""
