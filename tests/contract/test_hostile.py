"""Hostile payloads against every route: never a 5xx, never a hang, and the service still serves (SPEC section 7)."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed

from tests.contract import hostile
from tests.contract.client import Device, Json, Service
from tests.contract.replica import Replica
from tests.contract.stream import Stream, open_socket

PATIENCE = 5.0


@pytest.fixture
def device(service: Service) -> Iterator[Device]:
    """A user whose scope must still be served and proved by digest when the test is over."""
    device = service.device()
    device.apply(device.put("notes", title="before"))
    yield device
    after = device.put("notes", title="after")
    (result,) = device.push(after)
    assert result["status"] == "applied", result
    replica = Replica()
    replica.pull(device)
    assert ("notes", after["row"]) in replica.docs(device.scope)
    assert replica.proved


def assault(send: Callable[[str | bytes], httpx2.Response], bodies: Iterator[str | bytes]) -> int:
    """Send all bodies; how many there were. Each is answered in time, without a fault of the server, in good JSON."""
    count, faults = 0, []
    for body in bodies:
        count += 1
        started = time.monotonic()
        response = send(body)
        assert time.monotonic() - started < PATIENCE, body[:300]
        if response.status_code >= 500:
            faults.append((response.status_code, body[:400]))
        elif response.status_code == 200:
            assert isinstance(response.json(), dict)
        elif response.content:
            assert response.headers["content-type"].startswith("application/problem+json")
            assert response.json()["status"] == response.status_code
    assert not faults
    return count


def encoded(texts: Iterator[str]) -> Iterator[bytes]:
    """Texts as they travel."""
    return (text.encode() for text in texts)


@pytest.mark.parametrize("path", ["/sync/push", "/sync/pull"])
def test_bodies_of_every_kind(device: Device, path: str) -> None:
    """Bodies that are no JSON, odd JSON, or no UTF-8 are refused."""
    bodies = itertools.chain(encoded(iter(hostile.BODIES)), hostile.RAW)
    assert assault(lambda body: device.post(path, body), bodies) > 100


def fill(device: Device, path: str, bodies: Iterable[Json]) -> int:
    """Post every body with its hole filled by every value; how many there were."""
    filled = itertools.chain.from_iterable(hostile.filled(body, hostile.VALUES) for body in bodies)
    return assault(lambda text: device.post(path, text), encoded(filled))


@pytest.mark.parametrize("part", range(6))
def test_pushes_with_odd_values(service: Service, device: Device, part: int) -> None:
    """A push with any value in any place is answered, and what it applied can be pulled (I15)."""
    holes = hostile.push_holes(device, service.workspace(editor=device))
    assert fill(device, "/sync/push", [holes[name] for name in sorted(holes)[part::6]]) > 200


def test_patches_with_odd_values(device: Device) -> None:
    """A patch or delete with any value in any place is answered, and what it applied can be pulled."""
    sample = device.put("samples")
    device.apply(sample)
    assert fill(device, "/sync/push", hostile.patch_holes(device, sample["row"]).values()) > 200


def test_pulls_with_odd_values(device: Device) -> None:
    """A pull with any value in any place is answered."""
    assert fill(device, "/sync/pull", hostile.pull_holes(device).values()) > 200


def test_memberships_with_odd_bodies(service: Service, device: Device) -> None:
    """A PUT of a member with any body or role is answered."""
    admin = service.admin()
    path = admin.members_path(service.workspace(owner=device), "friend")
    headers = admin.headers | {"Content-Type": "application/json"}
    roles = hostile.filled({"role": "@@"}, hostile.VALUES)
    bodies = itertools.chain(encoded(roles), encoded(iter(hostile.BODIES)), hostile.RAW)
    assert assault(lambda body: service.http.put(path, content=body, headers=headers), bodies) > 200


def paths() -> Iterator[str]:
    """Odd parts of a path or query, percent-encoded byte by byte."""
    texts = [json.loads(f'"{text}"') for text in hostile.STRINGS if len(text) < 2_000]
    for text in texts:
        with suppress(UnicodeEncodeError):
            yield "".join(f"%{byte:02X}" for byte in text.encode())
    yield from ("%FF", "%C3%28", "%ED%A0%80", "%", "%zz", "%2e%2e%2f", "a%0d%0ax: y")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_odd_scopes_and_users_in_paths(service: Service, device: Device, method: str) -> None:
    """Any scope or user in a path is answered, by an operator too."""
    admin = service.admin()

    def send(path: str | bytes) -> httpx2.Response:
        content = b'{"role": "viewer"}' if method == "PUT" else None
        headers = admin.headers | ({"Content-Type": "application/json"} if content else {})
        return service.http.request(method, str(path), content=content, headers=headers)

    tails = (f"/{part}" for part in paths())
    scope = service.workspace(owner=device)
    targets = [f"/sync/scopes/{part}/members" for part in paths()]
    targets += [f"/sync/scopes/workspace:{part}/members/somebody" for part in paths()]
    targets += [f"/sync/scopes/{scope}/members{tail}" for tail in tails]
    assert assault(send, iter(targets)) > 90


@pytest.mark.parametrize(
    "name", ["scope", "entity", "row", "user", "client", "outcome", "after", "before", "order", "limit", "odd"]
)
def test_odd_questions_to_the_journal(service: Service, device: Device, name: str) -> None:
    """Any value of any parameter of the journal is answered."""

    def send(part: str | bytes) -> httpx2.Response:
        return service.http.get(f"/sync/events?{name}={part!s}", headers=device.headers)

    assert assault(send, paths()) > 30


@pytest.mark.parametrize("name", ["Authorization", "Accept", "Accept-Encoding", "Content-Type", "If-None-Match"])
def test_odd_headers(service: Service, device: Device, name: str) -> None:
    """Any value of a header is answered."""
    values = [
        b"",
        b",",
        b";q=x",
        b"Bearer " + b"a" * 5_000,
        b"\xff\xfe",
        b"a/b;c",
        b"*/*;q=0",
        b"gzip;q=2, *;q=-1",
        b'"',
        b"W/",
    ]

    def send(value: str | bytes) -> httpx2.Response:
        assert isinstance(value, bytes)
        good = {"Content-Type": "application/json"} | device.headers
        fields = [(header.encode(), text.encode()) for header, text in good.items() if header != name]
        fields.append((name.encode(), value))
        return service.http.post("/sync/pull", content=json.dumps(device.pull_body()), headers=fields)

    assert assault(send, iter(values)) == len(values)


def frames(device: Device) -> Iterator[str]:
    """Frames with any value in any place."""
    shapes: list[Json] = [
        {"t": "@@"},
        {"t": "ping", "n": "@@"},
        {"t": "auth", "token": "@@"},
        {"t": "follow", "scopes": "@@"},
        {"t": "follow", "scopes": ["@@"], "watermark": {}},
        {"t": "follow", "scopes": [device.scope], "watermark": {device.scope: "@@"}},
        {"t": "unfollow", "scopes": ["@@"]},
        {"t": "push", "id": "@@", "schema": 3, "mutations": []},
        {"t": "push", "id": "p", "schema": "@@", "mutations": []},
        {"t": "push", "id": "p", "schema": 3, "mutations": ["@@"]},
        {"t": "push", "id": "p", "schema": 3, "mutations": [{"seq": 1} | device.put("notes", fields={"title": "@@"})]},
        {"t": "join", "room": "@@", "state": "@@"},
        {"t": "broadcast", "room": device.scope, "event": "@@", "payload": "@@"},
    ]
    for shape in shapes:
        yield from hostile.filled(shape, hostile.VALUES)


def assert_closed_by_protocol(closed: ConnectionClosed, text: str) -> None:
    """A stream may be closed for what it was sent, never for a fault of the server."""
    assert closed.rcvd is not None, text[:300]
    assert closed.rcvd.code in {4400, 4401, 4409, 4413, 4429}, (closed.rcvd, text[:300])


def test_odd_frames(device: Device) -> None:
    """Any frame is answered or closes the stream for a reason of the protocol."""
    stream: Stream | None = None
    count = 0
    for count, text in enumerate(frames(device), 1):
        if stream is None:
            stream = Stream(device)
            stream.welcome()
        try:
            stream.send(text)
            stream.ping(count)
        except ConnectionClosed as closed:
            assert_closed_by_protocol(closed, text)
            stream = None
    if stream is not None:
        stream.connection.close()
    assert count > 500


def test_odd_hellos(service: Service, device: Device) -> None:
    """Any first frame is welcomed, or closes the stream for a reason of the protocol."""
    good = {"t": "hello", "token": device.token, "client": device.client, "schema": 3, "watermark": {}}
    for name in ("t", "token", "client", "schema", "watermark", "scopes", "odd"):
        for text in hostile.filled(good | {name: "@@"}, hostile.VALUES[::3]):
            with open_socket(service) as connection:
                connection.send(text)
                try:
                    first = json.loads(connection.recv(timeout=PATIENCE))
                    assert first["t"] == "welcome" or first["code"] == "schema_mismatch", text[:300]
                except ConnectionClosed as closed:
                    assert_closed_by_protocol(closed, text)


def test_an_unfinished_request_does_not_hold_others(service: Service, device: Device) -> None:
    """Requests that never end do not keep others from being answered."""
    host, port = service.address
    head = f"POST /sync/push HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {device.token}\r\n"
    sockets = [socket.create_connection((host, port)) for _ in range(20)]
    for number, connection in enumerate(sockets):
        connection.sendall((head + ("Content-Length: 100000\r\n\r\n{" if number % 2 else "")).encode())
    started = time.monotonic()
    device.apply(device.put("notes", title="t"))
    assert time.monotonic() - started < PATIENCE
    for connection in sockets:
        connection.close()
