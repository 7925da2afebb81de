"""Readers that stop reading, clients that stop answering, and what is more than allowed (SPEC section 6)."""

from __future__ import annotations

import json
import re
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Ping, Request, TextMessage

from tests.contract.client import Device, Service
from tests.contract.conftest import Launcher, Running
from tests.contract.stream import Follower, Room, Stream, close_frame, following, overwrite, welcomed


class Bare:
    """A websocket that answers nothing by itself, not even pings."""

    def __init__(self, service: Service) -> None:
        host, port = service.address
        self.socket = socket.create_connection((host, port), timeout=10)
        self.ws = WSConnection(ConnectionType.CLIENT)
        request = Request(host=f"{host}:{port}", target="/sync/stream", subprotocols=["tidemark.v1"])
        self.socket.sendall(self.ws.send(request))

    def events(self, seconds: float) -> Iterator[Event]:
        """What arrives within `seconds`, until the other side hangs up."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65_536)
            except TimeoutError:
                return
            except ConnectionError:
                data = b""
            self.ws.receive_data(data or None)
            yield from self.ws.events()
            if not data:
                return

    def hello(self, device: Device) -> None:
        """Wait for the handshake and say hello."""
        next(event for event in self.events(5) if isinstance(event, AcceptConnection))
        frame = {"t": "hello", "token": device.token, "client": device.client, "schema": 3, "watermark": {}}
        self.socket.sendall(self.ws.send(TextMessage(data=json.dumps(frame))))


@pytest.fixture(scope="module")
def lively(launch: Launcher) -> Service:
    """A service with a heartbeat of one second."""
    return launch(env={"TIDEMARK_HEARTBEAT": "1s"}).service


@pytest.mark.databases("sqlite")
def test_a_silent_client_is_pinged_and_then_closed(lively: Service) -> None:
    """A client that answers nothing is pinged after a heartbeat and gone after two."""
    bare = Bare(lively)
    bare.hello(lively.device())
    started = time.monotonic()
    seen = [(time.monotonic() - started, event) for event in bare.events(10)]
    ended = time.monotonic() - started
    bare.socket.close()
    pings = [when for when, event in seen if isinstance(event, Ping)]
    assert pings
    assert 0.5 <= pings[0] <= 3
    assert any(isinstance(event, CloseConnection) for _, event in seen)
    assert 1.5 <= ended <= 6


@pytest.mark.databases("sqlite")
def test_a_client_that_answers_pings_stays(lively: Service) -> None:
    """A client that answers pings, and says nothing else, stays connected past two heartbeats."""
    with Stream(lively.device()) as stream:
        assert stream.welcome()["heartbeat"] == 1
        assert all(frame["t"] == "changes" for frame in stream.incoming(4))
        stream.ping()


def stalled(device: Device) -> Stream:
    """A stream whose client reads nothing beyond what it asks for, with a small buffer."""
    host, port = device.service.address
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    narrow.connect((host, port))
    return Stream(device, sock=narrow, max_queue=1)


def test_a_reader_that_stops_reading_is_told_behind(running: Running) -> None:
    """A reader too slow for its buffer gets `behind` for what it missed, and follows on; others are not held up."""
    # Invariant (I40).
    device = running.service.device()
    before = running.resident
    sleepers = [stalled(device) for _ in range(6)]
    with following(device.again()) as awake, ThreadPoolExecutor(1) as pool:
        for sleeper in sleepers:
            sleeper.welcome()
        done = pool.submit(overwrite, device)
        version = done.result(timeout=60)
        awake.reach(device.scope, version)
        expected = awake.replica.docs(device.scope)
    assert running.resident - before < 150 * 2**20
    for sleeper in sleepers[:2]:
        follower = Follower(sleeper)
        (result,) = device.apply(device.put("notes", title="after"))
        follower.reach(device.scope, result["version"])
        assert follower.behind
        assert follower.replica.docs(device.scope).items() >= expected.items()
    for sleeper in sleepers:
        sleeper.cut()


@dataclass
class Flood:
    """Broadcasts poured into a room, and how an awake reader fares meanwhile."""

    running: Running
    room: str
    source: Stream
    reader: Stream

    def pour(self, megabytes: int) -> tuple[int, float]:
        """Send so much; the service's resident memory at its highest, and the median seconds to the reader.

        No more is under way at a time than an awake reader's buffer holds.
        """
        peak, took = 0, []
        for number in range(4 * megabytes):
            for _ in range(16):
                self.source.broadcast(self.room, "x" * 16_000)
            sent = time.monotonic()
            self.source.broadcast(self.room, number, event="mark")
            self.reader.hear(number)
            took.append(time.monotonic() - sent)
            self.reader.frames.clear()
            peak = max(peak, self.running.resident)
        return peak, statistics.median(took)


@pytest.mark.databases("sqlite")
def test_a_reader_that_stops_reading_costs_little(unlimited: Running) -> None:
    """While 100 MB flow in their room, readers that do not read cost less than 1 MiB each and hold up nobody (I40)."""
    device = unlimited.service.device()
    with ExitStack() as stack:
        source, reader = (stack.enter_context(Stream(device)) for _ in range(2))
        for stream in (source, reader):
            stream.welcome()
            stream.join(device.scope)
        flood = Flood(unlimited, device.scope, source, reader)
        flood.pour(20)
        before, alone = flood.pour(100)
        sleepers = [stack.enter_context(stalled(device)) for _ in range(10)]
        for sleeper in sleepers:
            sleeper.welcome()
            sleeper.join(device.scope)
        after, beside = flood.pour(100)
        for sleeper in sleepers:
            sleeper.cut()
        assert (after - before) / len(sleepers) < 2**20
        assert beside < 2 * alone + 0.05


@pytest.mark.databases("sqlite")
def test_a_slow_reader_is_given_the_picture_of_its_rooms(unlimited: Running) -> None:
    """A reader that reads on gets `behind` for its scopes and all members of its rooms in place of what it missed."""
    device = unlimited.service.device()
    with stalled(device) as sleeper, welcomed(device, device) as (source, other):
        sleeper.welcome()
        room = sleeper.join(device.scope)
        rooms = [stream.join(device.scope, state="before") for stream in (source, other)]
        rooms[0].sees(sleeper.session, source.session, other.session)
        version = overwrite(device)
        for number in range(2_000):
            source.send({"t": "presence", "room": device.scope, "state": str(number) * 800})
            source.broadcast(device.scope, f"{number:04}" + "x" * 15_000)
        source.send({"t": "presence", "room": device.scope, "state": "after"})
        other.send({"t": "leave", "room": device.scope})
        source.ping()
        follower = Follower(sleeper)
        follower.reach(device.scope, version)
        assert follower.behind
        room.sees(sleeper.session, source.session)
        room.until(lambda members: members[source.session]["state"] == "after")
        heard = [frame["payload"] for frame in sleeper.heard()]
        assert heard == sorted(set(heard))
        assert len(heard) < 2_000
        whole = [frame for frame in sleeper.frames if frame["t"] == "presence" and "members" in frame]
        assert len(whole) >= 2
        source.broadcast(device.scope, "awake")
        sleeper.hear("awake")


@pytest.fixture(scope="module")
def impatient(launch: Launcher) -> Service:
    """A service that waits two seconds for a reader, and lets few in at a time."""
    env = {
        "TIDEMARK_STALL_TIMEOUT": "2s",
        "TIDEMARK_MAX_STREAMS": "6",
        "TIDEMARK_STREAMS_PER_USER": "3",
        "TIDEMARK_MAX_FRAME": "20KiB",
        "TIDEMARK_FRAME_RATE": "200",
        "TIDEMARK_BROADCAST_RATE": "0",
        "TIDEMARK_ROOM_RATE": "0",
        "TIDEMARK_RECONNECT_SPREAD": "3s",
    }
    return launch(env=env).service


@contextmanager
def let_in(*devices: Device) -> Iterator[list[Stream]]:
    """A stream of each device, welcomed once there is room for it: streams of before may just be ending."""
    with ExitStack() as stack:
        yield [stack.enter_context(until_let_in(device)) for device in devices]


def until_let_in(device: Device, seconds: float = 5) -> Stream:
    """A stream that is welcomed after as many attempts as it takes."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            stream = Stream(device)
            stream.welcome()
        except ConnectionClosed:
            assert time.monotonic() < deadline, "never let in"
        else:
            return stream


def turned_away(device: Device) -> Close | None:
    """How a stream is closed that is not let in, be it before its hello or after."""
    try:
        with Stream(device) as stream:
            return close_frame(stream.connection)
    except ConnectionClosed as closed:
        return closed.rcvd


@pytest.mark.databases("sqlite")
def test_a_reader_that_never_reads_again_is_dropped(impatient: Service) -> None:
    """A reader that takes in nothing for the stall timeout is gone from its rooms, and its connection ends."""
    device = impatient.device()
    with let_in(device) as (source,), stalled(device) as sleeper:
        sleeper.welcome()
        sleeper.join(device.scope)
        room = source.join(device.scope)
        room.sees(source.session, sleeper.session)
        pour_until_gone(source, room, sleeper.session, seconds=12)
        with pytest.raises(ConnectionClosed):
            list(sleeper.incoming(5))


def pour_until_gone(source: Stream, room: Room, session: str, seconds: float) -> None:
    """Broadcast, at half of the rate of frames, until a session is gone from a room."""
    deadline = time.monotonic() + seconds
    while session in room.look():
        assert time.monotonic() < deadline, f"still in after {seconds} s"
        for _ in range(10):
            source.broadcast(room.name, "x" * 16_000)
        list(source.incoming(0.1))


def assert_asked_to_wait(closed: Close | None, code: int, most: int = 3_000) -> None:
    """A close that asks for a pause before coming back, drawn within the spread."""
    assert closed is not None
    assert closed.code == code, closed
    asked = re.match(r"retry (\d+) ms\b", closed.reason)
    assert asked is not None, closed
    assert int(asked[1]) <= most


@pytest.mark.databases("sqlite")
def test_a_user_with_too_many_streams_is_asked_to_wait(impatient: Service) -> None:
    """A user's stream above the limit is closed with 4429 and a pause; those open stay, and a place freed is given."""
    device = impatient.device()
    with let_in(device, device, device) as streams:
        assert_asked_to_wait(turned_away(device), 4429)
        for stream in streams:
            stream.ping()
        streams[0].connection.close()
        with let_in(device):
            pass


@pytest.mark.databases("sqlite")
def test_a_full_service_asks_to_come_later(impatient: Service) -> None:
    """A stream above the process's limit is closed with 1013 and a pause; a place freed is given."""
    with let_in(*(impatient.device() for _ in range(6))) as streams:
        assert_asked_to_wait(turned_away(impatient.device()), 1013)
        for stream in streams:
            stream.ping()
        streams[0].connection.close()
        with let_in(impatient.device()):
            pass


@pytest.mark.databases("sqlite")
def test_too_many_frames_close(impatient: Service) -> None:
    """Frames above the rate close with 4429; two seconds' worth at once are answered."""
    with let_in(impatient.device()) as (stream,):
        for number in range(390):
            stream.send({"t": "ping", "n": number})
        stream.until("pong", where=lambda frame: frame["n"] == 389)
        with suppress(ConnectionClosed):
            for number in range(2_000):
                stream.send({"t": "ping", "n": number})
        assert stream.close_code() == 4429


@pytest.mark.databases("sqlite")
def test_the_size_of_a_frame_is_a_setting(impatient: Service) -> None:
    """A frame of the greatest size is answered, one byte more closes with 4413."""
    with let_in(impatient.device()) as (stream,):
        bare = len(json.dumps({"t": "ping", "n": ""}))
        assert stream.ping("x" * (20 * 1024 - bare))
        stream.send({"t": "ping", "n": "x" * (20 * 1024 - bare + 1)})
        assert stream.close_code() == 4413


@pytest.fixture(scope="module")
def cramped(launch: Launcher) -> Service:
    """A service with small rooms, and few for each stream."""
    env = {"TIDEMARK_ROOMS_PER_STREAM": "3", "TIDEMARK_ROOM_MEMBERS": "3", "TIDEMARK_ROOM_STATE": "1KiB"}
    return launch(env=env).service


@pytest.mark.databases("sqlite")
def test_a_stream_may_be_in_so_many_rooms(cramped: Service) -> None:
    """A room above the limit of a stream is refused; one left makes place for another, one joined again takes none."""
    device = cramped.device()
    names = [f"{device.scope}/{number}" for number in range(4)]
    with welcomed(device, device) as (stream, other):
        for name in names[:3]:
            stream.join(name)
        error = stream.refusal({"t": "join", "room": names[3]})
        assert (error["code"], error["room"]) == ("too_many_rooms", names[3])
        stream.join(names[0])
        other.join(names[3]).sees(other.session)
        stream.send({"t": "leave", "room": names[1]})
        stream.join(names[3]).sees(stream.session, other.session)


@pytest.mark.databases("sqlite")
def test_a_room_holds_so_many(cramped: Service) -> None:
    """A session above the limit of a room is refused, and nobody sees it; one that goes makes place."""
    device = cramped.device()
    with welcomed(*[device] * 4) as (*inside, late):
        for stream in inside:
            room = stream.join(device.scope)
        error = late.refusal({"t": "join", "room": device.scope})
        assert (error["code"], error["room"]) == ("room_full", device.scope)
        assert late.refusal({"t": "presence", "room": device.scope, "state": 1})["code"] == "not_joined"
        room.sees(*(stream.session for stream in inside))
        inside[0].connection.close()
        room.sees(*(stream.session for stream in inside[1:]))
        late.join(device.scope).sees(late.session, *(stream.session for stream in inside[1:]))


@pytest.mark.databases("sqlite")
def test_a_room_holds_so_much_state(cramped: Service) -> None:
    """A state that a room has no place for is refused, in a join and later, and changes nothing; a smaller one fits."""
    device = cramped.device()
    name = device.scope
    with welcomed(device, device, device) as (one, two, three):
        one.join(name, state="x" * 500)
        room = two.join(name, state="y" * 400)
        error = three.refusal({"t": "join", "room": name, "state": "z" * 400})
        assert (error["code"], error["room"]) == ("room_full", name)
        assert three.refusal({"t": "presence", "room": name, "state": 1})["code"] == "not_joined"
        error = two.refusal({"t": "presence", "room": name, "state": "y" * 700})
        assert (error["code"], error["room"]) == ("room_full", name)
        room.sees(one.session, two.session)
        assert room.members[two.session]["state"] == "y" * 400
        three.join(name, state="z").sees(one.session, two.session, three.session)
        two.send({"t": "presence", "room": name, "state": None})
        room.until(lambda members: members[two.session]["state"] is None)
        three.send({"t": "presence", "room": name, "state": "z" * 400})
        room.until(lambda members: members[three.session]["state"] == "z" * 400)


@pytest.mark.databases("sqlite")
def test_a_frame_may_be_larger_than_by_default(launch: Launcher) -> None:
    """Where frames may hold 3 MiB one of 3 MiB is answered, one byte more closes with 4413, twice as much with 1009."""
    device = launch(env={"TIDEMARK_MAX_FRAME": "3MiB"}).service.device()
    most = 3 * 1024 * 1024 - len(json.dumps({"t": "ping", "n": ""}))
    with Stream(device) as stream:
        stream.welcome()
        assert stream.ping("x" * most)
        stream.send({"t": "ping", "n": "x" * (most + 1)})
        assert stream.close_code() == 4413
    with Stream(device) as stream:
        stream.welcome()
        with suppress(ConnectionClosed):
            stream.send({"t": "ping", "n": "x" * (2 * most + 1_000)})
        assert stream.close_code() == 1009
