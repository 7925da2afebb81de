"""Joining and leaving rooms, and who may (SPEC section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from tests.contract import hostile
from tests.contract.client import Device, Json, Service, fresh, token
from tests.contract.conftest import Running
from tests.contract.stream import Room, Stream, welcomed

pytestmark = pytest.mark.databases("sqlite")


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


@pytest.fixture
def friend(service: Service) -> Device:
    """Another one."""
    return service.device()


@pytest.fixture
def scope(service: Service, device: Device, friend: Device) -> str:
    """A workspace of both."""
    return service.workspace(owner=device, viewer=friend)


@pytest.fixture
def pair(device: Device, friend: Device) -> Iterator[tuple[Stream, Stream]]:
    """A stream of each."""
    with welcomed(device, friend) as (one, two):
        yield one, two


def test_a_join_is_answered_with_all_members(scope: str, pair: tuple[Stream, Stream]) -> None:
    """Who joins is told of everybody in the room with user and state, oneself included; others of the one who came."""
    one, two = pair
    alone = one.join(scope, state={"cursor": 1})
    assert alone.look() == {one.session: {"user": one.device.user, "state": {"cursor": 1}}}
    both = two.join(scope, state={"cursor": 2})
    assert both.look() == {
        one.session: {"user": one.device.user, "state": {"cursor": 1}},
        two.session: {"user": two.device.user, "state": {"cursor": 2}},
    }
    assert alone.sees(one.session, two.session) == both.members


def test_a_state_not_given_is_null(scope: str, pair: tuple[Stream, Stream]) -> None:
    """Who joins without a state shows null."""
    one, two = pair
    room = one.join(scope)
    two.join(scope)
    assert {member["state"] for member in room.sees(one.session, two.session).values()} == {None}


def test_tabs_of_one_user_are_sessions_of_one_user(device: Device, scope: str) -> None:
    """Several tabs and devices of one user are several members of a room, under one user."""
    with welcomed(device, device, device.again()) as tabs:
        for tab in tabs:
            room = tab.join(scope)
        assert room.look() == {tab.session: {"user": device.user, "state": None} for tab in tabs}
        assert len(room.members) == 3


def test_who_leaves_is_gone_for_the_others(scope: str, pair: tuple[Stream, Stream]) -> None:
    """The others are told who left; whoever left hears no more of the room, and may come back."""
    one, two = pair
    room = one.join(scope)
    two.join(scope)
    room.sees(one.session, two.session)
    two.send({"t": "leave", "room": scope})
    room.sees(one.session)
    two.ping()
    heard = len(two.frames)
    one.send({"t": "presence", "room": scope, "state": "unheard"})
    one.ping()
    two.ping()
    assert [frame["t"] for frame in two.frames[heard:]] == ["pong"]
    again = two.join(scope)
    again.sees(one.session, two.session)
    room.sees(one.session, two.session)


def test_rooms_of_one_scope_are_apart(scope: str, pair: tuple[Stream, Stream]) -> None:
    """A scope as room and names below it are rooms of their own, names that look alike too."""
    one, two = pair
    names = [scope, f"{scope}/a", f"{scope}/A", f"{scope}/a:b", f"{scope}/{'x' * 128}"]
    rooms = [one.join(name, state=name) for name in names]
    assert [room.look()[one.session]["state"] for room in rooms] == names
    two.join(names[1], state="two")
    rooms[1].sees(one.session, two.session)
    one.ping()
    assert [len(room.look()) for room in rooms] == [1, 2, 1, 1, 1]


def test_a_users_own_scope_is_a_room(device: Device, friend: Device) -> None:
    """The tabs of a user meet in rooms of the user's own scope, which nobody else may join."""
    with welcomed(device, device, friend) as (one, two, other):
        room = one.join(device.scope)
        two.join(device.scope)
        room.sees(one.session, two.session)
        assert other.refusal({"t": "join", "room": device.scope})["code"] == "forbidden"


def test_a_scopes_spelling_is_its_rooms(service: Service) -> None:
    """A room of a scope whose id is percent-encoded is named with the encoding, and no other spelling is a room."""
    user = f"auth0|{fresh('user')}"
    scope = f"user:{user.replace('|', '%7C')}"
    with welcomed(service.device(user), service.device(user)) as (one, two):
        room = one.join(f"{scope}/a")
        two.join(f"{scope}/a")
        assert {member["user"] for member in room.sees(one.session, two.session).values()} == {user}
        assert one.refusal({"t": "join", "room": f"user:{user}"})["code"] == "malformed"
        assert one.refusal({"t": "join", "room": scope.replace("%7C", "%7c")})["code"] == "malformed"


@pytest.mark.parametrize("followed", ["narrowed", "unfollowed"])
def test_a_room_of_a_scope_not_followed_may_be_joined(device: Device, scope: str, followed: str) -> None:
    """Whoever may read a scope may join its rooms, whether or not the stream follows it."""
    narrowed: dict[str, Any] = {"scopes": [device.scope]} if followed == "narrowed" else {}
    with welcomed(device, device.again(), **narrowed) as (one, two):
        if followed == "unfollowed":
            one.send({"t": "unfollow", "scopes": [scope]})
            one.ping()
        room = one.join(scope)
        two.join(scope)
        room.sees(one.session, two.session)
        put = device.put("tasks", title="not followed", scope=scope)
        device.apply(put)
        device.apply(own := device.put("notes", title="followed"))
        one.change(own["row"])
        assert put["row"] not in one.rows()


def test_unfollowing_a_scope_keeps_its_rooms(device: Device, scope: str, pair: tuple[Stream, Stream]) -> None:
    """A scope that is no longer followed keeps the stream in its rooms."""
    one, two = pair
    room = one.join(scope)
    one.send({"t": "unfollow", "scopes": [scope]})
    one.ping()
    two.join(scope)
    room.sees(one.session, two.session)


BAD_ROOMS: list[object] = [
    None,
    7,
    True,
    [],
    {},
    ["workspace:a"],
    "",
    " ",
    "workspace",
    "workspace:",
    ":a",
    "/a",
    "Workspace:a",
    "1workspace:a",
    "work-space:a",
    "w" * 33 + ":a",
    "workspace:" + "a" * 129,
    "workspace:a b",
    "workspace:é",
    "workspace:a:b",
    "workspace:a%",
    "workspace:a%4",
    "workspace:%c3%a9",
    "workspace:%41",
    "workspace:%00",
    "workspace:%FF",
    "workspace:a\n",
    "workspace:a/",
    "workspace:a/b/c",
    "workspace:a/" + "b" * 129,
    "workspace:a/b c",
    "workspace:a/%41",
    "workspace:a/é",
    "workspace:a/b\n",
    "workspace:a/b\0",
    "workspace:a//b",
]


def test_a_bad_name_is_no_room(device: Device) -> None:
    """What is not spelt as a scope, or a scope and a name below it, is refused in every frame; the stream lives."""
    with welcomed(device) as (stream,):
        for room in BAD_ROOMS:
            for frame in frames_about(room):
                assert stream.refusal(frame)["code"] == "malformed", frame
        stream.send({"t": "join"})
        assert stream.until("error")["code"] == "malformed"
        assert not [frame for frame in stream.frames if frame["t"] == "presence"]


def frames_about(room: object) -> list[Json]:
    """One frame of each kind that names a room."""
    return [
        {"t": "join", "room": room, "state": 1},
        {"t": "leave", "room": room},
        {"t": "presence", "room": room, "state": 1},
        {"t": "broadcast", "room": room, "event": "e", "payload": 1},
    ]


def refusals(stream: Stream, room: str) -> list[str]:
    """What each kind of frame about a room is answered, the room's own name aside."""
    answers = [stream.refusal(frame) for frame in frames_about(room)]
    return [str(answer).replace(room, "…") for answer in answers]


def test_rooms_that_may_not_be_joined_look_alike(service: Service, device: Device, friend: Device) -> None:
    """Rooms of a scope one may not read, of one that does not exist, and of an unknown kind, are refused alike."""
    there = service.workspace(owner=friend)
    with welcomed(friend, device) as (inside, stream):
        busy = inside.join(there, state="secret")
        answers = [
            refusals(stream, room)
            for room in (
                there,
                f"{there}/a",
                f"workspace:{fresh('none')}",
                f"workspace:{fresh('none')}/a",
                friend.scope,
                f"user:{fresh('none')}",
                "galaxy:1",
            )
        ]
        assert stream.refusal({"t": "join", "room": there})["code"] == "forbidden"
        assert answers == [answers[0]] * len(answers)
        assert "secret" not in str(stream.frames)
        inside.ping()
        assert busy.look().keys() == {inside.session}


def test_an_operator_is_no_member(service: Service, scope: str) -> None:
    """An admin that has not made itself a member may join no room of the scope."""
    with welcomed(service.admin()) as (stream,):
        assert stream.refusal({"t": "join", "room": scope})["code"] == "forbidden"


def test_a_fresh_token_keeps_the_rooms(scope: str, pair: tuple[Stream, Stream]) -> None:
    """A stream that renews its token stays in its rooms, with the state it shows."""
    one, two = pair
    room = two.join(scope)
    one.join(scope, state="kept")
    one.send({"t": "auth", "token": token(one.device.user)})
    one.until("authed")
    assert room.sees(one.session, two.session)[one.session]["state"] == "kept"
    two.broadcast(scope, "heard")
    one.hear("heard")


def test_a_room_not_joined_takes_nothing(scope: str, pair: tuple[Stream, Stream]) -> None:
    """Leaving, a state, or a broadcast, in a room that one is not in is answered `not_joined` and reaches nobody."""
    one, two = pair
    room = one.join(scope)
    for frame in frames_about(scope)[1:]:
        assert two.refusal(frame)["code"] == "not_joined"
    two.join(scope)
    room.sees(one.session, two.session)
    two.send({"t": "leave", "room": scope})
    for frame in frames_about(scope)[1:]:
        assert two.refusal(frame)["code"] == "not_joined"
    room.sees(one.session)
    one.ping()
    assert one.heard() == []
    assert room.look().keys() == {one.session}


def test_nobody_hears_of_a_room_not_joined(scope: str, pair: tuple[Stream, Stream]) -> None:
    """A member of the scope that is not in the room hears nothing of it."""
    one, two = pair
    one.join(scope, state=1)
    one.send({"t": "presence", "room": scope, "state": 2})
    one.broadcast(scope, "unheard")
    one.send({"t": "leave", "room": scope})
    one.ping()
    two.ping()
    assert {frame["t"] for frame in two.frames} <= {"welcome", "changes", "pong"}


def test_an_error_names_its_room(scope: str, pair: tuple[Stream, Stream]) -> None:
    """The error that answers a frame about a room has a code, a message for people, and the room."""
    error = pair[0].refusal({"t": "presence", "room": f"{scope}/a", "state": 1})
    assert (error["code"], error["room"]) == ("not_joined", f"{scope}/a")
    assert isinstance(error["message"], str)


def test_a_second_join_shows_another_state(scope: str, pair: tuple[Stream, Stream]) -> None:
    """Whoever joins again shows another state, is told of all members again, and is in the room once."""
    one, two = pair
    room = one.join(scope, state="first")
    theirs = two.join(scope)
    again: Room = one.join(scope, state="second")
    assert again.look().keys() == {one.session, two.session}
    theirs.until(lambda members: members[one.session]["state"] == "second")
    one.send({"t": "leave", "room": scope})
    theirs.sees(two.session)
    assert room.name == again.name


@pytest.fixture(scope="module")
def target(unlimited: Running) -> Iterator[tuple[Stream, Stream]]:
    """Two tabs of one user, one to send odd frames by."""
    device = unlimited.service.device()
    with welcomed(device, device) as (odd, calm):
        yield odd, calm


def odd_frames(scope: str) -> st.SearchStrategy[Json]:
    """Frames about rooms with anything in any place."""
    names = [scope, f"{scope}/a", f"{scope}/b", "workspace:1", "user:nobody/a", "", "user:"]
    return st.fixed_dictionaries(
        {"t": st.sampled_from(["join", "leave", "presence", "broadcast"])},
        optional={
            "room": st.sampled_from(names) | hostile.ANY_JSON,
            "state": hostile.ANY_JSON,
            "event": st.sampled_from(["e", "f"]) | hostile.ANY_JSON,
            "payload": hostile.ANY_JSON,
            "from": hostile.ANY_JSON,
            "members": hostile.ANY_JSON,
        },
    )


@given(data=st.data())
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_odd_frames_about_rooms_never_end_a_stream(target: tuple[Stream, Stream], data: st.DataObject) -> None:
    """Any frames about rooms are taken or refused one by one; the stream lives, and all that comes of them fits."""
    odd, calm = target
    scope = calm.device.scope
    rooms = [calm.join(scope), calm.join(f"{scope}/a")]
    for frame in data.draw(st.lists(odd_frames(scope), min_size=1, max_size=20)):
        odd.send(frame)
    odd.ping()
    for room in rooms:
        odd.send({"t": "join", "room": room.name, "state": "sound"})
    for room in rooms:
        room.until(lambda members: members.get(odd.session) == {"user": odd.device.user, "state": "sound"})
    assert {frame["t"] for frame in odd.frames} <= {"welcome", "changes", "presence", "broadcast", "error", "pong"}
    for stream in target:
        stream.frames.clear()


def assert_closed_as_no_json(closed: ConnectionClosed, text: str) -> None:
    """What is no JSON closes a stream; nothing else in these frames may."""
    assert closed.rcvd is not None, text[:200]
    assert closed.rcvd.code == 4400, (closed.rcvd, text[:200])


@pytest.mark.parametrize("kind", ["join", "leave", "presence", "broadcast"])
def test_frames_about_rooms_with_hostile_values(unlimited: Running, kind: str) -> None:
    """Hostile values in a frame about a room are refused, or close the stream as no JSON, and never end the service."""
    device = unlimited.service.device()
    good = {"t": kind, "room": device.scope, "state": 1, "event": "e", "payload": 1}
    texts = [text for name in good if name != "t" for text in hostile.filled(good | {name: "@@"}, hostile.VALUES)]
    stream: Stream | None = None
    for number, text in enumerate(texts):
        if stream is None:
            stream = Stream(device)
            stream.welcome()
            stream.join(device.scope)
        try:
            stream.send(text)
            stream.ping(number)
        except ConnectionClosed as closed:
            assert_closed_as_no_json(closed, text)
            stream = None
    if stream is not None:
        stream.connection.close()
