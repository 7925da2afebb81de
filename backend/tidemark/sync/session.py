"""One connection of the stream, from its first frame to its close code (SPEC 6).

`tidemark_protocol.stream_server` decides; here it is done: tokens are checked, pushes settled, frames sent. A reader, a
writer, a worker that reads the feed, and a timer run side by side; when one of them ends, the connection ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, assert_never

import structlog

from tidemark.settings import Settings
from tidemark.store.base import Unavailable
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import ErrorFrame, Mutation, Pong, PushResponse, PushResult
from tidemark_protocol.stream_server import (
    Answer,
    Authenticate,
    Close,
    CloseCode,
    Effect,
    Limits,
    Open,
    Pause,
    Push,
    Resume,
    Send,
    ServerStream,
)

from .access import Principal
from .follower import StreamFollower
from .frames import Frame
from .hub import Hub
from .outgoing import Outgoing
from tidemark_protocol import messages

FLUSH_WITHIN = 2.0
"""Seconds that what waits may take to be sent once the connection is to close."""

_log = structlog.get_logger(__name__)


class Socket(Protocol):
    """An accepted websocket."""

    async def receive(self) -> str | bytes | None:
        """The next frame: text, or bytes if it was a binary one; None when the peer is gone."""

    async def send(self, text: str) -> None:
        """Hand a text frame over; waits while the peer takes nothing. Raises ConnectionError when it is gone."""

    async def close(self, code: int, reason: str) -> None: ...


class StreamEngine(Protocol):
    """What a session asks of the engine."""

    settings: Settings
    hub: Hub

    def clock(self, *readings: str) -> str: ...

    def schema_number_problem(self, number: int) -> RequestError | None: ...

    async def push(
        self, principal: Principal, client: str, schema: int, mutations: list[Mutation]
    ) -> PushResponse: ...


class Session:
    """One connection. `now` gives wall time in ms, `name` is drawn for it."""

    def __init__(
        self,
        engine: StreamEngine,
        socket: Socket,
        *,
        name: str,
        authenticate: Callable[[str], Awaitable[Principal]],
        now: Callable[[], int],
    ) -> None:
        settings = engine.settings
        self._engine = engine
        self._hub = engine.hub
        self._socket = socket
        self._name = name
        self._authenticate = authenticate
        self._now = now
        self._heartbeat = settings.heartbeat / 1_000
        limits = Limits(hello_timeout=settings.hello_timeout, max_mutations=settings.max_mutations)
        self._stream = ServerStream(limits, now(), engine.schema_number_problem)
        self._outgoing = Outgoing(settings.stream_buffer, self._drained)
        self._follower: StreamFollower | None = None
        self._principal: Principal | None = None
        self._client = ""
        self._pushing: asyncio.Task[None] | None = None
        self._timer_moved = asyncio.Event()
        self._opened = asyncio.Event()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Serve the connection until it ends, and close it."""
        if self._hub.stopping:
            await self._socket.close(CloseCode.RESTARTING, "the server is going away")
            return
        self._hub.enter(self, self.end)
        tasks = [asyncio.create_task(part()) for part in (self._read, self._write, self._work, self._keep_time)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await self._report(done)
        finally:
            self._stream.closed()
            if self._follower is not None:
                self._follower.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._hub.leave(self)
            self._over.set()

    async def end(self) -> None:
        """The service stops: answer the push under way, then close and let the peer come back."""
        self._stream.closed()
        if self._pushing is not None:
            await asyncio.wait([self._pushing])
        self._outgoing.end(CloseCode.RESTARTING, "the server is going away, come back soon")
        await self._over.wait()

    async def _report(self, done: set[asyncio.Task[None]]) -> None:
        """A part that failed for a reason nobody foresaw is logged, and ends the connection as a fault of ours."""
        for task in done:
            error = task.exception()
            if error is not None and not isinstance(error, ConnectionError):
                _log.error("stream_failed", session=self._name, exc_info=error)
                async with asyncio.timeout(FLUSH_WITHIN):
                    await self._socket.close(CloseCode.INTERNAL, "something went wrong here")

    # ── four parts ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> None:
        """Take frames while there is room for answers; ends when the peer is gone."""
        while True:
            await self._outgoing.room()
            data = await self._socket.receive()
            if data is None:
                return
            await self._carry_out(self._stream.receive(data, self._now()))

    async def _write(self) -> None:
        """Send what waits, then close; ends also when the peer takes nothing for two heartbeats."""
        while True:
            text = await self._outgoing.take()
            if text is None:
                break
            async with asyncio.timeout(2 * self._heartbeat):
                await self._socket.send(text)
        code, reason = self._outgoing.ending or (CloseCode.GOING_AWAY, "")
        await self._socket.close(code, reason)

    async def _work(self) -> None:
        await self._opened.wait()
        if self._follower is not None:
            await self._follower.work()

    async def _keep_time(self) -> None:
        """Let the state machine know what time it is when it matters."""
        while self._outgoing.ending is None:
            deadline = self._stream.deadline
            self._timer_moved.clear()
            try:
                async with asyncio.timeout(None if deadline is None else max(0, deadline - self._now()) / 1_000):
                    await self._timer_moved.wait()
            except TimeoutError:
                await self._carry_out(self._stream.elapsed(self._now()))
        async with asyncio.timeout(FLUSH_WITHIN):
            await asyncio.Event().wait()

    # ── effects ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            await self._do(effect)
        self._timer_moved.set()

    async def _do(self, effect: Effect) -> None:
        match effect:
            case Send(frame=frame):
                self._send(frame)
            case Close(code=code, reason=reason):
                self._outgoing.end(code, reason[:100])
            case Authenticate(token=token):
                await self._carry_out(await self._identify(token))
            case Open(hello=hello):
                await self._open(hello)
            case Resume(scopes=scopes, watermark=marks):
                ...
            case Pause(scopes=scopes):
                ...
            case Push():
                ...
            case Answer(n=n):
                ...
            case _ as never:
                assert_never(never)
