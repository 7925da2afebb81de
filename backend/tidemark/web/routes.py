"""From a table of endpoints to ASGI handlers: one small frame around every request.

The frame checks method, token and rate, turns every error into a problem, logs one line and counts. It stands directly
on ASGI (Litestar's own HTTP handlers cost as much again as an empty request), and keeps errors of ours out of a host
application's handlers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from litestar import WebSocket, asgi
from litestar.enums import ScopeType
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from tidemark.log import OnRequest, RequestLine
from tidemark.sync.access import Principal
from tidemark.tracer import UNTRACED, Tracer
from tidemark_protocol.errors import RequestError

from .answer import COMPRESS_FROM, Answer, Live, Streamed, accepts, send_streamed, send_whole
from .auth import Authenticator
from .call import Call, Disconnected
from .limits import RateLimit
from .metrics import Metrics
from .origins import allowed_origin
from .problems import problem, problem_of

Endpoint = Callable[[Call], Awaitable[Answer | Streamed | Live]]
Socket = WebSocket[Any, Any, Any]

_log = structlog.get_logger("tidemark.request")
_READING: Final = frozenset({"GET", "HEAD"})
_CLIENT_CLOSED: Final = 499
"""Status of the log line when nobody waited for the answer."""


class Route(Struct, frozen=True):
    """A path template below the service's root and what answers each method there.

    `public`: no token is looked at. `below`: the handler takes every path under it. `quiet`: not worth a line a call.
    `websocket`: what serves a websocket there; elsewhere its handshake is refused.
    """

    path: str
    methods: Mapping[str, Endpoint]
    public: bool = False
    below: bool = False
    quiet: bool = False
    websocket: Callable[[Socket], Awaitable[None]] | None = None


class Frame(Struct, frozen=True):
    """What every request passes; `monotonic` is in seconds, `origins` are those of other pages that may call."""

    authenticator: Authenticator
    limiter: RateLimit
    metrics: Metrics
    log: OnRequest
    monotonic: Callable[[], float]
    origins: tuple[str, ...] = ()
    tracer: Tracer = UNTRACED

    def handler(self, route: Route, prefix: str) -> ASGIRouteHandler:
        """The Litestar handler of a route below `prefix`."""

        @asgi(prefix + route.path, is_mount=route.below, copy_scope=False, include_in_schema=False)
        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.WEBSOCKET:
                await self._traced(route, Call(scope, receive, route.path), send)
                return
            socket = Socket(scope, receive, send)
            await (socket.close() if route.websocket is None else route.websocket(socket))

        return handle

    async def _traced(self, route: Route, call: Call, send: Send) -> None:
        if route.quiet:
            await self._serve(route, call, send)
            return
        with self.tracer.request(call.method, call.path, call.scope["headers"]) as span:
            span.answered(await self._serve(route, call, send))

    async def _serve(self, route: Route, call: Call, send: Send) -> int:
        """The status of what was answered."""
        started = self.monotonic()
        status, sent, answered = _CLIENT_CLOSED, 0, None
        try:
            answer = await self._answer(route, call)
            status = answer.status
            answered = self.monotonic() if isinstance(answer, Live) else None
            sent = await _send(answer, call, send)
        except Disconnected:
            return status
        except Exception as error:  # noqa: BLE001  (its status is out: the body stays cut off, which the reader sees)
            refusal(error, call.method, call.path)
        finally:
            elapsed = self.monotonic() - started
            until_answer = elapsed if answered is None else answered - started
            self.metrics.request(call.method, call.path, status, until_answer, call.received, sent)
            if not route.quiet:
                user = None if call.principal is None else call.principal.user
                ms = round(elapsed * 1000, 1)
                self.log(RequestLine(call.method, call.path, status, ms, user, call.received, sent))
        return status

    async def _answer(self, route: Route, call: Call) -> Answer | Streamed | Live:
        try:
            endpoint = route.methods.get("GET" if call.method == "HEAD" else call.method)
            if endpoint is None:
                allowed = ", ".join(sorted(route.methods)).encode()
                return problem("method_not_allowed", f"not {call.method} here", headers=((b"allow", allowed),))
            if not route.public:
                self._check_origin(call)
                call.principal = await self._admit(call)
            return await endpoint(call)
        except Disconnected:
            raise
        except Exception as error:  # noqa: BLE001  (the last line of defence: nothing of the fault gets out)
            return refusal(error, call.method, call.path)

    def _check_origin(self, call: Call) -> None:
        """Pages of foreign origins only read, as far as their browser lets them."""
        if call.method in _READING:
            return
        origin, host, site = (call.text(name) for name in (b"origin", b"host", b"sec-fetch-site"))
        if not allowed_origin(origin, host, self.origins, site):
            raise RequestError("origin_forbidden", "pages of this origin may not call here")

    async def _admit(self, call: Call) -> Principal:
        principal = await self.authenticator.header(call.header(b"authorization"))
        self.limiter.take(principal.user)
        return principal


def refusal(error: Exception, method: str, path: str) -> Answer:
    """The problem for an error; one that nobody foresaw is logged with its traceback."""
    answer = problem_of(error)
    if answer.status == 500:
        _log.error("request failed", method=method, path=path, exc_info=error)
    return answer


async def _send(answer: Answer | Streamed | Live, call: Call, send: Send) -> int:
    """Bytes of the body on the wire."""
    if isinstance(answer, Live):
        return await answer.run(send)
    if isinstance(answer, Streamed):
        return await send_streamed(send, answer, gzip=accepts(call.header(b"accept-encoding"), b"gzip"))
    gzip = len(answer.body) >= COMPRESS_FROM and accepts(call.header(b"accept-encoding"), b"gzip")
    return await send_whole(send, answer, gzip=gzip)
