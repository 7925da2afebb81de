"""Housekeeping: one loop in one process at a time forgets what lies before its retention (SPEC 3 and 7)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import structlog
from msgspec.structs import replace

from tidemark.meter import SILENT, Meter
from tidemark.store.base import FeedRow, RowKey, Store, Unavailable
from tidemark_protocol import clock
from tidemark_protocol.merge import RowState

from . import feed

log = structlog.get_logger(__name__)

_LEASE = "housekeeping"
_CHUNK = 500
_JOURNAL_CHUNK = 2_000


class Swept(NamedTuple):
    """What one round forgot."""

    rows: int
    entries: int


def without_forgotten(state: RowState, horizon: str) -> RowState | None:
    """A row's state without what retention forgets at `horizon`; None when nothing of it remains.

    A tombstone goes when every clock it holds lies before the horizon; of a live row, clocks of removed map keys do.
    """
    if state.deleted:
        return None if state.latest < horizon else state
    kept = {p: at for p, at in state.clocks.items() if at >= horizon or not feed.is_removed_key(state, p)}
    return replace(state, clocks=kept)


class Housekeeping:
    """Runs every `interval` ms while it holds the lease. `now` is wall time in ms."""

    def __init__(
        self,
        *,
        store: Store,
        now: Callable[[], int],
        owner: str,
        interval: int,
        retention: int,
        journal_retention: int,
        meter: Meter = SILENT,
    ) -> None:
        self._store = store
        self._now = now
        self._owner = owner
        self._interval = interval
        self._retention = retention
        self._journal_retention = journal_retention
        self._meter = meter

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._interval / 1_000)
            try:
                if await self._store.lease(_LEASE, self._owner, self._now(), self._now() + 3 * self._interval):
                    swept = await self.sweep()
                    self._meter.kept_house(swept.rows, swept.entries, self._now() / 1_000)
                    if any(swept):
                        log.info("swept", rows=swept.rows, journal_entries=swept.entries)
            except Unavailable as away:
                log.warning("housekeeping_unavailable", reason=str(away))
            except Exception:
                log.exception("housekeeping_failed")

    async def sweep(self) -> Swept:
        """Forget everything that may be forgotten now."""
        now = self._now()
        horizon = now - self._retention
        rows = entries = 0
        while True:
            found = await self._store.residues(horizon, clock.floor_reading(max(horizon, 0)), _CHUNK)
            forgotten = await self._forget(found, horizon)
            rows += forgotten
            if len(found) < _CHUNK or not forgotten:
                break
        while True:
            gone = await self._store.forget_journal(now - self._journal_retention, _JOURNAL_CHUNK)
            entries += gone
            if gone < _JOURNAL_CHUNK:
                return Swept(rows, entries)

    async def _forget(self, found: list[FeedRow], horizon: int) -> int:
        edge = clock.floor_reading(max(horizon, 0))
        by_scope: dict[str, tuple[list[FeedRow], list[FeedRow]]] = defaultdict(lambda: ([], []))
        for row in found:
            before = feed.held_state(row)
            after = without_forgotten(before, edge)
            dropped, rewritten = by_scope[row.scope]
            if after is None:
                dropped.append(row)
            elif after.clocks != before.clocks:
                key = RowKey(row.scope, row.entity, row.row)
                rewritten.append(feed.to_feed(key, after, row.version, row.doc, row.arrived))
        forgotten = 0
        for scope, (dropped, rewritten) in by_scope.items():
            forgotten += await self._store.forget(scope, horizon, dropped, rewritten)
        return forgotten
