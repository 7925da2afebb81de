"""Watermarks as the server writes them (SPEC 1 and 5): `<epoch>.<version>.<base>.<schema>`.

`base` is the head at which the replica's run from 0 began, until the replica has passed it; then it says nothing
more and is written 0, so that all replicas at one version hold the same text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TEXT = re.compile(r"([0-9a-z]{1,32})\.(0|[1-9][0-9]{0,18})\.(0|[1-9][0-9]{0,18})\.(0|[1-9][0-9]{0,8})")


class Watermark(NamedTuple):
    epoch: str
    version: int
    base: int
    schema: int

    def __str__(self) -> str:
        base = 0 if self.version >= self.base else self.base
        return f"{self.epoch}.{self.version}.{base}.{self.schema}"


class Start(NamedTuple):
    """Where a replica's next run begins; `reset` is true when what it holds cannot be continued."""

    after: int
    base: int
    reset: bool


def parse(text: str) -> Watermark | None:
    """The watermark a text says, or None if this server never wrote it."""
    match = _TEXT.fullmatch(text)
    return None if match is None else Watermark(match[1], int(match[2]), int(match[3]), int(match[4]))


def start(text: str | None, *, epoch: str, head: int, floor: int, schema: int) -> Start:
    """Where the next run for a replica begins that gives back `text` (None: it has nothing of the scope)."""
    if text is None:
        return Start(0, head, False)
    mark = parse(text)
    if (
        mark is None
        or mark.epoch != epoch
        or mark.schema != schema
        or mark.version > head
        or mark.base > head
        or max(mark.version, mark.base) < floor
    ):
        return Start(0, head, True)
    if mark.version == 0:
        return Start(0, head, False)
    return Start(mark.version, mark.base, False)
