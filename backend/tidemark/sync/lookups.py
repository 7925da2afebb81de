"""Many small questions to the database, asked as few large ones: a thousand clients may come back at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MOST: Final = 2_000
"""Keys of one look-up; what is asked beyond is looked up next."""


class Lookups(Generic[K, V]):
    """Answers what `load` would, for all who ask while a look-up is under way with the next one.

    Nobody gets an answer of a look-up that had begun before the question was put.
    """

    def __init__(self, load: Callable[[Collection[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._load = load
        self._asked: list[tuple[frozenset[K], asyncio.Future[Mapping[K, V]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, keys: Iterable[K]) -> dict[K, V]:
        """What is known of these keys. Raises what `load` raises."""
        wanted = frozenset(keys)
        answer: asyncio.Future[Mapping[K, V]] = asyncio.get_running_loop().create_future()
        self._asked.append((wanted, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._answer_all())
        found = await answer
        return {key: found[key] for key in wanted if key in found}

    async def _answer_all(self) -> None:
        try:
            while self._asked:
                await self._answer(self._next())
        finally:
            self._task = None
            for _, answer in self._asked:
                answer.cancel()
            self._asked.clear()

    def _next(self) -> list[tuple[frozenset[K], asyncio.Future[Mapping[K, V]]]]:
        """The questions of the next look-up, in their order."""
        keys, count = 0, 0
        for wanted, _ in self._asked:
            keys += len(wanted)
            if count and keys > MOST:
                break
            count += 1
        taken, self._asked = self._asked[:count], self._asked[count:]
        return taken

    async def _answer(self, asked: list[tuple[frozenset[K], asyncio.Future[Mapping[K, V]]]]) -> None:
        answers = [answer for _, answer in asked]
        try:
            found = await self._load(frozenset().union(*(wanted for wanted, _ in asked)))
        except Exception as error:  # noqa: BLE001  (told to those who asked)
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
        except asyncio.CancelledError:
            for answer in answers:
                answer.cancel()
            raise
        else:
            for answer in answers:
                if not answer.done():
                    answer.set_result(found)
