"""`GET /sync/stream`: the websocket's handshake, and its frames in and out (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect

from tidemark.sync.access import Principal
from tidemark.sync.outgoing import Wire
from tidemark.sync.session import Session, StreamEngine
from tidemark_protocol import clock
from tidemark_protocol.stream_server import SUBPROTOCOL, CloseCode

from .direct import EXTENSION
from .origins import allowed_origin
from .problems import problem

Socket = WebSocket[Any, Any, Any]
_FIRST_WORD = 1.0
"""Seconds that a forbidden page may take to say something before it is turned away."""


def stream_handler(
    engine: StreamEngine, authenticate: Callable[[str], Awaitable[Principal]], names: Iterator[str]
) -> Callable[[Socket], Awaitable[None]]:
    """Serves a websocket. `authenticate` gives whom a token names, or raises RequestError; `names` for sessions."""

    def now() -> int:
        return clock.millis_of(engine.clock(""))

    async def stream(socket: Socket) -> None:
        if SUBPROTOCOL not in socket.scope["subprotocols"]:
            await _refuse(socket)
            return
        await socket.accept(subprotocols=SUBPROTOCOL)
        frames = Frames(socket)
        if not _is_allowed(socket, engine.settings.origins):
            # A peer that says hello at once, as most do, is to learn why, not that its write failed.
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_WORD):
                    await frames.receive()
            with suppress(ConnectionError):
                await frames.close(CloseCode.FORBIDDEN_ORIGIN, "pages of this origin may not open streams here")
            return
        socket.scope["headers"] = []  # a connection lives for days: what it began with need not
        await Session(engine, frames, name=next(names), authenticate=authenticate, now=now).run()

    return stream


class Frames:
    """An accepted websocket, as a session sees it."""

    kind: Final = "websocket"

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        extensions: dict[str, Any] = socket.scope.get("extensions") or {}
        self.wire: Wire | None = extensions.get(EXTENSION)

    async def receive(self) -> str | bytes | None:
        try:
            event = await self._socket.receive()
        except WebSocketDisconnect:
            return None
        if event["type"] != "websocket.receive":
            return None
        text = event.get("text")
        return text if text is not None else event.get("bytes") or b""

    async def send(self, text: str) -> None:
        await self._hand_over({"type": "websocket.send", "text": text, "bytes": None})

    async def close(self, code: int, reason: str) -> None:
        await self._hand_over({"type": "websocket.close", "code": code, "reason": reason})

    async def _hand_over(self, event: Any) -> None:
        try:
            await self._socket.send(event)
        except (WebSocketDisconnect, OSError, RuntimeError) as gone:
            # RuntimeError: the server has closed by itself, as for a ping without answer, and waits for the peer.
            raise ConnectionResetError("the peer is gone") from gone


def _is_allowed(socket: Socket, others: tuple[str, ...]) -> bool:
    headers = {name: value.decode("latin-1") for name, value in socket.scope["headers"]}
    page, host, site = (headers.get(name) for name in (b"origin", b"host", b"sec-fetch-site"))
    return allowed_origin(page, host, others, site)


async def _refuse(socket: Socket) -> None:
    """Answer 400 in place of the handshake; a server that cannot answer so closes it."""
    if "websocket.http.response" not in (socket.scope.get("extensions") or {}):
        await socket.close(CloseCode.MALFORMED, f"the subprotocol is {SUBPROTOCOL}")
        return
    answer = problem("malformed", f"the subprotocol is {SUBPROTOCOL}")
    headers = [(b"content-type", answer.content_type), (b"content-length", b"%d" % len(answer.body))]
    start: Any = {"type": "websocket.http.response.start", "status": answer.status, "headers": headers}
    body: Any = {"type": "websocket.http.response.body", "body": answer.body}
    await socket.send(start)
    await socket.send(body)
