"""Handing the same to many receivers without keeping everybody else waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, TypeVar

import structlog
from msgspec import Struct

R = TypeVar("R")
S = TypeVar("S")

SLICE: Final = 250
"""Receivers served in one turn of the event loop: about a millisecond."""

_log = structlog.get_logger(__name__)


class _Job(Struct):
    """`next`: the first slice that has not been served."""

    slices: Sequence[Any]
    serve: Callable[[Any], None]
    done: Callable[[], None]
    next: int = 0


class Fanout:
    """Serves receivers, a slice in each turn of the loop; lines of different keys take turns.

    What is delivered under one key reaches each receiver in the order of the calls.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[_Job]] = {}
        self._turns: deque[Hashable] = deque()
        self.disturbances = 0
        """How often a receiver became slow, or quick again, or ended: while this stands still, so do they."""

    def disturbed(self) -> None:
        self.disturbances += 1

    def deliver(
        self,
        key: Hashable,
        slices: Sequence[S],
        serve: Callable[[S], None],
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `serve` with each slice, with the first one at once, then `done`."""
        job = _Job(slices, serve, done)
        line = self._lines.get(key)
        if line is not None:
            line.append(job)
        elif not _serve(job):
            self._lines[key] = deque([job])
            self._turns.append(key)
            if len(self._turns) == 1:
                asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        key = self._turns.popleft()
        line = self._lines[key]
        if _serve(line[0]):
            line.popleft()
        if line:
            self._turns.append(key)
        else:
            del self._lines[key]
        if self._turns:
            asyncio.get_running_loop().call_soon(self._turn)


def sliced(receivers: Sequence[R]) -> list[Sequence[R]]:
    """Receivers in slices of a turn each."""
    return [receivers[first : first + SLICE] for first in range(0, len(receivers), SLICE)]


def _serve(job: _Job) -> bool:
    """Serve one slice; whether all are served now."""
    if job.next < len(job.slices):
        job.next += 1
        try:
            job.serve(job.slices[job.next - 1])
        except Exception:  # noqa: BLE001  (who was left out finds that a frame does not fit the one before)
            _log.exception("fanout_failed")
    if job.next < len(job.slices):
        return False
    job.done()
    return True
