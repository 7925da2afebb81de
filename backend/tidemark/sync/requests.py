"""What waits for the pipeline: requests, and the slices of them that one transaction settles."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from msgspec import Struct

from tidemark.tracer import Link
from tidemark_protocol.messages import Result, VerdictError

from .access import Principal
from .batch import Unit
from .prepare import Prepared


class Request(Struct):
    """A push that waits: the units still to be settled, in order, the scopes it touches, what was answered so far.

    `clock` is the highest clock of the scopes that the verdicts reflect. `stopped`: a unit was answered `retry`, so
    that the rest is too, unless they are `independent`: what SQL did to rows (it has no principal). `not_before` (loop
    time) holds back a request whose scope another process has locked. `link` stands for the span it came with.
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
    link: Link | None = None

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


def units_of(prepared: list[Prepared]) -> list[list[Prepared]]:
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


def unavailable(units: Iterable[Unit], reason: str) -> list[Result]:
    error = VerdictError("unavailable", reason)
    numbers = [seq for u in units for seq in ([p.sent.seq for p in u.mutations] if u.captured is None else [0])]
    return [Result(seq, "retry", error=error) for seq in numbers]


def joined(units: list[Slice]) -> list[Slice]:
    """Units of one request together again, in order."""
    found: list[Slice] = []
    for part in units:
        if found and found[-1].request is part.request:
            found[-1].units.extend(part.units)
        else:
            found.append(Slice(part.request, list(part.units)))
    return found
