"""Draining the inbox: what triggers reported of other programs' writes reaches the feed (SPEC 10)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final

import structlog
from msgspec import Struct

from tidemark.meter import SILENT, Meter
from tidemark.store.base import Backlog, Identity, InboxEntry, Store, TableAway, TableRow, Transaction, Unavailable
from tidemark.tracer import UNTRACED, Tracer
from tidemark_protocol.errors import RequestError
from tidemark_protocol.model import Declaration

from .capture import Captured, anywhere, scope_in

log = structlog.get_logger(__name__)

PAGE: Final = 1_000
"""Entries taken at once."""
_LEASE: Final = "capture"
_LEASE_FOR: Final = 3_000
"""Milliseconds after which another process drains, when the one that did has stopped."""
_FIRST_PAUSE: Final = 50
_LONGEST_PAUSE: Final = 2_000
"""Milliseconds that entries wait before they are tried again, twice as long each time."""
_FOR_EACH: Final = 10
"""Milliseconds for each entry passed over that they wait at most, where these are many: new ones are not to suffer."""
_AGAIN: Final = 50
"""Entries that are tried again beside new ones, as long as none succeeds."""
_NEWEST: Final = 100
"""Entries taken beside a full page from the end of the inbox: a row written now does not wait for a million others."""
_AFTER_FAILURE: Final = 1_000
_LONGEST_AWAY: Final = 8_000
"""Milliseconds that a table is left alone which cannot be used, after `_AFTER_FAILURE` and twice as long each time."""
_COUNT_EVERY: Final = 5_000
"""Milliseconds between two counts of what waits."""


class Passed(Struct):
    """An entry, or a table, that could not be taken: when (ms) it is tried again, and how long it waited."""

    until: int
    pause: int


class Drain:
    """Takes what the inbox holds into the feed, through the pipeline; one process at a time, though several are safe.

    `capture` is `Pipeline.capture`. `now` is wall time in ms, `interval` (ms) the time between two looks.
    """

    def __init__(
        self,
        *,
        store: Store,
        declaration: Declaration,
        capture: Callable[[Sequence[Captured]], Awaitable[list[bool]]],
        now: Callable[[], int],
        owner: str,
        interval: int,
        meter: Meter = SILENT,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._store = store
        self._declaration = declaration
        self._capture = capture
        self._now = now
        self._owner = owner
        self._interval = interval
        self._passed: dict[int, Passed] = {}
        self._away: dict[str, Passed] = {}
        self._again = _AGAIN
        self._renewed = -_LEASE_FOR
        self._meter = meter
        self._tracer = tracer
        self._backlog = Backlog(0, None)
        self._counted = -_COUNT_EVERY
        meter.watch("inbox_entries", lambda: self._backlog.entries)
        meter.watch("inbox_oldest_seconds", lambda: self._lag(self._backlog.oldest))
        meter.watch("inbox_passed_over", lambda: len(self._passed))

    async def run(self) -> None:
        """Until cancelled. Nothing to do where nothing is captured."""
        if not any(entity.capture for entity in self._declaration.entities.values()):
            return
        while True:
            pause = self._interval
            try:
                if not await self._leads():
                    self._backlog = Backlog(0, None)
                    pause = max(pause, _LEASE_FOR // 3)
                else:
                    gone = await self.step()
                    await self._count()
                    if gone:
                        continue
            except (Unavailable, RequestError) as away:
                log.warning("capture_unavailable", reason=str(away))
                self._meter.drain_failed()
                pause = max(pause, _AFTER_FAILURE)
            except Exception:
                log.exception("capture_failed")
                self._meter.drain_failed()
                pause = max(pause, _AFTER_FAILURE)
            await asyncio.sleep(pause / 1_000)

    async def _count(self) -> None:
        """Now and then, count what waits."""
        now = self._now()
        if now - self._counted >= _COUNT_EVERY:
            self._counted = now
            self._backlog = await self._store.backlog()

    def _lag(self, since: int | None) -> float:
        """Seconds since then by the wall clock; the database's may be a little ahead."""
        return 0.0 if since is None else max(0, self._now() - since) / 1_000

    async def step(self) -> int:
        """Take one page; how many entries the inbox let go of."""
        now = self._now()
        again = set(islice((number for number, passed in self._passed.items() if passed.until <= now), self._again))
        away = [entity for entity, passed in self._away.items() if passed.until > now]
        entries = await self._store.inbox(self._passed.keys() - again, PAGE, away)
        again = self._tried(again, entries)
        if not entries:
            return 0
        if len(entries) == PAGE:
            known = self._passed.keys() | {entry.id for entry in entries}
            entries += await self._store.inbox(known, _NEWEST, away, newest=True)
        with self._tracer.joint("drain", ()) as span:
            span.set("tidemark.entries", len(entries))
            return await self._take(entries, again, now)

    async def _take(self, entries: list[InboxEntry], again: set[int], now: int) -> int:
        """How many of these the inbox let go of; `again` are those that had been passed over before."""
        try:
            found = await self._placed(entries)
        except TableAway as held:
            self._leave_alone(held, now)
            return await self.step()
        for entity in {entry.entity for entry in entries}:
            self._away.pop(entity, None)
        done = await self._capture(found)
        for captured, taken in zip(found, done, strict=True):
            for entry in captured.entries:
                self._pass_over(entry.id, now, taken=taken)
        if again:
            self._learn(again, now)
        gone = [entry for captured, taken in zip(found, done, strict=True) if taken for entry in captured.entries]
        if gone:
            self._meter.drained(len(gone), self._lag(min(entry.captured_at for entry in gone)))
        return len(gone)

    def _pass_over(self, number: int, now: int, *, taken: bool) -> None:
        before = self._passed.pop(number, None)
        if not taken:
            longest = max(_LONGEST_PAUSE, len(self._passed) * _FOR_EACH)
            pause = _FIRST_PAUSE if before is None else min(before.pause * 2, longest)
            self._passed[number] = Passed(now + pause, pause)

    def _tried(self, again: set[int], entries: Sequence[InboxEntry]) -> set[int]:
        """Those that are there to be tried again; what another process has taken is not passed over any more."""
        tried = again & {entry.id for entry in entries}
        last = entries[-1].id if len(entries) == PAGE else None
        for number in again - tried:
            if last is None or number <= last:
                del self._passed[number]
        return tried

    def _learn(self, again: set[int], now: int) -> None:
        """Where one succeeds that was tried again, so may the others: whoever held them up has ended."""
        ended = not again <= self._passed.keys()
        self._again = PAGE if ended else _AGAIN
        if ended:
            for passed in self._passed.values():
                passed.until = now

    def _leave_alone(self, away: TableAway, now: int) -> None:
        before = self._away.get(away.entity)
        pause = _AFTER_FAILURE if before is None else min(before.pause * 2, _LONGEST_AWAY)
        self._away[away.entity] = Passed(now + pause, pause)
        reason = str(away).partition("\n")[0]
        log.warning("capture_table_away", entity=away.entity, reason=reason, again_in=pause / 1_000)

    async def _placed(self, entries: list[InboxEntry]) -> list[Captured]:
        """The rows that entries name, in the order they were named first, with the scopes to lock for each.

        What is read here may be out of date by the time they are locked; then the row is left for another round.
        """
        by_row: dict[Identity, list[InboxEntry]] = {}
        for entry in entries:
            by_row.setdefault(Identity(entry.entity, entry.identity), []).append(entry)

        keys = {identity: anywhere(self._declaration.entities[identity.entity], identity) for identity in by_row}

        async def look(tx: Transaction) -> tuple[list[TableRow], dict[tuple[str, str], set[str]]]:
            rows, _ = await tx.table_rows(by_row, ())
            lives: dict[tuple[str, str], set[str]] = {}
            for row in await tx.load(keys.values()):
                if not row.deleted:
                    lives.setdefault((row.entity, row.row), set()).add(row.scope)
            return rows, lives

        rows, lives = await self._store.transact(look)
        there = {row.identity: scope_in(self._declaration.entities[row.identity.entity], row.scope) for row in rows}
        found: list[Captured] = []
        for identity, named in by_row.items():
            key = keys[identity]
            scopes = set(lives.get((key.entity, key.row), ())) if not key.scope else {key.scope}
            scopes |= {scope for scope in (there.get(identity),) if scope is not None}
            last = max(named, key=lambda entry: entry.captured_at)
            found.append(Captured(identity, tuple(named), last.captured_at, last.who or "", frozenset(scopes)))
        return found

    async def _leads(self) -> bool:
        """Whether this process drains; nobody else can where it has the database alone."""
        if self._store.exclusive:
            return True
        now = self._now()
        if now - self._renewed < _LEASE_FOR // 3:
            return True
        leads = await self._store.lease(_LEASE, self._owner, now, now + _LEASE_FOR)
        self._renewed = now if leads else -_LEASE_FOR
        return leads
