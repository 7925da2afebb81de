"""The routes: bodies, content types, compression, streaming, paths, and what surrounds them (SPEC sections 4, 5, 7)."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import time
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar
from litestar.exceptions import WebSocketDisconnect
from litestar.testing import TestClient

from tests.backend.conftest import DECLARATION, PULL, PUSH, app_of, bearer, note, plugin_of
from tidemark.log import RequestLine
from tidemark.plugin import SyncConfig, SyncPlugin
from tidemark.settings import Settings
from tidemark.web.answer import COMPRESS_FROM, NDJSON, Streamed, accepts, send_streamed
from tidemark.web.call import Call, Disconnected
from tidemark.web.limits import RateLimit
from tidemark.web.members import MEMBERS
from tidemark.web.openapi import document
from tidemark.web.pull import _until
from tidemark.web.shutdown import Shutdown
from tidemark_protocol.clock import is_reading
from tidemark_protocol.errors import RequestError
from tidemark_protocol.schema import from_wire

JSON = {"Content-Type": "application/json"}
Client = TestClient[Litestar]


def push(client: Client, *mutations: dict[str, Any]) -> Any:
    """The results of a push that must be a 200."""
    response = client.post("/sync/push", json={**PUSH, "mutations": mutations}, headers=bearer())
    assert response.status_code == 200, response.text
    return response.json()["results"]


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/sync/push", "/sync/pull"])
@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/json; charset=latin-1",
        "application/json, text/plain",
        "multipart/form-data; boundary=x",
    ],
)
def test_other_types_are_not_read(client: Client, path: str, content_type: str | None) -> None:
    """A body is application/json in UTF-8, or it is a 415."""
    headers = bearer() | ({} if content_type is None else {"Content-Type": content_type})
    response = client.post(path, content=json.dumps(PULL | PUSH), headers=headers)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"'],
)
def test_json_is_read(client: Client, content_type: str) -> None:
    """The type may name its charset, in any case."""
    response = client.post("/sync/pull", content=json.dumps(PULL), headers=bearer() | {"Content-Type": content_type})
    assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "identity, gzip"])
def test_compressed_bodies_are_not_read(client: Client, encoding: str) -> None:
    """A Content-Encoding on a request is a 415."""
    headers = bearer() | JSON | {"Content-Encoding": encoding}
    response = client.post("/sync/pull", content=gzip.compress(json.dumps(PULL).encode()), headers=headers)
    assert response.status_code == 415


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_above_the_limit_is_refused(chunked: bool) -> None:
    """413, whether the length was declared or came piece by piece; one at the limit is read."""
    with TestClient(app_of(plugin_of(max_body=2048))) as client:
        for size, status in ((2048, 200), (2049, 413), (1 << 20, 413)):
            body = json.dumps(PULL).encode().ljust(size)
            content = (body[at : at + 500] for at in range(0, size, 500)) if chunked else body
            response = client.post("/sync/pull", content=content, headers=bearer() | JSON)
            assert response.status_code == status


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b'{"a":' * 500, b"[" * 100_000, b'"\\ud800"', b"null"])
@pytest.mark.parametrize("path", ["/sync/push", "/sync/pull"])
def test_what_is_no_json_is_malformed(client: Client, path: str, body: bytes) -> None:
    """Broken text, broken JSON, other shapes and deep nesting are a 400."""
    response = client.post(path, content=body, headers=bearer() | JSON)
    assert (response.status_code, response.json()["code"]) == (400, "malformed")


def call_of(*messages: dict[str, Any], **headers: str) -> Call:
    """A request whose body comes as these messages."""
    left = list(messages)

    async def receive() -> Any:
        return left.pop(0)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: Any = {"method": "POST", "headers": pairs, "query_string": b""}
    return Call(scope, receive, "/")


def test_a_handshake_elsewhere_is_refused(client: Client) -> None:
    """Only the stream's path takes websockets."""
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/sync/push"):
        pass
    assert refused.value.code == 1000


async def test_a_body_is_read_no_further_than_its_limit() -> None:
    """Reading stops with the piece that passes the limit; what is behind is never held."""
    piece = {"type": "http.request", "body": b"x" * 10, "more_body": True}
    call = call_of(*[piece] * 5, content_type="application/json")
    with pytest.raises(RequestError) as caught:
        await call.json_body(25)
    assert (caught.value.code, call.received) == ("too_large", 30)


async def test_a_client_that_leaves_in_its_body_is_not_answered() -> None:
    """A body cut off is nobody's request."""
    call = call_of(
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
        content_type="application/json",
    )
    with pytest.raises(Disconnected):
        await call.json_body(100)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (None, False),
        (b"", False),
        (b"gzip", True),
        (b"deflate, GZIP;q=0.5", True),
        (b"br, gzip;q=1.0, *;q=0", True),
        (b"gzip;q=0", False),
        (b"gzip; q=0.000", False),
        (b"x-gzip, gzipped", False),
        (b"*", False),
    ],
)
def test_what_a_client_accepts(header: bytes | None, taken: bool) -> None:
    """A coding is used when it is named and not refused."""
    assert accepts(None if header is None else header.replace(b"GZIP", b"gzip"), b"gzip") == taken


@pytest.mark.parametrize("accept", [{}, {"Accept": "application/x-ndjson"}])
def test_answers_are_compressed_when_the_client_takes_it(client: Client, accept: dict[str, str]) -> None:
    """Long answers to those that take gzip, and the same text to all."""
    push(client, *(note(number) for number in range(1, 60)))
    texts = []
    for coding in ("gzip", "identity"):
        headers = bearer() | accept | {"Accept-Encoding": coding}
        response = client.post("/sync/pull", json=PULL, headers=headers)
        assert response.headers.get("content-encoding", "identity") == coding
        assert "accept-encoding" in response.headers["vary"]
        texts.append(response.text.split('"clock"')[0])
    assert texts[0] == texts[1]
    assert len(texts[0]) > COMPRESS_FROM


def test_short_answers_are_left_alone(client: Client) -> None:
    """Below a kibibyte there is nothing to gain."""
    response = client.post("/sync/pull", json=PULL, headers=bearer() | {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in response.headers


def test_a_pull_is_streamed_line_by_line(client: Client) -> None:
    """NDJSON gives runs of at most `limit` changes and a trailer."""
    push(client, *(note(number) for number in range(1, 26)))
    headers = bearer() | {"Accept": "application/x-ndjson"}
    response = client.post("/sync/pull", json=PULL | {"limit": 10}, headers=headers)
    assert response.headers["content-type"] == "application/x-ndjson"
    *runs, trailer = (json.loads(line) for line in response.text.splitlines())
    assert [len(run["changes"]) for run in runs] == [10, 10, 5]
    assert trailer.keys() == {"readable", "revoked", "clock"}


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_refused_pull_is_a_problem_in_either_form(client: Client, accept: str) -> None:
    """What refuses the whole request comes before the first line."""
    response = client.post("/sync/pull", json=PULL | {"schema": 99}, headers=bearer() | {"Accept": accept})
    assert (response.status_code, response.json()["code"]) == (409, "schema_mismatch")


async def test_a_stream_that_fails_is_cut_off() -> None:
    """What was sent stands, and the end is missing, which the reader sees."""
    sent: list[Any] = []

    async def lines() -> AsyncGenerator[bytes]:
        yield b"two\n"
        raise ZeroDivisionError

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(ZeroDivisionError):
        await send_streamed(send, Streamed(b"one\n", lines(), NDJSON), gzip=False)
    assert [message.get("body") for message in sent] == [None, b"one\n", b"two\n"]
    assert all(message["more_body"] for message in sent[1:])


@pytest.mark.parametrize("drained", [False, True])
@pytest.mark.parametrize("gzip", [False, True])
async def test_lines_that_nobody_reads_further_end_at_once(drained: bool, gzip: bool) -> None:
    """When the client or the service goes away, what reads ahead for the lines is given up before the answer ends."""
    ended: list[bool] = []
    shutdown = Shutdown()

    async def lines() -> AsyncGenerator[bytes]:
        try:
            for number in range(5):
                yield b"%d\n" % number
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def send(message: Any) -> None:
        if drained:
            shutdown.begin()
        elif message.get("body"):
            raise OSError("the client is gone")

    answer = _until(shutdown, lines())
    with nullcontext() if drained else pytest.raises(OSError, match="gone"):
        await send_streamed(send, Streamed(await anext(answer), answer, NDJSON), gzip=gzip)
    assert ended == [True]


# ── members ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("user", "written"),
    [
        ("grace", "grace"),
        ("auth0|7", "auth0%7C7"),
        ("a/b", "a%2Fb"),
        ("a b+c", "a%20b+c"),
        ("50%25", "50%2525"),
        ("ü", "%C3%BC"),
        ("a?b#c", "a%3Fb%23c"),
        ("..", "%2E%2E"),
    ],
)
def test_a_member_is_named_in_the_path(client: Client, user: str, written: str) -> None:
    """A path segment is decoded once, slashes included."""
    path = f"/sync/scopes/workspace%3A7/members/{written}"
    answer = client.put(path, json={"role": "viewer"}, headers=bearer(role="admin"))
    assert answer.json() == {"scope": "workspace:7", "user": user, "role": "viewer"}
    members = client.get("/sync/scopes/workspace:7/members", headers=bearer(role="admin"))
    assert members.json() == {"scope": "workspace:7", "members": {user: "viewer"}}
    assert client.delete(path, headers=bearer(user)).status_code == 204


def test_a_scope_may_hold_escapes_itself(client: Client) -> None:
    """`workspace:a%2Fb` is written `workspace:a%252Fb`."""
    admin = bearer(role="admin")
    good = client.put("/sync/scopes/workspace:a%252Fb/members/ada", json={"role": "viewer"}, headers=admin)
    assert good.json()["scope"] == "workspace:a%2Fb"
    assert client.get("/sync/scopes/workspace:a%2Fb/members", headers=admin).status_code in {400, 403}


@pytest.mark.parametrize(
    "path", ["", "/", "/workspace:7", "/workspace:7/roles", "/workspace:7/members/a/b", "//members", "/a/b/members"]
)
def test_other_paths_below_scopes_are_nothing(client: Client, path: str) -> None:
    """Only members are there."""
    assert client.get(f"/sync/scopes{path}", headers=bearer()).status_code == 404


def test_a_path_that_is_no_text_is_malformed(client: Client) -> None:
    """A segment decodes to UTF-8."""
    assert client.get("/sync/scopes/%FF/members", headers=bearer()).status_code == 400


@pytest.mark.parametrize("body", ["", "null", "[]", "{}", '{"role": 7}', '{"role": null}', '"owner"'])
def test_a_membership_has_a_role(client: Client, body: str) -> None:
    """A body without a role that is text is a 400."""
    path = "/sync/scopes/workspace:7/members/ada"
    response = client.put(path, content=body, headers=bearer(role="admin") | JSON)
    assert (response.status_code, response.json()["code"]) == (400, "malformed")


def test_members_are_listed_and_not_set_together(client: Client) -> None:
    """The methods of the list and of one member differ."""
    listed = client.put("/sync/scopes/workspace:7/members", json={"role": "viewer"}, headers=bearer())
    single = client.get("/sync/scopes/workspace:7/members/ada", headers=bearer())
    assert (listed.status_code, listed.headers["allow"]) == (405, "GET")
    assert (single.status_code, single.headers["allow"]) == (405, "DELETE, PUT")


# ── around the protocol ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_schema_is_the_declaration(client: Client) -> None:
    """What the route answers reads as the declaration; its ETag answers 304 without a body."""
    response = client.get("/sync/schema", headers=bearer())
    assert from_wire(response.json()).entities.keys() == DECLARATION.entities.keys()
    etag = response.headers["etag"]
    for tag in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        again = client.get("/sync/schema", headers=bearer() | {"If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get("/sync/schema", headers=bearer() | {"If-None-Match": '"x"'}).status_code == 200


def test_the_time_is_for_everybody(client: Client) -> None:
    """A reading and the wall time, not to be kept."""
    response = client.get("/sync/time")
    assert is_reading(response.json()["clock"])
    assert response.headers["cache-control"] == "no-store"


def test_a_process_that_goes_away_is_not_ready(client: Client, plugin: SyncPlugin) -> None:
    """A balancer is told before the last request was answered; the process lives on."""
    assert client.get("/health/ready").status_code == 200
    plugin.shutdown.begin()
    assert client.get("/health/ready").status_code == 503
    assert client.get("/health/live").status_code == 200


def test_series_are_few(client: Client) -> None:
    """Paths are templates, methods are known ones: users and strangers make no series."""
    for number in range(20):
        client.get(f"/sync/scopes/workspace:{number}/members", headers=bearer(f"user{number}"))
        client.request(f"BREW{number}", "/sync/time")
    text = client.get("/metrics").text
    series = [line for line in text.splitlines() if line.startswith("tidemark_requests_total")]
    assert len(series) == 2
    assert f'method="GET",path="{MEMBERS}",status="403"' in series[0]
    assert 'method="other",path="/sync/time",status="405"' in series[1]


def test_the_documentation_loads_nothing(client: Client) -> None:
    """The page shows every route and names no other host."""
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    described = client.get("/docs/openapi.json").json()
    assert described == document()
    for path in described["paths"]:
        assert path in page.text


def test_the_description_covers_every_route(plugin: SyncPlugin) -> None:
    """Each route and method is described, and nothing else but the websocket."""
    described = {
        (path, verb.upper()) for path, item in document()["paths"].items() for verb in item if verb != "parameters"
    }
    documentation = {"/docs", "/docs/openapi.json"}
    plain = {(route.path, method) for route in plugin.routes() if not route.below for method in route.methods}
    members = {(MEMBERS, "GET"), (MEMBERS + "/{user}", "PUT"), (MEMBERS + "/{user}", "DELETE")}
    assert described == {found for found in plain if found[0] not in documentation} | members | {
        ("/sync/stream", "GET")
    }


def test_every_reference_of_the_description_leads_somewhere() -> None:
    """All shapes that are named are there."""
    described = document()
    names = set(described["components"]["schemas"])
    found = {part.partition('"')[0] for part in json.dumps(described).split('"#/components/schemas/')[1:]}
    assert found <= names


@pytest.mark.parametrize("query", ["limit=%FF", "scope=" + "x" * 20_000])
def test_a_query_that_cannot_be_read_is_malformed(client: Client, query: str) -> None:
    """Parameters are UTF-8 and of a sane length."""
    assert client.get(f"/sync/events?{query}", headers=bearer()).status_code == 400


def test_each_request_is_one_line() -> None:
    """Method, template, status, time, user and sizes; health is quiet; a missing token leaves no user."""
    lines: list[RequestLine] = []
    plugin = SyncPlugin(
        SyncConfig(
            Settings(jwt_secret="x" * 32), declaration=DECLARATION, log=lines.append, store=plugin_of().engine.store
        )
    )
    with TestClient(app_of(plugin)) as client:
        client.get("/health/live")
        client.post("/sync/push", content=b"{}", headers=JSON)
        client.get("/sync/time")
    assert [(line.method, line.path, line.status, line.user) for line in lines] == [
        ("POST", "/sync/push", 401, None),
        ("GET", "/sync/time", 200, None),
    ]
    assert lines[1].sent > 0


# ── waiting, and the end ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pull_that_waits_is_answered_when_the_service_ends(client: Client, plugin: SyncPlugin) -> None:
    """The shutdown lets go of what is held open, with an answer."""
    page = client.post("/sync/pull", json=PULL, headers=bearer()).json()
    watermark = {run["scope"]: run["watermark"] for run in page["scopes"]}
    started = time.monotonic()
    with client.portal() as portal:
        portal.start_task_soon(_begin_soon, plugin.shutdown)
    held = client.post("/sync/pull", json=PULL | {"wait": 20, "watermark": watermark}, headers=bearer())
    assert held.status_code == 200
    assert held.json()["scopes"] == []
    assert time.monotonic() - started < 10


async def _begin_soon(shutdown: Shutdown) -> None:
    await asyncio.sleep(0.2)
    shutdown.begin()


async def test_a_client_that_leaves_is_not_waited_for() -> None:
    """What it waited for is given up."""
    given_up = asyncio.Event()

    async def held() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    with pytest.raises(Disconnected):
        await Shutdown().hold(call_of({"type": "http.disconnect"}), held(), held)
    assert given_up.is_set()


# ── the rate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def wait(limit: RateLimit, user: str = "ada") -> float:
    """How long one more request has to wait, in seconds; 0 when it passed."""
    try:
        limit.take(user)
    except RequestError as refused:
        return refused.retry_after or math.nan
    return 0


@given(st.integers(1, 50), st.lists(st.floats(0, 30), max_size=200))
def test_no_more_than_the_rate_passes(rate: int, gaps: list[float]) -> None:
    """In any span of t seconds at most rate x (1 + t/60) requests pass; waiting as told is enough for the next."""
    now = 0.0
    limit = RateLimit(rate, lambda: now)
    passed = 0
    for gap in gaps:
        now += gap
        passed += wait(limit) == 0
        assert passed <= rate * (1 + now / 60) + 1e-3
    told = next(told for told in iter(lambda: wait(limit), -1) if told)
    assert 0 < told <= 61
    now += told
    assert wait(limit) == 0


def test_no_limit_is_no_limit() -> None:
    """0 turns it off."""
    limit = RateLimit(0, lambda: 0.0)
    assert not any(wait(limit) for _ in range(10_000))


def test_users_that_come_no_more_are_forgotten() -> None:
    """What is kept is bounded by the users of a minute."""
    now = 0.0
    limit = RateLimit(60, lambda: now)
    for number in range(20_000):
        now += 0.1
        assert wait(limit, f"user{number}") == 0
    assert len(limit._empty_at) < 10_000
