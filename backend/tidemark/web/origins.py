"""Which pages may call: those of the service's own origin, and of those that are named (SPEC 6, 7)."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def allowed_origin(origin: str | None, host: str | None, others: tuple[str, ...], site: str | None = None) -> bool:
    """Whether a page of `origin` may call: one of the service's own host, or one that is named in `others`.

    No origin at all: no page, and no cookies that a page could abuse. `site` is `Sec-Fetch-Site`, which no page can
    write: a browser knows its page's own service also where a proxy writes another `Host`.
    """
    if origin is None or site == "same-origin" or "*" in others or origin in others:
        return True
    try:
        page = urlsplit(origin)
        own = urlsplit(f"//{host}")
        ports = page.port or _DEFAULT_PORTS.get(page.scheme), own.port or _DEFAULT_PORTS.get(page.scheme)
    except ValueError:
        return False
    return page.hostname is not None and page.hostname == own.hostname and ports[0] == ports[1]
