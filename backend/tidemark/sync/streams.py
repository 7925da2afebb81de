"""The streams of this process together: how many are let in, and how all of them end (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from tidemark.meter import SILENT, Meter, StreamKind
from tidemark.settings import Settings
from tidemark.tracer import UNTRACED, Tracer
from tidemark_protocol.stream_server import CloseCode, retry_reason

GOING_AWAY: Final = "the server is going away"
_SHORTEST_SPREAD: Final = 500
"""Milliseconds, however few clients come back."""
_SPREAD_EACH: Final = 2
"""Milliseconds that the return of one client more adds, up to the setting."""


class Ending(NamedTuple):
    """How a connection is closed."""

    code: CloseCode
    reason: str


class Streams:
    """`chance()` gives a number in [0, 1). `opening` is held while a stream is let in."""

    def __init__(
        self, settings: Settings, chance: Callable[[], float], meter: Meter = SILENT, tracer: Tracer = UNTRACED
    ) -> None:
        self._settings = settings
        self._chance = chance
        self._open: dict[object, Callable[[], Awaitable[None]]] = {}
        self._kinds: Counter[StreamKind] = Counter()
        self._users: Counter[str] = Counter()
        self._waiting = 0
        self._places = asyncio.Semaphore(settings.max_opening)
        self.stopping = False
        self.meter = meter
        self.tracer = tracer
        meter.watch("streams_websocket", lambda: self._kinds["websocket"])
        meter.watch("streams_events", lambda: self._kinds["events"])
        meter.watch("streams_waiting", lambda: self._waiting)

    def enter(self, stream: object, kind: StreamKind, end: Callable[[], Awaitable[None]]) -> Ending | None:
        """A stream begins, unless it is to end like this at once; `end` ends it when the service stops."""
        if self.stopping:
            return self.going_away()
        if len(self._open) >= self._settings.max_streams:
            return Ending(CloseCode.TRY_LATER, self.hint("the server has as many streams as it takes"))
        self._open[stream] = end
        self._kinds[kind] += 1
        return None

    def leave(self, stream: object, kind: StreamKind, user: str | None) -> None:
        """A stream that had entered is over; `user` is whose place it had claimed."""
        del self._open[stream]
        self._kinds[kind] -= 1
        if user is not None:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]

    def claim(self, user: str) -> Ending | None:
        """One place more for this user, unless the stream is to end like this."""
        if self._users[user] >= self._settings.streams_per_user:
            most = f"a user has at most {self._settings.streams_per_user} streams here"
            return Ending(CloseCode.TOO_MANY, self.hint(most))
        self._users[user] += 1
        return None

    async def __aenter__(self) -> None:
        """Wait until it is this stream's turn to be let in."""
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._places.release()

    def hint(self, why: str) -> str:
        """A reason for a close frame that spreads the return of clients by chance (SPEC 6)."""
        spread = min(self._settings.reconnect_spread, _SHORTEST_SPREAD + _SPREAD_EACH * len(self._open))
        return retry_reason(round(self._chance() * spread), why)

    def crowded(self) -> Ending:
        """For one whose turn does not come in time."""
        return Ending(CloseCode.TRY_LATER, self.hint("more streams open at once than the server lets in"))

    def going_away(self, why: str = GOING_AWAY) -> Ending:
        return Ending(CloseCode.RESTARTING, self.hint(why))

    async def end(self) -> None:
        """Let nobody in any more; end all streams, pushes under way answered first."""
        self.stopping = True
        await asyncio.gather(*(end() for end in tuple(self._open.values())))
