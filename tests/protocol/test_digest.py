"""The digest of a scope (SPEC 5)."""

from __future__ import annotations

from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol import digest

rows = st.tuples(st.sampled_from(["tasks", "notes"]), st.sampled_from(["a", "b", "c", "d"]))
histories = st.lists(st.tuples(rows, st.booleans()), max_size=40)


def test_a_digest_is_the_count_and_the_sum() -> None:
    """As SPEC 5 spells it: CRC-32 over `entity/row@version` of each live row, twelve hex digits."""
    total = crc32(b"tasks/a@3") + crc32(b"notes/b@12")
    assert digest.of_rows([("tasks", "a", 3), ("notes", "b", 12)]) == f"2-{total:012x}"


def test_nothing_has_a_digest_too() -> None:
    """A scope without rows."""
    assert digest.of_rows([]) == digest.text(0, 0) == "0-000000000000"


def test_the_sum_is_taken_modulo() -> None:
    """2^48, so that it stays twelve digits; a difference below zero wraps around."""
    assert digest.text(7, digest.MODULUS + 5) == "7-000000000005"
    assert digest.text(1, -1) == "1-ffffffffffff"


@given(histories)
def test_moving_by_differences_equals_computing_anew(history: list[tuple[tuple[str, str], bool]]) -> None:
    """What the server adds and takes away with each change is what a replica sums up over its rows (I32)."""
    live: dict[tuple[str, str], int] = {}
    total = 0
    for version, (row, deleted) in enumerate(history, 1):
        if row in live:
            total -= digest.term(*row, live.pop(row))
        if not deleted:
            live[row] = version
            total += digest.term(*row, version)
        total %= digest.MODULUS
        assert digest.text(len(live), total) == digest.of_rows((*key, held) for key, held in live.items())


@given(st.lists(st.tuples(rows, st.integers(1, 1 << 62)), unique_by=lambda pair: pair[0]), st.randoms())
def test_the_order_of_rows_does_not_matter(held: list[tuple[tuple[str, str], int]], chance: object) -> None:
    """A sum has no order."""
    triples = [(*row, version) for row, version in held]
    assert digest.of_rows(triples) == digest.of_rows(reversed(triples))


def test_a_row_at_another_version_changes_the_digest() -> None:
    """A replica that missed an update of a row is found out, not only one that missed the row."""
    assert digest.of_rows([("tasks", "a", 3)]) != digest.of_rows([("tasks", "a", 4)])
