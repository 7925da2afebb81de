"""Readers that stop reading and clients that stop answering (SPEC section 6)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Ping, Request, TextMessage

from tests.contract.client import Device, Service
from tests.contract.conftest import Launcher, Running
from tests.contract.stream import Follower, Stream, following


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


def test_a_client_that_answers_pings_stays(lively: Service) -> None:
    """A client that answers pings, and says nothing else, stays connected past two heartbeats."""
    with Stream(lively.device()) as stream:
        assert stream.welcome()["heartbeat"] == 1
        assert all(frame["t"] == "changes" for frame in stream.incoming(4))
        stream.ping()


def stalled(device: Device) -> Stream:
    """A stream whose client has stopped reading, with a small buffer."""
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
        done = pool.submit(write, device)
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
        sleeper.connection.close()


def write(device: Device) -> int:
    """Overwrite ten notes again and again with 14 MB in all; the last version."""
    rows = [device.put("notes", title="n") for _ in range(10)]
    device.apply(*rows)
    version = 0
    for number in range(40):
        pair = (rows[number % 10], rows[(number + 1) % 10])
        results = device.apply(*(device.patch("notes", row["row"], body=str(number) * 100_000) for row in pair))
        version = results[-1]["version"]
    return version
