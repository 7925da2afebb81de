"""The stream as server-sent events, for networks that break websockets (SPEC section 6)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.client import Device, Service, key, token
from tests.contract.conftest import ORIGIN, Launcher
from tests.contract.event_stream import EVENTS, EventStream
from tests.contract.replica import Replica
from tests.contract.shop import eventually
from tests.contract.stream import Follower, overwrite
from tests.figures import scrape


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def test_the_answer_is_a_stream_of_events(device: Device) -> None:
    """A hello by POST is answered 200 by an event stream that nothing on its way may keep or gather."""
    with EventStream(device) as stream:
        headers = stream.response.headers
        assert stream.response.status == 200
        assert headers["content-type"] == "text/event-stream"
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
        assert "content-encoding" not in headers
        welcome = stream.welcome()
    assert welcome["user"] == device.user
    assert welcome["scopes"].keys() == {device.scope}


def test_what_was_missed_comes_first_and_then_what_happens(service: Service, device: Device) -> None:
    """From its watermark on a replica gets all, its own pushes too, without a gap, and ends equal by digest (I38)."""
    scope = service.workspace(editor=device)
    before = [device.put("notes", title=str(number)) for number in range(5)]
    device.apply(*before[:3])
    replica = Replica()
    replica.pull(device)
    device.apply(*before[3:])
    with EventStream(device, replica.watermark) as stream:
        stream.welcome()
        follower = Follower(stream)
        follower.replica = replica
        task = device.put("tasks", scope=scope, title="live")
        device.apply(task)
        (result,) = device.again().apply(device.put("notes", title="of another device"))
        follower.reach(device.scope, result["version"])
        follower.reach(scope, 1)
    missed = [change["row"] for frame in stream.frames if frame["t"] == "changes" for change in frame["changes"]]
    assert missed[:2] == [put["row"] for put in before[3:]]
    assert task["row"] in missed
    assert not follower.behind
    assert replica.proved
    assert {row for held in (device.scope, scope) for _, row in replica.docs(held)} == device.docs().keys()


def test_scopes_come_and_go(service: Service, device: Device) -> None:
    """A stream narrowed by its hello follows that alone; membership that begins or ends is told at once (I39)."""
    owner = service.device()
    scope = service.workspace(owner=owner)
    with EventStream(device, scopes=[scope]) as narrow, EventStream(device) as wide:
        assert (narrow.welcome()["scopes"], wide.welcome()["scopes"].keys()) == ({}, {device.scope})
        owner.grant(scope, device.user, "viewer")
        for stream in (narrow, wide):
            assert stream.until("scope_added")["scope"] == scope
        owner.apply(owner.put("tasks", row := key(), scope=scope, title="t"))
        for stream in (narrow, wide):
            stream.change(row)
        owner.expel(scope, device.user)
        owner.apply(owner.put("tasks", hidden := key(), scope=scope, title="t"))
        started = time.monotonic()
        for stream in (narrow, wide):
            assert stream.until("scope_revoked")["scope"] == scope
        assert time.monotonic() - started < 2
        (shown,) = device.apply(device.put("notes", title="after"))
        Follower(wide).reach(device.scope, shown["version"])
        assert hidden not in narrow.rows() | wide.rows()


@pytest.mark.databases("sqlite")
def test_a_token_that_expires_ends_the_stream(service: Service) -> None:
    """When the header's token expires the last event says 4401 (I41)."""
    device = service.device(ttl=2)
    with EventStream(device) as stream:
        stream.welcome()
        started = time.monotonic()
        assert stream.close_code(8) == 4401
        assert time.monotonic() - started < 7


def test_the_token_is_the_header_s(device: Device) -> None:
    """A token in the body counts for nothing."""
    with EventStream(device, token=token(f"{device.user}-2"), t="hello") as stream:
        assert stream.welcome()["user"] == device.user


def test_a_slow_reader_is_told_behind(device: Device) -> None:
    """A reader that stops taking gets `behind` for what it missed, pulls, and follows on (I40)."""
    with EventStream(device, narrow=True) as slow, EventStream(device.again()) as awake:
        awake.welcome()
        version = overwrite(device)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(Follower(awake).reach, device.scope, version).result(timeout=30)
        slow.welcome()
        follower = Follower(slow)
        (result,) = device.apply(device.put("notes", title="after"))
        follower.reach(device.scope, result["version"])
        assert follower.behind
        assert {row for _, row in follower.replica.docs(device.scope)} == device.docs("notes").keys()


@pytest.fixture(scope="module")
def lively(launch: Launcher) -> Service:
    """A service with a heartbeat of a tenth of a second."""
    return launch(env={"TIDEMARK_HEARTBEAT": "100ms"}).service


@pytest.mark.databases("sqlite")
def test_a_quiet_stream_is_kept_alive(lively: Service) -> None:
    """A comment comes every heartbeat, so that no proxy takes the stream for dead."""
    with EventStream(lively.device()) as stream:
        assert stream.welcome()["heartbeat"] == 0.1
        deadline = time.monotonic() + 5
        while stream.comments < 3 and time.monotonic() < deadline:
            list(stream.incoming(0.1))
        assert stream.comments >= 3


@pytest.mark.databases("sqlite")
def test_the_end_of_the_service_is_told(launch: Launcher) -> None:
    """When the service is told to end, the last event says 1012 and when to come back."""
    running = launch()
    with EventStream(running.service.device()) as stream:
        stream.welcome()
        assert running.server.stop() == 0
        assert stream.close_code() == 1012
        assert stream.close is not None
        assert stream.close["reason"].startswith("retry ")


def test_other_origins_read_events_where_they_may(service: Service, device: Device) -> None:
    """A page of a configured origin passes the preflight and may read the stream; of another one it is refused."""
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    preflight = service.http.options("/sync/stream", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in preflight.headers["access-control-allow-methods"]
    with EventStream(device, origin=ORIGIN) as stream:
        assert stream.response.headers["access-control-allow-origin"] == ORIGIN
        stream.welcome()
    with EventStream(device, origin="https://evil.example") as refused:
        assert refused.response.status == 403
    assert service.http.options("/sync/stream", headers=asked | {"Origin": "https://evil.example"}).status_code == 400


@pytest.mark.databases("sqlite")
def test_a_reader_that_stalls_is_cut_off(launch: Launcher) -> None:
    """A reader that takes nothing for too long loses its connection, and the service the memory for it (I40)."""
    running = launch(env={"TIDEMARK_STALL_TIMEOUT": "1s"})
    device = running.service.device()
    with EventStream(device, narrow=True) as stalled:
        for _ in range(20):
            device.apply(device.put("notes", title="long", body="x" * 200_000))
        eventually(lambda: not open_streams(running.service))
        assert stalled.close_code(10) in {None, 1001}
        assert stalled.ended
    assert '"level":"error"' not in running.server.log.read_text(encoding="utf-8")


@pytest.mark.databases("sqlite")
def test_a_stream_that_its_reader_left_is_over(lively: Service) -> None:
    """When the client hangs up the service forgets the stream."""
    eventually(lambda: not open_streams(lively))
    with EventStream(lively.device()) as stream:
        stream.welcome()
        assert open_streams(lively) == 1
    eventually(lambda: not open_streams(lively))


def open_streams(service: Service) -> float:
    """How many there are, of whatever kind."""
    return scrape(service.url).sum("tidemark_streams")


def test_a_schema_number_that_is_not_served_is_refused_whole(device: Device) -> None:
    """What will not do is a problem and no stream."""
    body = {"client": device.client, "schema": 99}
    response = device.post("/sync/stream", body, **EVENTS)
    assert (response.status_code, response.json()["code"]) == (409, "schema_mismatch")
