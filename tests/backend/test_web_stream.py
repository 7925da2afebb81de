"""The websocket's handshake: which pages may open streams."""

from __future__ import annotations

import pytest

from tidemark.web.stream import allowed_origin


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
