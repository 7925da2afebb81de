"""One connection of the stream, from its first frame to its close code (SPEC 6).

`tidemark_protocol.stream_server` decides; here it is done: tokens are checked, pushes settled, frames sent. A reader, a
writer, a worker that reads the feed, and a timer run side by side; when one of them ends, the connection ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol, assert_never

import structlog

from tidemark.settings import Settings
from tidemark.store.base import Unavailable
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import ErrorFrame, Hello, Mutation, Pong, PushResponse, PushResult, ServerFrame
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
    State,
)

from .access import Principal
from .follower import StreamFollower
from .frames import encoded
from .hub import Hub
from .outgoing import Outgoing

FLUSH_WITHIN: Final = 3.0
"""Seconds that what waits may take to be sent once the connection is to close."""
MAX_REASON: Final = 100
"""Characters; a close frame holds 123 bytes."""
_GOING_AWAY: Final = "the server is going away, come back soon"

_log = structlog.get_logger(__name__)


class Socket(Protocol):
    """An accepted websocket."""

    async def receive(self) -> str | bytes | None:
        """The next frame: text, or bytes if it was a binary one; None when the peer is gone."""

    async def send(self, text: str) -> None:
        """Hand a text frame over; waits while the peer takes nothing. Raises ConnectionError when it is gone."""

    async def close(self, code: int, reason: str) -> None: ...


class StreamEngine(Protocol):
    """What sessions ask of the engine; `node` tells this process from all others."""

    settings: Settings
    hub: Hub
    node: str

    def clock(self, *readings: str) -> str: ...

    def check_schema(self, number: int) -> None:
        """Raises RequestError `schema_mismatch`."""

    async def push(self, principal: Principal, client: str, schema: int, mutations: list[Mutation]) -> PushResponse: ...


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
        self._stream = ServerStream(limits, now(), engine.check_schema)
        self._outgoing = Outgoing(settings.stream_buffer, self._drained)
        self._pushes: asyncio.Queue[Push] = asyncio.Queue(1)
        self._unanswered = 0
        self._principal: Principal | None = None
        self._client = ""
        self._follower: StreamFollower | None = None
        self._opened = asyncio.Event()
        self._answered = asyncio.Event()
        self._answered.set()
        self._timer_moved = asyncio.Event()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Serve the connection until it ends, and close it."""
        if self._hub.stopping:
            await self._socket.close(CloseCode.RESTARTING, _GOING_AWAY)
            return
        self._hub.enter(self, self.end)
        parts = (self._read, self._write, self._push_in_turn, self._follow, self._keep_time)
        tasks = [asyncio.create_task(part()) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await self._look_at(task.exception())
        finally:
            self._stream.closed()
            if self._follower is not None:
                self._follower.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._hub.leave(self)
            self._answered.set()
            self._over.set()

    async def end(self) -> None:
        """The service stops: answer the push under way, then close and let the peer come back."""
        self._stream.closed()
        await self._answered.wait()
        self._end(CloseCode.RESTARTING, _GOING_AWAY)
        await self._over.wait()

    async def _look_at(self, error: BaseException | None) -> None:
        """A part that failed for a reason nobody foresaw is logged, and ends the connection as a fault of ours."""
        match error:
            case None | ConnectionError():
                pass
            case TimeoutError():
                _log.info("stream_stalled", session=self._name)
            case _:
                _log.error("stream_failed", session=self._name, exc_info=error)
                with suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(FLUSH_WITHIN):
                        await self._socket.close(CloseCode.INTERNAL, "something went wrong here")

    # ── five parts ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> None:
        """Take frames while there is room for answers; ends when the peer is gone."""
        while True:
            await self._outgoing.room()
            data = await self._socket.receive()
            if data is None:
                return
            await self._carry_out(self._stream.receive(data, self._now()))

    async def _write(self) -> None:
        """Send what waits, then close; TimeoutError when the peer takes nothing for two heartbeats."""
        while (text := await self._outgoing.take()) is not None:
            async with asyncio.timeout(2 * self._heartbeat):
                await self._socket.send(text)
        code, reason = self._outgoing.ending or (CloseCode.GOING_AWAY, "")
        await self._socket.close(code, reason)

    async def _push_in_turn(self) -> None:
        """Settle one push after the other."""
        while True:
            push = await self._pushes.get()
            self._send(await self._settled(push))
            self._unanswered -= 1
            if not self._unanswered:
                self._answered.set()

    async def _follow(self) -> None:
        await self._opened.wait()
        if self._follower is not None:
            await self._follower.work()

    async def _keep_time(self) -> None:
        """Tell the state machine what time it is when it matters; ends when closing takes too long."""
        while self._outgoing.ending is None:
            deadline = self._stream.deadline
            self._timer_moved.clear()
            try:
                async with asyncio.timeout(None if deadline is None else max(0, deadline - self._now()) / 1_000):
                    await self._timer_moved.wait()
            except TimeoutError:
                await self._carry_out(self._stream.elapsed(self._now()))
        await asyncio.sleep(FLUSH_WITHIN)

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
                self._end(code, reason)
            case Authenticate(token=token):
                await self._carry_out(await self._identified(token))
            case Open(hello=hello):
                await self._open(hello)
            case Resume(scopes=scopes, watermark=marks):
                await self._resume(scopes, marks)
            case Pause(scopes=scopes):
                if self._follower is not None:
                    self._follower.pause(scopes)
            case Push():
                self._unanswered += 1
                self._answered.clear()
                await self._pushes.put(effect)
            case Answer(n=n):
                latest = "" if self._follower is None else self._follower.latest
                self._send(Pong(self._hub.frames.clock(latest), n))
            case _ as never:
                assert_never(never)

    async def _identified(self, token: str) -> list[Effect]:
        """Ask whose token it is, and what the state machine makes of that."""
        try:
            principal = await self._authenticate(token)
        except RequestError as refused:
            return self._stream.refused(refused.code, refused.detail)
        effects = self._stream.authenticated(principal.user, principal.expires, self._now())
        if self._stream.state is State.OPEN:
            self._principal = principal
        return effects

    async def _open(self, hello: Hello) -> None:
        if self._principal is None:
            raise RuntimeError("a stream is opened by somebody")
        self._client = hello.client
        self._follower = StreamFollower(self._hub, self._principal, hello.schema, self._outgoing)
        try:
            await self._follower.open(self._name, hello, self._heartbeat)
        except Unavailable:
            self._end(CloseCode.RESTARTING, "the database is away, come back soon")
        else:
            self._opened.set()

    async def _resume(self, scopes: list[str], marks: dict[str, str]) -> None:
        if self._follower is None:
            return
        try:
            await self._follower.resume(scopes, marks)
        except Unavailable:
            self._send(ErrorFrame("unavailable", "the database is away; ask again"))

    async def _settled(self, push: Push) -> ServerFrame:
        """The answer to a push."""
        if self._principal is None:
            raise RuntimeError("a push is somebody's")
        try:
            response = await self._engine.push(self._principal, self._client, push.schema, push.mutations)
        except RequestError as refused:
            return ErrorFrame(refused.code, refused.detail, push.id)
        except Unavailable as away:
            return ErrorFrame("unavailable", str(away), push.id)
        return PushResult(push.id, response.results, response.clock)

    def _send(self, frame: ServerFrame) -> None:
        self._outgoing.put(encoded(frame))

    def _end(self, code: CloseCode, reason: str) -> None:
        self._stream.closed()
        # To one who may not read any more nothing more is sent.
        self._outgoing.end(code, reason[:MAX_REASON], drop=code is CloseCode.UNAUTHENTICATED)
        self._timer_moved.set()

    def _drained(self) -> None:
        if self._follower is not None:
            self._follower.drained()
