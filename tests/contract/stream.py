"""A websocket client of the stream for the contract suite (SPEC section 6)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from tests.contract.client import SCHEMA, Device, Json, Service
from tests.contract.replica import MustPull, Replica

SUBPROTOCOL = Subprotocol("tidemark.v1")


def open_socket(service: Service, *, origin: str | None = None, query: str = "", **options: Any) -> ClientConnection:
    """A bare connection that has not said hello."""
    connection = connect(
        service.stream_url + query,
        subprotocols=[SUBPROTOCOL],
        origin=None if origin is None else Origin(origin),
        compression=None,
        proxy=None,
        max_size=None,
        close_timeout=2,
        ping_interval=None,
        legacy=True,
        **{"max_queue": None} | options,
    )
    assert isinstance(connection, ClientConnection)
    return connection


def close_frame(connection: ClientConnection, seconds: float = 10) -> Close | None:
    """How the service closes, reading whatever comes before; None if it does not close in time."""
    deadline = time.monotonic() + seconds
    try:
        while (left := deadline - time.monotonic()) > 0:
            connection.recv(timeout=left)
    except TimeoutError:
        return None
    except ConnectionClosed as closed:
        return closed.rcvd
    return None


def close_code(connection: ClientConnection, seconds: float = 10) -> int | None:
    """The code the service closes with; None if it does not close in time."""
    closed = close_frame(connection, seconds)
    return None if closed is None else closed.code


class Stream:
    """A connection of one device; every frame it reads is kept in `frames`."""

    def __init__(self, device: Device, watermark: dict[str, str] | None = None, **options: Any) -> None:
        hello = {name: options.pop(name) for name in ("scopes", "token", "schema") if name in options}
        self.device = device
        self.frames: list[Json] = []
        self.session = ""
        self.connection = open_socket(device.service, **options)
        self.send(
            {
                "t": "hello",
                "token": device.token,
                "client": device.client,
                "schema": SCHEMA,
                "watermark": watermark or {},
            }
            | hello
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.connection.close()

    def send(self, frame: Json | str | bytes) -> None:
        """Send a frame, or raw text or bytes as they are."""
        self.connection.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    def receive(self, seconds: float = 10) -> Json:
        """The next frame; TimeoutError if none comes."""
        text = self.connection.recv(timeout=seconds)
        assert isinstance(text, str), "the service sent a binary frame"
        frame: Json = json.loads(text)
        self.frames.append(frame)
        if "clock" in frame:
            self.device.clock.advance(frame["clock"])
        return frame

    def incoming(self, seconds: float) -> Iterator[Json]:
        """Frames as they come, until `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                yield self.receive(left)
            except TimeoutError:
                return

    def until(self, kind: str, seconds: float = 10, where: Callable[[Json], bool] = lambda _: True) -> Json:
        """The next frame of a kind that satisfies `where`, reading over others."""
        for frame in self.incoming(seconds):
            if frame["t"] == kind and where(frame):
                return frame
        raise AssertionError(f"no {kind} frame within {seconds} s; came: {[frame['t'] for frame in self.frames]}")

    def welcome(self) -> Json:
        """The answer to hello."""
        frame = self.receive()
        assert frame["t"] == "welcome", frame
        self.session = frame["session"]
        return frame

    def change(self, row: str, seconds: float = 10) -> Json:
        """The change of `row` in the next `changes` frame that holds it."""
        frame = self.until("changes", seconds, lambda frame: any(item["row"] == row for item in frame["changes"]))
        found: Json = next(item for item in frame["changes"] if item["row"] == row)
        return found

    def ping(self, number: int | str = 1) -> Json:
        """A round trip: everything the service sent before its pong has been read."""
        self.send({"t": "ping", "n": number})
        return self.until("pong", where=lambda frame: frame["n"] == number)

    def rows(self) -> set[str]:
        """All rows seen in `changes` frames so far."""
        return {change["row"] for frame in self.frames if frame["t"] == "changes" for change in frame["changes"]}

    def close_code(self, seconds: float = 10) -> int | None:
        """The code the service closes with."""
        return close_code(self.connection, seconds)

    def join(self, room: str, **state: Any) -> Room:
        """Join a room, which must succeed; `state=…` is shown from the start."""
        self.send({"t": "join", "room": room} | state)
        for frame in self.incoming(10):
            assert frame["t"] != "error", frame
            if frame["t"] == "presence" and frame["room"] == room and "members" in frame:
                return Room(self, room)
        raise AssertionError(f"no members of {room} came")

    def refusal(self, frame: Json) -> Json:
        """The error that answers a frame, after which the connection still lives."""
        self.send(frame)
        error = self.until("error")
        self.ping()
        return error

    def broadcast(self, room: str, payload: Any, event: str = "e") -> None:
        """Send a broadcast."""
        self.send({"t": "broadcast", "room": room, "event": event, "payload": payload})

    def heard(self, room: str | None = None) -> list[Json]:
        """All broadcasts read so far, of one room or of all."""
        return [frame for frame in self.frames if frame["t"] == "broadcast" and room in (None, frame["room"])]

    def hear(self, payload: object, seconds: float = 10) -> Json:
        """The next broadcast that carries `payload`."""
        return self.until("broadcast", seconds, where=lambda frame: bool(frame["payload"] == payload))

    def cut(self) -> None:
        """End the connection without a word of the websocket protocol."""
        self.connection.socket.shutdown(socket.SHUT_RDWR)


class Room:
    """A room as one session sees it: the fold of its presence frames, each of which must fit those before.

    It begins with the frame read last, which answered the join with all members.
    """

    def __init__(self, stream: Stream, name: str) -> None:
        self.stream = stream
        self.name = name
        self.members: dict[str, Json] = {}
        self._folded = len(stream.frames) - 1

    def look(self) -> dict[str, Json]:
        """Who is in, after all frames read so far."""
        for frame in self.stream.frames[self._folded :]:
            if frame["t"] == "presence" and frame["room"] == self.name:
                self._take(frame)
        self._folded = len(self.stream.frames)
        return self.members

    def _take(self, frame: Json) -> None:
        assert frame.keys() <= {"t", "room", "members", "joined", "changed", "left"}, frame
        for member in [*frame.get("members", {}).values(), *frame.get("joined", {}).values()]:
            assert member.keys() == {"user", "state"}, frame
        if "members" in frame:
            self.members = dict(frame["members"])
        joined, changed, left = frame.get("joined", {}), frame.get("changed", {}), frame.get("left", [])
        assert "members" in frame or joined or changed or left, frame
        assert len({*joined, *changed, *left}) == len(joined) + len(changed) + len(left), f"named twice: {frame}"
        assert not joined.keys() & self.members.keys(), f"joined, and was in: {frame}"
        self.members |= joined
        for session, member in changed.items():
            assert session in self.members, f"changed, and was not in: {frame}"
            assert member["user"] == self.members[session]["user"], frame
        self.members |= changed
        assert self.members.keys() >= set(left), f"left, and was not in: {frame}"
        for session in left:
            del self.members[session]

    def until(self, holds: Callable[[dict[str, Json]], bool], seconds: float = 10) -> dict[str, Json]:
        """Read until the picture satisfies `holds`."""
        if holds(self.look()):
            return self.members
        for _ in self.stream.incoming(seconds):
            if holds(self.look()):
                return self.members
        raise AssertionError(f"after {seconds} s {self.stream.session} sees in {self.name}: {self.members}")

    def sees(self, *sessions: str, seconds: float = 10) -> dict[str, Json]:
        """Read until exactly these sessions are in."""
        return self.until(lambda members: members.keys() == set(sessions), seconds)


class Follower:
    """A replica that follows by stream, and pulls when the rules for applying runs tell it to."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.replica = Replica()
        self.ends: dict[str, int] = {}
        self.behind = 0
        self.groups: list[Json] = []

    def take(self, frame: Json) -> None:
        """Apply one frame; a `changes` frame must begin where the one before it ended."""
        if frame["t"] == "changes":
            scope = frame["scope"]
            assert frame["from"] == self.ends.get(scope, frame["from"]), "a gap or a repetition"
            self.ends[scope] = frame["to"]
            try:
                self.replica.apply(frame, asked=False)
            except MustPull:
                self.replica.pull(self.stream.device, scopes=[scope])
        elif frame["t"] == "behind":
            self.behind += 1
            self.ends[frame["scope"]] = frame["head"]
            self.replica.pull(self.stream.device, scopes=[frame["scope"]])
            assert self.replica.copy(frame["scope"]).to >= frame["head"]

    def reach(self, scope: str, version: int, seconds: float = 30) -> None:
        """Follow until the replica has `version` of `scope`."""
        if self.replica.copy(scope).to >= version:
            return
        for frame in self.stream.incoming(seconds):
            self.take(frame)
            if self.replica.copy(scope).to >= version:
                return
        raise AssertionError(f"{scope} stands at {self.replica.copy(scope).to}, not at {version}")


@contextmanager
def welcomed(*devices: Device, **options: Any) -> Iterator[list[Stream]]:
    """A stream of each device, all welcomed; they end together."""
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(device, **options)) for device in devices]
        for stream in streams:
            stream.welcome()
        yield streams


@contextmanager
def following(device: Device, **options: Any) -> Iterator[Follower]:
    """A follower that has been welcomed."""
    with Stream(device, **options) as stream:
        stream.welcome()
        yield Follower(stream)


def overwrite(device: Device) -> int:
    """Overwrite ten notes again and again with 14 MB in all; the last version."""
    rows = [device.put("notes", title="n") for _ in range(10)]
    device.apply(*rows)
    version = 0
    for number in range(40):
        pair = (rows[number % 10], rows[(number + 1) % 10])
        results = device.apply(*(device.patch("notes", row["row"], body=str(number) * 100_000) for row in pair))
        version = results[-1]["version"]
    return version
