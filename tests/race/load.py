"""Writers that race for a few scopes, and a reader that follows them; as part of a test, or as a process of its own.

    python -m tests.race.load URL WRITERS COMMITS SEED

writes, then waits for the end of its input, follows to the end and prints what it wrote and what it read as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Final

from tests.conformance.declared import DECLARATION, complete
from tests.conformance.writing import STAMP, at, read, saved, uuid
from tidemark.store.base import FeedRow, RowImage, RowKey, Store, Transaction
from tidemark.store.mysql import MysqlStore
from tidemark.store.postgresql import PostgresStore
from tidemark_protocol import digest

SCOPES: Final = [f"workspace:{number}" for number in range(6)]
ROLLED_BACK: Final = 0.2
LONGEST_PAUSE: Final = 0.002
"""Seconds a transaction stays open, with everything saved, before it commits."""

Versions = dict[str, list[tuple[int, str]]]
"""scope → (version, row) of every change."""
Pause = Callable[[float], Awaitable[None]]


class RollBack(Exception):
    """Ends a transaction without effect."""


async def suspend(seconds: float) -> None:
    """Leave the loop to others."""
    await asyncio.sleep(seconds)


async def block(seconds: float) -> None:
    """Hold the thread, for a store whose transactions must not suspend."""
    time.sleep(seconds)  # noqa: ASYNC251 - runs in the store's own thread


def shared(url: str, writers: int) -> Store:
    """A store that any number of processes may have open, with a connection for each writer."""
    kind = PostgresStore if url.startswith("postgresql") else MysqlStore
    return kind(url, DECLARATION, chance=secrets.token_bytes, writers=writers)


async def write(store: Store, writers: int, commits: int, seed: int, pause: Pause) -> Versions:
    """Commit that often, each time one new row, into whatever scope is free; what was committed."""
    committed: Versions = defaultdict(list)
    numbers = iter(range(commits))

    async def writer(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        for serial in numbers:
            row = uuid(seed << 32 | serial)
            while (given := await _attempt(store, row, chance, pause)) is None:
                pass
            scope, version = given
            committed[scope].append((version, row))

    await asyncio.gather(*(writer(number) for number in range(writers)))
    return committed


async def _attempt(store: Store, row: str, chance: random.Random, pause: Pause) -> tuple[str, int] | None:
    scope, fails, seconds = chance.choice(SCOPES), chance.random() < ROLLED_BACK, chance.uniform(0, LONGEST_PAUSE)

    async def body(transaction: Transaction) -> tuple[str, int] | None:
        state = (await transaction.lock([scope], [scope])).get(scope)
        if state is None:
            return None
        state.head += 1
        state.live += 1
        state.total = (state.total + digest.term("states", row, state.head)) % digest.MODULUS
        key = RowKey(scope, "states", row)
        feed = FeedRow(scope, "states", row, state.head, False, "{}", at(1), "", 1)
        image = RowImage(key, complete("states"), STAMP, STAMP, True)
        await transaction.save(saved(scopes=[state], feed=[feed], images=[image]))
        await pause(seconds)
        if fails:
            raise RollBack
        return scope, state.head

    try:
        return await store.transact(body)
    except RollBack:
        return None


class Reader:
    """A replica of every scope: it only ever asks for what lies above the last `to`."""

    def __init__(self, store: Store, seed: int) -> None:
        self.seen: Versions = defaultdict(list)
        self._store = store
        self._chance = random.Random(seed)
        self._to = dict.fromkeys(SCOPES, 0)

    async def step(self, scope: str) -> bool:
        """Read one page of random size; whether there was anything."""
        run = await self._store.run(scope, self._to[scope], 0, self._chance.randint(1, 40), 1 << 20)
        if run is None:
            return False
        self.seen[scope] += [(change.version, change.row) for change in read(run)]
        self._to[scope] = run.to
        return run.count > 0

    async def follow(self, end: asyncio.Event) -> None:
        """Read without rest until told that all has been written, and then what is left."""
        while not end.is_set():
            await self.step(self._chance.choice(SCOPES))
        for scope in SCOPES:
            while await self.step(scope):
                pass


async def _main(url: str, writers: int, commits: int, seed: int) -> None:
    store = shared(url, writers)
    await store.open()
    reader, end = Reader(store, seed), asyncio.Event()
    following = asyncio.ensure_future(reader.follow(end))
    committed = await write(store, writers, commits, seed, suspend)
    print("written", flush=True)  # noqa: T201 - the parent waits for it
    await asyncio.to_thread(sys.stdin.read)
    end.set()
    await following
    await store.close()
    print(json.dumps([committed, reader.seen]))  # noqa: T201 - this is the outcome


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], *map(int, sys.argv[2:])))
