"""Opening, keeping and closing a stream (SPEC section 6)."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.contract.client import SECRET, Device, Service, fresh, token
from tests.contract.conftest import ORIGIN, Running
from tests.contract.stream import Stream, close_code, open_socket


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def hello(device: Device, **rest: Any) -> str:
    """A hello as text."""
    frame = {"t": "hello", "token": device.token, "client": device.client, "schema": 3, "watermark": {}}
    return json.dumps({name: value for name, value in (frame | rest).items() if value is not ...})


def test_a_stream_is_welcomed(service: Service, device: Device) -> None:
    """Hello is answered by welcome: a session, the user, heads by scope, what is revoked, the clock, the heartbeat."""
    scope = service.workspace(owner=device)
    (result,) = device.apply(device.put("notes", title="t"))
    with Stream(device) as stream:
        welcome = stream.welcome()
    assert welcome.keys() >= {"session", "user", "scopes", "revoked", "clock", "heartbeat"}
    assert welcome["user"] == device.user
    assert welcome["scopes"].keys() == {device.scope, scope}
    assert welcome["scopes"][device.scope] >= result["version"]
    assert (welcome["revoked"], welcome["heartbeat"] > 0) == ([], True)


def test_sessions_have_names_of_their_own(device: Device) -> None:
    """Two streams of one user are two sessions."""
    with Stream(device) as one, Stream(device) as two:
        assert one.welcome()["session"] != two.welcome()["session"]


@pytest.mark.parametrize("offered", [None, ["tidemark.v2"], ["TIDEMARK.V1"], ["chat"]])
def test_the_subprotocol_is_required(service: Service, offered: list[str] | None) -> None:
    """A handshake without the subprotocol `tidemark.v1` is a 400."""
    names = None if offered is None else [Subprotocol(name) for name in offered]
    with pytest.raises(InvalidStatus) as refused:
        connect(service.stream_url, subprotocols=names, proxy=None)
    assert refused.value.response.status_code == 400


def test_a_refused_handshake_is_no_fault_of_the_service(running: Running, device: Device) -> None:
    """Whoever calls without the subprotocol does not fill the log with errors."""
    with pytest.raises(InvalidStatus):
        connect(running.service.stream_url, proxy=None)
    with Stream(device) as stream:
        stream.welcome()
    assert "handshake" not in running.server.log.read_text(encoding="utf-8")


def test_the_subprotocol_is_chosen_among_others(service: Service) -> None:
    """A client may offer other subprotocols beside it."""
    names = [Subprotocol("other"), Subprotocol("tidemark.v1")]
    with connect(service.stream_url, subprotocols=names, proxy=None) as connection:
        assert connection.subprotocol == "tidemark.v1"


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("name", ["token", "access_token", "authorization", "jwt"])
def test_a_token_in_the_url_is_not_looked_at(service: Service, device: Device, name: str) -> None:
    """A token in the URL neither lets anybody in nor stands in the way of the one in the hello."""
    with open_socket(service, query=f"?{name}={device.token}") as connection:
        connection.send(hello(device, token="garbage"))
        assert close_code(connection) == 4401
    with Stream(device, query=f"?{name}=garbage") as stream:
        assert stream.welcome()["user"] == device.user


def test_a_stream_without_hello_is_closed(service: Service) -> None:
    """A connection that says nothing is closed with 4408 after the hello timeout."""
    with open_socket(service) as connection:
        assert close_code(connection, 8) == 4408


@pytest.mark.parametrize(
    "frame",
    ["", "{", "null", "[]", '"hello"', "7", "{}", '{"T": "hello"}', '{"t": null}', '{"t": 7}', '{"t": "ping", "n": 1}',
     '{"t": "hello"}', '{"t": "\\ud800"}', "[" * 500 + "]" * 500, b"", b'{"t": "hello"}'],
)  # fmt: skip
def test_a_first_frame_that_is_no_hello_closes(service: Service, frame: str | bytes) -> None:
    """A first frame that is no JSON, binary, without `t`, or no whole hello, closes with 4400."""
    with open_socket(service) as connection:
        connection.send(frame)
        assert close_code(connection, 8) == 4400


@pytest.mark.parametrize(
    "change",
    [
        {"client": ...},
        {"client": "no uuid"},
        {"client": 7},
        {"schema": ...},
        {"schema": "3"},
        {"schema": True},
        {"token": ...},
        {"token": 7},
        {"watermark": []},
        {"watermark": {"user:a": 7}},
        {"scopes": "user:a"},
        {"scopes": [7]},
    ],
)
def test_a_malformed_hello_closes(service: Service, device: Device, change: dict[str, Any]) -> None:
    """A hello with a key missing or of another type closes with 4400."""
    with open_socket(service) as connection:
        connection.send(hello(device, **change))
        assert close_code(connection, 8) == 4400


@pytest.mark.parametrize("kind", ["garbage", "expired", "another secret", "no sub", "no exp"])
def test_a_bad_token_closes(service: Service, device: Device, kind: str) -> None:
    """A hello with a token that is not good closes with 4401."""
    bad = {
        "garbage": "garbage",
        "expired": token(device.user, ttl=-5),
        "another secret": token(device.user, secret=SECRET.upper()),
        "no sub": token(device.user, sub=None),
        "no exp": token(device.user, exp=None),
    }[kind]
    with open_socket(service) as connection:
        connection.send(hello(device, token=bad))
        assert close_code(connection, 8) == 4401


@pytest.mark.parametrize("schema", [4, 2])
def test_another_schema_number_closes(device: Device, schema: int) -> None:
    """A hello under another schema number is answered by an error, then closed with 4409."""
    with Stream(device, schema=schema) as stream:
        assert stream.receive()["t"] == "error"
        assert stream.frames[0]["code"] == "schema_mismatch"
        assert stream.close_code() == 4409


def test_a_frame_too_large_closes(device: Device) -> None:
    """A frame above 1 MiB closes with 4413; one below is answered."""
    with Stream(device) as stream:
        stream.welcome()
        stream.send({"t": "ping", "n": 1, "filler": "x" * 1_000_000})
        stream.until("pong")
        stream.send({"t": "ping", "n": 2, "filler": "x" * (2**20)})
        assert stream.close_code() == 4413


@pytest.mark.parametrize("frame", ["no json", "[]", "{}", b"binary", '{"t": "ping", "n": "\\ud800"}'])
def test_what_is_no_frame_closes_at_any_time(device: Device, frame: str | bytes) -> None:
    """After the welcome too, text that is no JSON object with `t`, and binary, close with 4400."""
    with Stream(device) as stream:
        stream.welcome()
        stream.send(frame)
        assert stream.close_code() == 4400


@pytest.mark.parametrize(
    "frame",
    [
        {"t": "dance"},
        {"t": "welcome"},
        {"t": "follow", "scopes": "user:a"},
        {"t": "follow"},
        {"t": "unfollow", "scopes": [7]},
        {"t": "push", "id": "p", "schema": 3, "mutations": "none"},
        {"t": "push", "id": "p", "schema": 3},
        {"t": "push", "id": "p", "schema": 3, "mutations": [{"op": "put"}]},
        {"t": "auth"},
        {"t": "auth", "token": 7},
        {"t": "auth", "token": "garbage"},
        {"t": "broadcast", "room": "workspace:nowhere", "event": "e", "payload": 1},
        {"t": "presence", "room": "workspace:nowhere", "state": {}},
    ],
)
def test_a_frame_with_wrong_fields_is_refused_and_the_stream_lives(device: Device, frame: dict[str, Any]) -> None:
    """An unknown `t`, wrong fields, or a room not joined are answered by an error; the connection lives (I41)."""
    with Stream(device) as stream:
        stream.welcome()
        stream.send(frame)
        error = stream.until("error")
        assert isinstance(error["code"], str)
        assert isinstance(error["message"], str)
        if frame.get("id") is not None:
            assert error["id"] == frame["id"]
        stream.ping(5)


def test_a_ping_is_answered(device: Device) -> None:
    """A ping is answered by a pong with its number and the server's clock."""
    with Stream(device) as stream:
        stream.welcome()
        for number in (0, 1, 2**53 - 1):
            pong = stream.ping(number)
            assert len(pong["clock"]) == 34


@pytest.mark.parametrize("origin", ["http://evil.example", "https://app.example", "http://app.example.evil", "null"])
def test_another_origin_is_closed(service: Service, device: Device, origin: str) -> None:
    """A handshake from an origin that is not allowed is closed with 4403."""
    with open_socket(service, origin=origin) as connection:
        connection.send(hello(device))
        assert close_code(connection) == 4403


def test_an_allowed_origin_is_welcomed(device: Device) -> None:
    """A handshake from an allowed origin, or from a program that names none, is welcomed."""
    with Stream(device, origin=ORIGIN) as stream:
        stream.welcome()


def test_another_users_token_closes(service: Service, device: Device) -> None:
    """A fresh token of another user closes the stream with 4401."""
    with Stream(device) as stream:
        stream.welcome()
        stream.send({"t": "auth", "token": token(fresh("other"))})
        assert stream.close_code() == 4401


@pytest.fixture(scope="module")
def ends(service: Service) -> dict[str, int | None]:
    """How streams with tokens of two seconds end within ten: left alone, renewed, and after a bad renewal."""

    def watch(renewal: str | None) -> int | None:
        device = service.device(ttl=2)
        with Stream(device) as stream:
            stream.welcome()
            if renewal is not None:
                stream.send({"t": "auth", "token": token(device.user) if renewal == "good" else "garbage"})
                answer = stream.until("authed" if renewal == "good" else "error")
                assert renewal == "bad" or answer["exp"] > time.time() + 60
            return stream.close_code(10)

    with ThreadPoolExecutor(3) as pool:
        kinds: dict[str, str | None] = {"alone": None, "renewed": "good", "badly renewed": "bad"}
        return dict(zip(kinds, pool.map(watch, kinds.values()), strict=True))


@pytest.mark.parametrize(("kind", "code"), [("alone", 4401), ("renewed", None), ("badly renewed", 4401)])
def test_a_stream_lives_as_long_as_its_token(ends: dict[str, int | None], kind: str, code: int | None) -> None:
    """An expired token closes with 4401 at the latest 5 s after, unless a good `auth` frame renewed it (I41)."""
    assert ends[kind] == code
