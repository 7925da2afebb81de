"""What was measured of the stream, beside its goal and beside socket.io where that does the same."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

SATURATED = 0.9
"""Share of a core above which the load itself may have held up what it measured."""


class Measured(NamedTuple):
    """One line. `goal` is the most that may be: of `peer`'s value where `relative`, else in the unit itself."""

    work: str
    value: float
    unit: str
    peer: float | None = None
    goal: float | None = None
    relative: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None or not self.peer else self.value / self.peer

    @property
    def reached(self) -> bool:
        """Whether the goal was reached; a comparison that could not be made misses nothing."""
        found = self.ratio if self.relative else self.value
        return found is None or self.goal is None or found <= self.goal


class Generator:
    """How busy the load generator was: `share` of its core at the worst."""

    def __init__(self) -> None:
        self.share = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        cpu, began = time.process_time(), time.perf_counter()
        yield
        self.share = max(self.share, (time.process_time() - cpu) / (time.perf_counter() - began))


def show(found: Sequence[Measured], remarks: Sequence[str]) -> bool:
    """Print the table; whether every goal was reached."""
    table = Table("stream", "Tidemark", "socket.io", "ratio", "goal")
    for one in found:
        goal = "" if one.goal is None else f"≤ {one.goal:g}" + ("" if one.relative else f" {one.unit}")
        table.add_row(
            f"{one.work} ({one.note})" if one.note else one.work,
            f"{one.value:,.2f} {one.unit}",
            "" if one.peer is None else f"{one.peer:,.2f}",
            "" if one.ratio is None else f"{one.ratio:.2f}",
            goal if one.reached else f"{goal} (missed)",
        )
    console = Console(width=120, highlight=False)
    console.print(table)
    for remark in remarks:
        console.print(remark)
    return all(one.reached for one in found)
