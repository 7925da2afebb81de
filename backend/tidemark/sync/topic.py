"""What the hub knows of one scope, and who cares for it: followers, visits, trackers and watches (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

from .commit import Commit
from .fanout import LIGHT, Fanout, Lane, Slice, Write
from .frames import Batch


class Follower(Protocol):
    """One connection's place in a topic, as the hub sees it. None of these may wait."""

    scope: str
    user: str
    own: str
    schema: int

    def offer(self, batch: Batch) -> None:
        """What came next in the topic; this follower was a reader at that state."""

    def straight(self, after: int, schema: int) -> Write | None:
        """What writes to its connection, if frames of that number may follow behind that version without a look."""

    def enter(self, some: Slice[Follower]) -> None:
        """From now on what is written to the slice is written to it; `at` says up to where it was told."""

    def leave(self) -> None:
        """It stands for itself again."""

    def revoked(self) -> None:
        """It is no reader of the scope any more, and has been detached."""


class Tracker(Protocol):
    """A connection whose user may gain or lose scopes."""

    own: str

    def membership_moved(self) -> None:
        """The change number of its user's own scope moved: scopes may have been gained or lost."""


class Topic:
    """One scope. `position`: told up to this version; `members`: all followers were readers at this number; both -1
    while unknown. `head` and `number`: the highest head and number of members that anybody has told of. `visits` are
    told nothing of the scope but that it may not be read any more: their connections are in its rooms.
    """

    __slots__ = (
        "clock",
        "followers",
        "forgotten",
        "head",
        "kept",
        "lane",
        "members",
        "number",
        "position",
        "reading",
        "scope",
        "trackers",
        "visits",
        "watches",
    )

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.position = self.members = -1
        self.head = self.number = -1
        self.clock = ""
        self.followers: set[Follower] = set()
        self.visits: dict[Follower, None] = {}  # a set of nothing weighs more, and there is a topic for each user
        self.trackers: dict[Tracker, None] = {}
        self.watches: dict[Watch, None] = {}
        self.reading: asyncio.Task[None] | None = None
        self.kept: list[Commit] = []
        """Commits of this process that came while the feed was being read."""
        self.lane: TopicLane | None = None
        self.forgotten = False
        """Nobody cared for it when all heads were last looked at."""

    @property
    def idle(self) -> bool:
        """Whether nobody cares for it."""
        return not (self.followers or self.visits or self.trackers or self.watches or self.reading)

    @property
    def lags(self) -> bool:
        """Whether there is something that those here have not been told."""
        if self.followers:
            return self.head > self.position or self.number > self.members
        return bool(self.visits) and self.number > self.members

    def lane_behind(self, after: int, fanout: Fanout, buffer: int) -> TopicLane:
        """Its followers, as they are to be told what comes after a version."""
        if self.lane is None or not self.lane.undisturbed:
            self.dissolve()
            self.lane = TopicLane(self, after, fanout, min(LIGHT, buffer))
        return self.lane

    def dissolve(self) -> None:
        """Each follower stands for itself: something changes about one of them."""
        lane, self.lane = self.lane, None
        for some in () if lane is None else lane.slices:
            for follower in some.receivers:
                follower.leave()

    def tell(self, lane: TopicLane, batch: Batch, some: Slice[Follower]) -> None:
        """Tell some followers what came, the shortest way as long as nothing has changed about them."""
        frame = batch.frame(lane.schema)
        holds = self.lane is lane and lane.undisturbed and some.at == batch.after
        if frame is not None and frame.size <= lane.most and holds:
            data = frame.wire
            for write in some.writes:
                write(data)
            some.at = batch.to
            return
        if self.lane is lane:
            self.dissolve()
        for follower in some.receivers:
            follower.offer(batch)


class TopicLane(Lane[Follower]):
    """The followers of a topic who have been told everything up to a version, in documents of one schema number.

    A frame may have `most` bytes.
    """

    __slots__ = ("most", "schema")

    def __init__(self, topic: Topic, after: int, fanout: Fanout, most: int) -> None:
        self.most = most
        self.schema = max((follower.schema for follower in topic.followers), default=0)
        super().__init__(fanout, ((each, each.straight(after, self.schema)) for each in topic.followers))
        for some in self.slices:
            some.at = after
            for follower in some.receivers:
                follower.enter(some)


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
