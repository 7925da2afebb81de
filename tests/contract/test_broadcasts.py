"""Broadcasts to the others in a room (SPEC section 6)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.client import Device, Service
from tests.contract.conftest import Launcher, Running
from tests.contract.hostile import ANY_JSON
from tests.contract.stream import Stream, welcomed

pytestmark = pytest.mark.databases("sqlite")


def enrolled(service: Service, number: int) -> tuple[str, list[Device]]:
    """A workspace and its members."""
    devices = [service.device() for _ in range(number)]
    scope = service.workspace(owner=service.device())
    admin = service.admin()
    for device in devices:
        admin.grant(scope, device.user, "viewer")
    return scope, devices


@pytest.fixture
def company(service: Service) -> Iterator[tuple[str, list[Stream]]]:
    """A workspace with four members, the first three in its room, the last one not."""
    scope, devices = enrolled(service, 4)
    with welcomed(*devices) as streams:
        rooms = [stream.join(scope) for stream in streams[:3]]
        for room in rooms:
            room.sees(*(stream.session for stream in streams[:3]))
        yield scope, streams


def test_a_broadcast_reaches_the_others_once(company: tuple[str, list[Stream]]) -> None:
    """A broadcast reaches all others in the room exactly once, in order, never its sender and nobody outside (I44)."""
    scope, (sender, one, two, outside) = company
    for number in range(100):
        sender.broadcast(scope, number, event=f"event {number % 3}")
    for stream in (one, two):
        stream.hear(99)
        assert stream.heard() == [
            {
                "t": "broadcast",
                "room": scope,
                "from": {"session": sender.session, "user": sender.device.user},
                "event": f"event {number % 3}",
                "payload": number,
            }
            for number in range(100)
        ]
    for stream in (sender, outside):
        stream.ping()
        assert stream.heard() == []
    assert {frame["t"] for frame in outside.frames} <= {"welcome", "changes", "pong"}


def test_everybody_may_broadcast_at_once(company: tuple[str, list[Stream]]) -> None:
    """Broadcasts of several senders reach each of the others exactly once, those of one sender in order."""
    scope, streams = company
    inside = streams[:3]

    def send(stream: Stream) -> None:
        for number in range(80):
            stream.broadcast(scope, number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(send, inside))
    for stream in inside:
        others = {other.session for other in inside} - {stream.session}
        for _ in stream.incoming(10):
            if len(stream.heard()) >= 160:
                break
        stream.ping()
        assert {frame["from"]["session"] for frame in stream.heard()} == others
        for other in others:
            assert [f["payload"] for f in stream.heard() if f["from"]["session"] == other] == list(range(80))


def test_tabs_of_the_sender_are_others(service: Service) -> None:
    """Another tab of the sender's own user hears the broadcast, the sending one does not."""
    scope, (device,) = enrolled(service, 1)
    with welcomed(device, device) as (one, two):
        one.join(scope)
        two.join(scope)
        one.broadcast(scope, "tab")
        assert two.hear("tab")["from"] == {"session": one.session, "user": device.user}
        one.ping()
        assert one.heard() == []


def test_a_broadcast_stays_in_its_room(company: tuple[str, list[Stream]]) -> None:
    """A broadcast in one room is not heard in another one of the same scope."""
    scope, (sender, one, two, _) = company
    sender.join(f"{scope}/a")
    one.join(f"{scope}/a")
    sender.broadcast(f"{scope}/a", "below")
    sender.broadcast(scope, "above")
    two.hear("above")
    one.hear("above")
    assert [frame["room"] for frame in one.heard()] == [f"{scope}/a", scope]
    assert [frame["payload"] for frame in two.heard()] == ["above"]


def test_who_has_left_hears_nothing(company: tuple[str, list[Stream]]) -> None:
    """After leaving a room no broadcast of it comes; whoever is still in hears on."""
    scope, (sender, one, two, _) = company
    one.send({"t": "leave", "room": scope})
    one.ping()
    heard = len(one.frames)
    sender.broadcast(scope, "after")
    two.hear("after")
    one.ping()
    assert [frame["t"] for frame in one.frames[heard:]] == ["pong"]


def test_a_broadcast_is_never_stored(company: tuple[str, list[Stream]]) -> None:
    """Who joins later does not hear what was said before."""
    scope, (sender, one, _, outside) = company
    sender.broadcast(scope, "before")
    one.hear("before")
    outside.join(scope)
    sender.broadcast(scope, "now")
    outside.hear("now")
    assert [frame["payload"] for frame in outside.heard()] == ["now"]


@pytest.fixture(scope="module")
def two_ends(unlimited: Running) -> Iterator[tuple[str, Stream, Stream]]:
    """A room, and two in it, where no rate is limited."""
    scope, devices = enrolled(unlimited.service, 2)
    with welcomed(*devices) as (one, two):
        one.join(scope)
        two.join(scope)
        yield scope, one, two


@given(payload=ANY_JSON, event=st.from_regex(r"(?s:.{1,64})", fullmatch=True))
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_any_payload_comes_as_it_was_sent(two_ends: tuple[str, Stream, Stream], payload: object, event: str) -> None:
    """Any JSON, whatever its numbers, texts and nesting, comes as it was sent, under its event."""
    room, one, two = two_ends
    one.broadcast(room, payload, event)
    frame = two.until("broadcast")
    assert (frame["event"], json.dumps(frame["payload"])) == (event, json.dumps(payload))


@pytest.mark.parametrize("event", [None, 7, True, [], {}, "", "e" * 65, ...])
def test_a_broadcast_needs_an_event(company: tuple[str, list[Stream]], event: object) -> None:
    """A broadcast whose event is missing, no text, empty or longer than 64 is refused and reaches nobody."""
    scope, (sender, one, _, _) = company
    frame = {"t": "broadcast", "room": scope, "event": event, "payload": 1}
    error = sender.refusal({name: value for name, value in frame.items() if value is not ...})
    assert error["code"] == "malformed"
    sender.broadcast(scope, "good")
    one.hear("good")
    assert len(one.heard()) == 1


def test_a_payload_left_out_is_null(company: tuple[str, list[Stream]]) -> None:
    """A broadcast may do without a payload."""
    scope, (sender, one, _, _) = company
    sender.send({"t": "broadcast", "room": scope, "event": "bell"})
    assert one.until("broadcast")["payload"] is None


def test_a_payload_too_large_reaches_nobody(company: tuple[str, list[Stream]]) -> None:
    """A payload of 16 KiB is sent on; one byte more is refused as `too_large`."""
    scope, (sender, one, _, _) = company
    fits = "x" * (16 * 1024 - 2)
    error = sender.refusal({"t": "broadcast", "room": scope, "event": "e", "payload": fits + "x"})
    assert (error["code"], error["room"]) == ("too_large", scope)
    sender.broadcast(scope, fits)
    one.hear(fits)
    assert len(one.heard()) == 1


@pytest.fixture(scope="module")
def slow_rooms(launch: Launcher) -> Service:
    """A service that lets few broadcasts through."""
    return launch(env={"TIDEMARK_BROADCAST_RATE": "10", "TIDEMARK_ROOM_RATE": "25"}).service


def listen(stream: Stream, last: int, voices: set[tuple[str, str]], started: float) -> float:
    """Read until the last broadcast of each (session, event) has come; seconds since `started`."""
    waiting = set(voices)
    for frame in stream.incoming(20):
        if frame["t"] == "broadcast" and frame["payload"] == last:
            waiting.discard((frame["from"]["session"], frame["event"]))
        if not waiting:
            return time.monotonic() - started
    raise AssertionError(f"the last never came of {waiting}")


def test_above_the_rate_the_latest_arrives(slow_rooms: Service) -> None:
    """Above a stream's rate the latest of each event is sent in time, and few before it; others are not held up."""
    scope, devices = enrolled(slow_rooms, 3)
    with welcomed(*devices) as (loud, quiet, listener):
        for stream in (loud, quiet, listener):
            stream.join(scope)
        started = time.monotonic()
        for number in range(200):
            loud.broadcast(scope, number, event="cursor" if number % 2 else "typing")
        loud.broadcast(scope, 200, event="cursor")
        loud.broadcast(scope, 200, event="typing")
        for number in range(3):
            quiet.broadcast(scope, f"quiet {number}")
        listener.hear("quiet 2", seconds=3)
        took = listen(listener, 200, {(loud.session, "cursor"), (loud.session, "typing")}, started)
        assert_in_order_of(listener, loud)
        loudly = [frame for frame in listener.heard() if frame["from"]["session"] == loud.session]
        assert len(loudly) <= 20 + 10 * took + 5
        assert [f["payload"] for f in listener.heard() if f["from"]["session"] == quiet.session] == [
            f"quiet {number}" for number in range(3)
        ]
        assert took < 5


def assert_in_order_of(listener: Stream, sender: Stream) -> None:
    """What one sender said of each event came in order."""
    heard: dict[str, list[int]] = {}
    for frame in listener.heard():
        if frame["from"]["session"] == sender.session:
            heard.setdefault(frame["event"], []).append(frame["payload"])
    for payloads in heard.values():
        assert payloads == sorted(set(payloads))


def test_above_a_rooms_rate_the_latest_of_each_sender_arrives(slow_rooms: Service) -> None:
    """Above a room's rate, none of whose senders is above its own, the latest of each sender and event arrives."""
    scope, devices = enrolled(slow_rooms, 9)
    with welcomed(*devices) as (listener, *senders):
        listener.join(scope)
        for stream in senders:
            stream.join(scope)
        started = time.monotonic()
        for number in range(16):
            for stream in senders:
                stream.broadcast(scope, number)
        took = listen(listener, 15, {(stream.session, "e") for stream in senders}, started)
        for stream in senders:
            assert_in_order_of(listener, stream)
        assert len(listener.heard()) <= 50 + 25 * took + 5
        assert took < 5


def test_rooms_have_rates_of_their_own(slow_rooms: Service) -> None:
    """A room above its rate, where a hundred broadcasts wait, does not hold up another one of the same scope."""
    scope, devices = enrolled(slow_rooms, 12)
    with welcomed(*devices) as (calm, listener, *senders):
        for stream in senders:
            stream.join(scope)
        calm.join(f"{scope}/calm")
        listener.join(f"{scope}/calm")
        for number in range(16):
            for stream in senders:
                stream.broadcast(scope, "noise", event=f"noise {number}")
        for stream in senders:
            stream.ping()
        calm.broadcast(f"{scope}/calm", "calm")
        listener.hear("calm", seconds=2)
        assert [frame["payload"] for frame in listener.heard()] == ["calm"]


@pytest.mark.parametrize("way", ["leaves", "ends", "is expelled"])
def test_who_goes_takes_along_what_waits(slow_rooms: Service, way: str) -> None:
    """What waits for its turn when its sender goes is not heard after the sender has left."""
    scope, devices = enrolled(slow_rooms, 2)
    with welcomed(*devices) as (loud, listener):
        loud.join(scope)
        room = listener.join(scope)
        room.sees(loud.session, listener.session)
        for number in range(100):
            loud.broadcast(scope, number)
        loud.ping()
        if way == "leaves":
            loud.send({"t": "leave", "room": scope})
        elif way == "ends":
            loud.connection.close()
        else:
            slow_rooms.admin().expel(scope, loud.device.user)
        room.sees(listener.session)
        heard = len(listener.heard())
        for _ in listener.incoming(1):
            pass
        assert len(listener.heard()) == heard
