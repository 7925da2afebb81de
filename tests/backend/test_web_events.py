"""The stream as server-sent events: what comes before the first one, and how they are written (SPEC 6)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from tests.backend.conftest import CLIENT, app_of, bearer, note, plugin_of
from tests.figures import Figures
from tidemark.plugin import SyncPlugin
from tidemark.sync.access import Principal
from tidemark_protocol.messages import Mutation

HELLO = {"client": CLIENT, "schema": 3}
ADA = Principal("ada", "user:ada", admin=False, expires=2**40)


class Reader:
    """A client of the stream that is a plain ASGI peer: what it has been sent, event by event."""

    def __init__(self) -> None:
        self.start: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.takes = asyncio.Event()
        self.takes.set()
        self.leaves = asyncio.Event()
        self.complete = False
        self.served: Any = None
        self._asked = False

    async def receive(self) -> Any:
        """The body, then silence until it leaves."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": json.dumps(HELLO).encode(), "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Take what comes, while it takes anything; once it has left, nothing reaches it."""
        await self.takes.wait()
        if self.leaves.is_set():
            return
        if message["type"] == "http.response.start":
            self.start.set_result(message)
            return
        self.pieces.put_nowait(message["body"])
        self.complete = not message["more_body"]

    async def event(self) -> bytes:
        """The next piece, which is one whole event or comment."""
        async with asyncio.timeout(5):
            return await self.pieces.get()

    async def frame(self, kind: str) -> Any:
        """The next frame of a kind."""
        while True:
            event = await self.event()
            if event.startswith(b"data: ") and (frame := json.loads(event[6:]))["t"] == kind:
                assert event.endswith(b"\n\n") and event.count(b"\n") == 2
                return frame


def scope_of(app: Litestar, **headers: str) -> Any:
    """A POST to the stream."""
    given = bearer() | {"Content-Type": "application/json", "Accept": "text/event-stream"} | headers
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/sync/stream",
        "raw_path": b"/sync/stream",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
        "extensions": {},
        "litestar_app": app,
    }


@asynccontextmanager
async def reading(plugin: SyncPlugin) -> AsyncIterator[Reader]:
    """A reader of a running service, its stream just begun."""
    app = app_of(plugin)
    async with app.lifespan():
        reader = Reader()
        scope = scope_of(app, **{"Accept-Encoding": "gzip"})
        reader.served = asyncio.create_task(app(scope, reader.receive, reader.send))
        yield reader
        reader.leaves.set()
        reader.takes.set()
        async with asyncio.timeout(5):
            await reader.served
        assert open_streams(plugin) == 0


def open_streams(plugin: SyncPlugin) -> float:
    """How many there are, of whatever kind."""
    return Figures(plugin.metrics.text().decode()).sum("tidemark_streams")


async def write(plugin: SyncPlugin, *mutations: dict[str, Any]) -> None:
    """Push as the reader's user."""
    answer = await plugin.engine.push(ADA, CLIENT, 3, [Mutation(**mutation) for mutation in mutations])
    assert {result.status for result in answer.results} == {"applied"}


async def test_frames_are_events() -> None:
    """The stream begins with welcome and brings what happens, each frame one event, unbuffered and uncompressed."""
    plugin = plugin_of()
    async with reading(plugin) as reader:
        start = await reader.start
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        assert start["status"] == 200
        assert headers["content-type"] == "text/event-stream"
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
        assert "content-encoding" not in headers
        assert (await reader.frame("welcome"))["user"] == "ada"
        await reader.frame("changes")
        await write(plugin, note(1, title="two\nlines\r\n\u2028"))
        (change,) = (await reader.frame("changes"))["changes"]
        assert change["doc"]["title"] == "two\nlines\r\n\u2028"


async def test_a_comment_comes_every_heartbeat() -> None:
    """A stream on which nothing happens shows that it lives."""
    async with reading(plugin_of(heartbeat=20)) as reader:
        await reader.frame("changes")
        assert [await reader.event() for _ in range(3)] == [b":\n\n"] * 3


async def test_the_end_of_the_service_is_an_event() -> None:
    """When the service goes away the stream says so with a code and a reason, and the answer is complete."""
    plugin = plugin_of()
    async with reading(plugin) as reader:
        await reader.frame("changes")
        await plugin.engine.end_streams()
        name, data, *rest = (await reader.event()).decode().split("\n")
        assert (name, rest) == ("event: close", ["", ""])
        assert json.loads(data.removeprefix("data: ")).keys() == {"code", "reason"}
        assert json.loads(data.removeprefix("data: "))["code"] == 1012
        assert reader.complete


async def test_a_reader_that_leaves_ends_its_session() -> None:
    """When the client hangs up nothing of its stream is left."""
    plugin = plugin_of()
    async with reading(plugin) as reader:
        await reader.frame("changes")
        reader.leaves.set()
        async with asyncio.timeout(5):
            await reader.served
        assert open_streams(plugin) == 0
        assert not reader.complete


async def test_a_slow_reader_is_told_that_it_is_behind() -> None:
    """What does not fit into the buffer of a reader that takes nothing is replaced by `behind` (I40)."""
    plugin = plugin_of(stream_buffer=2_000)
    async with reading(plugin) as reader:
        await reader.frame("changes")
        reader.takes.clear()
        for number in range(1, 20):
            await write(plugin, note(number) | {"fields": {"title": "long", "body": "x" * 400}})
        reader.takes.set()
        assert (await reader.frame("behind"))["scope"] == "user:ada"
        await write(plugin, note(20))
        assert (await reader.frame("changes"))["changes"][0]["row"] == note(20)["row"]


# ── refused before anything is streamed ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/event-stream;q=0", "text/*"])
def test_the_form_must_be_asked_for(client: TestClient[Litestar], accept: str | None) -> None:
    """Without `text/event-stream` in Accept it is a 406."""
    headers = bearer() | ({"Accept": accept} if accept else {})
    response = client.post("/sync/stream", json=HELLO, headers=headers)
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"Authorization": "Bearer x"}, HELLO, 401, "unauthenticated"),
        ({"Origin": "https://evil.example"}, HELLO, 403, "origin_forbidden"),
        ({"Content-Type": "text/plain"}, HELLO, 415, "unsupported_media_type"),
        ({}, HELLO | {"schema": 99}, 409, "schema_mismatch"),
        ({}, HELLO | {"schema": "3"}, 400, "malformed"),
        ({}, HELLO | {"client": "x"}, 400, "malformed"),
        ({}, HELLO | {"t": "ping"}, 400, "malformed"),
        ({}, HELLO | {"watermark": []}, 400, "malformed"),
        ({}, {"schema": 3}, 400, "malformed"),
        ({}, [], 400, "malformed"),
        ({}, HELLO | {"scopes": ["x" * 5_000]}, 413, "too_large"),
    ],
)
def test_what_is_refused_is_a_problem(headers: dict[str, str], body: Any, status: int, code: str) -> None:
    """A token, an origin, a body or a schema number that will not do is refused in the one shape (I47)."""
    with TestClient(app_of(plugin_of(max_frame=4_096))) as client:
        asked = bearer() | {"Accept": "text/event-stream"} | headers
        response = client.post(
            "/sync/stream", content=json.dumps(body), headers={"Content-Type": "application/json"} | asked
        )
        assert (response.status_code, response.json()["code"]) == (status, code)


def test_streams_count_against_the_rate() -> None:
    """Opening streams is limited as all requests of a user are."""
    with TestClient(app_of(plugin_of(rate_limit=2))) as client:
        statuses = [client.post("/sync/stream", json=HELLO, headers=bearer()).status_code for _ in range(3)]
    assert statuses == [406, 406, 429]
