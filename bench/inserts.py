"""`python -m bench.inserts URL RATE COUNT FIRST`: another program's inserts, one customer in each transaction.

Writes `key seconds` for each to standard output at its end: the monotonic clock just before its COMMIT was sent.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

from examples.orders.generate import Row, connect, insert

CONNECTIONS = {"sqlite": 1}
"""Of every other kind: four."""


def customer(key: int) -> Row:
    """A row of `customers`."""
    name = f"Customer#{key:09}"
    return [key, "north", name, "rarely azure deposits wake", "KENYA", "17-555-1234", "100.00", "BUILDING", "quiet"]


async def run(url: str, rate: float, keys: range) -> dict[int, float]:
    """Insert at a steady rate, whatever each insert takes; when each was committed."""
    sent: dict[int, float] = {}
    kind = url.partition(":")[0]
    databases = [await connect(url, 60) for _ in range(CONNECTIONS.get(kind, 4))]
    numbers, began = itertools.count(), time.monotonic()

    async def mark(key: int) -> None:
        sent[key] = time.monotonic()

    async def work(index: int) -> None:
        while (number := next(numbers)) < len(keys):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            await databases[index].write([insert("customers", customer(keys[number]))], mark(keys[number]))

    await asyncio.gather(*map(work, range(len(databases))))
    for database in databases:
        await database.close()
    return sent


if __name__ == "__main__":
    url, rate, count, first = sys.argv[1], *map(int, sys.argv[2:])
    for key, at in asyncio.run(run(url, rate, range(first, first + count))).items():
        print(key, at)
