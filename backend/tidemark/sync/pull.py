"""Pull: what changed after a watermark, as runs (SPEC 5).

A page never touches the declared tables and builds no document: the store assembles the wire form, and it goes out as
it is, unless its reader is of an older schema number. Membership is asked for again after the data was read, so that
what was committed after a membership's end never leaves (SPEC 6, revocation).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable

from msgspec import Struct
from msgspec.structs import replace

from tidemark.meter import SILENT, Meter
from tidemark.store.base import Run as StoredRun
from tidemark.store.base import ScopeState, Store
from tidemark.tracer import UNTRACED, Span, Tracer
from tidemark_protocol import digest, watermark
from tidemark_protocol.messages import PullRequest, Trailer, encode, run_bytes
from tidemark_protocol.watermark import Watermark

from .access import Access, Principal
from .hub import Hub
from .shapes import Shapes

LINE = 2_000
"""Changes in one line of a streamed pull at most: small enough that the database reads ahead while one is sent."""


class Page(Struct):
    """Runs as bytes by scope; `more`: not everything was reached; `clock` is not below anything that it reflects.

    `told` are the scopes that anything of this shows of, `marks` the watermarks of the runs.
    """

    runs: dict[str, bytes]
    readable: list[str]
    revoked: list[str]
    more: bool
    clock: str
    told: set[str]
    marks: dict[str, str]


class Puller:
    """Answers pulls. `clock` gives a reading not below wall time nor the one given; `buffer` bounds a page's bytes."""

    def __init__(
        self,
        *,
        store: Store,
        access: Access,
        hub: Hub,
        shapes: Shapes,
        clock: Callable[[str], str],
        buffer: int,
        meter: Meter = SILENT,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._store = store
        self._access = access
        self._hub = hub
        self._shapes = shapes
        self._clock = clock
        self._buffer = buffer
        self._meter = meter
        self._tracer = tracer
        self._waiting = 0
        meter.watch("pulls_waiting", lambda: self._waiting)

    async def page(self, principal: Principal, request: PullRequest) -> bytes:
        """The body of one answer; with `wait`, held until it would differ from having nothing new."""
        if not request.wait:
            return _body(await self._read(principal, request))
        self._waiting += 1
        try:
            return _body(await self._news(principal, request, asyncio.get_running_loop().time() + request.wait))
        finally:
            self._waiting -= 1

    async def _news(self, principal: Principal, request: PullRequest, deadline: float) -> Page:
        """A page that says something new, or the last one before the deadline (loop time)."""
        first: Page | None = None
        while True:
            watched = {principal.own, *_covered(request, await self._access.readable(principal))}
            with self._hub.watch(watched) as watch:
                page = await self._read(principal, request)
                first = first or page
                left = deadline - asyncio.get_running_loop().time()
                if page.runs or page.revoked or page.readable != first.readable or left <= 0:
                    return page
                await watch.changed(left)

    async def lines(self, principal: Principal, request: PullRequest) -> AsyncGenerator[bytes]:
        """Runs one to a line, page after page until caught up, then the trailer; the next page is read while one is
        on its way.
        """
        marks = dict(request.watermark or {})
        limit = min(request.limit, LINE)

        async def following() -> Page:
            page = await self._read(principal, replace(request, watermark=marks, limit=limit))
            marks.update(page.marks)
            return page

        clock = ""
        page = await following()
        ahead: asyncio.Task[Page] | None = None
        try:
            while True:
                clock = max(clock, page.clock)
                ahead = asyncio.create_task(following()) if page.more else None
                for run in page.runs.values():
                    yield b"{%b}\n" % run
                if ahead is None:
                    yield encode(Trailer(page.readable, page.revoked, clock)) + b"\n"
                    return
                page = await ahead
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def _read(self, principal: Principal, request: PullRequest) -> Page:
        """One page, read under rights that held after it was read."""
        with self._tracer.span("page") as span:
            while True:
                page = await self._collect(request, list(await self._access.readable(principal)), span)
                shared = page.told - {principal.own}
                if not shared or shared <= (await self._access.readable(principal)).keys():
                    return page

    async def _collect(self, request: PullRequest, readable: list[str], span: Span) -> Page:
        given = request.watermark or {}
        covered = _covered(request, readable)
        states = await self._store.states(covered)
        page = Page({}, covered, sorted(set(given) - set(readable)), False, self._clock(""), set(), {})
        changes, size = request.limit, self._buffer
        for scope in covered:
            state = states.get(scope, ScopeState(scope))
            if state.clock > page.clock:
                page.clock = state.clock
                page.told.add(scope)
            start = self._start(given.get(scope), state, request.schema)
            if scope in given and not start.reset and start.after == state.head:
                continue
            if changes <= 0 or size <= 0:
                page.more = True
                continue
            run = await self._run(state, given.get(scope), request.schema, changes, size)
            page.runs[scope], page.marks[scope] = run.text, run.watermark
            page.told.add(scope)
            page.clock = max(page.clock, run.clock)
            page.more = page.more or not run.complete
            changes -= run.count
            size -= len(run.text)
        page.clock = self._clock(page.clock)
        self._meter.pulled(request.limit - changes, self._buffer - size)
        span.set("tidemark.changes", request.limit - changes)
        return page

    def _start(self, given: str | None, state: ScopeState, schema: int) -> watermark.Start:
        return watermark.start(given, epoch=self._store.epoch, head=state.head, floor=state.floor, schema=schema)

    async def _run(self, state: ScopeState, given: str | None, schema: int, limit: int, size: int) -> _Run:
        """One run of at most `limit` changes and about `size` bytes.

        Where it starts is judged by the state read before; if the snapshot's floor or head say otherwise, read again.
        """
        scope = state.scope
        while True:
            start = self._start(given, state, schema)
            found = await self._store.run(scope, start.after, start.base, limit, size)
            if found is None:
                found = StoredRun(ScopeState(scope), 0, 0, b"")
            again = self._start(given, found.state, schema)
            if (again.after, again.reset) == (start.after, start.reset):
                break
            state = found.state
        head = found.state.head
        complete = found.to == head
        mark = str(Watermark(self._store.epoch, found.to, start.base, schema))
        text = run_bytes(
            scope=scope,
            after=start.after,
            to=found.to,
            head=head,
            watermark=mark,
            digest=digest.text(found.state.live, found.state.total) if complete else None,
            reset=start.reset,
            changes=self._shapes.rewritten(schema, found.body),
        )
        return _Run(text, mark, found.count, found.state.clock, complete)


class _Run(Struct):
    """A run without its braces, its watermark and count, the scope's clock, and whether it reaches the head."""

    text: bytes
    watermark: str
    count: int
    clock: str
    complete: bool


def _covered(request: PullRequest, readable: Iterable[str]) -> list[str]:
    narrowed = None if request.scopes is None else set(request.scopes)
    return [scope for scope in readable if narrowed is None or scope in narrowed]


def _body(page: Page) -> bytes:
    return b'{"scopes":[%b],"readable":%b,"revoked":%b,"more":%b,"clock":"%b"}' % (
        b",".join(b"{%b}" % run for run in page.runs.values()),
        encode(page.readable),
        encode(page.revoked),
        b"true" if page.more else b"false",
        page.clock.encode(),
    )
