"""uvicorn's websocket protocol, with its transport shown to the application.

The stream hands one frame to thousands of connections: written straight into their transports it costs half of what it
costs through ASGI, a queue and a task for each (`make bench` measures it). This leans on uvicorn's internals, which is
why its minor version is pinned; an application under another server gets no `tidemark.wire`, and the stream works all
the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION: Final = "tidemark.wire"
"""Where the scope's extensions hold the connection (see `sync.outgoing.Wire`)."""
MARK: Final = 64 * 1024
"""Bytes in a write buffer above which a reader is slow."""


def _nothing() -> None:
    """Nobody is to be told."""


class Events:
    """What came for the application: the part of asyncio's queue that a connection needs, at a tenth of its memory."""

    __slots__ = ("_events", "_waiter")

    def __init__(self) -> None:
        self._events: list[Any] = []
        self._waiter: asyncio.Future[None] | None = None

    def put_nowait(self, event: Any) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def empty(self) -> bool:
        return not self._events

    async def get(self) -> Any:
        """The next event, for one reader at a time."""
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.pop(0)


class WireProtocol(WebSocketsSansIOProtocol):
    """A connection that can be written to without waiting."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.queue = Events()  # type: ignore[assignment]  # uvicorn uses no more of a queue than this
        self.congested = False
        self.on_pause: Callable[[], None] = _nothing
        self.on_resume: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=MARK, low=0)
        self.write = self.transport.write
        self.is_closing = self.transport.is_closing
        self.waiting = self.transport.get_write_buffer_size
        self.abort = self.transport.abort

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.handshake_complete:
            self.__dict__.pop("request", None)  # a connection lives for days: its handshake need not
            self.__dict__.pop("response", None)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.congested = True
        self.on_pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.congested = False
        self.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.on_end()
        if self.congested:
            self.congested = False
            self.on_resume()
