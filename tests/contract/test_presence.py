"""What sessions show in rooms, and how they go (SPEC section 6)."""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.contract.client import Device, Json, Service
from tests.contract.stream import Room, Stream, welcomed

pytestmark = pytest.mark.databases("sqlite")

STATES: list[object] = [
    None,
    False,
    0,
    -1.5,
    "",
    "\u0000\u202e😀",
    [],
    {},
    {"": [1, {"a/b~": None}]},
    9007199254740993,
    [[[[]]]],
]


@pytest.fixture
def scope(service: Service) -> str:
    """A workspace of nobody yet."""
    return service.workspace(owner=service.device())


@pytest.fixture
def member(service: Service, scope: str) -> Device:
    """A member of it."""
    return enrolled(service, scope)


def enrolled(service: Service, scope: str) -> Device:
    """A new member of a workspace."""
    device = service.device()
    service.admin().grant(scope, device.user, "viewer")
    return device


@pytest.fixture
def pair(service: Service, scope: str, member: Device) -> Iterator[tuple[Room, Room]]:
    """Two sessions of two users that see each other in one room."""
    with welcomed(member, enrolled(service, scope)) as (one, two):
        rooms = one.join(scope, state="one"), two.join(scope, state="two")
        for room in rooms:
            room.sees(one.session, two.session)
        yield rooms


def test_a_state_reaches_the_others(pair: tuple[Room, Room]) -> None:
    """Any JSON that a session shows reaches the others in the room as it is, with its user."""
    one, two = pair
    session = one.stream.session
    for state in STATES:
        one.stream.send({"t": "presence", "room": one.name, "state": state})
        frame = two.stream.until("presence", where=lambda frame: session in frame.get("changed", {}))
        assert json.dumps(frame["changed"]) == json.dumps({session: {"user": one.stream.device.user, "state": state}})
    assert two.members[two.stream.session]["state"] == "two"


def test_a_state_outlives_its_change(pair: tuple[Room, Room], service: Service) -> None:
    """Whoever joins later is told the states of now."""
    one, two = pair
    one.stream.send({"t": "presence", "room": one.name, "state": {"typing": True}})
    two.until(lambda members: members[one.stream.session]["state"] == {"typing": True})
    with welcomed(enrolled(service, one.name)) as (late,):
        room = late.join(one.name)
        assert room.look()[one.stream.session]["state"] == {"typing": True}


def test_a_second_join_that_is_refused_changes_nothing(pair: tuple[Room, Room]) -> None:
    """Whoever is in a room and joins it again with a state too large still is in it, with the state it had."""
    one, two = pair
    error = one.stream.refusal({"t": "join", "room": one.name, "state": "x" * 5_000})
    assert error["code"] == "too_large"
    two.stream.broadcast(one.name, "heard")
    one.stream.hear("heard")
    for room in pair:
        assert room.look()[one.stream.session]["state"] == "one"


def state_of(size: int) -> str:
    """A state whose JSON has `size` bytes."""
    return "é" * ((size - 2) // 2) + "x" * (size % 2)


@pytest.mark.parametrize("kind", ["join", "presence"])
def test_a_state_too_large_changes_nothing(pair: tuple[Room, Room], kind: str) -> None:
    """A state of 4 KiB is shown; one byte more is refused as `too_large`, and nothing changes for anybody."""
    one, two = pair
    session, room = one.stream.session, one.name
    one.stream.send({"t": "presence", "room": room, "state": state_of(4096)})
    two.until(lambda members: members[session]["state"] == state_of(4096))
    name = room if kind == "presence" else f"{room}/other"
    for size in (4097, 100_000):
        frame = {"t": kind, "room": name, "state": state_of(size)}
        assert len(json.dumps(frame["state"], ensure_ascii=False).encode()) == size
        one.stream.send(json.dumps(frame, ensure_ascii=False))
        error = one.stream.until("error")
        assert (error["code"], error["room"]) == ("too_large", name)
    if kind == "join":
        assert one.stream.refusal({"t": "presence", "room": name, "state": 1})["code"] == "not_joined"
    one.stream.send({"t": "presence", "room": room, "state": "after"})
    changes = [frame["changed"] for frame in two.stream.incoming(1) if "changed" in frame]
    assert [change[session]["state"] for change in changes] == ["after"]


def test_states_come_to_oneself_too(pair: tuple[Room, Room]) -> None:
    """Presence frames of a room are the same for all in it: who shows a state is told of it as the others are."""
    for room in pair:
        room.stream.send({"t": "presence", "room": room.name, "state": "new"})
    for room in pair:
        room.until(lambda members: {member["state"] for member in members.values()} == {"new"})


def nested(depth: int) -> object:
    """Lists within lists."""
    value: list[object] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("kind", ["join", "presence", "broadcast"])
def test_what_is_shown_and_said_nests_so_deep(pair: tuple[Room, Room], kind: str) -> None:
    """A state or payload nests 30 deep; one level more is refused as `malformed` and changes nothing."""
    one, two = pair
    frame = {"t": kind, "room": one.name, "event": "e"}
    value = "payload" if kind == "broadcast" else "state"
    assert one.stream.refusal(frame | {value: nested(31)})["code"] == "malformed"
    one.stream.send(frame | {value: nested(30)})
    if kind == "broadcast":
        two.stream.hear(nested(30))
    else:
        changes = two.stream.until("presence", where=lambda frame: "changed" in frame)["changed"]
        assert changes[one.stream.session]["state"] == nested(30)


def end_by_close(stream: Stream) -> None:
    """The websocket's own farewell."""
    stream.connection.close()


def end_by_fin(stream: Stream) -> None:
    """The connection ends without a farewell."""
    stream.cut()


def end_by_reset(stream: Stream) -> None:
    """The connection is reset."""
    stream.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.connection.socket.close()


def end_by_fault(stream: Stream) -> None:
    """The client is closed for what it sent."""
    stream.send("no json")


@pytest.mark.parametrize("end", [end_by_close, end_by_fin, end_by_reset, end_by_fault])
def test_a_session_that_ends_leaves_its_rooms(pair: tuple[Room, Room], end: object) -> None:
    """However a connection ends, the others in each of its rooms are told within two seconds that it left (I43)."""
    one, two = pair
    below = [stream.join(f"{one.name}/a") for stream in (one.stream, two.stream)]
    below[1].sees(one.stream.session, two.stream.session)
    assert callable(end)
    end(one.stream)
    two.sees(two.stream.session, seconds=2)
    below[1].sees(two.stream.session, seconds=2)


def test_a_tab_that_ends_leaves_the_others_in(scope: str, member: Device) -> None:
    """One tab's end takes that tab's session alone out of a room."""
    with welcomed(member, member, member) as (one, two, three):
        room = one.join(scope)
        two.join(scope)
        three.join(scope)
        room.sees(one.session, two.session, three.session)
        three.connection.close()
        room.sees(one.session, two.session)
        two.ping()


def test_states_above_the_rate_come_to_the_latest(pair: tuple[Room, Room]) -> None:
    """Of states shown far faster than the rate, fewer frames go out, in order, and the last one always arrives."""
    one, two = pair
    session, number = one.stream.session, 600
    for state in range(number):
        one.stream.send({"t": "presence", "room": one.name, "state": state})
    two.until(lambda members: members[session]["state"] == number - 1)
    one.stream.ping()
    states = [
        frame["changed"][session]["state"]
        for frame in two.stream.frames
        if session in frame.get("changed", {}) and isinstance(frame["changed"][session]["state"], int)
    ]
    assert states == sorted(set(states))
    assert len(states) < number / 2


@pytest.mark.parametrize("way", ["after leaving", "at once"])
def test_a_state_that_waits_does_not_outlive_a_join(pair: tuple[Room, Room], way: str) -> None:
    """A state that waits for its turn does not replace the one that its session joined with since."""
    one, two = pair
    for state in range(300):
        one.stream.send({"t": "presence", "room": one.name, "state": state})
    if way == "after leaving":
        one.stream.send({"t": "leave", "room": one.name})
    one.stream.join(one.name, state="joined")
    two.until(lambda members: members.get(one.stream.session, {}).get("state") == "joined")
    later = [frame for frame in two.stream.incoming(0.5) if frame["t"] == "presence"]
    assert later == []


def test_a_rejected_state_is_not_the_latest(pair: tuple[Room, Room]) -> None:
    """A state that is refused does not take the place of the one before it."""
    one, two = pair
    one.stream.send({"t": "presence", "room": one.name, "state": "good"})
    assert one.stream.refusal({"t": "presence", "room": one.name, "state": "x" * 5000})["code"] == "too_large"
    two.until(lambda members: members[one.stream.session]["state"] == "good")


@dataclass
class Actor:
    """Somebody who comes and goes at random, and knows where it is in the end."""

    device: Device
    names: list[str]
    chance: random.Random
    stream: Stream | None = None
    rooms: dict[str, Room] = field(default_factory=dict)
    shown: dict[str, object] = field(default_factory=dict)

    def play(self, steps: int) -> None:
        """Take some steps at random."""
        for _ in range(steps):
            self.step()
            assert self.stream is not None
            for _ in self.stream.incoming(self.chance.random() / 50):
                self.look()

    def step(self) -> None:
        """Join, leave, show a state, or come anew."""
        if self.stream is None or self.chance.random() < 0.04:
            self.come_anew()
        assert self.stream is not None
        name, state = self.chance.choice(self.names), self.chance.randrange(10**6)
        draw = self.chance.random()
        if name not in self.shown:
            self.rooms[name], self.shown[name] = self.stream.join(name, state=state), state
        elif draw < 0.4:
            self.stream.send({"t": "leave", "room": name})
            self.stream.ping()
            del self.rooms[name], self.shown[name]
        elif draw < 0.5:
            self.stream.broadcast(name, state)
        else:
            self.stream.send({"t": "presence", "room": name, "state": state})
            self.shown[name] = state

    def come_anew(self) -> None:
        """Open a new connection after ending the one there is, in a way drawn by chance."""
        if self.stream is not None:
            self.chance.choice([end_by_close, end_by_fin, end_by_reset])(self.stream)
        self.stream = Stream(self.device)
        self.stream.welcome()
        self.rooms, self.shown = {}, {}

    def go(self) -> None:
        """End for good."""
        if self.stream is not None:
            self.stream.connection.close()

    def look(self) -> None:
        """Fold what came; every frame must fit."""
        for room in self.rooms.values():
            room.look()


def test_all_see_the_same_after_a_storm(service: Service, scope: str) -> None:
    """After many joins, leaves, states and lost connections every survivor sees exactly who is in, and how (I42)."""
    names = [scope, f"{scope}/a", f"{scope}/b"]
    seed = random.SystemRandom().randrange(2**32)
    actors = [Actor(enrolled(service, scope), names, random.Random(seed + number)) for number in range(20)]
    with ExitStack() as stack, ThreadPoolExecutor(len(actors)) as pool:
        for actor in actors:
            stack.callback(actor.go)
        for done in [pool.submit(actor.play, 60) for actor in actors]:
            done.result()
        truth = {name: picture(actors, name) for name in names}
        deadline = time.monotonic() + 10
        for actor in actors:
            for name, room in actor.rooms.items():
                room.until(truth[name].__eq__, deadline - time.monotonic() + 1)
        for actor in actors:
            assert actor.stream is not None
            actor.stream.ping()
            for name, room in actor.rooms.items():
                assert room.look() == truth[name], f"seed {seed}"


def picture(actors: list[Actor], name: str) -> dict[str, Json]:
    """Who is in a room, as the actors know themselves."""
    return {
        actor.stream.session: {"user": actor.device.user, "state": actor.shown[name]}
        for actor in actors
        if actor.stream is not None and name in actor.shown
    }
