"""Memberships that begin and end while their users are in rooms (SPEC section 6)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.contract.client import Device, Service, fresh
from tests.contract.stream import Room, Stream, welcomed

ROLES = ("viewer", "editor", "owner")


@pytest.fixture
def owner(service: Service) -> Device:
    """Whoever lets others in and out."""
    return service.device()


@dataclass
class Meeting:
    """A workspace with two members that see each other in its room and in one below it."""

    owner: Device
    scope: str
    guest: Stream
    host: Stream
    guests: list[Room] = field(default_factory=list)
    hosts: list[Room] = field(default_factory=list)

    def begin(self) -> None:
        """Both join both rooms."""
        for name in (self.scope, f"{self.scope}/below"):
            self.hosts.append(self.host.join(name))
            self.guests.append(self.guest.join(name))
        for room in (*self.hosts, *self.guests):
            room.sees(self.host.session, self.guest.session)


@pytest.fixture
def meeting(service: Service, owner: Device) -> Iterator[Meeting]:
    """A meeting under way."""
    guest, host = service.device(), service.device()
    scope = service.workspace(owner=owner, viewer=guest, editor=host)
    with welcomed(guest, host) as (there, here):
        meeting = Meeting(owner, scope, there, here)
        meeting.begin()
        yield meeting


@pytest.mark.parametrize("way", ["expelled", "left"])
def test_a_member_removed_leaves_its_rooms(meeting: Meeting, way: str) -> None:
    """A member removed, or gone by itself, is out of the rooms at once: others see it, it hears no more (I43)."""
    by = meeting.owner if way == "expelled" else meeting.guest.device
    by.expel(meeting.scope, meeting.guest.device.user)
    ended = time.monotonic()
    meeting.host.broadcast(meeting.scope, "secret")
    meeting.host.send({"t": "presence", "room": f"{meeting.scope}/below", "state": "secret"})
    for room in meeting.hosts:
        room.sees(meeting.host.session, seconds=1)
    meeting.guest.until("scope_revoked", 1, where=lambda frame: frame["scope"] == meeting.scope)
    assert time.monotonic() - ended < 1.5
    revoked = len(meeting.guest.frames)
    meeting.host.broadcast(meeting.scope, "secret")
    meeting.host.ping()
    for kind, rest in (("presence", {"state": 1}), ("broadcast", {"event": "e", "payload": 1}), ("join", {})):
        error = meeting.guest.refusal({"t": kind, "room": meeting.scope} | rest)
        assert error["code"] == ("forbidden" if kind == "join" else "not_joined")
    assert {frame["t"] for frame in meeting.guest.frames[revoked:]} == {"error", "pong"}
    assert "secret" not in str(meeting.guest.frames)
    assert meeting.host.heard() == []


def test_a_member_added_again_may_join_again(meeting: Meeting) -> None:
    """A former member that is let in again is in no room until it joins anew."""
    scope, guest = meeting.scope, meeting.guest
    meeting.owner.expel(scope, guest.device.user)
    guest.until("scope_revoked")
    meeting.owner.grant(scope, guest.device.user, "viewer")
    guest.until("scope_added")
    assert guest.refusal({"t": "presence", "room": scope, "state": 1})["code"] == "not_joined"
    meeting.hosts[0].sees(meeting.host.session)
    room = guest.join(scope)
    room.sees(meeting.host.session, guest.session)
    meeting.hosts[0].sees(meeting.host.session, guest.session)


def test_a_member_added_may_join_within_a_second(service: Service, owner: Device) -> None:
    """A member let in is told within a second, gets the scope from 0, and may join its rooms."""
    scope, member = service.workspace(owner=owner), service.device()
    put = owner.put("tasks", title="t", scope=scope)
    owner.apply(put)
    with welcomed(owner, member) as (host, guest):
        room = host.join(scope)
        assert guest.refusal({"t": "join", "room": scope})["code"] == "forbidden"
        owner.grant(scope, member.user, "viewer")
        guest.until("scope_added", 1, where=lambda frame: frame["scope"] == scope)
        run = guest.until("changes", 1, where=lambda frame: frame["scope"] == scope)
        assert (run["from"], [change["row"] for change in run["changes"]]) == (0, [put["row"]])
        guest.join(scope).sees(host.session, guest.session)
        room.sees(host.session, guest.session)


def test_a_member_added_may_join_once_it_is_answered(service: Service, owner: Device) -> None:
    """Whoever joins right after the answer that made it a member is let in."""
    scope, member = service.workspace(owner=owner), service.device()
    with welcomed(member) as (guest,):
        owner.grant(scope, member.user, "viewer")
        guest.join(scope).sees(guest.session)


def test_a_role_that_changes_keeps_the_rooms(meeting: Meeting) -> None:
    """A role that still grants reading leaves its holder in the rooms."""
    for role in ("owner", "viewer", "editor"):
        meeting.owner.grant(meeting.scope, meeting.guest.device.user, role)
        meeting.host.broadcast(meeting.scope, role)
        meeting.guest.hear(role)
    meeting.host.ping()
    for room in (*meeting.hosts, *meeting.guests):
        assert room.look().keys() == {meeting.host.session, meeting.guest.session}
    assert not [frame for frame in meeting.guest.frames if frame["t"] in ("scope_revoked", "scope_added")]


@pytest.mark.parametrize("followed", ["narrowed", "unfollowed"])
def test_revocation_reaches_rooms_of_a_scope_not_followed(service: Service, owner: Device, followed: str) -> None:
    """A member removed leaves the rooms of a scope that its stream does not follow too, and is told so."""
    member = service.device()
    scope = service.workspace(owner=owner, viewer=member)
    with ExitStack() as stack:
        narrow: dict[str, Any] = {"scopes": [member.scope]} if followed == "narrowed" else {}
        guest, host = stack.enter_context(Stream(member, **narrow)), stack.enter_context(Stream(owner))
        guest.welcome(), host.welcome()
        guest.send({"t": "unfollow", "scopes": [scope]})
        guest.join(scope)
        room = host.join(scope)
        room.sees(host.session, guest.session)
        owner.expel(scope, member.user)
        host.broadcast(scope, "secret")
        room.sees(host.session, seconds=1)
        guest.until("scope_revoked", 1, where=lambda frame: frame["scope"] == scope)
        assert guest.refusal({"t": "join", "room": scope})["code"] == "forbidden"
        assert guest.heard() == []


def test_all_tabs_of_a_former_member_leave(service: Service, owner: Device) -> None:
    """Every session of a removed member leaves, and no session of anybody else."""
    member = service.device()
    scope = service.workspace(owner=owner, viewer=member)
    with welcomed(owner, member, member, member.again()) as (host, *tabs):
        room = host.join(scope)
        for tab in tabs:
            tab.join(scope)
        room.sees(host.session, *(tab.session for tab in tabs))
        owner.expel(scope, member.user)
        room.sees(host.session, seconds=1)
        for tab in tabs:
            tab.until("scope_revoked", 1)


@dataclass
class Person:
    """Somebody whose memberships change by chance: where it is, what it may learn, and what it must."""

    stream: Stream
    rooms: dict[str, Room] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    may: set[str] = field(default_factory=set)
    must: set[str] = field(default_factory=set)

    def leave(self, name: str) -> None:
        """Be out of a room."""
        self.rooms.pop(name, None)
        self.shown.pop(name, None)


class World:
    """People, workspaces and rooms. One thing happens at a time, so that what everybody may learn is known."""

    def __init__(self, service: Service, streams: list[Stream], chance: random.Random) -> None:
        self.admin = service.admin()
        self.chance = chance
        self.people = [Person(stream) for stream in streams]
        self.scopes = [f"workspace:{fresh('ws')}" for _ in range(3)]
        self.members: dict[str, list[Person]] = {scope: [] for scope in self.scopes}
        self.words: set[str] = set()

    def step(self) -> None:
        """Somebody is let in or out, joins, leaves, shows or says something."""
        person, scope = self.chance.choice(self.people), self.chance.choice(self.scopes)
        name = self.chance.choice([scope, f"{scope}/a"])
        happens = self.chance.choices(["member", "enter", "broadcast", "presence"], [1, 3, 3, 2])[0]
        if happens == "member":
            self.change(person, scope)
        elif happens != "enter":
            self.tell(person, name, happens)
        elif name in person.rooms:
            person.stream.send({"t": "leave", "room": name})
            person.stream.ping()
            person.leave(name)
        elif person in self.members[scope]:
            person.may |= {other.shown[name] for other in self.people if name in other.shown}
            person.rooms[name] = person.stream.join(name)
        else:
            assert person.stream.refusal({"t": "join", "room": name})["code"] == "forbidden"

    def change(self, person: Person, scope: str) -> None:
        """Let in whoever is out of a workspace, and out whoever is in."""
        if person in self.members[scope]:
            self.admin.expel(scope, person.stream.device.user)
            self.members[scope].remove(person)
            for name in (scope, f"{scope}/a"):
                person.leave(name)
        else:
            self.admin.grant(scope, person.stream.device.user, self.chance.choice(ROLES))
            self.members[scope].append(person)

    def tell(self, person: Person, name: str, how: str) -> None:
        """Say or show something, which only those in the room may learn, and nobody if the speaker is not in it."""
        word = fresh("word")
        self.words.add(word)
        frame = {"t": how, "room": name, "state": word, "event": "e", "payload": word}
        person.stream.send(frame)
        person.stream.ping()
        if name not in person.rooms:
            return
        if how == "presence":
            person.shown[name] = word
        for other in self.people:
            if name in other.rooms:
                other.may.add(word)
                other.must |= {word} if how == "broadcast" and other is not person else set()

    def settle(self, person: Person) -> None:
        """Read until all that somebody must learn has come, and see that nothing else did."""
        for word in person.must - {frame["payload"] for frame in person.stream.heard()}:
            if word not in {frame["payload"] for frame in person.stream.heard()}:
                person.stream.hear(word)
        for name, room in person.rooms.items():
            room.sees(*(other.stream.session for other in self.people if name in other.rooms))
        person.stream.ping()
        text = str(person.stream.frames)
        assert {word for word in self.words if word in text} <= person.may


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_of_a_room_reaches_who_may_not_read_its_scope(service: Service, seed: int) -> None:
    """While memberships come and go, what is said in rooms reaches all who are in, and nobody else (I44)."""
    with welcomed(*(service.device() for _ in range(4))) as streams:
        world = World(service, streams, random.Random(seed))
        for _ in range(150):
            world.step()
        for person in world.people:
            world.settle(person)
