"""Group commit: all pushes waiting in a process, merged in memory, written in one transaction (SPEC 4).

A batch is what waits, in order, of scopes that no other batch of this process holds; one bad mutation or constraint
error never fails a neighbour, because a batch that the database refuses is halved until the culprit stands alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from msgspec import Struct

from tidemark.store.base import ConstraintFailed, Held, RowTaken, Store, Transaction, Unavailable
from tidemark_protocol.errors import Postponed, Rejection, RequestError
from tidemark_protocol.messages import Mutation, Result, VerdictError
from tidemark_protocol.schema import Declaration

from .access import Access, Principal
from .batch import Limits, Unit
from .capture import Captured, Reader
from .commit import CommitListener
from .facts import Facts
from .outcome import Outcome, outcome_of
from .prepare import RANK, Prepared, Preparer
from .settle import Settlement

log = structlog.get_logger(__name__)

MAX_BATCH = 2_000
"""Mutations that one transaction takes at most, unless a single request holds more."""
WORTH_A_BATCH = 100
"""Mutations that are worth a transaction beside one under way; fewer wait to be more, for `LINGER` at most."""
LINGER = 0.01
"""Seconds that a push waits for company while another batch is under way: one that is held up delays nobody longer."""
MAX_ROUNDS = 64
"""Rounds of loading facts before a batch is given up: deeper chains of cascades than this are refused."""
_TAKEN_RETRIES = 3
"""Times that a batch is run again at once because a key changed hands, before the mutation is sought that wants it."""
_NOBODY = Principal("", "", admin=False, expires=0)


class Request(Struct):
    """A push that waits: the units still to be settled, in order, the scopes it touches, what was answered so far.

    `clock` is the highest clock of the scopes that the verdicts reflect. `stopped`: a unit was answered `retry`, so
    that the rest is too, unless they are `independent`: what SQL did to rows (it has no principal). `not_before` (loop
    time) holds back a request whose scope another process has locked.
    """

    principal: Principal | None
    client: str
    units: list[Unit]
    scopes: frozenset[str]
    size: int
    answer: asyncio.Future[None]
    deadline: float
    results: list[Result] = []
    clock: str = ""
    stopped: bool = False
    not_before: float = 0.0

    @property
    def independent(self) -> bool:
        return self.principal is None

    def take(self, results: list[Result]) -> None:
        self.results.extend(results)
        self.stopped = self.stopped or (not self.independent and any(result.status == "retry" for result in results))
        if len(self.results) == self.size and not self.answer.done():
            self.answer.set_result(None)


class Slice(Struct):
    """Some units of a request, to be settled in one transaction."""

    request: Request
    units: list[Unit]


class Merged(Struct):
    """What a transaction came to; `deferred` slices were passed over, their scopes being locked elsewhere."""

    settled: list[Slice]
    deferred: list[Slice]
    outcome: Outcome
    facts: Facts


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
    ) -> None:
        self._store = store
        self._declaration = declaration
        self._access = access
        self._limits = limits
        self._node = node
        self._now = now
        self._committed = committed
        self._preparer = Preparer(declaration, limits.max_doc)
        self._reader = Reader(declaration, limits.max_doc)
        self._writers = writers
        self._patience = patience
        self._pause = pause
        self._waiting: deque[Request] = deque()
        self._weight = 0
        self._timer: asyncio.TimerHandle | None = None
        self._busy: set[str] = set()
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
            [Unit(principal, client, schema, unit) for unit in _units(prepared)],
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
        schema = self._limits.schema
        by_scopes: dict[frozenset[str], list[int]] = {}
        for index, captured in enumerate(found):
            by_scopes.setdefault(captured.scopes, []).append(index)
        requests: list[tuple[Request, list[int]]] = []
        for scopes, indices in by_scopes.items():
            units = [Unit(_NOBODY, "", schema, [], captured=found[index]) for index in indices]
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
        self._waiting.append(request)
        self._weight += size
        return request

    async def drain(self) -> None:
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

    def _defer(self, requests: list[Request]) -> None:
        """Put back what waits for another process, ahead of what came later; at its deadline it is answered `retry`."""
        if not requests:
            return
        loop = asyncio.get_running_loop()
        for request in reversed(requests):
            if loop.time() >= request.deadline:
                request.take(_unavailable(request.units, "the scope is held by a writer that does not end"))
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
        try:
            merged = await self._transact(slices)
        except (ConstraintFailed, RowTaken, Held) as refused:
            reason = str(refused).partition("\n")[0]
            log.info("data_refused", reason=reason, units=sum(len(part.units) for part in slices))
            await self._settle_apart(slices, refused)
            return
        for bug in merged.outcome.failures:
            log.error("mutation_failed", exc_info=bug)
        for part in merged.deferred:
            part.request.units.extend(part.units)
        for commit in merged.outcome.commits:
            self._committed(commit)
        for part, results in zip(merged.settled, merged.outcome.results, strict=True):
            part.request.clock = max(part.request.clock, self._reflected(part.request, merged))
            part.request.take(results)

    async def _settle_apart(self, slices: list[Slice], refused: ConstraintFailed | RowTaken | Held) -> None:
        """In halves, in order, until a unit stands alone: that is the one to blame."""
        units = [Slice(part.request, [unit]) for part in slices for unit in part.units]
        if len(units) == 1:
            if units[0].units[0].doomed is not None:
                raise refused
            units[0].units[0].doomed = _doom(refused)
            await self._settle(units)
            return
        middle = len(units) // 2
        for half in (units[:middle], units[middle:]):
            await self._settle(_joined(half))

    async def _transact(self, slices: list[Slice]) -> Merged:
        async def body(tx: Transaction) -> Merged:
            return await self._merge(tx, slices)

        for _ in range(_TAKEN_RETRIES):
            with suppress(RowTaken):
                return await self._store.transact(body)
        return await self._store.transact(body)

    async def _merge(self, tx: Transaction, slices: list[Slice]) -> Merged:
        """Lock, load, merge (again, as long as facts are missing), save."""
        facts = Facts(self._declaration, self._limits.cascade, self._limits.max_drift)
        now = self._now()
        deferred = await self._lock(tx, facts, slices)
        settled = [part for part in slices if not any(part is other for other in deferred)]
        units = [unit for part in settled for unit in part.units]
        mutations = [prepared for unit in units if unit.doomed is None for prepared in unit.mutations]
        await facts.load_spent(tx, {p.reading for unit in units for p in unit.mutations if p.reading is not None})
        named = [u.captured.identity for u in units if u.captured is not None and not isinstance(u.doomed, Postponed)]
        await facts.load_tables(tx, named, writable=False)
        await facts.load(tx, facts.named(mutations))
        for _ in range(MAX_ROUNDS):
            settlement = Settlement(
                declaration=self._declaration,
                access=self._access,
                facts=facts,
                limits=self._limits,
                reader=self._reader,
                now=now,
                node=self._node,
            )
            settlement.differences.take(units)
            results = [settle_slice(settlement, part) for part in settled]
            if not settlement.needs:
                break
            await facts.load(tx, settlement.needs)
        else:
            raise ConstraintFailed("its consequences reach deeper than a batch may follow", unique=False)
        outcome = outcome_of(settlement, results)
        if outcome.saved.scopes or outcome.saved.feed or outcome.saved.journal or outcome.saved.drained:
            await tx.save(outcome.saved)
        return Merged(settled, deferred, outcome, facts)

    async def _lock(self, tx: Transaction, facts: Facts, slices: list[Slice]) -> list[Slice]:
        """Lock what the callers may write; gives the slices whose scopes are locked elsewhere.

        Roles are asked for twice: before, so that a stranger's push locks nothing of others; and under the lock, so
        that nobody writes whose membership ended before this commit.
        """
        own: set[str] = set()
        pairs: set[tuple[str, str]] = set()
        for part in slices:
            principal = part.request.principal
            for scope in part.request.scopes:
                if principal is None or scope == principal.own:
                    own.add(scope)
                else:
                    pairs.add((scope, principal.user))
        shared = await tx.roles(pairs) if pairs else {}
        scopes = own | {scope for scope, _ in shared}
        facts.scopes = await tx.lock(scopes, scopes)
        facts.roles = await tx.roles(list(shared)) if shared else {}
        return [part for part in slices if any(s not in facts.scopes for s in self._readable(part.request, facts))]

    def _readable(self, request: Request, facts: Facts) -> list[str]:
        """Those of the request's scopes that its caller may know of."""
        if request.principal is None:
            return list(request.scopes)
        own, user = request.principal.own, request.principal.user
        return [
            scope
            for scope in request.scopes
            if scope == own or self._access.grant_of(scope, facts.roles.get((scope, user))) is not None
        ]

    def _reflected(self, request: Request, merged: Merged) -> str:
        """The highest clock among the scopes that the verdicts reflect, as far as the caller may read them."""
        clocks = merged.outcome.clocks
        return max((clocks[scope] for scope in self._readable(request, merged.facts)), default="")


def settle_slice(settlement: Settlement, part: Slice) -> list[Result]:
    """Settle units in order; the first `retry` stops the request (SPEC 4)."""
    results: list[Result] = []
    for position, unit in enumerate(part.units):
        settled = settlement.unit(unit)
        results.extend(settled)
        if not part.request.independent and any(result.status == "retry" for result in settled):
            results.extend(_unavailable(part.units[position + 1 :], "waits for what stands before it"))
            break
    return results


def _doom(refused: ConstraintFailed | RowTaken | Held) -> Rejection | Postponed:
    """What a mutation is told that the database refuses; the reason may name what is not the caller's to know."""
    if isinstance(refused, Held):
        return Postponed("unavailable", "a transaction of another program holds a row, key or unique value it needs")
    if isinstance(refused, RowTaken):
        return Rejection("row_taken", "the key is in use in another scope")
    if refused.unique:
        return Rejection("unique_violation", "another row holds the same values")
    return Rejection("constraint_violation", "the database refuses this data")


def _units(prepared: list[Prepared]) -> list[list[Prepared]]:
    """Neighbours with the same group together, everything else alone."""
    units: list[list[Prepared]] = []
    group: str | None = None
    for mutation in prepared:
        if units and group is not None and mutation.group == group:
            units[-1].append(mutation)
        else:
            units.append([mutation])
        group = mutation.group
    return units


def _unavailable(units: list[Unit], reason: str) -> list[Result]:
    error = VerdictError("unavailable", reason)
    numbers = [seq for u in units for seq in ([p.sent.seq for p in u.mutations] if u.captured is None else [0])]
    return [Result(seq, "retry", error=error) for seq in numbers]


def _is_closed(part: Slice) -> bool:
    """Whether nothing is to be settled: the request was stopped (its units are answered), or waits (they are kept)."""
    if part.request.stopped:
        part.request.take(_unavailable(part.units, "waits for what stands before it"))
        return True
    if part.request.units:
        part.request.units.extend(part.units)
        return True
    return False


def _joined(units: list[Slice]) -> list[Slice]:
    """Units of one request together again, in order."""
    joined: list[Slice] = []
    for part in units:
        if joined and joined[-1].request is part.request:
            joined[-1].units.extend(part.units)
        else:
            joined.append(Slice(part.request, list(part.units)))
    return joined


def _fail(batch: list[Request], error: Exception) -> None:
    for request in batch:
        if not request.answer.done():
            request.answer.set_exception(error)
