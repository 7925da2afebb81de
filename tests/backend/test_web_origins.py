"""Which pages may call: on the websocket and by other requests (SPEC 6, 7)."""

from __future__ import annotations

import pytest
from litestar.testing import TestClient

from tests.backend.conftest import PULL, PUSH, app_of, bearer, plugin_of
from tidemark.web.origins import allowed_origin


@pytest.mark.parametrize(
    ("origin", "host", "others", "allowed"),
    [
        (None, "app.example", (), True),
        ("https://app.example", "app.example", (), True),
        ("https://app.example", "app.example:443", (), True),
        ("http://app.example:8000", "app.example:8000", (), True),
        ("https://APP.example", "app.example", (), True),
        ("http://[::1]:8000", "[::1]:8000", (), True),
        ("https://app.example", "api.example", (), False),
        ("https://app.example", "api.example", ("https://app.example",), True),
        ("https://evil.example", "api.example", ("https://app.example",), False),
        ("https://evil.example", "api.example", ("*",), True),
        ("http://app.example:8001", "app.example:8000", (), False),
        ("https://app.example.evil", "app.example", (), False),
        ("null", "app.example", (), False),
        ("", "", (), False),
        ("https://app.example", None, (), False),
        ("https://app.example:port", "app.example", (), False),
        ("https://[app", "app.example", (), False),
    ],
)
def test_origins(origin: str | None, host: str | None, others: tuple[str, ...], allowed: bool) -> None:
    """A page of the service's own host or of a named origin may; so may what is no page."""
    assert allowed_origin(origin, host, others) is allowed


def test_a_browser_knows_its_own_service() -> None:
    """Behind a proxy that writes another Host the browser's word counts; only `same-origin` is such a word."""
    for site, allowed in (("same-origin", True), ("same-site", False), ("cross-site", False), ("none", False)):
        assert allowed_origin("https://app.example", "backend:8000", (), site) is allowed


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "https://app.example"}, 200),
        ({"Origin": "http://testserver.local"}, 200),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_pages_of_foreign_origins_send_nothing(headers: dict[str, str], status: int) -> None:
    """A page that is neither the service's own nor named is refused, token or not; it may read what CORS lets it."""
    with TestClient(app_of(plugin_of(origins=("https://app.example",))), base_url="http://testserver.local") as client:
        for path, body in (("/sync/push", PUSH), ("/sync/pull", PULL)):
            response = client.post(path, json=body, headers=bearer() | headers)
            assert response.status_code == status
            assert status == 200 or response.json()["code"] == "origin_forbidden"
            refused = client.post(path, json=body, headers=headers)
            assert refused.status_code == (401 if status == 200 else 403)
        assert client.get("/sync/schema", headers=bearer() | headers).status_code == 200
        assert client.get("/sync/time", headers=headers).status_code == 200
