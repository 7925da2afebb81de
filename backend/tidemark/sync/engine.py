"""The sync engine of one process: its parts put together, and the verbs that the web layer calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final

import structlog

from tidemark.meter import SILENT, Meter
from tidemark.settings import Settings
from tidemark.store.base import Store
from tidemark.tracer import UNTRACED, Tracer
from tidemark.wake.base import Wake
from tidemark_protocol import clock
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import Mutation, PullRequest, PushResponse
from tidemark_protocol.model import Declaration

from .access import Access, Principal
from .batch import Limits
from .frames import FrameMaker
from .history import History
from .hub import Hub
from .inbox import Drain
from .members import Members
from .pipeline import Pipeline
from .pull import Puller
from .retention import Housekeeping
from .rooms import RoomLimits, Rooms
from .shapes import Shapes
from .streams import Streams

STOP_WITHIN: Final = 3.0
"""Seconds that a database which does not answer may hold up the end."""

_log = structlog.get_logger(__name__)


class Engine:
    """Push, pull, stream, rooms, members and journal over one store.

    `now` is wall time in ms, `monotonic` gives seconds, `chance(n)` n random bytes.
    """

    def __init__(
        self,
        *,
        store: Store,
        declaration: Declaration,
        settings: Settings,
        wake: Wake,
        now: Callable[[], int],
        chance: Callable[[int], bytes],
        monotonic: Callable[[], float] = time.monotonic,
        meter: Meter = SILENT,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self.store = store
        self.declaration = declaration
        self.settings = settings
        self.node = chance(8).hex()
        self._now = now
        self.meter = meter
        self.tracer = tracer
        self.access = Access(store, declaration)
        shapes = Shapes(declaration)
        self.streams = Streams(settings, lambda: int.from_bytes(chance(4), "big") / 2**32, meter, tracer)
        self.hub = Hub(
            store=store,
            access=self.access,
            wake=wake,
            frames=FrameMaker(lambda: store.epoch, self.clock, shapes.rewritten),
            buffer=settings.stream_buffer,
            poll_interval=settings.poll_interval,
            monotonic=monotonic,
            meter=meter,
        )
        self.rooms = Rooms(
            node=self.node,
            send=wake.send,
            limits=_room_limits(settings),
            monotonic=monotonic,
            fanout=self.hub.fanout,
            unsettled=self.hub.unsettled,
            meter=meter,
        )
        self.hub.on_settled = self.rooms.settled
        self.hub.on_message = self.rooms.received
        self.hub.on_deaf = self.rooms.resynchronise
        self._pipeline = self._make_pipeline()
        self._puller = self._make_puller(shapes)
        self._members = Members(
            store=store, access=self.access, declaration=declaration, now=now, committed=self.hub.committed
        )
        self._history = History(store, self.access)
        self._housekeeping = self._make_housekeeping()
        self.drain = self._make_drain()
        self._loops: list[asyncio.Task[None]] = []
        meter.watch("connections_used", lambda: store.connections().used)
        meter.watch("connections_most", lambda: store.connections().most)

    def _make_pipeline(self) -> Pipeline:
        return Pipeline(
            store=self.store,
            declaration=self.declaration,
            access=self.access,
            limits=_limits(self.settings, self.declaration),
            node=self.node,
            now=self._now,
            committed=self.hub.committed,
            meter=self.meter,
            tracer=self.tracer,
        )

    def _make_puller(self, shapes: Shapes) -> Puller:
        return Puller(
            store=self.store,
            access=self.access,
            hub=self.hub,
            shapes=shapes,
            clock=self.clock,
            buffer=self.settings.pull_buffer,
            meter=self.meter,
            tracer=self.tracer,
        )

    def _make_drain(self) -> Drain:
        return Drain(
            store=self.store,
            declaration=self.declaration,
            capture=self._pipeline.capture,
            now=self._now,
            owner=self.node,
            interval=self.settings.capture_interval or self.store.pace,
            meter=self.meter,
            tracer=self.tracer,
        )

    def _make_housekeeping(self) -> Housekeeping:
        return Housekeeping(
            store=self.store,
            now=self._now,
            owner=self.node,
            interval=self.settings.housekeeping_interval,
            retention=self.settings.retention,
            journal_retention=self.settings.journal_retention,
            meter=self.meter,
        )

    async def start(self) -> None:
        """Open the store and begin to listen, to drain the inbox and to keep house."""
        await self.store.open()
        await self.hub.start()
        self._loops = [asyncio.create_task(loop.run()) for loop in (self.drain, self._housekeeping, self.rooms)]

    async def stop(self) -> None:
        """Answer what was taken in, end the streams, let go of the store; soon, also without the database."""
        ending = asyncio.create_task(self._end())
        await asyncio.wait({ending}, timeout=STOP_WITHIN)
        if not ending.done():
            _log.warning("stopped without the database", seconds=STOP_WITHIN)
        await self.store.close()
        await asyncio.wait({ending}, timeout=STOP_WITHIN)
        if ending.done():
            ending.result()

    async def _end(self) -> None:
        await self.streams.end()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._pipeline.finish()
        self.rooms.goodbye()
        await self.hub.stop()

    async def end_streams(self) -> None:
        """Let no stream in any more, and end all with a hint when to come back; pushes under way are answered first."""
        await self.streams.end()

    def clock(self, *readings: str) -> str:
        """A reading not below wall time nor any of those given (SPEC 2)."""
        return max((clock.reading(self._now(), 0, self.node), *readings))

    async def push(self, principal: Principal, client: str, schema: int, mutations: list[Mutation]) -> PushResponse:
        """A verdict for each mutation, every effect durable (SPEC 4). RequestError `too_large`, `unavailable`."""
        if len(mutations) > self.settings.max_mutations:
            raise RequestError("too_large", f"a push holds at most {self.settings.max_mutations} mutations")
        with self.tracer.span("push") as span:
            span.set("tidemark.mutations", len(mutations))
            results, reflected = await self._pipeline.submit(principal, client, schema, mutations)
        return PushResponse(results, self.clock(reflected))

    async def pull(self, principal: Principal, request: PullRequest) -> bytes:
        """The body of an answer (SPEC 5). RequestError `schema_mismatch`."""
        self.check_schema(request.schema)
        return await self._puller.page(principal, request)

    def pull_lines(self, principal: Principal, request: PullRequest) -> AsyncGenerator[bytes]:
        """Runs one to a line, and the trailer (SPEC 5). RequestError `schema_mismatch`."""
        self.check_schema(request.schema)
        return self._puller.lines(principal, request)

    def check_schema(self, number: int) -> None:
        """Raise RequestError `schema_mismatch` for a number that is not served."""
        oldest, newest = self.declaration.oldest, self.declaration.number
        if not oldest <= number <= newest:
            raise RequestError("schema_mismatch", f"this service speaks schema {oldest} to {newest}, not {number}")

    async def members(self, principal: Principal, scope: str) -> dict[str, str]:
        return await self._members.list(principal, scope)

    async def put_member(self, principal: Principal, scope: str, user: str, role: str) -> None:
        await self._members.put(principal, scope, user, role)

    async def delete_member(self, principal: Principal, scope: str, user: str) -> None:
        await self._members.delete(principal, scope, user)

    async def events(self, principal: Principal, parameters: Mapping[str, str]) -> bytes:
        return await self._history.events(principal, parameters)

    async def ready(self) -> None:
        """Raise Unavailable while the database is away."""
        await self.store.states(())


def _room_limits(settings: Settings) -> RoomLimits:
    return RoomLimits(
        rooms_per_stream=settings.rooms_per_stream,
        room_members=settings.room_members,
        room_state=settings.room_state,
        broadcast_rate=settings.broadcast_rate,
        room_rate=settings.room_rate,
    )


def _limits(settings: Settings, declaration: Declaration) -> Limits:
    """The bounds of a merge."""
    return Limits(
        max_drift=settings.max_drift,
        max_doc=settings.max_doc,
        retention=settings.retention,
        cascade=settings.cascade_limit,
        oldest_schema=declaration.oldest,
        schema=declaration.number,
    )
