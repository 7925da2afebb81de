"""Handing the same to many receivers without keeping everybody else waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeVar, cast

import structlog

R = TypeVar("R")

SLICE: Final = 250
"""Receivers served in one turn of the event loop: about a millisecond."""

_log = structlog.get_logger(__name__)


class _Job(NamedTuple):
    receivers: Iterator[object]
    send: Callable[[object], None]
    done: Callable[[], None]


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
        send: Callable[[R], None],
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `send` with each receiver, the first ones at once, then `done`."""
        job = _Job(iter(receivers), cast(Callable[[object], None], send), done)
        line = self._lines.get(key)
        if line is not None:
            line.append(job)
        elif not _serve(job, SLICE):
            self._lines[key] = deque([job])
            self._turns.append(key)
            if len(self._turns) == 1:
                asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        key = self._turns.popleft()
        line = self._lines[key]
        if _serve(line[0], SLICE):
            line.popleft()
        if line:
            self._turns.append(key)
        else:
            del self._lines[key]
        if self._turns:
            asyncio.get_running_loop().call_soon(self._turn)


def _serve(job: _Job, most: int) -> bool:
    """Serve some receivers; whether there are no more."""
    send, served = job.send, 0
    for receiver in islice(job.receivers, most):
        served += 1
        try:
            send(receiver)
        except Exception:  # noqa: BLE001  (the fault of one is not the others')
            _log.exception("fanout_failed")
    if served == most:
        return False
    job.done()
    return True
