"""Handing the same to many receivers without keeping everybody else waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, TypeVar

import structlog
from msgspec import Struct

R = TypeVar("R")

SLICE: Final = 250
"""Receivers served in one turn of the event loop: about a millisecond."""

_log = structlog.get_logger(__name__)


class _Job(Struct):
    """`next`: the first receiver who has not been served."""

    receivers: Sequence[Any]
    serve: Callable[[Sequence[Any]], None]
    done: Callable[[], None]
    next: int = 0


class Fanout:
    """Serves receivers, a slice in each turn of the loop; lines of different keys take turns.

    What is delivered under one key reaches each receiver in the order of the calls.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[_Job]] = {}
        self._turns: deque[Hashable] = deque()

    def deliver(
        self,
        key: Hashable,
        receivers: Sequence[R],
        serve: Callable[[Sequence[R]], None],
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `serve` with slices of the receivers, the first one at once, then `done`."""
        job = _Job(receivers, serve, done)
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


def _serve(job: _Job) -> bool:
    """Serve one slice; whether all are served now."""
    first, job.next = job.next, job.next + SLICE
    try:
        job.serve(job.receivers[first : job.next])
    except Exception:  # noqa: BLE001  (who was left out finds that a frame does not fit the one before)
        _log.exception("fanout_failed")
    if job.next < len(job.receivers):
        return False
    job.done()
    return True
