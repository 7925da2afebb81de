"""One room as this process serves it: who is in, the picture that its guests were given, and what goes to them next.

The picture of a room has a version. A guest's stay remembers the one it was given last (`seen`): a frame of changes is
sent only to those who have seen the version before it, everybody else is given the whole. So each guest's picture
equals the room's, whatever was refused by a slow reader or comes late out of a long fan-out (SPEC 6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct

from tidemark_protocol.messages import Presence

from .fanout import LIGHT, Fanout, Lane, Slice, Write
from .frames import Frame, encoded, joined
from .presence import Member
from .rates import Valve

Said = tuple[str, str | None]
"""A kind of what is held back. Of a connection: a room, and an event or None for the state; of a room: a session and
an event.
"""
LARGEST_PARCEL: Final = 64
"""Posts in one parcel, of `LIGHT` bytes at most unless it is one alone: those who sent one get a parcel of their own.
"""


class Guest(Protocol):
    """A connection, as rooms see it. None of these may wait."""

    session: str
    user: str

    def put(self, frame: Frame) -> None:
        """Send it in any case."""

    def offer(self, frame: Frame) -> bool:
        """Send it, unless the reader is too slow right now: once it has caught up, `Rooms.drained` is called."""

    def straight(self) -> Write | None:
        """What writes a message to its connection, for as long as nothing disturbs it (`Fanout.disturbances`)."""


class Stay:
    """One guest in one room, from its join to its leave. `seen`: version of the picture it was given; -1: none, not yet
    or not any more.
    """

    __slots__ = ("guest", "missed", "offer", "seen", "session")

    def __init__(self, guest: Guest, missed: dict[str, None]) -> None:
        self.guest = guest
        self.session = guest.session
        self.offer = guest.offer
        self.missed = missed
        """The guest's rooms in which its reader was too slow for the picture."""
        self.seen = -1

    def straight(self) -> Write | None:
        """What writes to it, once it was given the picture."""
        return self.guest.straight() if self.seen >= 0 else None


class Post(Struct, frozen=True, gc=False):
    """A broadcast's frame and the session that it came from."""

    frame: Frame
    sender: str


class Room:
    """`members` are those of all processes, `stays` this one's, both by session. `size`: bytes of all states."""

    __slots__ = (
        "_before",
        "_lane",
        "_whole",
        "due",
        "members",
        "name",
        "owed",
        "posts",
        "presented",
        "scope",
        "size",
        "stays",
        "timer",
        "valve",
        "version",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.scope = name.partition("/")[0]
        self.members: dict[str, Member] = {}
        self.size = 0
        self.stays: dict[str, Stay] = {}
        self.version = 0
        self.owed: dict[str, Stay] = {}
        """Those who joined, and are given the whole picture with the next version."""
        self.posts: list[Post] = []
        """Broadcasts of this turn of the event loop."""
        self.valve: Valve[Said, Post] | None = None
        """Holds back broadcasts above the room's rate."""
        self.due = False
        """The next version is to be told in this turn."""
        self.presented = float("-inf")
        """When the last one was."""
        self.timer: asyncio.TimerHandle | None = None
        self._before: dict[str, Member | None] = {}
        """Of those who changed since this version: what they showed in it."""
        self._whole: Frame | None = None
        self._lane: RoomLane | None = None

    def put(self, session: str, member: Member | None) -> None:
        """A session shows this; None: it left."""
        known = self.members.get(session)
        if self.stays:
            self._before.setdefault(session, known)
        if known is not None:
            self.size -= len(known.state)
        if member is None:
            self.members.pop(session, None)
        else:
            self.members[session] = member
            self.size += len(member.state)

    def enter(self, stay: Stay) -> None:
        """A guest joined, or joined again."""
        if not self.stays:
            self._renew()
        stay.seen = -1
        self._lane = None
        self.stays[stay.session] = self.owed[stay.session] = stay

    def leave(self, session: str) -> None:
        self.owed.pop(session, None)
        self.stays.pop(session).seen = -1
        self._lane = None

    def has(self, stay: Stay) -> bool:
        """Whether this very stay lasts."""
        return self.stays.get(stay.session) is stay

    def advance(self) -> Frame | None:
        """Go to the next version: the frame that leads to it from the one before. None if nothing has changed."""
        joined, changed, left = {}, {}, []
        for session, before in self._before.items():
            member = self.members.get(session)
            if member is None:
                if before is not None:
                    left.append(session)
            elif before is None:
                joined[session] = member
            elif before != member:
                changed[session] = member
        if not (joined or changed or left):
            self._before.clear()
            return None
        self._renew()
        parts = {"joined": joined, "changed": changed, "left": left}
        return self._frame({kind: part for kind, part in parts.items() if part})

    def whole(self) -> Frame:
        """The picture of this version."""
        if self._whole is None:
            picture: dict[str, Member | None] = {**self.members, **self._before}
            members = {session: member for session, member in picture.items() if member is not None}
            self._whole = self._frame({"members": members})
        return self._whole

    def give_whole(self, stays: Sequence[Stay]) -> None:
        """Offer guests the picture; those whose reader is too slow get it once it has caught up."""
        for stay in stays:
            if not self.has(stay):
                continue
            self.owed.pop(stay.session, None)
            if stay.offer(self.whole()):
                stay.seen = self.version
                self._lane = None
                stay.missed.pop(self.name, None)
            else:
                stay.missed[self.name] = None

    def lane(self, fanout: Fanout) -> RoomLane:
        """Its guests, as they are now to be served with broadcasts."""
        if self._lane is None or not self.is_current(self._lane):
            self._lane = RoomLane(self, fanout)
        return self._lane

    def is_current(self, lane: RoomLane) -> bool:
        """Whether nothing has changed about the guests since."""
        return self._lane is lane and lane.undisturbed

    def _renew(self) -> None:
        self.version += 1
        self._before.clear()
        self._whole = None

    def _frame(self, parts: dict[str, Any]) -> Frame:
        return encoded(Presence(self.name, **parts))


class RoomLane(Lane[Stay]):
    """The guests of a room; `of`: the slices that they are in, by session."""

    __slots__ = ("of",)

    def __init__(self, room: Room, fanout: Fanout) -> None:
        super().__init__(fanout, ((stay, stay.straight()) for stay in room.stays.values()))
        self.of = {stay.session: some for some in self.slices for stay in some.receivers}


class Parcel:
    """What is handed to each guest of a room at once: changes up to a version of its picture, then broadcasts.

    Built once for all who sent nothing of it and have seen the version before.
    """

    __slots__ = ("_changes", "_everything", "_posts", "_room", "_senders", "_version", "refused", "size", "taken")

    def __init__(self, room: Room, changes: Frame | None, posts: list[Post]) -> None:
        self._room = room
        self._version = room.version
        self._changes = changes
        self._posts = posts
        self._senders = {post.sender for post in posts}
        frames = [post.frame for post in posts]
        self._everything = joined(frames if changes is None else [changes, *frames])
        self.taken = self.refused = self.size = 0

    def serve(self, stays: Sequence[Stay]) -> None:
        """Offer guests what concerns them: not their own broadcasts, nor anything before they saw the picture."""
        everything, senders, taken = self._everything, self._senders, 0
        before = -1 if self._changes is None else self._version - 1
        for stay in stays:
            seen = stay.seen
            if seen < 0:
                continue
            if stay.session in senders or (seen != before and before >= 0):
                self._serve_in_part(stay, fits=seen == before)
            elif not stay.offer(everything):
                self._refused_by(stay, fits=seen == before)
            else:
                taken += 1
                if before >= 0:
                    stay.seen = self._version
        self.taken += taken
        self.size += taken * everything.size

    @property
    def light(self) -> bool:
        """Whether it can be written without a look at each guest: broadcasts alone, and few bytes."""
        return self._changes is None and self._everything.size <= LIGHT

    def serve_straight(self, lane: RoomLane, some: Slice[Stay]) -> None:
        """As `serve`, the shortest way as long as nothing has changed about the guests."""
        if not self._room.is_current(lane):
            self.serve(some.receivers)
            return
        data, taken = self._everything.wire, len(some.writes)
        if not any(lane.of.get(sender) is some for sender in self._senders):
            for write in some.writes:
                write(data)
        else:
            own = [stay for stay in some.receivers if stay.session in self._senders]
            for stay, write in zip(some.receivers, some.writes, strict=True):
                if stay.session not in self._senders:
                    write(data)
            taken -= len(own)
            self.serve(own)
        self.taken += taken
        self.size += taken * self._everything.size

    def _serve_in_part(self, stay: Stay, *, fits: bool) -> None:
        if stay.seen < self._version - 1 and self._room.name not in stay.missed:
            self._room.give_whole([stay])  # the fault of another guest left it out
        frames = [post.frame for post in self._posts if post.sender != stay.session]
        if fits and self._changes is not None:
            frames.insert(0, self._changes)
        if not frames:
            return
        frame = joined(frames)
        if not stay.offer(frame):
            self._refused_by(stay, fits=fits)
            return
        self.taken += 1
        self.size += frame.size
        if fits:
            stay.seen = self._version

    def _refused_by(self, stay: Stay, *, fits: bool) -> None:
        self.refused += 1
        if fits:
            stay.missed[self._room.name] = None


def parcels(room: Room, changes: Frame | None, posts: list[Post]) -> Iterable[Parcel]:
    """Parcels of a few posts each, the changes with the first; no reader's buffer need hold them all at once."""
    portion: list[Post] = []
    size = 0
    for post in posts:
        size += post.frame.size
        if portion and (size > LIGHT or len(portion) == LARGEST_PARCEL):
            yield Parcel(room, changes, portion)
            changes, portion, size = None, [], post.frame.size
        portion.append(post)
    if portion or changes is not None:
        yield Parcel(room, changes, portion)
