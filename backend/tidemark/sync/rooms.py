"""Rooms: who is in them, what they show, and what they say to each other, over all processes (SPEC 6).

    guests ──join, leave, show──► Presence ◄──messages──► other processes
                                     │ changed
                                     ▼
    guests ──cast──► rates ──────► Room ──parcels, once in a turn of the loop──► guests

Changes of a room are gathered, so that a busy one costs few frames; broadcasts of one turn of the event loop go out in
one piece. Nothing here waits, and nothing is stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from msgspec import Raw, Struct

from tidemark.meter import SILENT, Meter, Origin
from tidemark_protocol import messages
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import Broadcasted, ErrorFrame

from .fanout import Fanout, sliced
from .frames import Frame, encoded
from .presence import Cast, Foreign, Member, Presence, decoded
from .rates import Bucket, Throttle, Valve
from .room import Guest, Parcel, Post, Room, Said, Stay, parcels

V = TypeVar("V")

PRESENCE_INTERVAL: Final = 0.1
"""Seconds between two frames of changes in one room."""
GATHER: Final = 0.003
"""Seconds in which what other processes are to hear is gathered."""
WHOLE_INTERVAL: Final = 1.0
"""Seconds between two times that other processes are told of everything."""
BEAT: Final = 5.0
"""Seconds between two times that other processes are told where this one stands."""
MAX_WAITING: Final = 16
"""Kinds of broadcasts of one connection that wait for their turn; besides, one state for each of its rooms."""
MAX_HELD: Final = 64
"""Broadcasts that a room holds while it is not known who may still hear them."""
MAX_WAITING_IN_ROOM: Final = 4_096
"""Broadcasts above a room's rate that wait, one for each session and event."""
MAX_WAITING_BYTES: Final = 128 << 10
MAX_WAITING_BYTES_IN_ROOM: Final = 1 << 20

_log = structlog.get_logger(__name__)


class RoomLimits(Struct, frozen=True):
    """The settings of these names."""

    rooms_per_stream: int = 100
    room_members: int = 1_000
    room_state: int = 256 << 10
    broadcast_rate: int = 60
    room_rate: int = 500


class Visitor:
    """A connection that has been in a room, and what of it waits for its turn."""

    __slots__ = ("guest", "missed", "stays", "valve")

    def __init__(self, guest: Guest, valve: Valve[Said, Callable[[], None]]) -> None:
        self.guest = guest
        self.stays: dict[str, Stay] = {}
        self.missed: dict[str, None] = {}
        self.valve = valve


class Rooms:
    """All rooms of this process. `send` hands bytes to all other processes, `monotonic` gives seconds.

    While a scope is `unsettled`, as members have changed and it is not known yet who lost it, its rooms are silent:
    what is said after the end of a membership was answered is not heard by the former member (SPEC 6). Then `settled`
    is to be called.
    """

    def __init__(
        self,
        *,
        node: str,
        send: Callable[[bytes], None],
        limits: RoomLimits,
        fanout: Fanout,
        unsettled: Callable[[str], bool] = lambda _: False,
        monotonic: Callable[[], float] = time.monotonic,
        meter: Meter = SILENT,
    ) -> None:
        self._limits = limits
        self._fanout = fanout
        self._unsettled = unsettled
        self._monotonic = monotonic
        self._meter = meter
        self._presence = Presence(node, send=send, changed=self._changed)
        self._rooms: dict[str, Room] = {}
        self._visitors: dict[str, Visitor] = {}
        self._busy: dict[Room, tuple[Origin, float]] = {}
        """Rooms with something for their guests, whence the first of it came, and when."""
        self._held: dict[Room, tuple[Origin, float]] = {}
        """The same of rooms whose scope is unsettled."""
        self._gathering: asyncio.TimerHandle | None = None
        self._whole_timer: asyncio.TimerHandle | None = None
        self._whole_at = float("-inf")
        self.rooms = 0
        """Rooms that somebody of this process is in."""
        self.members = 0
        """Sessions of this process in rooms, once for each room."""
        meter.watch("rooms", lambda: self.rooms)
        meter.watch("room_members_here", lambda: self.members)
        meter.watch("room_members_elsewhere", lambda: self._presence.elsewhere)

    async def run(self) -> None:
        """Keep in touch with the other processes, for ever."""
        self._presence.hail()
        while True:
            await asyncio.sleep(BEAT)
            self._presence.beat()

    def goodbye(self) -> None:
        """This process stops: the others forget its members at once, and hear no more of it."""
        self._presence.bye()

    # ── what guests do ───────────────────────────────────────────────────────────────────────────────────────────────

    def join(self, guest: Guest, name: str, state: Any) -> None:
        """Be in a room, or show another state in it; all members follow, within `PRESENCE_INTERVAL`.

        RequestError `too_many_rooms` or `room_full`.
        """
        visitor = self._visitor(guest)
        shown = Raw(messages.encode(state))
        self._check(visitor, name, shown)
        room = self._rooms.get(name) or self._rooms.setdefault(name, Room(name))
        if name not in visitor.stays:
            self.members += 1
            self.rooms += not room.stays
            visitor.stays[name] = Stay(guest, visitor.missed)
        visitor.valve.drop(lambda kind: kind == (name, None))
        room.enter(visitor.stays[name])
        self._presence.put(name, guest.session, Member(guest.user, shown))
        self._present_soon(room)
        self._tell_soon()

    def leave(self, guest: Guest, name: str) -> None:
        """Be in a room no more; RequestError `not_joined`."""
        self._leave(self._inside(guest, name), name)
        self._tell_soon()

    def show(self, guest: Guest, name: str, state: Any) -> None:
        """Show another state, as soon as the rate allows; RequestError `not_joined` or `room_full`."""
        visitor = self._inside(guest, name)
        shown = Raw(messages.encode(state))
        self._check(visitor, name, shown)
        visitor.valve.put((name, None), partial(self._show, visitor, name, shown), len(shown), kept=True)

    def cast(self, guest: Guest, name: str, event: str, payload: Any) -> None:
        """Say something to all others in a room, as soon as the rates allow; RequestError `not_joined`."""
        visitor = self._inside(guest, name)
        sender = {"session": guest.session, "user": guest.user}
        post = Post(encoded(Broadcasted(name, sender, event, payload)), guest.session)
        visitor.valve.put((name, event), partial(self._pass_on, name, event, post), post.frame.size)

    def depart(self, guest: Guest, scope: str | None = None) -> None:
        """A guest leaves all its rooms, as its connection has ended, or those of a scope that it may not read."""
        visitor = self._visitors.get(guest.session)
        if visitor is None:
            return
        for name in tuple(visitor.stays):
            if scope is None or name.partition("/")[0] == scope:
                self._leave(visitor, name)
        if scope is None:
            del self._visitors[guest.session]
        self._tell_soon()

    def drained(self, guest: Guest) -> None:
        """A slow reader has caught up: give it the rooms of which it missed something, as long as it can take them."""
        visitor = self._visitors.get(guest.session)
        if visitor is None:
            return
        for first, name in enumerate(tuple(visitor.missed)):
            room, stay = self._rooms[name], visitor.stays[name]
            if first == 0:
                guest.put(room.whole())
            elif not guest.offer(room.whole()):
                return
            stay.seen = room.version
            visitor.missed.pop(name, None)

    def rooms_of(self, guest: Guest) -> frozenset[str]:
        """The names of the rooms that a guest is in."""
        visitor = self._visitors.get(guest.session)
        return frozenset() if visitor is None else frozenset(visitor.stays)

    def _visitor(self, guest: Guest) -> Visitor:
        visitor = self._visitors.get(guest.session)
        if visitor is None:
            visitor = self._visitors[guest.session] = Visitor(
                guest, self._valve(self._limits.broadcast_rate, MAX_WAITING, MAX_WAITING_BYTES, _call)
            )
        return visitor

    def _inside(self, guest: Guest, name: str) -> Visitor:
        visitor = self._visitors.get(guest.session)
        if visitor is None or name not in visitor.stays:
            raise RequestError("not_joined", f"this stream is not in the room {name}")
        return visitor

    def _check(self, visitor: Visitor, name: str, shown: Raw) -> None:
        """Whether a state may be shown in a room, by one who is in or wants to be."""
        limits, room = self._limits, self._rooms.get(name)
        if name not in visitor.stays:
            if len(visitor.stays) >= limits.rooms_per_stream:
                raise RequestError("too_many_rooms", f"a stream may be in at most {limits.rooms_per_stream} rooms")
            if room is not None and len(room.members) >= limits.room_members:
                raise RequestError("room_full", f"a room holds at most {limits.room_members} sessions")
        known = None if room is None else room.members.get(visitor.guest.session)
        size = len(shown) + (0 if room is None else room.size) - (0 if known is None else len(known.state))
        if size > limits.room_state:
            raise RequestError("room_full", f"the states shown in a room hold at most {limits.room_state} bytes")

    def _leave(self, visitor: Visitor, name: str) -> None:
        session, room = visitor.guest.session, self._rooms[name]
        del visitor.stays[name]
        visitor.missed.pop(name, None)
        visitor.valve.drop(lambda kind: kind[0] == name)
        room.leave(session)
        self.members -= 1
        if room.valve is not None:
            room.valve.drop(lambda kind: kind[0] == session)
        if not room.stays:
            self.rooms -= 1
            self._close(room)
        self._presence.put(name, session, None)

    def _show(self, visitor: Visitor, name: str, shown: Raw) -> None:
        """The rate allows it; the room may have filled up meanwhile."""
        try:
            self._check(visitor, name, shown)
        except RequestError as refused:
            self._meter.broadcast("dropped")
            visitor.guest.put(encoded(ErrorFrame(refused.code, refused.detail, room=name)))
            return
        self._meter.broadcast("sent")
        self._presence.put(name, visitor.guest.session, Member(visitor.guest.user, shown))
        self._tell_soon()

    def _pass_on(self, name: str, event: str, post: Post) -> None:
        """The sender's rate allows it; the room's is next."""
        room = self._rooms[name]
        if room.valve is None:
            room.valve = self._valve(
                self._limits.room_rate, MAX_WAITING_IN_ROOM, MAX_WAITING_BYTES_IN_ROOM, partial(self._broadcast, room)
            )
        room.valve.put((post.sender, event), post, post.frame.size)

    def _broadcast(self, room: Room, post: Post) -> None:
        self._meter.broadcast("sent")
        self._post(room, post, "here")
        self._presence.cast(room.name, post.sender, post.frame.body)

    # ── other processes ──────────────────────────────────────────────────────────────────────────────────────────────

    def received(self, message: bytes) -> None:
        """What another process sent, or what came back of our own."""
        try:
            known = decoded(message)
        except Foreign:
            self._meter.foreign()
            return
        if self._presence.receive(known) and isinstance(known, Cast):
            room = self._rooms.get(known.room)
            if room is not None and room.stays:
                self._post(room, Post(Frame(bytes(known.frame)), known.session), "elsewhere")
        self._tell_soon()

    def resynchronise(self) -> None:
        """Messages may have been lost, in both directions."""
        self._presence.hail()

    def _tell_soon(self) -> None:
        if self._gathering is None and (self._presence.due or (self._presence.asked and self._whole_timer is None)):
            self._gathering = asyncio.get_running_loop().call_later(GATHER, self._tell)

    def _tell(self) -> None:
        self._gathering = None
        self._presence.flush()
        if self._presence.asked and self._whole_timer is None:
            wait = self._whole_at - self._monotonic()
            if wait > 0:
                self._whole_timer = asyncio.get_running_loop().call_later(wait, self._tell_whole)
            else:
                self._tell_whole()

    def _tell_whole(self) -> None:
        self._whole_timer = None
        self._whole_at = self._monotonic() + WHOLE_INTERVAL
        self._presence.tell_whole()

    # ── to guests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _changed(self, name: str, session: str, member: Member | None) -> None:
        """A member of this or another process changed."""
        room = self._rooms.get(name) or self._rooms.setdefault(name, Room(name))
        room.put(session, member)
        if room.stays:
            self._present_soon(room)
        elif not room.members:
            del self._rooms[name]

    def _present_soon(self, room: Room) -> None:
        """Tell the guests of a room what changed: in this turn if it was quiet, else when the interval has passed."""
        if room.timer is None and not room.due:
            wait = room.presented + PRESENCE_INTERVAL - self._monotonic()
            if wait > 0:
                room.timer = asyncio.get_running_loop().call_later(wait, self._present, room)
            else:
                self._present(room)

    def _present(self, room: Room) -> None:
        room.timer = None
        room.due = True
        self._serve_soon(room, "here")

    def _post(self, room: Room, post: Post, origin: Origin) -> None:
        room.posts.append(post)
        self._serve_soon(room, origin)

    def _serve_soon(self, room: Room, origin: Origin) -> None:
        if not self._busy:
            asyncio.get_running_loop().call_soon(self._serve_busy)
        self._busy.setdefault(room, (origin, self._monotonic()))

    def _serve_busy(self) -> None:
        busy, self._busy = self._busy, {}
        for room, (origin, since) in busy.items():
            if self._unsettled(room.scope):
                self._held[room] = origin, since
                self._bound(room)
            else:
                try:
                    self._serve(room, origin, since)
                except Exception:  # noqa: BLE001  (one room's fault is not the others')
                    _log.exception("room_failed", room=room.name)

    def settled(self, scope: str) -> None:
        """Who may not be in the rooms of this scope any more has left them."""
        for room in [room for room in self._held if room.scope == scope]:
            self._serve_soon(room, self._held.pop(room)[0])

    def _bound(self, room: Room) -> None:
        """Broadcasts do not wait for long: beyond a few the earlier ones are lost."""
        lost = max(0, len(room.posts) - MAX_HELD)
        if lost:
            del room.posts[:lost]
            self._meter.broadcast("dropped", lost)

    def _serve(self, room: Room, origin: Origin, since: float) -> None:
        """Hand on what came for the guests of a room in this turn of the loop."""
        changes = None
        if room.due:
            room.due = False
            room.presented = self._monotonic()
            changes = room.advance()
            self._fanout.deliver(room, sliced(list(room.owed.values())), room.give_whole)
        posts, room.posts = room.posts, []
        for parcel in parcels(room, changes, posts):
            served = partial(self._served, parcel, origin, since)
            if parcel.light and len(room.stays) > self._fanout.few:
                lane = room.lane(self._fanout)
                self._fanout.deliver(room, sliced(lane.apart), parcel.serve)
                self._fanout.deliver(room, lane.slices, partial(parcel.serve_straight, lane), served)
            else:
                self._fanout.deliver(room, sliced(list(room.stays.values())), parcel.serve, served)

    def _served(self, parcel: Parcel, origin: Origin, since: float) -> None:
        if parcel.refused:
            self._meter.withheld(parcel.refused)
        self._meter.fanned_out("room", parcel.taken, parcel.size, self._monotonic() - since, origin)

    def _valve(self, rate: int, most: int, most_bytes: int, outlet: Callable[[V], None]) -> Valve[Said, V]:
        now = self._monotonic
        throttle: Throttle[Said, V] = Throttle(
            Bucket(rate, now()), most=most, most_bytes=most_bytes, tally=self._meter.broadcast
        )
        return Valve(throttle, outlet, now)

    def _close(self, room: Room) -> None:
        """Nobody of this process is in the room any more."""
        room.due = False
        room.posts.clear()
        self._held.pop(room, None)
        if room.timer is not None:
            room.timer.cancel()
            room.timer = None


def _call(what: Callable[[], None]) -> None:
    what()
