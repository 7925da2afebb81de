"""What all wakes over a channel share: staying connected, saying what waits, and finding out that nothing is heard.

What is published within a few milliseconds travels together. Now and then a process says something to itself, over the
same way as everything: what does not come back tells that the connection is dead in one direction or that somebody
between swallows what it should pass on. Then the connection is opened again, with back-off, and everybody looks at
everything, for what was missed meanwhile.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import ClassVar, Final, NamedTuple, Protocol

import structlog

from tidemark.meter import Meter

from .base import MAX_MESSAGE, OnMessage, OnWake
from .wire import Inbox, Outbox

CHANNEL: Final = "tidemark_wake"
"""Stands before the namespace in a channel's name."""
_FAREWELL: Final = 1.0
"""Seconds that `stop` may take to say what waits, and a connection to be closed."""

_log = structlog.get_logger(__name__)


class Timing(NamedTuple):
    """Seconds. What is not heard for twice `ping_every` is taken for dead."""

    coalesce: float = 0.003
    ping_every: float = 4.0
    answer_within: float = 5.0
    longest_delay: float = 5.0


DEFAULT: Final = Timing()


class Line(Protocol):
    """One connection that hears a channel. What fails raises OSError."""

    async def open(self) -> None:
        """Connect; returns once the channel is heard."""

    async def publish(self, payloads: Sequence[bytes]) -> None:
        """Say payloads, in their order; returns once the channel has them."""

    async def close(self) -> None:
        """Let go of it, open or not."""


class ChannelWake(ABC):
    """Joins processes by a channel that carries payloads of at most `most` bytes. `chance(n)` gives n random bytes."""

    spans = True
    most: ClassVar[int]

    def __init__(self, *, chance: Callable[[int], bytes], timing: Timing, meter: Meter) -> None:
        self.timing = timing
        self._meter = meter
        self._chance = chance
        self._sender = chance(8).hex()
        self._outbox = Outbox(self._sender, self.most)
        self._attention = asyncio.Event()
        self._broken = False
        self._saying: asyncio.Timeout | None = None
        self._failures = 0
        self._reason: str | None = None
        self._stopping = False
        self._line: Line | None = None
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def line(self, channel: str, heard: Callable[[bytes], None], broken: Callable[[], None]) -> Line:
        """A connection, not opened yet, that passes on what it hears, and says when it is found broken."""

    async def start(self, on_wake: OnWake, on_message: OnMessage, namespace: str) -> None:
        inbox = Inbox(self._sender, on_wake, on_message)
        self._meter.wake_connected(connected=False)
        self._task = asyncio.create_task(self._stay_connected(f"{CHANNEL}.{namespace}", inbox, on_wake))

    def publish(self, scope: str, head: int, members: int) -> None:
        self._outbox.wake(scope, head, members)
        self._attention.set()

    def send(self, message: bytes) -> None:
        if len(message) > MAX_MESSAGE:
            _log.error("message_too_large", bytes=len(message), most=MAX_MESSAGE)
            return
        self._outbox.message(message)
        self._attention.set()

    async def stop(self) -> None:
        if self._task is None:
            return
        self._stopping = True
        self._attention.set()
        if self._line is not None:
            await asyncio.wait([self._task], timeout=_FAREWELL)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _stay_connected(self, channel: str, inbox: Inbox, on_wake: OnWake) -> None:
        while not self._stopping:
            try:
                await self._serve(channel, inbox, on_wake)
            except OSError as error:
                self._on_lost(str(error) or type(error).__name__)
            except Exception:  # noqa: BLE001  (a fault of ours must not leave the process deaf for ever)
                self._failures += 1
                _log.exception("wake_failed")
            else:
                return
            self._meter.wake_connected(connected=False)
            self._outbox.lose()
            await asyncio.sleep(self._delay())

    def _on_lost(self, reason: str) -> None:
        """Say it once for each outage, and when its reason changes."""
        self._failures += 1
        if reason != self._reason:
            self._reason = reason
            _log.warning("wake_lost", reason=reason)

    def _on_proven(self) -> None:
        if self._reason is not None:
            self._reason = None
            _log.info("wake_back", failures=self._failures)
        self._failures = 0

    def _delay(self) -> float:
        """Seconds until the next attempt: doubled each time, and drawn from the upper half of that."""
        longest = min(self.timing.longest_delay, 0.1 * 2.0 ** min(self._failures, 10))
        return longest * (1 + int.from_bytes(self._chance(4)) / 2**32) / 2

    async def _serve(self, channel: str, inbox: Inbox, on_wake: OnWake) -> None:
        """Open a connection and say all that is to be said, until it is found dead, which raises, or `stop` is."""

        def broken() -> None:
            if self._line is line:
                self._on_broken()

        line = self.line(channel, partial(self._hear, inbox), broken)
        try:
            async with asyncio.timeout(self.timing.answer_within):
                await line.open()
            self._line, self._broken = line, False
            await self._converse(line, inbox, on_wake)
        finally:
            self._line = None
            with suppress(OSError):
                async with asyncio.timeout(_FAREWELL):
                    await line.close()

    async def _converse(self, line: Line, inbox: Inbox, on_wake: OnWake) -> None:
        clock = asyncio.get_running_loop().time
        inbox.echoed = False
        await self._say(line, self._outbox.echo())
        self._meter.wake_connected(connected=True)
        # Now, not before: what this makes others send must not meet an outbox that still loses all.
        on_wake(None)
        due = clock() + self.timing.ping_every
        while not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._attention.wait()
            if self._broken:
                raise ConnectionError("The connection was closed")
            if clock() < due:
                await self._say(line)
            elif inbox.echoed:
                self._on_proven()
                inbox.echoed = False
                due = clock() + self.timing.ping_every
                await self._say(line, self._outbox.echo())
            else:
                raise ConnectionError("What is said on the channel is not heard")
            await asyncio.sleep(self.timing.coalesce)
        await self._say(line)

    async def _say(self, line: Line, *more: bytes) -> None:
        self._attention.clear()
        payloads = [*self._outbox.take(), *more]
        if payloads:
            try:
                async with asyncio.timeout(self.timing.answer_within) as self._saying:
                    await line.publish(payloads)
            finally:
                self._saying = None
            self._meter.wake_sent(len(payloads))

    def _hear(self, inbox: Inbox, payload: bytes) -> None:
        self._meter.wake_heard()
        try:
            inbox.read(payload)
        except Exception:  # noqa: BLE001  (a fault of who listens must not cost the connection)
            _log.exception("wake_unread")

    def _on_broken(self) -> None:
        """Nothing is waited for any more."""
        self._broken = True
        self._attention.set()
        if self._saying is not None and not self._saying.expired():
            self._saying.reschedule(asyncio.get_running_loop().time())
