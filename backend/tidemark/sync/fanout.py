"""Handing the same to many receivers without keeping everybody else waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

import structlog
from msgspec import Struct

R = TypeVar("R")
S = TypeVar("S")
Write = Callable[[bytes], None]

SLICE: Final = 100
"""Receivers served in one turn of the event loop: well below a millisecond."""

FEW: Final = 32
"""Receivers for whom a lane does not pay."""
LIGHT: Final = 64 * 1024
"""Bytes that may be written to whoever is not slow."""

_log = structlog.get_logger(__name__)


class Slice(Generic[R]):
    """Receivers who are served in one turn of the loop, and what writes to each. `at`: up to where they were told."""

    __slots__ = ("at", "receivers", "writes")

    def __init__(self, pairs: Sequence[tuple[R, Write]]) -> None:
        self.receivers = [receiver for receiver, _ in pairs]
        self.writes = [write for _, write in pairs]
        self.at = -1


class Lane(Generic[R]):
    """Receivers who may be written to without a look at each, and those `apart`.

    What is told to thousands is as dear as the memory it touches for each: here that is little more than the write.
    """

    __slots__ = ("_fanout", "_seen", "apart", "slices")

    def __init__(self, fanout: Fanout, receivers: Iterable[tuple[R, Write | None]]) -> None:
        self._fanout = fanout
        self._seen = fanout.disturbances
        self.apart: list[R] = []
        straight: list[tuple[R, Write]] = []
        for receiver, write in receivers:
            if write is None:
                self.apart.append(receiver)
            else:
                straight.append((receiver, write))
        self.slices = [Slice(pairs) for pairs in sliced(straight)]

    @property
    def undisturbed(self) -> bool:
        """Whether nothing has happened to anybody's connection since."""
        return self._seen == self._fanout.disturbances


class _Job(Struct):
    """`next`: the first slice that has not been served."""

    slices: Sequence[Any]
    serve: Callable[[Any], None]
    done: Callable[[], None]
    next: int = 0


class Fanout:
    """Serves receivers, a slice in each turn of the loop; lines of different keys take turns.

    What is delivered under one key reaches each receiver in the order of the calls. `few` is for tests of lanes.
    """

    def __init__(self, few: int = FEW) -> None:
        self.few = few
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
