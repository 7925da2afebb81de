"""One connection of the stream, from its first frame to its close code (SPEC 6).

`tidemark_protocol.stream_server` decides; here it is done: tokens are checked, pushes settled, rooms entered, frames
sent. A connection that nothing happens on has one task, which waits for its next frame: what is sent to it is written
by whoever has something to say, and pushes and reads of the feed have a task for as long as they take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Protocol, assert_never

import structlog

from tidemark.meter import StreamKind
from tidemark.settings import Settings
from tidemark.store.base import Unavailable
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import ErrorFrame, Hello, Mutation, Pong, PushResponse, PushResult, ServerFrame
from tidemark_protocol.stream_server import (
    Answer,
    Authenticate,
    Cast,
    Close,
    CloseCode,
    Effect,
    EnterRoom,
    LeaveRoom,
    Limits,
    Open,
    Pause,
    Push,
    Resume,
    Send,
    ServerStream,
    ShowState,
    State,
)

from .access import Principal
from .follower import StreamFollower
from .frames import encoded
from .hub import Hub
from .outgoing import DirectOutgoing, QueuedOutgoing, Wire
from .rooms import Rooms
from .streams import Ending, Streams

FLUSH_WITHIN: Final = 3.0
"""Seconds that what waits may take to be sent once the connection is to close."""
MAX_REASON: Final = 100
"""Characters; a close frame holds 123 bytes."""
_ENDED_BY_PEER: Final = 1006

_log = structlog.get_logger(__name__)


class Socket(Protocol):
    """An accepted connection."""

    @property
    def kind(self) -> StreamKind: ...

    @property
    def wire(self) -> Wire | None:
        """The transport below a websocket, where the server shows it."""

    async def receive(self) -> str | bytes | None:
        """The next frame: text, or bytes if it was a binary one; None when the peer is gone."""

    async def send(self, text: str) -> None:
        """Hand a text frame over; waits while the peer takes nothing. Raises ConnectionError when it is gone."""

    async def close(self, code: int, reason: str) -> None:
        """Close once the peer has taken what was sent. Raises ConnectionError when it is gone."""


class StreamEngine(Protocol):
    """What sessions ask of the engine; `node` tells this process from all others."""

    settings: Settings
    hub: Hub
    rooms: Rooms
    streams: Streams
    node: str

    def clock(self, *readings: str) -> str: ...

    def check_schema(self, number: int) -> None:
        """Raises RequestError `schema_mismatch`."""

    async def push(self, principal: Principal, client: str, schema: int, mutations: list[Mutation]) -> PushResponse: ...


class Session:
    """One connection. `now` gives wall time in ms, `name` is drawn for it."""

    __slots__ = (
        "_authenticate",
        "_client",
        "_code",
        "_engine",
        "_follower",
        "_name",
        "_now",
        "_opened",
        "_outgoing",
        "_over",
        "_principal",
        "_pushes",
        "_reader",
        "_side",
        "_since",
        "_socket",
        "_spoken",
        "_stream",
        "_timer",
    )

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
        self._socket = socket
        self._name = name
        self._authenticate = authenticate
        self._now = now
        self._since = now()
        self._stream = ServerStream(_limits(settings), self._since, engine.check_schema)
        self._outgoing = self._outgoing_of(socket, settings)
        self._principal: Principal | None = None
        self._client = ""
        self._follower: StreamFollower | None = None
        self._opened = False
        self._spoken = False
        """The first frame is there, and has its turn or waits for it."""
        self._reader: asyncio.Task[Any] | None = None
        self._side: set[asyncio.Task[None]] = set()
        """What is done beside reading: a push, the close, the writer of a queue."""
        self._pushes: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._code: int | None = None
        """What it is closed with; None as long as it is not."""
        self._over: asyncio.Future[None] | None = None

    def _outgoing_of(self, socket: Socket, settings: Settings) -> DirectOutgoing | QueuedOutgoing:
        limit, patience = settings.stream_buffer, settings.stall_timeout / 1_000
        if socket.wire is None:
            return QueuedOutgoing(limit, patience, self._drained, self._stalled)
        disturbed = self._engine.hub.fanout.disturbed
        return DirectOutgoing(socket.wire, limit, patience, self._drained, self._stalled, disturbed)

    async def run(self) -> None:
        """Serve the connection until it ends, and close it."""
        refused = self._engine.streams.enter(self, self._socket.kind, self.end)
        if refused is not None:
            self._engine.streams.meter.stream_refused(self._socket.kind, refused.code)
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(FLUSH_WITHIN):
                    await self._socket.close(*refused)
            return
        self._reader = asyncio.current_task()
        if isinstance(self._outgoing, QueuedOutgoing):
            self._beside(self._outgoing.pump(self._socket.send))
        self._keep_time()
        try:
            await self._read_guarded()
        except asyncio.CancelledError:
            if self._code is None or self._reader is None:
                raise
            self._reader.uncancel()  # the close is done: there is nothing to read any more
        finally:
            await self._leave()

    async def _leave(self) -> None:
        """Nothing is left behind."""
        self._stream.closed()
        if self._timer is not None:
            self._timer.cancel()
        if self._follower is not None:
            self._engine.rooms.depart(self._follower)
            self._follower.close()
        if isinstance(self._outgoing, DirectOutgoing):
            self._outgoing.let_go()
        self._reader = None
        for task in self._side:
            task.cancel()
        await asyncio.gather(*self._side, return_exceptions=True)
        streams, kind = self._engine.streams, self._socket.kind
        streams.leave(self, kind, None if self._principal is None else self._principal.user)
        closed = streams.meter.stream_closed if self._opened else streams.meter.stream_refused
        closed(kind, self._code or _ENDED_BY_PEER)
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    async def end(self) -> None:
        """The service stops: answer the pushes under way, then close and let the peer come back."""
        self._stream.closed()
        while self._pushes is not None and not self._pushes.done():
            await asyncio.wait([self._pushes])
        self._end(self._engine.streams.going_away())
        if self._reader is None:
            return
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._over)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_guarded(self) -> None:
        try:
            with suppress(ConnectionError):  # the peer is gone
                await self._read()
        except Exception as error:  # noqa: BLE001  (the connection's end, not the service's)
            self._failed(error)
            await asyncio.gather(*self._side, return_exceptions=True)  # until the close is done

    async def _read(self) -> None:
        """Take frames while the peer takes the answers; ends when it is gone."""
        while True:
            await self._outgoing.clear()
            data = await self._socket.receive()
            if data is None:
                return
            now = self._now()
            if self._stream.state is State.WAITING:
                self._spoken = True
                async with self._engine.streams:
                    await self._carry_out(self._stream.receive(data, now))
            else:
                await self._carry_out(self._stream.receive(data, now))

    def _keep_time(self) -> None:
        """Tell the state machine what time it is when it matters."""
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._stream.deadline
        if deadline is not None:
            delay = max(0, deadline - self._now()) / 1_000
            self._timer = asyncio.get_running_loop().call_later(delay, self._elapsed)

    def _elapsed(self) -> None:
        self._timer = None
        for effect in self._stream.elapsed(self._now()):
            match effect:
                case Close(code=CloseCode.NO_HELLO) if self._spoken:
                    self._end(self._engine.streams.crowded())
                case Close(code=code, reason=reason):
                    self._end(Ending(code, reason))
        if self._code is None:
            self._keep_time()

    # ── effects ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _carry_out(self, effects: list[Effect]) -> None:
        deadline = self._stream.deadline
        for effect in effects:
            await self._do(effect)
        if self._stream.deadline != deadline:
            self._keep_time()

    async def _do(self, effect: Effect) -> None:
        match effect:
            case Send(frame=frame):
                self._send(frame)
            case Close(code=CloseCode.RESTARTING, reason=reason):
                self._end(self._engine.streams.going_away(reason))
            case Close(code=code, reason=reason):
                self._end(Ending(code, reason))
            case Authenticate(token=token):
                await self._identify(token)
            case Open(hello=hello):
                await self._open(hello)
            case Resume(scopes=scopes, watermark=marks):
                await self._resume(scopes, marks)
            case Pause(scopes=scopes):
                self._following.pause(scopes)
            case Push():
                await self._begin_push(effect)
            case Answer(n=n):
                self._send(Pong(self._engine.hub.frames.clock(self._following.latest), n))
            case EnterRoom() | LeaveRoom() | ShowState() | Cast():
                await self._in_room(effect)
            case _ as never:
                assert_never(never)

    @property
    def _following(self) -> StreamFollower:
        if self._follower is None:
            raise RuntimeError("frames are carried out once the stream is open")
        return self._follower

    async def _identify(self, token: str) -> None:
        """Ask whose token it is, and do what the state machine makes of that."""
        try:
            principal = await self._authenticate(token)
        except RequestError as refused:
            await self._carry_out(self._stream.refused(refused.code, refused.detail))
            return
        effects = self._stream.authenticated(principal.user, principal.expires, self._now())
        if self._stream.state is State.OPEN:
            if self._principal is None:
                full = self._engine.streams.claim(principal.user)
                if full is not None:
                    self._end(full)
                    return
            self._principal = principal
        await self._carry_out(effects)

    async def _open(self, hello: Hello) -> None:
        if self._principal is None:
            raise RuntimeError("a stream is opened by somebody")
        engine, self._client = self._engine, hello.client
        follower = self._follower = StreamFollower(
            engine.hub, engine.rooms, self._principal, self._name, hello.schema, self._outgoing, self._failed
        )
        try:
            with engine.streams.tracer.span("open stream") as span:
                span.set("tidemark.stream", self._socket.kind)
                await follower.open(hello, engine.settings.heartbeat / 1_000)
        except Unavailable:
            self._end(engine.streams.going_away("the database is away"))
            return
        follower.begin()
        self._opened = True
        engine.streams.meter.stream_opened(self._socket.kind, (self._now() - self._since) / 1_000)

    async def _resume(self, scopes: list[str], marks: dict[str, str]) -> None:
        try:
            await self._following.resume(scopes, marks)
        except Unavailable:
            self._send(ErrorFrame("unavailable", "the database is away; ask again"))

    async def _in_room(self, effect: EnterRoom | LeaveRoom | ShowState | Cast) -> None:
        rooms, guest, room = self._engine.rooms, self._following, effect.room
        scope = room.partition("/")[0]
        try:
            if not isinstance(effect, LeaveRoom):  # to go one needs no right
                await self._engine.hub.settled(scope)
            match effect:
                case EnterRoom(state=state):
                    if not await guest.visit(scope):
                        raise RequestError("forbidden", "no such room, or not for you")
                    if self._stream.state is State.OPEN:
                        rooms.join(guest, room, state)
                case LeaveRoom():
                    rooms.leave(guest, room)
                case ShowState(state=state):
                    rooms.show(guest, room, state)
                case Cast(event=event, payload=payload):
                    rooms.cast(guest, room, event, payload)
        except RequestError as refused:
            self._send(ErrorFrame(refused.code, refused.detail, room=room))
        except Unavailable:
            self._send(ErrorFrame("unavailable", "the database is away; ask again", room=room))
        guest.tidy_visits()

    # ── pushes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _begin_push(self, push: Push) -> None:
        """Settle it beside what else comes; the one after waits for its turn, and the frames behind it too."""
        if self._pushes is not None:
            await asyncio.wait([self._pushes])
        if self._code is None:
            self._pushes = self._beside(self._settle(push))

    async def _settle(self, push: Push) -> None:
        try:
            self._send(await self._settled(push))
        finally:
            self._pushes = None

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

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, frame: ServerFrame) -> None:
        self._outgoing.put(encoded(frame))

    def _end(self, ending: Ending) -> None:
        """Take nothing in any more; send what waits, and close. The first reason counts."""
        self._stream.closed()
        if self._code is None and self._reader is not None:
            self._code = ending.code
            # To one who may not read any more nothing more is sent.
            self._outgoing.end(drop=ending.code is CloseCode.UNAUTHENTICATED)
            self._beside(self._close(ending))

    async def _close(self, ending: Ending) -> None:
        """Close when all is sent, or cut the connection if that takes too long; then nobody reads any more."""
        try:
            async with asyncio.timeout(FLUSH_WITHIN):
                if isinstance(self._outgoing, QueuedOutgoing):
                    await self._outgoing.clear()
                await self._socket.close(ending.code, ending.reason[:MAX_REASON])
        except (TimeoutError, ConnectionError):
            self._cut()
        if self._reader is not None:
            self._reader.cancel()

    def _cut(self) -> None:
        if self._socket.wire is not None:
            self._socket.wire.abort()

    def _drained(self) -> None:
        if self._follower is not None:
            self._follower.drained()

    def _stalled(self) -> None:
        """The peer has taken nothing for too long: it is cut off."""
        _log.info("stream_stalled", session=self._name)
        if self._reader is not None:
            self._code = self._code or CloseCode.GOING_AWAY
            self._cut()
            self._reader.cancel()

    def _failed(self, error: BaseException) -> None:
        """What nobody foresaw is logged, and ends the connection as a fault of ours."""
        _log.error("stream_failed", session=self._name, exc_info=error)
        self._end(Ending(CloseCode.INTERNAL, "something went wrong here"))

    def _beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._side.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._side.discard(task)
        error = None if task.cancelled() else task.exception()
        match error:
            case None:
                pass
            case ConnectionError():
                if self._reader is not None:
                    self._code = self._code or _ENDED_BY_PEER
                    self._reader.cancel()
            case _:
                self._failed(error)


def _limits(settings: Settings) -> Limits:
    return Limits(
        hello_timeout=settings.hello_timeout,
        max_frame=settings.max_frame,
        max_mutations=settings.max_mutations,
        max_scopes=settings.max_scopes,
        max_state=settings.max_state,
        max_payload=settings.max_payload,
        frames_per_second=settings.frame_rate,
    )
