"""`POST /sync/stream`: the stream as server-sent events, for networks that break websockets (SPEC 6).

The body is the hello, the token is in the header. The same sessions and the same hub serve it; what a client would say
on a websocket it says by other requests here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Final

import msgspec
from litestar.types import Send

from tidemark.sync.access import Principal
from tidemark.sync.session import Session, StreamEngine
from tidemark_protocol import clock, messages
from tidemark_protocol.errors import RequestError
from tidemark_protocol.stream_server import CloseCode

from .answer import EVENTS, Header, Live, accepts
from .call import Call
from .routes import Endpoint

_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", EVENTS),
    (b"cache-control", b"no-store"),
    # nginx would gather events until its buffer is full.
    (b"x-accel-buffering", b"no"),
    (b"vary", b"accept"),
)


def events_endpoint(
    engine: StreamEngine, authenticate: Callable[[str], Awaitable[Principal]], names: Iterator[str]
) -> Endpoint:
    """What answers a POST. `authenticate` gives whom a token names, or raises RequestError; `names` name sessions."""
    settings = engine.settings

    def now() -> int:
        return clock.millis_of(engine.clock(""))

    async def events(call: Call) -> Live:
        if not accepts(call.header(b"accept"), EVENTS):
            raise RequestError("not_acceptable", f"the answer is a stream: Accept must name {EVENTS.decode()}")
        hello = _hello(await call.json_body(settings.max_frame), call.token)
        engine.check_schema(hello.schema)

        async def run(send: Send) -> int:
            socket = EventSocket(call, send, hello)
            session = Session(engine, socket, name=next(names), authenticate=authenticate, now=now)
            return await socket.serve(session, settings.heartbeat / 1_000)

        return Live(run)

    return events


def _hello(body: bytes, token: str) -> messages.Hello:
    """The hello that a body says, with the header's token; RequestError `malformed`."""
    said = messages.decode_json(body)
    if not isinstance(said, dict):
        raise RequestError("malformed", "the body is a hello: an object")
    try:
        return msgspec.convert({"t": "hello"} | said | {"token": token}, messages.Hello)
    except msgspec.ValidationError as fault:
        raise RequestError("malformed", f"the body is a hello: {fault}") from fault


class EventSocket:
    """One answer, as a session sees it: a peer that says hello and nothing more."""

    kind: Final = "events"
    wire: Final = None

    def __init__(self, call: Call, send: Send, hello: messages.Hello) -> None:
        self._call = call
        self._send = send
        self._hello: str | None = messages.encode(hello).decode()
        self._turn = asyncio.Lock()
        self._sent = 0
        self._ended = False

    async def serve(self, session: Session, heartbeat: float) -> int:
        """Begin the answer and let the session write it; the number of its bytes. `heartbeat` in seconds."""
        await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        beating = asyncio.create_task(self._beat(heartbeat))
        try:
            await session.run()
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
        if not self._ended:
            # A peer that takes nothing any more may take this; if not, its connection is TCP's to give up.
            with suppress(ConnectionError):
                await self.close(CloseCode.GOING_AWAY, "nothing was taken for too long")
        return self._sent

    async def receive(self) -> str | None:
        if self._hello is not None:
            hello, self._hello = self._hello, None
            return hello
        await self._call.gone()
        return None

    async def send(self, text: str) -> None:
        await self._write(b"data: %b\n\n" % text.encode())

    async def close(self, code: int, reason: str) -> None:
        why = messages.encode({"code": int(code), "reason": reason})
        await self._write(b"event: close\ndata: %b\n\n" % why, last=True)

    async def _beat(self, seconds: float) -> None:
        """Show proxies, and a client that watches, that the stream lives."""
        while True:
            await asyncio.sleep(seconds)
            await self._write(b":\n\n")

    async def _write(self, piece: bytes, *, last: bool = False) -> None:
        """Hand a piece over; waits while the peer takes nothing."""
        async with self._turn:
            if self._ended:
                return
            try:
                await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
            except OSError as gone:
                raise ConnectionResetError("the peer is gone") from gone
            self._sent += len(piece)
            self._ended = last
