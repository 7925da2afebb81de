"""One transaction of the pipeline: lock, load, merge, save (SPEC 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from tidemark.store.base import ConstraintFailed, Transaction
from tidemark_protocol.errors import Postponed
from tidemark_protocol.messages import Result
from tidemark_protocol.schema import Declaration

from .access import Access
from .batch import Limits
from .capture import Reader
from .facts import Facts
from .outcome import Outcome, outcome_of
from .requests import Request, Slice, unavailable
from .settle import Settlement

MAX_ROUNDS = 64
"""Rounds of loading facts before a batch is given up: deeper chains of cascades than this are refused."""


class Merged(Struct):
    """What a transaction came to; `deferred` slices were passed over, their scopes being locked elsewhere."""

    settled: list[Slice]
    deferred: list[Slice]
    outcome: Outcome
    facts: Facts


class Merger:
    """Settles slices in a transaction given to it. `now` is wall time in ms, `node` that of the server's readings."""

    def __init__(
        self, *, declaration: Declaration, access: Access, limits: Limits, node: str, now: Callable[[], int]
    ) -> None:
        self._declaration = declaration
        self._access = access
        self._limits = limits
        self._node = node
        self._now = now
        self._reader = Reader(declaration, limits.max_doc)

    async def merge(self, tx: Transaction, slices: list[Slice]) -> Merged:
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
        await facts.load_captured(tx, named)
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

    def reflected(self, request: Request, merged: Merged) -> str:
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
            results.extend(unavailable(part.units[position + 1 :], "waits for what stands before it"))
            break
    return results
