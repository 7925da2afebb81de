"""Pull: what changed after a watermark, as runs (SPEC 5).

A page never touches the declared tables and builds no document: the store assembles the wire form, and it goes out as
it is. Membership is asked for again after the data was read, so that what was committed after a membership's end never
leaves (SPEC 6, revocation).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from msgspec import Struct
from msgspec.structs import replace

from tidemark.store.base import ScopeState, Store
from tidemark_protocol import digest, watermark
from tidemark_protocol.messages import PullRequest, Trailer, encode, run_bytes
from tidemark_protocol.watermark import Watermark

from .access import Access, Principal
from .hub import Hub


class Page(Struct):
    """Runs as bytes by scope; `more`: not everything was reached; `clock` is not below anything that it reflects."""

    runs: dict[str, bytes]
    readable: list[str]
    revoked: list[str]
    more: bool
    clock: str


class Puller:
    """Answers pulls. `clock` gives a reading not below wall time nor the one given; `buffer` bounds a page's bytes."""

    def __init__(self, *, store: Store, access: Access, hub: Hub, clock: Callable[[str], str], buffer: int) -> None:
        self._store = store
        self._access = access
        self._hub = hub
        self._clock = clock
        self._buffer = buffer

    async def page(self, principal: Principal, request: PullRequest) -> bytes:
        """The body of one answer; with `wait`, held until it would differ from having nothing new."""
        if not request.wait:
            return _body(await self._read(principal, request))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.wait
        first: Page | None = None
        while True:
            watched = {principal.own, *(await self._access.readable(principal))}
            with self._hub.watch(watched) as watch:
                page = await self._read(principal, request)
                first = first or page
                left = deadline - loop.time()
                if page.runs or page.revoked or page.readable != first.readable or left <= 0:
                    return _body(page)
                await watch.changed(left)

    async def lines(self, principal: Principal, request: PullRequest) -> AsyncIterator[bytes]:
        """Runs one to a line, page after page until caught up, then the trailer."""
        marks = dict(request.watermark or {})
        while True:
            page = await self._read(principal, replace(request, watermark=marks), marks)
            for run in page.runs.values():
                yield b"{%b}\n" % run
            if not page.more:
                yield encode(Trailer(page.readable, page.revoked, page.clock)) + b"\n"
                return

    async def _read(self, principal: Principal, request: PullRequest, progress: dict[str, str] | None = None) -> Page:
        """One page, read under rights that held after it was read; `progress` takes the watermarks handed out."""
        while True:
            readable = await self._access.readable(principal)
            page, marks = await self._collect(request, list(readable))
            shared = [scope for scope in page.runs if scope != principal.own]
            if shared:
                still = await self._access.readable(principal)
                if any(scope not in still for scope in shared):
                    continue
            if progress is not None:
                progress.update(marks)
            return page

    async def _collect(self, request: PullRequest, readable: list[str]) -> tuple[Page, dict[str, str]]:
        given = request.watermark or {}
        narrowed = None if request.scopes is None else set(request.scopes)
        covered = [scope for scope in readable if narrowed is None or scope in narrowed]
        revoked = sorted(set(given) - set(readable))
        states = await self._store.states(covered)
        page = Page({}, covered, revoked, False, "")
        marks: dict[str, str] = {}
        room = request.limit
        for scope in covered:
            state = states.get(scope, ScopeState(scope))
            page.clock = max(page.clock, state.clock)
            start = self._start(given.get(scope), state, request.schema)
            if scope in given and not start.reset and start.after == state.head:
                continue
            if room <= 0:
                page.more = True
                continue
            run, mark, count, clock, complete = await self._run(state, given.get(scope), request.schema, room)
            page.runs[scope], marks[scope] = run, mark
            page.clock = max(page.clock, clock)
            page.more = page.more or not complete
            room -= count
        page.clock = self._clock(page.clock)
        return page, marks

    def _start(self, given: str | None, state: ScopeState, schema: int) -> watermark.Start:
        return watermark.start(given, epoch=self._store.epoch, head=state.head, floor=state.floor, schema=schema)

    async def _run(
        self, state: ScopeState, given: str | None, schema: int, limit: int
    ) -> tuple[bytes, str, int, str, bool]:
        """One run, its watermark, its count, the scope's clock, and whether it reaches the head.

        Where it starts is judged by the state read before; if the snapshot's floor or head say otherwise, read again.
        """
        scope = state.scope
        while True:
            start = self._start(given, state, schema)
            run = await self._store.run(scope, start.after, start.base, limit, self._buffer)
            if run is None:
                mark = str(Watermark(self._store.epoch, 0, 0, schema))
                proof = digest.text(0, 0)
                body = run_bytes(
                    scope=scope, after=0, to=0, head=0, watermark=mark, digest=proof, reset=start.reset, changes=b""
                )
                return body, mark, 0, "", True
            again = self._start(given, run.state, schema)
            if (again.after, again.reset) == (start.after, start.reset):
                break
            state = run.state
        head = run.state.head
        mark = str(Watermark(self._store.epoch, run.to, start.base, schema))
        complete = run.to == head
        body = run_bytes(
            scope=scope,
            after=start.after,
            to=run.to,
            head=head,
            watermark=mark,
            digest=digest.text(run.state.live, run.state.total) if complete else None,
            reset=start.reset,
            changes=run.body,
        )
        return body, mark, run.count, run.state.clock, complete


def _body(page: Page) -> bytes:
    return b'{"scopes":[%b],"readable":%b,"revoked":%b,"more":%b,"clock":"%b"}' % (
        b",".join(b"{%b}" % run for run in page.runs.values()),
        encode(page.readable),
        encode(page.revoked),
        b"true" if page.more else b"false",
        page.clock.encode(),
    )
