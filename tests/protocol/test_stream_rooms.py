"""The client's rooms: what is sent and taken in them, and that it comes back to all of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol.client_rooms import ASK_AGAIN, Gathered, Heard
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import (
    Broadcast,
    Broadcasted,
    ErrorFrame,
    Join,
    Leave,
    Member,
    Presence,
    ScopeRevoked,
    SetPresence,
    Welcome,
    encode,
)
from tidemark_protocol.stream_client import ClientStream, Effect, Refused, Revoke, Send, State
from tidemark_protocol.stream_server import EnterRoom, LeaveRoom, Limits, ServerStream, ShowState

CLIENT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
WELCOME = Welcome("s1", "ada", {"user:ada": 7}, ["a:9"], "0192f3a4b5c6-0000-00000000000000aa", 25)
EXPIRES = 3_600
"""Seconds."""
ROOMS = ["a:1", "a:1/x", "a:9/x", "b:2"]
ADA: Member = {"user": "ada", "state": None}
HEARD = Broadcasted("a:1", {"session": "s2", "user": "bob"}, "typing", [1])


def live() -> ClientStream:
    """A welcomed connection, at time 0."""
    stream = ClientStream(CLIENT, 3)
    connect(stream)
    return stream


def connect(stream: ClientStream) -> list[Effect]:
    """Get a connection; what is sent once it is welcomed."""
    stream.start(0)
    stream.connected("token", EXPIRES, {}, 0)
    return [effect for effect in stream.received(WELCOME, 0) if isinstance(effect, Send)]


def reconnect(stream: ClientStream) -> list[Effect]:
    """Lose the connection and get another; what is sent once it is welcomed."""
    stream.closed(1012, "", 0, 0.5)
    return connect(stream)


def stream_inside(room: str) -> ClientStream:
    """A connection whose join of a room has been answered."""
    stream = live()
    assert stream.join(room, 1) == [Send(Join(room, 1))]
    assert stream.received(Presence(room, members={"s1": ADA}), 1) == [Gathered(room, {"s1": ADA}, {}, {}, [])]
    return stream


def test_a_joined_room_is_spoken_in() -> None:
    """States and broadcasts go out, others' come in, and leaving ends it."""
    stream = stream_inside("a:1")
    assert stream.show("a:1", 2) == [Send(SetPresence("a:1", 2))]
    assert stream.broadcast("a:1", "typing", [1]) == [Send(Broadcast("a:1", "typing", [1]))]
    assert stream.received(HEARD, 1) == [Heard("a:1", "s2", "bob", "typing", [1])]
    assert stream.received(Presence("a:1", left=["s2"]), 1) == [Gathered("a:1", None, {}, {}, ["s2"])]
    assert stream.leave("a:1") == [Send(Leave("a:1"))]
    assert stream.received(HEARD, 1) == stream.received(Presence("a:1", left=["s2"]), 1) == []


def test_a_room_not_joined_is_silent() -> None:
    """Nothing is sent to, nor taken from, a room that was not joined (I44)."""
    stream = stream_inside("a:1/x")
    assert stream.show("a:1", 2) == stream.broadcast("a:1", "e") == stream.leave("a:1") == []
    assert stream.received(HEARD, 1) == stream.received(Presence("a:1", members={}), 1) == []
    assert stream.rooms == {"a:1/x": 1}


def test_what_names_no_room_is_not_joined() -> None:
    """The app is told at once."""
    with pytest.raises(RequestError, match="scope"):
        live().join("lobby")


def test_an_earlier_stay_says_nothing_of_this_one() -> None:
    """After leaving and joining again nothing counts until all members have come (I42)."""
    stream = stream_inside("a:1")
    stream.leave("a:1")
    stream.join("a:1")
    assert stream.received(HEARD, 1) == stream.received(Presence("a:1", joined={"s9": ADA}), 1) == []
    assert stream.received(Presence("a:1", members={"s1": ADA}), 1) == [Gathered("a:1", {"s1": ADA}, {}, {}, [])]


def test_a_reconnect_begins_with_all_members() -> None:
    """Until a new connection has brought all members of a room, nothing in it counts (I42)."""
    stream = stream_inside("a:1")
    reconnect(stream)
    assert stream.received(HEARD, 1) == stream.received(Presence("a:1", changed={"s1": ADA}), 1) == []


@pytest.mark.parametrize("code", ["forbidden", "room_full", "too_many_rooms", "too_large", "not_joined"])
def test_a_refused_join_is_not_tried_again(code: str) -> None:
    """The app is told of the room, which is forgotten."""
    stream = live()
    stream.join("a:1")
    stream.join("a:1/x")
    assert stream.received(ErrorFrame(code, "no", room="a:1"), 1) == [Refused(code, "no", None, "a:1")]
    assert reconnect(stream) == [Send(Join("a:1/x"))]


@pytest.mark.parametrize(
    ("codes", "out"), [(["too_large"], False), (["room_full"], False), (["room_full", "not_joined"], True)]
)
def test_a_join_that_something_followed_is_refused_by_what_followed(codes: list[str], out: bool) -> None:
    """An error that may be a state's leaves the room joined: if it was the join's, `not_joined` answers the state."""
    stream = live()
    stream.join("a:1")
    stream.show("a:1", 1)
    for code in codes:
        stream.received(ErrorFrame(code, "no", room="a:1"), 1)
    assert (stream.rooms == {}) == out


def test_a_join_that_cannot_be_looked_into_is_asked_again() -> None:
    """While the database is away the client stays joined, and asks again with the state of then."""
    stream = live()
    stream.join("a:1")
    stream.show("a:1", 1)
    for code in ["unavailable", "not_joined"]:
        assert stream.received(ErrorFrame(code, "no", room="a:1"), 1_000) == [Refused(code, "no", None, "a:1")]
    assert stream.show("a:1", 2) == []
    assert stream.deadline == 1_000 + ASK_AGAIN
    assert stream.elapsed(1_000 + ASK_AGAIN, 0.5) == [Send(Join("a:1", 2))]
    assert stream.deadline == 1_000 + 25_000
    assert len(stream.received(Presence("a:1", members={"s1": ADA}), 1_000)) == 1


@pytest.mark.parametrize(
    ("code", "out"), [("too_large", False), ("room_full", False), ("malformed", False), ("not_joined", True)]
)
def test_a_refused_state_leaves_the_room_joined(code: str, out: bool) -> None:
    """Once a join has been answered, only being out of the room, or shut out of it, ends it."""
    stream = stream_inside("a:1")
    stream.received(ErrorFrame(code, "no", room="a:1"), 1)
    assert (stream.rooms == {}) == out


def test_a_revoked_scope_takes_its_rooms_along() -> None:
    """Whether it is told of while the stream lives or by a welcome, none of its rooms is joined again (I43)."""
    stream = live()
    for room in ["a:9", "a:9/x", "a:99", "a:8", "a:8/x"]:
        stream.join(room)
    assert stream.received(ScopeRevoked("a:8"), 1) == [Revoke("a:8")]
    assert reconnect(stream) == [Send(Join("a:99"))]
    assert list(stream.rooms) == ["a:99"]


class World:
    """A client, the rooms its app wants, and those that the server has of its connection."""

    def __init__(self) -> None:
        self.client = ClientStream(CLIENT, 3)
        self.wanted: dict[str, Any] = {}
        self.connect()

    def connect(self) -> None:
        """Welcome the client on a connection of its own."""
        self.server = ServerStream(Limits(), 0, lambda _: None)
        self.server.receive(encode({"t": "hello", "token": "good", "client": CLIENT, "schema": 3}).decode(), 0)
        self.server.authenticated("ada", EXPIRES, 0)
        self.present: dict[str, Any] = {}
        self.revoked("a:9")
        self.take(connect(self.client))

    def take(self, effects: list[Effect]) -> None:
        """Let the server carry out what the client sends."""
        for effect in effects:
            assert isinstance(effect, Send)
            (asked,) = self.server.receive(encode(effect.frame).decode(), 0)
            match asked:
                case EnterRoom(room=room, state=state):
                    self.present[room] = state
                case ShowState(room=room, state=state) if room in self.present:
                    self.present[room] = state
                case LeaveRoom(room=room) if room in self.present:
                    del self.present[room]
                case _:
                    pytest.fail(f"the server refuses {effect} as {asked}")

    def revoked(self, scope: str) -> None:
        """Neither the app nor the server has the client in rooms of this scope any more."""
        for rooms in (self.wanted, self.present):
            for gone in [room for room in rooms if room.split("/")[0] == scope]:
                del rooms[gone]

    def step(self, what: str, room: str, number: int) -> None:
        """Let one thing happen."""
        match what:
            case "join":
                self.wanted[room] = number
                self.take(self.client.join(room, number))
            case "leave":
                self.wanted.pop(room, None)
                self.take(self.client.leave(room))
            case "show":
                self.wanted |= {room: number} if room in self.wanted else {}
                self.take(self.client.show(room, number))
            case "lose":
                self.client.closed(1012, "", 0, 0.5)
            case "stop":
                self.client.stop()
            case "connect" if self.client.state is not State.LIVE:
                self.connect()
            case "members" if room in self.present:
                self.client.received(Presence(room, members={"s1": ADA}), 0)
            case "revoke" if self.client.state is State.LIVE:
                self.revoked("a:1")
                self.client.received(ScopeRevoked("a:1"), 0)


STEPS = st.tuples(
    st.sampled_from(["join", "join", "leave", "show", "lose", "stop", "connect", "connect", "members", "revoke"]),
    st.sampled_from(ROOMS),
    st.integers(0, 9),
)


@given(st.lists(STEPS, max_size=40))
def test_whatever_happens_the_rooms_are_those_joined_and_not_left(steps: list[tuple[str, str, int]]) -> None:
    """After any sequence of joins, leaves, states, losses and revocations the client is in the rooms that its app
    wants, with the states shown last, and a live connection has it there too (I42).
    """
    world = World()
    for step in steps:
        world.step(*step)
        assert world.client.rooms == world.wanted
        if world.client.state is State.LIVE:
            assert world.present == world.wanted
