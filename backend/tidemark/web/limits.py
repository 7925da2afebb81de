"""Requests a minute for each user, counted in this process (SPEC 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tidemark_protocol.errors import RequestError

_MINUTE: Final = 60.0
_SWEEP_FROM: Final = 4_096


class RateLimit:
    """A leaky bucket for each user, held as one number: the time at which it will be empty (GCRA).

    A user may spend a whole minute's requests at once. `per_minute` 0 is no limit. `monotonic` gives seconds.
    """

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._interval = _MINUTE / per_minute if per_minute else 0.0
        self._monotonic = monotonic
        self._empty_at: dict[str, float] = {}
        self._sweep_at = _SWEEP_FROM

    def take(self, user: str) -> None:
        """Count one request; RequestError `rate_limited` with the seconds to wait."""
        if not self._interval:
            return
        now = self._monotonic()
        level = max(self._empty_at.get(user, now), now) + self._interval
        excess = level - now - _MINUTE
        if excess > 1e-6:
            raise RequestError("rate_limited", "too many requests a minute", retry_after=excess)
        self._empty_at[user] = level
        if len(self._empty_at) >= self._sweep_at:
            self._empty_at = {name: at for name, at in self._empty_at.items() if at > now}
            self._sweep_at = max(_SWEEP_FROM, 2 * len(self._empty_at))
