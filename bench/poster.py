"""A keep-alive HTTP/1.1 client that blocks, for loads that have no event loop."""

from __future__ import annotations

import http.client
from types import TracebackType
from typing import Final, Self

_JSON: Final = {"Content-Type": "application/json"}


class Poster:
    """One connection of one user."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = _JSON | {"Authorization": f"Bearer {token}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def call(self, method: str, path: str, body: bytes) -> bytes:
        """The body of a good answer."""
        self._connection.request(method, path, body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise AssertionError(f"{method} {path}: {answer.status} {content[:300].decode(errors='replace')}")
        return content

    def push(self, body: bytes) -> None:
        """A push, all of which is applied."""
        answer = self.call("POST", "/sync/push", body)
        if b'"rejected"' in answer or b'"applied"' not in answer:
            raise AssertionError(answer[:300].decode())
