"""Handing the same to many, in turns (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tidemark.sync.fanout import SLICE, Fanout, sliced


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 * SLICE)), max_size=12), st.data())
def test_everybody_gets_everything_of_a_key_in_order(jobs: list[tuple[str, int]], data: st.DataObject) -> None:
    """Whatever is delivered while other deliveries last: nobody is left out, and under one key order is kept."""
    got: dict[tuple[str, int], list[int]] = defaultdict(list)
    ended: dict[str, list[int]] = defaultdict(list)
    pauses = [data.draw(st.booleans()) for _ in jobs]

    async def run() -> None:
        fanout = Fanout()
        for number, (key, count) in enumerate(jobs):

            def serve(some: Sequence[int], key: str = key, number: int = number) -> None:
                for receiver in some:
                    got[key, receiver].append(number)

            def done(key: str = key, number: int = number) -> None:
                ended[key].append(number)

            fanout.deliver(key, sliced(range(count)), serve, done)
            if pauses[number]:
                await asyncio.sleep(0)
        while sum(map(len, ended.values())) < len(jobs):  # noqa: ASYNC110  (turns are counted)
            await asyncio.sleep(0)

    asyncio.run(run())
    for key in "abc":
        mine = [(number, count) for number, (name, count) in enumerate(jobs) if name == key]
        assert ended[key] == [number for number, _ in mine]
        for receiver in range(3 * SLICE):
            assert got[key, receiver] == [number for number, count in mine if receiver < count]


async def test_a_long_delivery_lets_others_have_their_turn() -> None:
    """Between two slices the loop serves whoever waits, and a short delivery overtakes a long one."""
    fanout = Fanout()
    served: list[int] = []
    fanout.deliver("long", sliced(range(10 * SLICE)), served.extend)
    assert len(served) == SLICE
    other: list[int] = []
    fanout.deliver("short", sliced(range(3)), other.extend)
    assert len(other) == 3
    await asyncio.sleep(0)
    assert SLICE < len(served) <= 3 * SLICE
    while len(served) < 10 * SLICE:  # noqa: ASYNC110  (turns are counted)
        await asyncio.sleep(0)
    assert served == list(range(10 * SLICE))


async def test_a_slice_that_fails_is_alone() -> None:
    """Those after it are served, and the delivery ends."""
    got: list[int] = []
    ended = asyncio.Event()

    def serve(some: Sequence[int]) -> None:
        if 0 in some:
            raise ZeroDivisionError
        got.extend(some)

    Fanout().deliver("a", sliced(range(2 * SLICE)), serve, ended.set)
    async with asyncio.timeout(5):
        await ended.wait()
    assert got == list(range(SLICE, 2 * SLICE))
