"""Watermarks and where a replica's next run starts (SPEC 1, 5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol.watermark import Start, Watermark, parse, start

EPOCH = "k3f9x2"
epochs = st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=32)
versions = st.integers(0, 10**19 - 1)
schemas = st.integers(0, 999_999_999)


def begin(text: str | None, head: int = 20, floor: int = 0, schema: int = 3) -> Start:
    """The start for a watermark at a server in epoch `k3f9x2`."""
    return start(text, epoch=EPOCH, head=head, floor=floor, schema=schema)


@given(epochs, versions, versions, schemas)
def test_what_is_written_is_read(epoch: str, version: int, base: int, schema: int) -> None:
    """A watermark's text parses to it, its base forgotten once passed, and is written the same again."""
    mark = Watermark(epoch, version, base, schema)
    read = parse(str(mark))
    assert read == Watermark(epoch, version, base if base > version else 0, schema)
    assert str(read) == str(mark)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k3f9x2",
        "k3f9x2.17.0",
        "k3f9x2.17.0.3.1",
        "k3f9x2.017.0.3",
        "k3f9x2.-1.0.3",
        "k3f9x2.17.00.3",
        "k3f9x2.17.0.3\n",
        " k3f9x2.17.0.3",
        "K3F9X2.17.0.3",
        ".17.0.3",
        "k3f9x2.1\u0667.0.3",
        "k3f9x2.17.0.1000000000",
        "k3f9x2.10000000000000000000.0.3",
        "a" * 33 + ".17.0.3",
        "k3f9x2.1e3.0.3",
    ],
)
def test_what_the_server_never_wrote(text: str) -> None:
    """It is no watermark: the replica starts anew and is told so."""
    assert parse(text) is None
    assert begin(text) == Start(0, 20, reset=True)


def test_all_replicas_at_one_version_hold_the_same_text() -> None:
    """The base says nothing any more once it has been passed."""
    assert str(Watermark(EPOCH, 17, 17, 3)) == str(Watermark(EPOCH, 17, 5, 3)) == "k3f9x2.17.0.3"
    assert str(Watermark(EPOCH, 16, 17, 3)) == "k3f9x2.16.17.3"


@pytest.mark.parametrize(
    ("text", "floor", "expected"),
    [
        (None, 0, Start(0, 20, reset=False)),
        (None, 15, Start(0, 20, reset=False)),
        ("k3f9x2.17.0.3", 0, Start(17, 0, reset=False)),
        ("k3f9x2.20.0.3", 0, Start(20, 0, reset=False)),
        ("k3f9x2.20.0.3", 20, Start(20, 0, reset=False)),
        ("k3f9x2.17.0.3", 17, Start(17, 0, reset=False)),
        ("k3f9x2.17.0.3", 18, Start(0, 20, reset=True)),
        ("k3f9x2.4.19.3", 18, Start(4, 19, reset=False)),
        ("k3f9x2.4.18.3", 18, Start(4, 18, reset=False)),
        ("k3f9x2.4.17.3", 18, Start(0, 20, reset=True)),
        ("k3f9x2.0.0.3", 0, Start(0, 20, reset=False)),
        ("k3f9x2.0.0.3", 1, Start(0, 20, reset=True)),
        ("k3f9x2.0.20.3", 18, Start(0, 20, reset=False)),
        ("k3f9x2.21.0.3", 0, Start(0, 20, reset=True)),
        ("k3f9x2.4.21.3", 0, Start(0, 20, reset=True)),
        ("another.17.0.3", 0, Start(0, 20, reset=True)),
        ("k3f9x2.17.0.2", 0, Start(0, 20, reset=True)),
        ("k3f9x2.17.0.4", 0, Start(0, 20, reset=True)),
    ],
)
def test_where_the_next_run_starts(text: str | None, floor: int, expected: Start) -> None:
    """From the watermark, or from 0 with `reset` when what the replica holds cannot be continued (SPEC 5).

    Its version or its base, whichever is later, must not lie below the floor; nor it ahead of the head of 20 (I30).
    """
    assert begin(text, floor=floor) == expected


@given(
    st.none()
    | st.builds(Watermark, st.sampled_from([EPOCH, "x"]), st.integers(0, 40), st.integers(0, 40), st.integers(2, 4))
)
def test_a_run_never_starts_where_tombstones_are_missing(mark: Watermark | None) -> None:
    """A replica goes on only if no tombstone it has not seen can have been forgotten; else it starts from 0 (I31)."""
    begun = begin(None if mark is None else str(mark), head=30, floor=12)
    if begun.after == 0:
        assert begun.base == 30
    else:
        assert mark is not None
        assert not begun.reset
        assert begun.after == mark.version <= 30
        assert max(begun.after, begun.base) >= 12
