"""The hybrid logical clock (SPEC 2)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol import clock
from tidemark_protocol.clock import LAST_INSTANT, MAX_COUNTER, Clock

NODE = "5f1c9a7e3d2b4a68"
millis = st.integers(0, LAST_INSTANT - 10)
counters = st.integers(0, MAX_COUNTER)
nodes = st.integers(0, 2**64 - 1).map("{:016x}".format)
parts = st.tuples(millis, counters, nodes)
steps = st.lists(
    st.tuples(st.just("issue"), st.integers(1_000, 1_010))
    | st.tuples(st.just("observe"), st.builds(clock.reading, st.integers(990, 1_020), counters, nodes)),
    max_size=40,
)


def test_a_reading_is_milliseconds_counter_and_node() -> None:
    """The example of SPEC 2."""
    at = clock.reading(0x0192F3A4B5C6, 1, NODE)
    assert at == "0192f3a4b5c6-0001-5f1c9a7e3d2b4a68"
    assert clock.is_reading(at)
    assert clock.millis_of(at) == 0x0192F3A4B5C6


@given(parts, parts)
def test_text_order_is_clock_order(one: tuple[int, int, str], two: tuple[int, int, str]) -> None:
    """Readings compare as texts as (milliseconds, counter, node) do."""
    assert (clock.reading(*one) < clock.reading(*two)) == (one < two)


@given(steps)
def test_no_reading_is_issued_twice_or_below_one_seen(steps: list[tuple[str, int | str]]) -> None:
    """Each one issued is above every one issued or observed before it, wherever the wall clock goes (I3)."""
    own, highest = Clock(NODE), ""
    for kind, value in steps:
        if kind == "issue":
            at = own.issue(int(value))
            assert clock.is_reading(at)
            assert at[:17] > highest[:17]
            assert clock.millis_of(at) >= int(value)
            highest = at
        else:
            own.observe(str(value))
            highest = max(highest, str(value))
        assert own.latest[:17] == (highest[:17] or "000000000000-0000")


@given(st.builds(clock.reading, millis, counters, nodes), millis)
def test_a_clock_goes_on_from_a_reading(latest: str, now: int) -> None:
    """One made from what was last issued issues above it, also under another node."""
    assert Clock("0" * 16, latest).issue(now)[:17] > latest[:17]


def test_within_a_millisecond_the_counter_counts() -> None:
    """And starts anew with the next."""
    own = Clock(NODE)
    assert [own.issue(5)[:17], own.issue(5)[:17], own.issue(4)[:17], own.issue(6)[:17]] == [
        "000000000005-0000",
        "000000000005-0001",
        "000000000005-0002",
        "000000000006-0000",
    ]


def test_a_full_counter_moves_to_the_next_millisecond() -> None:
    """Never back, never beyond four digits."""
    own = Clock(NODE, clock.reading(7, MAX_COUNTER - 1, NODE))
    assert [own.issue(7)[:17] for _ in range(3)] == ["000000000007-ffff", "000000000008-0000", "000000000008-0001"]


def test_observing_the_past_changes_nothing() -> None:
    """A reading below the clock's own leaves it where it is."""
    own = Clock(NODE, clock.reading(9, 3, NODE))
    own.observe(clock.reading(9, 2, "f" * 16))
    own.observe(clock.reading(8, MAX_COUNTER, "f" * 16))
    assert own.latest == clock.reading(9, 3, NODE)


@pytest.mark.parametrize("node", ["", "5F1C9A7E3D2B4A68", NODE + "0", NODE[:-1], NODE + "\n", "g" * 16])
def test_a_node_is_sixteen_hex_digits(node: str) -> None:
    """Anything else would break text order."""
    with pytest.raises(ValueError, match="16 lower case hex digits"):
        Clock(node)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0192f3a4b5c6-0001-5f1c9a7e3d2b4a68\n",
        " 0192f3a4b5c6-0001-5f1c9a7e3d2b4a68",
        "0192F3A4B5C6-0001-5f1c9a7e3d2b4a68",
        "0192f3a4b5c-0001-5f1c9a7e3d2b4a68",
        "0192f3a4b5c6-001-5f1c9a7e3d2b4a68",
        "0192f3a4b5c6-0001-5f1c9a7e3d2b4a6",
        "0192f3a4b5c6_0001_5f1c9a7e3d2b4a68",
        "\u0660192f3a4b5c6-0001-5f1c9a7e3d2b4a68"[1:],
        "\u0660192f3a4b5c6"[:12] + "-0001-5f1c9a7e3d2b4a68",
        "ffffffffffff-0000-0000000000000000",
        clock.reading(LAST_INSTANT + 1, 0, NODE),
        None,
        7,
        b"0192f3a4b5c6-0001-5f1c9a7e3d2b4a68",
    ],
)
def test_what_is_no_reading(value: object) -> None:
    """The pattern holds for the whole text, and the time is one that RFC 3339 can write."""
    assert not clock.is_reading(value)


@given(millis)
def test_instants_are_rfc3339_with_six_digits(at: int) -> None:
    """They name the reading's millisecond, in UTC."""
    text = clock.instant(clock.floor_reading(at))
    assert len(text) == 27
    assert text.endswith("000Z")
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo == UTC
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000 == pytest.approx(at, abs=0.5)


def test_the_first_and_the_last_instant() -> None:
    """From 1970 to the end of year 9999."""
    assert clock.instant_of_millis(0) == "1970-01-01T00:00:00.000000Z"
    assert clock.instant_of_millis(LAST_INSTANT) == "9999-12-31T23:59:59.999000Z"


@given(parts)
def test_the_floor_of_a_millisecond_is_below_its_readings(reading: tuple[int, int, str]) -> None:
    """And above all of the millisecond before."""
    at = clock.reading(*reading)
    assert clock.floor_reading(reading[0]) <= at < clock.floor_reading(reading[0] + 1)
