"""Questions of many become few, and no answer is older than its question."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from tidemark.store.base import Unavailable
from tidemark.sync import lookups
from tidemark.sync.lookups import Lookups


class Numbers:
    """A database that knows squares, with the time they were looked up at."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.time = 0
        self.away = False

    async def load(self, keys: Collection[int]) -> dict[int, tuple[int, int]]:
        """Squares of those that are not negative."""
        self.asked.append(len(keys))
        seen = self.time
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("away")
        return {key: (key * key, seen) for key in keys if key >= 0}


async def test_many_questions_are_few_look_ups() -> None:
    """A thousand who ask at once cost one look-up, and each gets what it asked for."""
    numbers = Numbers()
    ask = Lookups(numbers.load)
    answers = await asyncio.gather(*(ask([n, -n - 1]) for n in range(900)))
    assert [answer[n][0] for n, answer in enumerate(answers)] == [n * n for n in range(900)]
    assert all(len(answer) == 1 for answer in answers)
    assert len(numbers.asked) == 1


async def test_a_look_up_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look-up asks for more than so many keys, unless one question does."""
    monkeypatch.setattr(lookups, "MOST", 10)
    numbers = Numbers()
    ask = Lookups(numbers.load)
    await asyncio.gather(*(ask(range(n, n + 4)) for n in range(0, 40, 4)), ask(range(100)))
    assert sorted(numbers.asked) == [8] * 5 + [100]


async def test_no_answer_is_older_than_its_question() -> None:
    """Who asks while a look-up is under way is answered by the next one."""
    numbers = Numbers()
    ask = Lookups(numbers.load)
    first = asyncio.create_task(ask([1]))
    while not numbers.asked:  # noqa: ASYNC110  (it has no event)
        await asyncio.sleep(0)
    numbers.time = 1
    assert await ask([1]) == {1: (1, 1)}
    assert await first == {1: (1, 0)}


async def test_a_failure_is_everybodys_and_passes() -> None:
    """All who asked hear of it; the next question is asked again."""
    numbers = Numbers()
    numbers.away = True
    ask = Lookups(numbers.load)
    answers = await asyncio.gather(ask([1]), ask([2]), return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)
    numbers.away = False
    assert await ask([3]) == {3: (9, 0)}


async def test_one_who_goes_away_takes_nobody_along() -> None:
    """A question that is given up leaves the others' answers alone."""
    numbers = Numbers()
    ask = Lookups(numbers.load)
    leaving, staying = asyncio.create_task(ask([1])), asyncio.create_task(ask([2]))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == {2: (4, 0)}


async def test_a_look_up_that_is_cancelled_leaves_nobody_waiting() -> None:
    """Those who asked, and those whose turn had not come, are cancelled with it; the next question is asked again."""
    numbers = Numbers()
    go_on = asyncio.Event()

    async def load(keys: Collection[int]) -> dict[int, tuple[int, int]]:
        found = await numbers.load(keys)
        if not go_on.is_set():
            await go_on.wait()
            raise asyncio.CancelledError
        return found

    ask = Lookups(load)
    waiting = [asyncio.create_task(ask([number])) for number in (1, 2)]
    while not numbers.asked:  # noqa: ASYNC110  (it has no event)
        await asyncio.sleep(0)
    late = asyncio.create_task(ask([3]))
    await asyncio.sleep(0)
    go_on.set()
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*waiting, late, return_exceptions=True)
        assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 3
        assert await ask([4]) == {4: (16, 0)}
