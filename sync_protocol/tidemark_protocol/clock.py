"""The hybrid logical clock (SPEC 2; Kulkarni et al., "Logical Physical Clocks", 2014).

A reading is text, `<12 hex: Unix ms>-<4 hex: counter>-<16 hex: node>`, so that text order is clock order.
Wall time comes in as an argument, in milliseconds: nothing here looks at a clock.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

READING = re.compile(r"[0-9a-f]{12}-[0-9a-f]{4}-[0-9a-f]{16}")
NODE = re.compile(r"[0-9a-f]{16}")
MAX_COUNTER = 0xFFFF
LAST_INSTANT = 253402300799999
"""Milliseconds of 9999-12-31T23:59:59.999Z: a later reading has no RFC 3339 time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_reading(value: object) -> bool:
    """Whether `value` is a well-formed reading that names an instant RFC 3339 can write."""
    return isinstance(value, str) and READING.fullmatch(value) is not None and int(value[:12], 16) <= LAST_INSTANT


def reading(millis: int, counter: int, node: str) -> str:
    return f"{millis:012x}-{counter:04x}-{node}"


def millis_of(at: str) -> int:
    """Unix milliseconds of a reading."""
    return int(at[:12], 16)


def instant(at: str) -> str:
    """The reading's time as the protocol writes it: RFC 3339, UTC, six digits of fraction."""
    return instant_of_millis(int(at[:12], 16))


@lru_cache(maxsize=4096)
def instant_of_millis(millis: int) -> str:
    """A time as the protocol writes it; remembered, since a row's stamps and its neighbours' are mostly the same."""
    return (_EPOCH + timedelta(milliseconds=millis)).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def floor_reading(millis: int) -> str:
    """The lowest reading of a millisecond."""
    return f"{millis:012x}-0000-0000000000000000"


class Clock:
    """One replica's clock: never issues a reading twice, nor one at or below any it has issued or observed."""

    __slots__ = ("_counter", "_millis", "_node")

    def __init__(self, node: str, latest: str | None = None) -> None:
        if NODE.fullmatch(node) is None:
            raise ValueError(f"a node is 16 lower case hex digits, not {node!r}")
        self._node = node
        self._millis = 0
        self._counter = -1
        if latest is not None:
            self.observe(latest)

    @property
    def latest(self) -> str:
        """The highest reading issued or observed, under this replica's node."""
        return reading(self._millis, max(self._counter, 0), self._node)

    def observe(self, at: str) -> None:
        """Advance to a reading received, so that the next one issued is above it."""
        seen = int(at[:12], 16), int(at[13:17], 16)
        if seen > (self._millis, self._counter):
            self._millis, self._counter = seen

    def issue(self, now: int) -> str:
        """A new reading at wall time `now` (ms): counts up within a millisecond, moves on when the counter is full."""
        if now > self._millis:
            self._millis, self._counter = now, 0
        elif self._counter < MAX_COUNTER:
            self._counter += 1
        else:
            self._millis, self._counter = self._millis + 1, 0
        return reading(self._millis, self._counter, self._node)
