"""The end of serving: what is held open lets go when the signal comes, since lifespan's end waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .call import Call, Disconnected

T = TypeVar("T")


class Shutdown:
    """Whether the service is going away."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    def begin(self) -> None:
        self._begun.set()

    async def hold(self, call: Call, held: Awaitable[T], otherwise: Callable[[], Awaitable[T]]) -> T:
        """What `held` gives, or `otherwise()` if the service goes away first; Disconnected if the client does."""
        waiting = asyncio.ensure_future(held)
        leaving = asyncio.ensure_future(call.gone())
        ending = asyncio.ensure_future(self._begun.wait())
        try:
            await asyncio.wait({waiting, leaving, ending}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if leaving.done():
                raise Disconnected
        finally:
            for task in (waiting, leaving, ending):
                task.cancel()
            await asyncio.gather(waiting, leaving, ending, return_exceptions=True)
        return await otherwise()
