"""What waits to be sent on one connection: bounded in bytes, however slow its reader (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from tidemark_protocol.stream_server import CloseCode

from .frames import Frame


class Outgoing:
    """A queue of frames for one writer.

    `offer` keeps to the bound of `limit` bytes. `put` does not: it is for answers, whose number is bounded because
    the next question is only read when there is `room`, and for notices, of which there is one for each scope.
    `drained` is called whenever the last frame was taken.
    """

    def __init__(self, limit: int, drained: Callable[[], None]) -> None:
        self._limit = limit
        self._drained = drained
        self._frames: deque[Frame] = deque()
        self._size = 0
        self._ending: tuple[CloseCode, str] | None = None
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._empty = asyncio.Event()
        self._room.set()
        self._empty.set()

    def put(self, frame: Frame) -> None:
        if self._ending is not None:
            return
        self._frames.append(frame)
        self._size += frame.size
        self._filled.set()
        self._empty.clear()
        if self._size > self._limit:
            self._room.clear()

    def offer(self, frame: Frame) -> bool:
        """Put it if it fits."""
        if self._size + frame.size > self._limit:
            return False
        self.put(frame)
        return True

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return self._size

    async def room(self) -> None:
        """Wait until no more than `limit` bytes wait."""
        await self._room.wait()

    async def empty(self) -> None:
        """Wait until nothing waits; what the reader's connection has taken over is no longer counted."""
        await self._empty.wait()

    def end(self, code: CloseCode, reason: str, *, drop: bool = False) -> None:
        """Nothing is taken any more; what waits is still sent, unless it is to `drop`. The first reason counts."""
        if self._ending is None:
            self._ending = code, reason
            if drop:
                self._frames.clear()
                self._size = 0
            self._filled.set()

    @property
    def ending(self) -> tuple[CloseCode, str] | None:
        """Why it ends, once it does."""
        return self._ending

    async def take(self) -> str | None:
        """The next frame's text; None when all is sent and the end has come."""
        while not self._frames:
            if self._ending is not None:
                return None
            self._filled.clear()
            await self._filled.wait()
        frame = self._frames.popleft()
        self._size -= frame.size
        if self._size <= self._limit:
            self._room.set()
        if not self._frames:
            self._empty.set()
            self._drained()
        return frame.text
