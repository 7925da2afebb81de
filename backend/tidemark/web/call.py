"""What comes in: one request as an endpoint sees it."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from litestar.types import HTTPScope, Receive

from tidemark.sync.access import Principal
from tidemark_protocol.errors import RequestError

METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
"""Those that figures and traces tell apart: a client may send any word for one."""
_MAX_QUERY: Final = 16 * 1024
_NO_ENCODING: Final = frozenset({b"", b"identity"})


class Disconnected(Exception):
    """The client went away before its request was whole: nobody is left to answer."""


class Call:
    """One request below `path`, its route's template.

    `principal` is whom its token names, None on public routes. `received` counts the bytes of its body.
    """

    __slots__ = ("_receive", "method", "path", "principal", "received", "scope")

    def __init__(self, scope: HTTPScope, receive: Receive, path: str) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path = path
        self.principal: Principal | None = None
        self.received = 0
        self._receive = receive

    @property
    def caller(self) -> Principal:
        """The principal, where the route has one."""
        if self.principal is None:
            raise RequestError("unauthenticated", "this needs a token")
        return self.principal

    @property
    def token(self) -> str:
        """What the `Authorization` header bears."""
        return (self.header(b"authorization") or b"").partition(b" ")[2].strip().decode("latin-1")

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower case name."""
        for key, value in self.scope["headers"]:
            if key == name:
                return value
        return None

    def text(self, name: bytes) -> str | None:
        """The same as text."""
        value = self.header(name)
        return None if value is None else value.decode("latin-1")

    def query(self) -> dict[str, str]:
        """The query's parameters; of duplicates the last counts. RequestError `malformed` unless it is UTF-8."""
        raw: bytes = self.scope["query_string"]
        if len(raw) > _MAX_QUERY:
            raise RequestError("malformed", "the query is too long")
        try:
            return dict(parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict"))
        except (UnicodeDecodeError, ValueError) as fault:
            raise RequestError("malformed", "the query is not percent-encoded UTF-8") from fault

    async def json_body(self, limit: int) -> bytes:
        """The raw body of a JSON request, at most `limit` bytes of it ever held.

        RequestError: `unsupported_media_type` unless it is plain `application/json`, `too_large` beyond the limit.
        """
        _check_media_type(self.header(b"content-type"))
        if (self.header(b"content-encoding") or b"").strip().lower() not in _NO_ENCODING:
            raise RequestError("unsupported_media_type", "a request's body comes without Content-Encoding")
        declared = self.header(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        pieces: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise Disconnected
            piece = message.get("body", b"")
            self.received += len(piece)
            if self.received > limit:
                raise _too_large(limit)
            pieces.append(piece)
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def gone(self) -> None:
        """Returns when the client has gone away; to be asked after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _too_large(limit: int) -> RequestError:
    return RequestError("too_large", f"a body has at most {limit} bytes")


def _check_media_type(content_type: bytes | None) -> None:
    """`application/json`, alone or with `charset=utf-8`: what a page elsewhere cannot send without asking first."""
    if content_type == b"application/json":
        return
    name, *parameters = (part.strip().lower() for part in (content_type or b"").split(b";"))
    known = (b"", b"charset=utf-8", b'charset="utf-8"')
    if name != b"application/json" or any(parameter not in known for parameter in parameters):
        raise RequestError("unsupported_media_type", "a request's body is application/json in UTF-8")
