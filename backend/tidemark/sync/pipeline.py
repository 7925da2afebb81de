"""Group commit: all pushes waiting in a process, merged in memory, written in one transaction (SPEC 4).

A batch is what waits, in order, of scopes that no other batch of this process holds; one bad mutation or constraint
error never fails a neighbour, because a batch that the database refuses is settled in parts until the culprit stands
alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from tidemark.meter import SILENT, Meter, SplitCause
from tidemark.store.base import ConstraintFailed, Held, RowTaken, Store, TableAway, Transaction, Unavailable
from tidemark.tracer import UNTRACED, Tracer
from tidemark_protocol.errors import Postponed, Rejection, RequestError
from tidemark_protocol.messages import Mutation, Result
from tidemark_protocol.schema import Declaration

from .access import Access, Principal
from .batch import Limits, Unit
from .capture import Captured
from .commit import CommitListener
from .merger import Merged, Merger
from .prepare import RANK, Preparer
from .requests import Request, Slice, joined, unavailable, units_of

log = structlog.get_logger(__name__)

MAX_BATCH = 2_000
"""Mutations that one transaction takes at most, unless a single request holds more."""
WORTH_A_BATCH = 100
"""Mutations that are worth a transaction beside one under way; fewer wait to be more, for `LINGER` at most."""
LINGER = 0.01
"""Seconds that a push waits for company while another batch is under way: one that is held up delays nobody longer."""
_TAKEN_RETRIES = 3
"""Times that a batch is run again at once because a key changed hands, before the mutation is sought that wants it."""
AWAY_FOR = 1.0
"""Seconds that mutations of a table are put off at once which another program holds as a whole, or has changed."""
_PARTS_OF_HELD = 8
"""Parts that a batch is settled in, once the database has made it wait for another program's transaction."""
_NOBODY = Principal("", "", admin=False, expires=0)


class Pipeline:
    """Takes pushes, gives verdicts. `now` is wall time in ms; `writers` batches may be under way at once."""

    def __init__(
        self,
        *,
        store: Store,
        declaration: Declaration,
        access: Access,
        limits: Limits,
        node: str,
        now: Callable[[], int],
        committed: CommitListener,
        writers: int = 2,
        patience: float = 10.0,
        pause: float = 0.005,
        meter: Meter = SILENT,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._store = store
        self._schema = declaration.number
        self._committed = committed
        self._preparer = Preparer(declaration, limits.max_doc)
        self._merger = Merger(declaration=declaration, access=access, limits=limits, node=node, now=now)
        self._writers = writers
        self._patience = patience
        self._pause = pause
        self._meter = meter
        self._tracer = tracer
        meter.watch("mutations_waiting", lambda: self._weight)
        self._waiting: deque[Request] = deque()
        self._weight = 0
        self._timer: asyncio.TimerHandle | None = None
        self._busy: set[str] = set()
        self._away: dict[str, float] = {}
        self._running: set[asyncio.Task[None]] = set()

    # ── taking in ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def submit(
        self, principal: Principal, client: str, schema: int, mutations: Sequence[Mutation]
    ) -> tuple[list[Result], str]:
        """The verdicts, once every effect is durable, and the highest clock of the scopes they reflect.

        Raises RequestError `unavailable` when the database is away: nothing was answered, and replay makes it safe.
        """
        prepared = [self._preparer.prepare(principal, mutation, schema) for mutation in mutations]
        if not prepared:
            return [], ""
        request = self._request(
            principal,
            client,
            [Unit(principal, client, schema, unit) for unit in units_of(prepared)],
            frozenset(p.scope for p in prepared if p.fault is None or RANK[p.fault.code] >= RANK["forbidden"]),
            len(prepared),
        )
        self._start()
        await asyncio.shield(request.answer)
        return request.results, request.clock

    async def capture(self, found: Sequence[Captured]) -> list[bool]:
        """Take into the feed what SQL did to these rows; for each whether the inbox has let go of it by now.

        Raises RequestError `unavailable` when the database is away.
        """
        by_scopes: dict[frozenset[str], list[int]] = {}
        for index, captured in enumerate(found):
            by_scopes.setdefault(captured.scopes, []).append(index)
        requests: list[tuple[Request, list[int]]] = []
        for scopes, indices in by_scopes.items():
            units = [Unit(_NOBODY, "", self._schema, [], captured=found[index]) for index in indices]
            requests.append((self._request(None, "", units, scopes, len(units)), indices))
        self._start()
        await asyncio.gather(*(asyncio.shield(request.answer) for request, _ in requests))
        done = [False] * len(found)
        for request, indices in requests:
            for index, result in zip(indices, request.results, strict=True):
                done[index] = result.status == "applied"
        return done

    def _request(
        self, principal: Principal | None, client: str, units: list[Unit], scopes: frozenset[str], size: int
    ) -> Request:
        """A request that waits from now on."""
        loop = asyncio.get_running_loop()
        request = Request(principal, client, units, scopes, size, loop.create_future(), loop.time() + self._patience)
        request.link = self._tracer.here()
        self._waiting.append(request)
        self._weight += size
        return request

    async def finish(self) -> None:
        """Wait until everything taken in has been answered."""
        while self._waiting or self._running:
            answers = [request.answer for request in self._waiting]
            self._start()
            await asyncio.gather(*self._running, *answers, return_exceptions=True)

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._writers:
            if self._running and not self._is_worth_a_batch():
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(LINGER, self._start_late)
                return
            batch = self._next_batch()
            if not batch:
                return
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _start_late(self) -> None:
        self._timer = None
        self._start()

    def _is_worth_a_batch(self) -> bool:
        since = self._waiting[0].deadline - self._patience
        return self._weight >= WORTH_A_BATCH or asyncio.get_running_loop().time() - since >= LINGER

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    def _next_batch(self) -> list[Request]:
        """What waits first, with all that fits beside it.

        A request overtakes an earlier one of its scopes only if that one is found to need another scope as well, which
        another process holds: so a process that stops stalls its own scope alone.
        """
        batch: list[Request] = []
        held: set[str] = set(self._busy)
        kept: deque[Request] = deque()
        size = 0
        now = asyncio.get_running_loop().time()
        for request in self._waiting:
            fits = not batch or size + request.size <= MAX_BATCH
            if fits and request.not_before <= now and held.isdisjoint(request.scopes):
                batch.append(request)
                size += request.size
            else:
                kept.append(request)
                held.update(request.scopes)
        self._waiting = kept
        self._weight = sum(request.size for request in kept)
        self._busy.update(scope for request in batch for scope in request.scopes)
        return batch

    # ── one batch ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self, batch: list[Request]) -> None:
        with self._tracer.joint("batch", [request.link for request in batch]) as span:
            span.set("tidemark.mutations", sum(request.size for request in batch))
            await self._run_traced(batch)

    async def _run_traced(self, batch: list[Request]) -> None:
        began = asyncio.get_running_loop().time()
        slices = [Slice(request, request.units) for request in batch]
        for request in batch:
            request.units = []
        try:
            await self._settle(slices)
            self._defer([request for request in batch if request.units])
        except Unavailable as away:
            log.warning("push_unavailable", reason=str(away), requests=len(batch))
            _fail(batch, RequestError("unavailable", "the database is away; nothing was answered", retry_after=1.0))
        except Exception as bug:
            log.exception("push_failed", requests=len(batch))
            _fail(batch, bug)
        except asyncio.CancelledError:
            _fail(batch, RequestError("unavailable", "the service stops; nothing was answered", retry_after=1.0))
            raise
        finally:
            self._busy.difference_update(scope for request in batch for scope in request.scopes)
            self._measure(batch, began)

    def _measure(self, batch: list[Request], began: float) -> None:
        """Tell of a batch that began at that loop time."""
        answered = [r for r in batch if len(r.results) == r.size and not r.independent]
        self._meter.verdicts(Counter(result.status for request in answered for result in request.results))
        since = min(request.deadline for request in batch) - self._patience
        took = asyncio.get_running_loop().time() - began
        self._meter.batch(sum(request.size for request in batch), began - since, took)

    def _defer(self, requests: list[Request]) -> None:
        """Put back what waits for another process, ahead of what came later; at its deadline it is answered `retry`."""
        if not requests:
            return
        self._meter.deferred(len(requests))
        loop = asyncio.get_running_loop()
        for request in reversed(requests):
            if loop.time() >= request.deadline:
                request.take(unavailable(request.units, "the scope is held by a writer that does not end"))
                continue
            request.not_before = loop.time() + self._pause
            self._waiting.appendleft(request)
        loop.call_later(self._pause, self._resume, requests)

    def _resume(self, requests: list[Request]) -> None:
        """Their pause is over, whatever the clock says: an event loop may call a little early."""
        for request in requests:
            request.not_before = 0.0
        self._start()

    async def _settle(self, slices: list[Slice]) -> None:
        """Settle these slices in one transaction, or in several when the database refuses the data of one of them."""
        slices = [part for part in slices if not _is_closed(part)]
        if not slices:
            return
        self._put_off(slices)
        try:
            merged = await self._transact(slices)
        except TableAway as away:
            log.warning("table_away", entity=away.entity, reason=str(away).partition("\n")[0])
            self._meter.split(_cause(away))
            self._away[away.entity] = asyncio.get_running_loop().time() + AWAY_FOR
            if self._put_off(slices):
                await self._settle(slices)
            else:
                await self._settle_apart(slices, away)
            return
        except (ConstraintFailed, RowTaken, Held) as refused:
            reason = str(refused).partition("\n")[0]
            log.info("data_refused", reason=reason, units=sum(len(part.units) for part in slices))
            self._meter.split(_cause(refused))
            await self._settle_apart(slices, refused)
            return
        for bug in merged.outcome.failures:
            log.error("mutation_failed", exc_info=bug)
        for part in merged.deferred:
            part.request.units.extend(part.units)
        for commit in merged.outcome.commits:
            self._committed(commit)
        for part, results in zip(merged.settled, merged.outcome.results, strict=True):
            part.request.clock = max(part.request.clock, self._merger.reflected(part.request, merged))
            part.request.take(results)

    def _put_off(self, slices: list[Slice]) -> bool:
        """Doom for now what names a table that cannot be used; whether there was any."""
        now = asyncio.get_running_loop().time()
        self._away = {entity: until for entity, until in self._away.items() if until > now}
        units = [u for part in slices for u in part.units if u.doomed is None and any(map(u.names, self._away))]
        for unit in units:
            unit.doomed = Postponed("unavailable", "its table is held, or was changed, by another program")
        return bool(units)

    async def _settle_apart(self, slices: list[Slice], refused: _Refused) -> None:
        """In parts, in order, until a unit stands alone: that is the one to blame."""
        units = [Slice(part.request, [unit]) for part in slices for unit in part.units]
        if len(units) == 1:
            if units[0].units[0].doomed is not None:
                raise refused
            units[0].units[0].doomed = _doom(refused)
            await self._settle(units)
            return
        # Two tries are quickest where the database refuses at once; where each is a wait, fewer of them are.
        size = -(-len(units) // (_PARTS_OF_HELD if isinstance(refused, Held) else 2))
        for start in range(0, len(units), size):
            await self._settle(joined(units[start : start + size]))

    async def _transact(self, slices: list[Slice]) -> Merged:
        async def body(tx: Transaction) -> Merged:
            return await self._merger.merge(tx, slices)

        for _ in range(_TAKEN_RETRIES):
            with suppress(RowTaken):
                return await self._store.transact(body)
        return await self._store.transact(body)


_Refused = ConstraintFailed | RowTaken | Held | TableAway


def _cause(refused: _Refused) -> SplitCause:
    if isinstance(refused, TableAway):
        return "table_away"
    if isinstance(refused, Held):
        return "held"
    return "row_taken" if isinstance(refused, RowTaken) else "constraint"


def _doom(refused: _Refused) -> Rejection | Postponed:
    """What a mutation is told that the database refuses; the reason may name what is not the caller's to know."""
    if isinstance(refused, TableAway):
        return Postponed("unavailable", "a table it depends on is held, or was changed, by another program")
    if isinstance(refused, Held):
        return Postponed("unavailable", "a transaction of another program holds a row, key or unique value it needs")
    if isinstance(refused, RowTaken):
        return Rejection("row_taken", "the key is in use in another scope")
    if refused.unique:
        return Rejection("unique_violation", "another row holds the same values")
    return Rejection("constraint_violation", "the database refuses this data")


def _is_closed(part: Slice) -> bool:
    """Whether nothing is to be settled: the request was stopped (its units are answered), or waits (they are kept)."""
    if part.request.stopped:
        part.request.take(unavailable(part.units, "waits for what stands before it"))
        return True
    if part.request.units:
        part.request.units.extend(part.units)
        return True
    return False


def _fail(batch: list[Request], error: Exception) -> None:
    for request in batch:
        if not request.answer.done():
            request.answer.set_exception(error)
