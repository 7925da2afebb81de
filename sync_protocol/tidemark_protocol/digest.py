"""The digest of a scope at a version (SPEC 5): proof that two replicas hold the same rows.

`<live rows>-<12 hex: sum modulo 2^48 of CRC-32 over "entity/row@version" of each live row>`. A sum, so that the
server moves it by differences and a replica computes it in one pass over its rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

MODULUS = 1 << 48


def term(entity: str, row: str, version: int) -> int:
    """What one live row adds to the sum."""
    return crc32(f"{entity}/{row}@{version}".encode())


def text(live: int, total: int) -> str:
    return f"{live}-{total % MODULUS:012x}"


def of_rows(rows: Iterable[tuple[str, str, int]]) -> str:
    """The digest of `(entity, row, version)` of every live row."""
    live = total = 0
    for entity, row, version in rows:
        live += 1
        total += term(entity, row, version)
    return text(live, total)
