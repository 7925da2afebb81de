"""How often something may be said: above a rate the latest of each kind waits, and replaces what waited (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Final, Generic, NamedTuple, TypeVar

from tidemark.meter import BroadcastFate

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

BURST: Final = 2
"""Seconds' worth that may be said at once."""
_SLACK: Final = 1e-6
"""Of a token: sums of small fractions never quite reach one."""


class Bucket:
    """Tokens that refill at `rate` a second, up to `BURST` seconds' worth; rate 0: no limit. Times in seconds."""

    __slots__ = ("_rate", "_since", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._tokens = rate * BURST
        self._since = now

    def take(self, now: float) -> bool:
        """Take a token, if there is one."""
        if not self._rate:
            return True
        if self.wait(now):
            return False
        self._tokens -= 1
        return True

    def wait(self, now: float) -> float:
        """Seconds until there is a token."""
        if not self._rate:
            return 0.0
        if now > self._since:
            self._tokens = min(self._rate * BURST, self._tokens + (now - self._since) * self._rate)
            self._since = now
        return 0.0 if self._tokens >= 1 - _SLACK else (1 - self._tokens) / self._rate


class Waiting(NamedTuple, Generic[V]):
    """A value that waits for its turn; `size` in bytes, `kept` if it never gives way."""

    value: V
    size: int
    kept: bool


class Throttle(Generic[K, V]):
    """Lets values pass at a rate, first come first served; a later value of a kind takes the waiting one's place.

    At most `most` kinds of `most_bytes` together wait, those aside that are kept; the oldest give way. `tally` hears
    what became of those that will never pass.
    """

    __slots__ = ("_bucket", "_loose", "_most", "_most_bytes", "_size", "_tally", "_waiting")

    def __init__(
        self, bucket: Bucket, *, most: int, most_bytes: int, tally: Callable[[BroadcastFate, int], None]
    ) -> None:
        self._bucket = bucket
        self._most = most
        self._most_bytes = most_bytes
        self._tally = tally
        self._waiting: dict[K, Waiting[V]] = {}
        self._loose = self._size = 0

    def put(self, kind: K, value: V, size: int, *, kept: bool = False) -> None:
        known = self._waiting.get(kind)
        if known is not None:
            self._count(-1, known)
            self._tally("coalesced", 1)
        waiting = self._waiting[kind] = Waiting(value, size, kept)
        self._count(1, waiting)
        while self._loose > self._most or (self._size > self._most_bytes and self._loose > 1):
            self._remove(next(kind for kind, waiting in self._waiting.items() if not waiting.kept))
            self._tally("dropped", 1)

    def take(self, now: float) -> list[V]:
        """What may pass now."""
        passing = []
        while self._waiting and self._bucket.take(now):
            passing.append(self._remove(next(iter(self._waiting))))
        return passing

    def wait(self, now: float) -> float | None:
        """Seconds until something may pass; None while nothing waits."""
        return self._bucket.wait(now) if self._waiting else None

    def drop(self, lost: Callable[[K], bool]) -> None:
        """Forget what waits of some kinds."""
        for kind in [kind for kind in self._waiting if lost(kind)]:
            self._remove(kind)
            self._tally("dropped", 1)

    def _remove(self, kind: K) -> V:
        waiting = self._waiting.pop(kind)
        self._count(-1, waiting)
        return waiting.value

    def _count(self, sign: int, waiting: Waiting[V]) -> None:
        if not waiting.kept:
            self._loose += sign
            self._size += sign * waiting.size


class Valve(Generic[K, V]):
    """A throttle that opens by itself: what may pass goes to `outlet`, at once or by a timer of the running loop."""

    __slots__ = ("_monotonic", "_outlet", "_throttle", "_timer")

    def __init__(self, throttle: Throttle[K, V], outlet: Callable[[V], None], monotonic: Callable[[], float]) -> None:
        self._throttle = throttle
        self._outlet = outlet
        self._monotonic = monotonic
        self._timer: asyncio.TimerHandle | None = None

    def put(self, kind: K, value: V, size: int, *, kept: bool = False) -> None:
        """Let it pass as soon as the rate allows; `kept`: it never gives way to others."""
        self._throttle.put(kind, value, size, kept=kept)
        if self._timer is None:
            self._open()

    def drop(self, lost: Callable[[K], bool]) -> None:
        """Forget what waits of some kinds."""
        self._throttle.drop(lost)
        if self._timer is not None and self._throttle.wait(self._monotonic()) is None:
            self._timer.cancel()
            self._timer = None

    def _open(self) -> None:
        self._timer = None
        now = self._monotonic()
        for value in self._throttle.take(now):
            self._outlet(value)
        wait = self._throttle.wait(now)
        if wait is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait, self._open)
