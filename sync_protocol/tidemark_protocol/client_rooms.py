"""The rooms of one client (SPEC 6): those it was asked to be in, and how each stands on the connection of now."""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET, Struct

from . import rooms
from .messages import Broadcast, Broadcasted, Join, Leave, Member, Presence, SetPresence

ASK_AGAIN: Final = 2_000
"""How soon a room is asked for again whose join could not be looked into."""
_OUT: Final = frozenset({"forbidden", "not_joined", "too_many_rooms"})
"""What only one who is not in a room is told about it."""


class Gathered(Struct, frozen=True):
    """Who is in a room, by session: all `members`, or (None) what changed in them since."""

    room: str
    members: dict[str, Member] | None
    joined: dict[str, Member]
    changed: dict[str, Member]
    left: list[str]

    def applied(self, known: dict[str, Member]) -> dict[str, Member]:
        """Who is in the room now, if `known` were before."""
        stayed = known if self.members is None else self.members
        return {name: who for name, who in stayed.items() if name not in self.left} | self.joined | self.changed


class Heard(Struct, frozen=True):
    """Another session in the room said this to all in it."""

    room: str
    session: str
    user: str
    event: str
    payload: Any


class Stay(Struct):
    """How one room stands."""

    state: Any
    asked: bool = False
    """Of all that was sent about the room the join came last, and has no answer yet."""
    inside: bool = False
    """All members have come."""
    postponed: bool = False
    """To be asked for again."""

    def ask(self, room: str) -> Join:
        self.asked, self.postponed = not self.inside, False
        return Join(room, self.state)


class ClientRooms:
    """What is given back is to be sent, if there is a connection. `again`: when `asked_again` is due."""

    __slots__ = ("_stays", "again")

    def __init__(self) -> None:
        self._stays: dict[str, Stay] = {}
        self.again: int | None = None

    @property
    def states(self) -> dict[str, Any]:
        """The state shown, by room."""
        return {room: stay.state for room, stay in self._stays.items()}

    def join(self, room: str, state: Any) -> list[Join]:
        """RequestError `malformed` for what names no room."""
        rooms.scope_of(room)
        stay = self._stays.setdefault(room, Stay(state))
        stay.state = state
        return [stay.ask(room)]

    def leave(self, room: str) -> list[Leave]:
        stay = self._stays.pop(room, None)
        return [] if stay is None or stay.postponed else [Leave(room)]

    def show(self, room: str, state: Any) -> list[SetPresence]:
        stay = self._stays.get(room)
        if stay is None:
            return []
        stay.state = state
        return [SetPresence(room, state)] if self._may_say(stay) else []

    def broadcast(self, room: str, event: str, payload: Any) -> list[Broadcast]:
        stay = self._stays.get(room)
        return [Broadcast(room, event, payload)] if stay is not None and self._may_say(stay) else []

    def _may_say(self, stay: Stay) -> bool:
        """A room that is asked for again is told the state then, and nothing before."""
        stay.asked = False
        return not stay.postponed

    def welcomed(self) -> list[Join]:
        """A new connection has none of the rooms."""
        self.again = None
        for stay in self._stays.values():
            stay.inside = False
        return [stay.ask(room) for room, stay in self._stays.items()]

    def asked_again(self) -> list[Join]:
        """Ask for the rooms that were postponed."""
        self.again = None
        return [stay.ask(room) for room, stay in self._stays.items() if stay.postponed]

    def received(self, frame: Presence | Broadcasted) -> list[Gathered | Heard]:
        """What comes before all members of a room is from an earlier stay in it."""
        room, stay = frame.room, self._stays.get(frame.room)
        if stay is None:
            return []
        if isinstance(frame, Presence) and frame.members is not UNSET:
            stay.inside, stay.asked, stay.postponed = True, False, False
        if not stay.inside:
            return []
        if isinstance(frame, Broadcasted):
            return [Heard(room, frame.from_["session"], frame.from_["user"], frame.event, frame.payload)]
        members = None if frame.members is UNSET else frame.members
        joined = {} if frame.joined is UNSET else frame.joined
        changed = {} if frame.changed is UNSET else frame.changed
        return [Gathered(room, members, joined, changed, [] if frame.left is UNSET else frame.left)]

    def refused(self, room: str, code: str, now: int) -> None:
        """Whoever is told a code of `_OUT` is out; others answer a state or a broadcast, unless a join came last."""
        stay = self._stays.get(room)
        if stay is None or stay.postponed:
            return
        if code == "unavailable":
            stay.postponed, self.again = True, now + ASK_AGAIN
        elif stay.asked or code in _OUT:
            del self._stays[room]

    def shut_out(self, scope: str) -> None:
        """The scope may not be read any more."""
        self._stays = {room: stay for room, stay in self._stays.items() if rooms.scope_of(room) != scope}
