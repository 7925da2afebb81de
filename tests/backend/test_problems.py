"""Every refusal has one shape (RFC 9457 and a stable `code`), on every route (SPEC section 7)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from litestar import Litestar
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.testing import TestClient

from tests.backend.conftest import DECLARATION, PULL, PUSH, app_of, bearer, note, plugin_of
from tidemark.plugin import SyncPlugin
from tidemark.store.base import Unavailable
from tidemark.store.memory import MemoryStore
from tidemark.web.answer import Answer
from tidemark.web.problems import TITLES, TYPE_PREFIX, problem, problem_of
from tidemark.web.routes import Route
from tidemark_protocol.errors import REQUEST_CODES, RequestError

ROUTES = plugin_of().routes()
REQUESTS: dict[str, dict[str, Any]] = {
    "/sync/push": {"json": {**PUSH, "mutations": [note(1)]}},
    "/sync/pull": {"json": PULL},
    "/sync/scopes": {"json": {"role": "owner"}},
}
PATHS = {
    "/sync/scopes": {"GET": "/workspace:1/members", "PUT": "/workspace:1/members/x", "DELETE": "/workspace:1/members/x"}
}
FROM_THE_STORE = [
    (route.path, method)
    for route in ROUTES
    for method in route.methods
    if not route.public and route.path not in {"/sync/schema", "/sync/stream"}
] + [("/health/ready", "GET")]


def assert_problem(status: int, headers: Any, body: bytes, code: str) -> None:
    """The one shape."""
    assert headers["content-type"] == "application/problem+json"
    found = json.loads(body)
    assert set(found) == {"type", "title", "status", "detail", "code"}
    assert (found["type"], found["code"], found["status"]) == (TYPE_PREFIX + code, code, status)
    assert found["title"] and found["detail"]
    assert status == REQUEST_CODES[code][0]
    assert ("retry-after" in headers) == (status in {429, 503})
    assert ("www-authenticate" in headers) == (status == 401)


def check(answer: Answer, code: str) -> None:
    """The one shape, of an answer that is not sent yet."""
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    assert_problem(answer.status, headers | {"content-type": answer.content_type.decode()}, answer.body, code)


def test_every_code_has_a_title() -> None:
    """Titles and codes are the same set (I47)."""
    assert TITLES.keys() == REQUEST_CODES.keys()


@pytest.mark.parametrize("code", REQUEST_CODES)
def test_every_code_is_a_problem(code: str) -> None:
    """Each code answers in the one shape, with its status (I47)."""
    check(problem_of(RequestError(code, "why")), code)


@pytest.mark.parametrize(("given", "written"), [(None, b"1"), (0.0, b"1"), (0.2, b"1"), (1.1, b"2"), (30, b"30")])
def test_waiting_is_said_in_whole_seconds(given: float | None, written: bytes) -> None:
    """Retry-After is rounded up and never 0."""
    assert (b"retry-after", written) in problem("rate_limited", "slowly", retry_after=given).headers


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("connection refused at 10.0.0.1"), "unavailable"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "malformed"),
        (RecursionError(), "malformed"),
        (NotFoundException(), "not_found"),
        (MethodNotAllowedException(headers={"Allow": "GET"}), "method_not_allowed"),
        (HTTPException(status_code=400), "malformed"),
        (HTTPException(status_code=418), "malformed"),
        (HTTPException(status_code=500, detail="/etc/passwd"), "internal"),
        (HTTPException(status_code=502), "internal"),
        (HTTPException(status_code=503), "unavailable"),
        (ValueError("secret"), "internal"),
        (KeyError("secret"), "internal"),
        (AssertionError("secret"), "internal"),
    ],
)
def test_every_error_becomes_a_problem(error: Exception, code: str) -> None:
    """Errors of ours, of the framework and unforeseen ones; of the latter nothing gets out (I47)."""
    answer = problem_of(error)
    check(answer, code)
    for word in (b"secret", b"10.0.0.1", b"passwd"):
        assert word not in answer.body


def ask(client: TestClient[Litestar], path: str, method: str, headers: dict[str, str] | None = None) -> Any:
    """A good request of a route."""
    url = path + PATHS.get(path, {}).get(method, "")
    return client.request(method, url, headers=headers or {}, **(REQUESTS.get(path, {}) if method != "GET" else {}))


@pytest.mark.parametrize("route", [route for route in ROUTES if not route.public], ids=lambda route: route.path)
def test_every_route_wants_a_token(client: TestClient[Litestar], route: Route) -> None:
    """Routes that are not public answer 401 without one."""
    for method in route.methods:
        response = ask(client, route.path, method)
        assert_problem(response.status_code, response.headers, response.content, "unauthenticated")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_every_route_names_its_methods(client: TestClient[Litestar], route: Route, method: str) -> None:
    """Another method is a 405 that says which are allowed, token or not."""
    if method not in route.methods:
        response = client.request(method, route.path)
        assert_problem(response.status_code, response.headers, response.content, "method_not_allowed")
        assert response.headers["allow"] == ", ".join(sorted(route.methods))


class FailingStore(MemoryStore):
    """Raises `error` from everything, once opened."""

    error: Exception

    async def _fail(self, *_: Any) -> Any:
        raise self.error

    transact: Any = _fail
    memberships: Any = _fail
    members: Any = _fail
    states: Any = _fail
    events: Any = _fail


@pytest.fixture
def failing() -> FailingStore:
    """A store that fails."""
    return FailingStore(DECLARATION, chance=os.urandom)


@pytest.fixture
def broken(failing: FailingStore) -> Iterator[TestClient[Litestar]]:
    """Speaks to a service over the failing store."""
    with TestClient(app_of(plugin_of(failing))) as client:
        yield client


@pytest.mark.parametrize(("path", "method"), FROM_THE_STORE)
def test_a_database_that_is_away_is_a_503(
    broken: TestClient[Litestar], failing: FailingStore, path: str, method: str
) -> None:
    """Every route that needs it answers 503 with Retry-After; a push may answer `retry` for each mutation instead."""
    failing.error = Unavailable("connection refused")
    response = ask(broken, path, method, bearer(role="admin"))
    if response.status_code == 200:
        assert [result["status"] for result in response.json()["results"]] == ["retry"]
    else:
        assert_problem(response.status_code, response.headers, response.content, "unavailable")


@pytest.mark.parametrize(("path", "method"), FROM_THE_STORE)
def test_what_nobody_foresaw_is_a_500_that_says_nothing(
    broken: TestClient[Litestar], failing: FailingStore, path: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The caller learns nothing of the fault; the log holds its traceback."""
    failing.error = ZeroDivisionError("the secret of the house")
    response = ask(broken, path, method, bearer(role="admin"))
    assert_problem(response.status_code, response.headers, response.content, "internal")
    assert "secret of the house" not in response.text
    assert "the secret of the house" in "".join(capsys.readouterr())


def test_a_user_above_the_rate_is_put_off() -> None:
    """429 with the seconds to wait; another user goes on, and the time is told to everybody."""
    plugin: SyncPlugin = plugin_of(rate_limit=3)
    with TestClient(app_of(plugin)) as client:
        answers = [client.post("/sync/pull", json=PULL, headers=bearer("eager")) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert_problem(429, answers[3].headers, answers[3].content, "rate_limited")
        assert 1 <= int(answers[3].headers["retry-after"]) <= 20
        assert client.post("/sync/pull", json=PULL, headers=bearer("calm")).status_code == 200
        assert client.get("/sync/time").status_code == 200
