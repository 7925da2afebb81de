"""Rates: never more than allowed, the latest of each kind, first come first served."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tidemark.meter import BroadcastFate
from tidemark.sync.rates import BURST, Bucket, Throttle

KINDS = st.sampled_from("abcdef")
STEPS = st.lists(st.tuples(KINDS, st.sampled_from([0.0, 0.0, 0.01, 0.3, 2.0])), max_size=80)


def throttle(rate: float, most: int = 100, most_bytes: int = 10_000) -> tuple[Throttle[str, int], Counter[str]]:
    """A throttle and its tally."""
    fates: Counter[str] = Counter()

    def tally(fate: BroadcastFate, count: int) -> None:
        fates[fate] += count

    return Throttle(Bucket(rate, 0.0), most=most, most_bytes=most_bytes, tally=tally), fates


@given(STEPS, st.integers(1, 5))
def test_what_passes_keeps_to_the_rate_and_is_the_latest(steps: list[tuple[str, float]], rate: int) -> None:
    """In no span does more pass than its seconds' worth and a burst; what passes rises for each kind; and the last of
    each kind passes in the end.
    """
    valve, fates = throttle(rate)
    now = 0.0
    passed: list[tuple[float, int]] = []
    for number, (kind, pause) in enumerate(steps):
        valve.put(kind, number, 1)
        passed += [(now, value) for value in valve.take(now)]
        now += pause
    while (wait := valve.wait(now)) is not None:
        now += wait
        taken = valve.take(now)
        assert taken, "something may pass after the wait that was asked for"
        passed += [(now, value) for value in taken]
    for first, (start, _) in enumerate(passed):
        for last, (end, _) in enumerate(passed[first:], first):
            assert last - first + 1 <= rate * (BURST + end - start) + 0.001
    for kind in {kind for kind, _ in steps}:
        values = [value for _, value in passed if steps[value][0] == kind]
        assert values == sorted(values)
        assert values[-1] == max(number for number, step in enumerate(steps) if step[0] == kind)
    assert len(passed) + fates["coalesced"] == len(steps)


@given(st.lists(st.tuples(KINDS, st.integers(0, 40)), max_size=40))
def test_what_waits_is_bounded(puts: list[tuple[str, int]]) -> None:
    """No more kinds wait than may, nor more bytes, one alone aside; the oldest give way, and all are accounted for."""
    valve, fates = throttle(0.001, most=3, most_bytes=60)
    valve._bucket._tokens = 0
    for kind, size in puts:
        valve.put(kind, size, size)
        waiting = valve._waiting
        assert len(waiting) <= 3
        assert sum(each.size for each in waiting.values()) <= 60 or len(waiting) == 1
    assert fates.total() + len(valve._waiting) == len(puts)


def test_a_replaced_value_keeps_its_place() -> None:
    """A sender that repeats itself neither loses its turn nor gets more of them."""
    valve, _ = throttle(1)
    for kind, value in (("x", 0), ("y", 0), ("a", 1), ("b", 1), ("c", 1), ("a", 2), ("a", 3)):
        valve.put(kind, value, 1)
    assert valve.take(0.0) == [0, 0]
    assert [valve.take(float(second)) for second in (1, 2, 3, 4)] == [[3], [1], [1], []]


def test_what_is_kept_never_gives_way() -> None:
    """Values that are kept stay however many others come."""
    valve, fates = throttle(1, most=2)
    valve.put("state", -1, 1, kept=True)
    for number in range(10):
        valve.put(f"event {number}", number, 1)
    assert valve.take(10.0) == [-1, 8]
    assert fates == {"dropped": 8}


def test_no_rate_is_no_limit() -> None:
    """A rate of 0 lets everything pass at once."""
    valve, _ = throttle(0)
    for number in range(1_000):
        valve.put("a", number, 1)
        assert valve.take(0.0) == [number]
    assert valve.wait(0.0) is None


def test_dropped_kinds_do_not_pass() -> None:
    """What is forgotten never passes, and what remains keeps its order."""
    valve, fates = throttle(1)
    for kind in "abcde":
        valve.put(kind, ord(kind), 1)
    valve.drop(lambda kind: kind in "ace")
    assert valve.take(0.0) == [ord("b"), ord("d")]
    assert fates == {"dropped": 3}
