"""What the hub knows of one scope, and who cares for it: followers, guests, trackers and watches (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

from .commit import Commit
from .frames import Batch


class Follower(Protocol):
    """One connection's place in a topic, as the hub sees it. None of these may wait."""

    scope: str
    user: str
    own: str

    def offer(self, batch: Batch) -> None:
        """What came next in the topic; this follower was a reader at that state."""

    def revoked(self) -> None:
        """It is no reader of the scope any more, and has been detached."""


class Tracker(Protocol):
    """A connection whose user may gain or lose scopes."""

    own: str

    def membership_moved(self) -> None:
        """The change number of its user's own scope moved: scopes may have been gained or lost."""


class Topic:
    """One scope. `position`: told up to this version; `members`: all followers were readers at this number; both -1
    while unknown. `head` and `number`: the highest head and number of members that anybody has told of. `guests` are
    told nothing of the scope but that they may not read it any more: they are in its rooms.
    """

    __slots__ = (
        "clock",
        "followers",
        "forgotten",
        "guests",
        "head",
        "kept",
        "members",
        "number",
        "position",
        "reading",
        "scope",
        "trackers",
        "watches",
    )

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.position = self.members = -1
        self.head = self.number = -1
        self.clock = ""
        self.followers: set[Follower] = set()
        self.guests: dict[Follower, None] = {}  # a set of nothing weighs more, and there is a topic for each user
        self.trackers: dict[Tracker, None] = {}
        self.watches: dict[Watch, None] = {}
        self.reading: asyncio.Task[None] | None = None
        self.kept: list[Commit] = []
        """Commits of this process that came while the feed was being read."""
        self.forgotten = False
        """Nobody cared for it when all heads were last looked at."""

    @property
    def idle(self) -> bool:
        """Whether nobody cares for it."""
        return not (self.followers or self.guests or self.trackers or self.watches or self.reading)

    @property
    def lags(self) -> bool:
        """Whether there is something that those here have not been told."""
        if self.followers:
            return self.head > self.position or self.number > self.members
        return bool(self.guests) and self.number > self.members


class Watched(Protocol):
    """Where watches are kept."""

    def add_watch(self, watch: Watch, scopes: Iterable[str]) -> None: ...

    def remove_watch(self, watch: Watch, scopes: Iterable[str]) -> None: ...


class Watch:
    """Tells when one of some scopes has moved since it was made. A context manager; may be waited for repeatedly.

    It never misses a move; it may tell of one that had been seen already.
    """

    def __init__(self, hub: Watched, scopes: Iterable[str]) -> None:
        self._hub = hub
        self._scopes = tuple(scopes)
        self._moved = asyncio.Event()

    def __enter__(self) -> Self:
        self._hub.add_watch(self, self._scopes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hub.remove_watch(self, self._scopes)

    def moved(self) -> None:
        self._moved.set()

    async def changed(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for a move; a later call waits for the next one."""
        try:
            async with asyncio.timeout(timeout):
                await self._moved.wait()
        except TimeoutError:
            return False
        self._moved.clear()
        return True
