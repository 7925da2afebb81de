"""What is to be sent on one connection: bounded in bytes, however slow its reader (SPEC 6).

Two ways, one contract: straight into the transport of a websocket where the server lets us, or through a queue and a
writer elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from .frames import Frame

CHECKS: Final = 3
"""How often in its patience a stalled reader is looked at for progress."""


class Outgoing(Protocol):
    """Where a connection's frames go.

    `offer` keeps to a bound. `put` does not: it is for answers, whose number is bounded because the next question is
    only read once the reader is `clear`, and for notices, of which there is one for each scope and room. `drained` is
    called whenever a reader that was refused something has taken all that waited: until then it is refused whatever
    else is offered, so that this comes. `stalled` is called once, when it has taken nothing for as long as is patient.
    """

    def put(self, frame: Frame) -> None: ...

    def offer(self, frame: Frame) -> bool:
        """Send it, unless too much waits."""

    async def clear(self) -> None:
        """Wait until the reader has taken what waits, or is fast enough for nothing to wait long."""

    def end(self, *, drop: bool = False) -> None:
        """Take nothing any more; what waits is still sent, unless it is to `drop` and can be."""

    def straight(self) -> Callable[[bytes], None] | None:
        """What writes a message without a look at anything, as long as the reader is not slow and nothing has ended."""


class Wire(Protocol):
    """The transport below a websocket, as its server shows it. `congested`: its buffer is above its mark, told of by
    `on_pause` and `on_resume`. After `on_end` nothing may be written.
    """

    congested: bool
    on_pause: Callable[[], None]
    on_resume: Callable[[], None]
    on_end: Callable[[], None]

    def write(self, data: bytes, /) -> None: ...

    def is_closing(self) -> bool: ...

    def waiting(self) -> int:
        """Bytes that the peer's connection has not taken over."""

    def abort(self) -> None:
        """Cut the connection."""


class DirectOutgoing:
    """Frames written into the transport, whose buffer may hold `limit` bytes. `patience` is in seconds; `disturbed` is
    called whenever `straight` does not hold any more.
    """

    __slots__ = (
        "_added",
        "_cleared",
        "_disturbed",
        "_drained",
        "_ended",
        "_left",
        "_limit",
        "_looks",
        "_patience",
        "_refused",
        "_stalled",
        "_timer",
        "_wire",
        "_write",
    )

    def __init__(
        self,
        wire: Wire,
        limit: int,
        patience: float,
        drained: Callable[[], None],
        stalled: Callable[[], None],
        disturbed: Callable[[], None],
    ) -> None:
        self._wire = wire
        self._write = wire.write
        self._limit = limit
        self._patience = patience
        self._drained = drained
        self._stalled = stalled
        self._disturbed = disturbed
        self._ended = self._refused = False
        self._cleared: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._left = self._added = self._looks = 0
        wire.on_pause = self._paused
        wire.on_resume = self._resumed
        wire.on_end = self.end
        if wire.congested:
            self._paused()

    def put(self, frame: Frame) -> None:
        if self._wire.congested:
            self._added += len(frame.wire)
        self._write(frame.wire)

    def offer(self, frame: Frame) -> bool:
        size = frame.size
        if self._wire.congested:
            if size > self._limit:
                return False
            if self._refused or self._wire.waiting() + size > self._limit:
                self._refused = True
                return False
            self._added += len(frame.wire)
        elif size > self._limit:
            asyncio.get_running_loop().call_soon(self._caught_up)
            return False
        self._write(frame.wire)
        return True

    async def clear(self) -> None:
        while self._wire.congested and not self._wire.is_closing():
            if self._cleared is None:
                self._cleared = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._cleared)

    def end(self, *, drop: bool = False) -> None:  # noqa: ARG002  (what the transport has cannot be taken back)
        self._ended = True
        self._write = _lost
        self._disturbed()

    def straight(self) -> Callable[[bytes], None] | None:
        return None if self._ended or self._wire.congested else self._write

    def let_go(self) -> None:
        """The connection is over; a peer that does not take the rest of it is cut off."""
        self.end()
        self._resumed()
        if self._wire.waiting():
            asyncio.get_running_loop().call_later(self._patience, self._wire.abort)
        self._wire.on_pause = self._wire.on_resume = self._wire.on_end = _nothing

    def _paused(self) -> None:
        self._disturbed()
        self._left, self._added, self._looks = self._wire.waiting(), 0, 0
        self._look_later()

    def _resumed(self) -> None:
        self._disturbed()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._cleared is not None and not self._cleared.done():
            self._cleared.set_result(None)
        self._cleared = None
        self._refused = False
        self._caught_up()

    def _caught_up(self) -> None:
        if not (self._ended or self._wire.congested):
            self._drained()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._patience / CHECKS, self._look)

    def _look(self) -> None:
        """A slow reader is not a stalled one: whatever it takes shows in what is left of all that was to be sent."""
        left = self._wire.waiting()
        self._looks = self._looks + 1 if left >= self._left + self._added else 0
        self._left, self._added = left, 0
        if self._looks < CHECKS:
            self._look_later()
        else:
            self._timer = None
            self._stalled()


class QueuedOutgoing:
    """A queue of at most `limit` bytes, answers and notices aside, for one writer: `pump`."""

    def __init__(self, limit: int, patience: float, drained: Callable[[], None], stalled: Callable[[], None]) -> None:
        self._limit = limit
        self._patience = patience
        self._drained = drained
        self._stalled = stalled
        self._texts: deque[str] = deque()
        self._sizes: deque[int] = deque()
        self._size = 0
        self._ended = self._refused = False
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, frame: Frame) -> None:
        if self._ended:
            return
        for text in frame.texts:
            self._texts.append(text)
            self._sizes.append(len(text) if text.isascii() else len(text.encode()))
        self._size += frame.size
        self._filled.set()
        self._empty.clear()

    def offer(self, frame: Frame) -> bool:
        if frame.size > self._limit:
            if not self._texts:
                asyncio.get_running_loop().call_soon(self._caught_up)
            return False
        if self._refused or self._size + frame.size > self._limit:
            self._refused = True
            return False
        self.put(frame)
        return True

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return self._size

    async def clear(self) -> None:
        await self._empty.wait()

    def end(self, *, drop: bool = False) -> None:
        self._ended = True
        if drop:
            self._texts.clear()
            self._sizes.clear()
            self._size = 0
            self._empty.set()

    def straight(self) -> Callable[[bytes], None] | None:
        return None

    async def take(self) -> str:
        """The next text; to be followed by `sent`."""
        while not self._texts:
            self._filled.clear()
            await self._filled.wait()
        return self._texts[0]

    def sent(self) -> None:
        """What was taken last is the reader's."""
        if self._texts:
            self._texts.popleft()
            self._size -= self._sizes.popleft()
        if not self._texts:
            self._empty.set()
            self._caught_up()

    def _caught_up(self) -> None:
        if not (self._ended or self._texts):
            self._refused = False
            self._drained()

    async def pump(self, send: Callable[[str], Awaitable[None]]) -> None:
        """Send what comes, for ever; ConnectionError when the peer is gone."""
        while True:
            text = await self.take()
            try:
                async with asyncio.timeout(self._patience):
                    await send(text)
            except TimeoutError:
                self._stalled()
                return
            self.sent()


def _nothing() -> None:
    """Nobody is to be told any more."""


def _lost(_: bytes, /) -> None:
    """Nothing is sent any more."""
