"""How soon, and at what cost to their writer, rows written in SQL by another program reach a client (SPEC 10).

The tables are those of `examples/orders`; the writer is a process of its own, and so is the service.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple, TypeAlias

import httpx2
import msgspec
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from examples.orders import generate
from tests.servers import MariadbServer, PostgresServer, TidemarkServer
from tidemark.store.schema.migrate import migrate
from tidemark_protocol.schema import parse

from .inserts import customer
from .rows import Source

ORDERS: Final = Path(generate.__file__).parent
SCOPE: Final = "workspace:north"
EDGES: Final = (2, 5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1_000)
"""Upper ends of the histogram's lines (ms)."""
BULK: Final = 100_000
PATIENCE: Final = 300.0
"""Seconds until something that does not come is given up."""


class Latency(NamedTuple):
    """Milliseconds from COMMIT to the frame at a client, sorted; `goal` is for the 99th percentile."""

    work: str
    times: list[float]
    goal: float

    def at(self, share: float) -> float:
        return self.times[min(int(len(self.times) * share), len(self.times) - 1)]


class Cost(NamedTuple):
    """Rows a second that another program inserts, without and with triggers."""

    work: str
    bare: float
    captured: float


class Drain(NamedTuple):
    """Rows a second from the commit of a bulk load until nothing waits any more."""

    work: str
    rate: float


Result: TypeAlias = Latency | Cost | Drain


class Target(NamedTuple):
    """A kind of database: inserts a second when busy, and goals (ms), of which those of others than PostgreSQL are two
    polling intervals.
    """

    name: str
    create: Callable[[], str]
    busy: int
    quiet_goal: float
    goal: float


class _Change(msgspec.Struct):
    row: str


class _Frame(msgspec.Struct):
    t: str
    changes: list[_Change] = []


class Follower:
    """A client that notes when each row comes, by the monotonic clock."""

    def __init__(self, socket: ClientConnection) -> None:
        self.arrived: dict[int, float] = {}
        self._socket = socket
        self._decode = msgspec.json.Decoder(_Frame).decode

    async def run(self) -> None:
        """Take frames until cancelled."""
        async for message in self._socket:
            now, frame = time.monotonic(), self._decode(message)
            if frame.t == "behind":
                raise AssertionError("the client could not keep up")
            self.arrived.update((int(change.row), now) for change in frame.changes if change.row.isdigit())


async def until(found: Callable[[], Awaitable[bool]], what: str) -> None:
    """Look again and again."""
    deadline = time.monotonic() + PATIENCE
    while not await found():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {PATIENCE:g} s")
        await asyncio.sleep(0.05)


@contextmanager
def service(url: str) -> Iterator[TidemarkServer]:
    """The real service on tables that another program has made, with one reader."""
    with (
        TemporaryDirectory() as folder,
        TidemarkServer(ORDERS / "schema.yaml", url, folder=Path(folder), env={"TIDEMARK_RATE_LIMIT": "0"}) as server,
    ):
        place, headers = f"{server.url}/sync/scopes/{SCOPE}/members/reader", server.headers("operator", "admin")
        httpx2.put(place, headers=headers, json={"role": "viewer"}).raise_for_status()
        yield server


@asynccontextmanager
async def following(server: TidemarkServer) -> AsyncIterator[Follower]:
    """A client that has everything so far, and follows."""
    hello = {"t": "hello", "token": server.token("reader"), "client": Source(17).uuid(), "schema": 1, "watermark": {}}
    url = f"{server.websocket_url}/sync/stream"
    async with connect(url, subprotocols=[Subprotocol("tidemark.v1")], compression=None, max_size=None) as socket:
        await socket.send(msgspec.json.encode(hello).decode())
        follower = Follower(socket)
        task = asyncio.create_task(follower.run())
        yield follower
        task.cancel()


async def create(url: str) -> None:
    """The shop's tables, empty."""
    database = await generate.connect(url, 60)
    await database.script((ORDERS / "tables.sql").read_text())
    await database.close()


async def latency(server: TidemarkServer, work: str, rate: int, count: int, first: int, goal: float) -> Latency:
    """Rows inserted at a rate by another process, each from its COMMIT to the frame that brings it."""
    async with following(server) as follower:
        command = [sys.executable, "-m", "bench.inserts", server.database, *map(str, (rate, count, first))]
        writer = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        said, _ = await writer.communicate()
        sent = {int(key): float(at) for key, at in map(str.split, said.decode().splitlines())}
        if len(sent) != count:
            raise AssertionError(f"{len(sent)} of {count} rows were inserted")

        async def all_here() -> bool:
            return sent.keys() <= follower.arrived.keys()

        await until(all_here, "every row's frame")
    return Latency(work, sorted((follower.arrived[key] - at) * 1_000 for key, at in sent.items()), goal)


async def drain(server: TidemarkServer, work: str, first: int) -> Drain:
    """How fast a bulk load passes through the inbox while the service runs."""
    database = await generate.connect(server.database, 60)

    async def empty() -> bool:
        return not (await database.read("SELECT COUNT(*) FROM (SELECT id FROM sync_inbox LIMIT 1) waiting"))[0][0]

    await until(empty, "an empty inbox")
    await database.load("customers", [customer(key) for key in range(first, first + BULK)])
    began = time.perf_counter()
    await until(empty, "an empty inbox")
    took = time.perf_counter() - began
    await database.close()
    return Drain(work, BULK / took)


async def inserted(url: str, size: int, first: int, seconds: float) -> float:
    """Rows a second that one connection inserts, `size` in each transaction: single INSERTs, or all at once if many."""
    database = await generate.connect(url, 60)
    rows, took = 0, 0.0
    while took < seconds and rows < BULK:
        some = [customer(first + rows + number) for number in range(size)]
        statements = [generate.insert("customers", row) for row in some] if size < BULK else []
        began = time.perf_counter()
        await (database.write(statements) if statements else database.load("customers", some))
        rows, took = rows + size, took + time.perf_counter() - began
    await database.close()
    return rows / took


async def costs(name: str, bare: str, captured: str, seconds: float) -> list[Cost]:
    """The writer's rate without and with triggers, no service running; the best of three rounds, turn by turn."""
    await create(bare)
    await create(captured)
    await asyncio.to_thread(migrate, captured, parse((ORDERS / "schema.yaml").read_text()))
    found = []
    sizes = {1: "one row a transaction", 100: "100 rows a transaction", BULK: f"{BULK:,} rows at once"}
    for number, (size, said) in enumerate(sizes.items()):
        without, with_triggers = 0.0, 0.0
        for turn in range(3):
            first = 1 + (3 * number + turn) * BULK
            without = max(without, await inserted(bare, size, first, seconds))
            with_triggers = max(with_triggers, await inserted(captured, size, first, seconds))
        found.append(Cost(f"{name}, {said}", without, with_triggers))
    return found


async def measure_one(target: Target, scale: float) -> list[Result]:
    """Everything of one database."""
    name, busy = target.name, target.busy
    await create(url := target.create())
    with service(url) as server:
        await latency(server, "warm", 50, 50, 1, 0)
        found: list[Result] = [
            await latency(server, f"{name}, 10 inserts/s", 10, int(200 * scale), 1_000_000, target.quiet_goal),
            await latency(server, f"{name}, {busy:,} inserts/s", busy, int(10 * busy * scale), 2_000_000, target.goal),
            await drain(server, f"{name}, {BULK:,} rows at once", 3_000_000),
        ]
    return found + await costs(name, target.create(), target.create(), 2 * scale)


async def measure(postgres: PostgresServer, scale: float) -> list[Result]:
    """All databases that can be had here."""
    with TemporaryDirectory() as folder, ExitStack() as servers:
        files = (f"sqlite:///{folder}/{number}.db" for number in itertools.count())
        targets = [
            Target("PostgreSQL", postgres.create_database, 1_000, 30, 100),
            Target("SQLite", lambda: next(files), 100, 100, 100),
        ]
        if not MariadbServer.missing():
            mariadb = servers.enter_context(MariadbServer())
            targets.append(Target("MariaDB", mariadb.create_database, 100, 200, 200))
        return [one for target in targets for one in await measure_one(target, scale)]


def histogram(latency: Latency) -> str:
    """One line of # for each span of time, and the percentiles."""
    p50, p90, p99 = (latency.at(share) for share in (0.5, 0.9, 0.99))
    held = "" if p99 < latency.goal else ": missed"
    figures = f"p50 {p50:.1f} ms, p90 {p90:.1f} ms, p99 {p99:.1f} ms, longest {latency.times[-1]:.1f} ms"
    lines = [
        f"{latency.work}: from COMMIT to a client's frame, {len(latency.times):,} rows",
        f"{figures} (goal for p99: {latency.goal:g} ms{held})",
    ]
    below = 0
    for low, high in zip((0, *EDGES), (*EDGES, float("inf")), strict=True):
        count = bisect.bisect_left(latency.times, high) - below
        below += count
        if count:
            lines.append(f"{low:>6} to {high:>5} ms {count:>7,} {'#' * math.ceil(60 * count / len(latency.times))}")
    return "\n".join(lines)


def show(found: Sequence[Result]) -> bool:
    """Print it all; whether every goal was reached."""
    console = Console(width=120, highlight=False)
    latencies = [one for one in found if isinstance(one, Latency)]
    for latency in latencies:
        console.print(histogram(latency), "", sep="\n", markup=False)
    table = Table("rows another program writes in SQL", "without triggers", "with", "share")
    for one in found:
        if isinstance(one, Cost):
            share = f"{one.captured / one.bare:.0%}"
            table.add_row(one.work, f"{one.bare:,.0f} rows/s", f"{one.captured:,.0f} rows/s", share)
    for one in found:
        if isinstance(one, Drain):
            table.add_row(f"drained: {one.work}", "", f"{one.rate:,.0f} rows/s", "")
    console.print(table)
    return all(latency.at(0.99) < latency.goal for latency in latencies)
