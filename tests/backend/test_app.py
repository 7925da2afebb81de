"""The service alone: its start page, unknown paths, pages of other origins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from tests.backend.conftest import DECLARATION, PULL, SECRET, bearer
from tidemark.app import create_app
from tidemark.log import RequestLine
from tidemark.settings import Settings
from tidemark.store.schema.migrate import migrate

SCHEMA = Path(__file__).resolve().parents[1] / "contract" / "schema.yaml"
ORIGIN = "https://app.example"


@pytest.fixture
def lines() -> list[RequestLine]:
    """The lines of the requests."""
    return []


@pytest.fixture(params=[(), (ORIGIN,)])
def origins(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Origins whose pages may call: none, or one."""
    return tuple(request.param)


@pytest.fixture
def client(tmp_path: Path, origins: tuple[str, ...], lines: list[RequestLine]) -> Iterator[TestClient[Litestar]]:
    """Speaks to the service on a SQLite file."""
    url = f"sqlite:///{tmp_path / 'tidemark.db'}"
    migrate(url, DECLARATION)
    settings = Settings(jwt_secret=SECRET, database_url=url, schema=str(SCHEMA), origins=origins)
    with TestClient(create_app(settings, lines.append)) as client:
        yield client


def test_the_start_page_shows_what_is_declared(client: TestClient[Litestar]) -> None:
    """Every entity, and where to go next."""
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in DECLARATION.entities:
        assert f"<code>{name}</code>" in page.text


@pytest.mark.parametrize(
    "path", ["/nowhere", "/sync", "/sync/push/more", "/sync/%00", "/%FF", "/health", "//", "/docs/x"]
)
def test_unknown_paths_are_problems(client: TestClient[Litestar], lines: list[RequestLine], path: str) -> None:
    """A 404 in the one shape, and a line whose path is nobody's own."""
    response = client.get(path)
    if path != "//":
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert [(line.path, line.status) for line in lines] == [("?", 404)]


def test_the_stream_without_a_handshake_is_no_page(client: TestClient[Litestar]) -> None:
    """A plain GET is a 405 in the one shape."""
    response = client.get("/sync/stream")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("origin", [ORIGIN, "https://evil.example"])
def test_pages_of_named_origins_may_call(client: TestClient[Litestar], origins: tuple[str, ...], origin: str) -> None:
    """The preflight and the answer let in the origins that are configured, and no others."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    preflight = client.options("/sync/push", headers=asked)
    answer = client.post("/sync/pull", json=PULL, headers=bearer() | {"Origin": origin})
    events = client.options("/sync/stream", headers=asked)
    allowed = origin if origin in origins else None
    assert answer.status_code == (200 if allowed else 403)
    assert (events.status_code, events.headers) == (preflight.status_code, preflight.headers)
    assert preflight.headers.get("access-control-allow-origin") == allowed
    assert answer.headers.get("access-control-allow-origin") == allowed
    if allowed:
        assert preflight.status_code == 204
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
