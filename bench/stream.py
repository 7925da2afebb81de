"""The stream: from a push to another client's frame, and thousands of connections beside socket.io (SPEC 6)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.servers import PostgresServer, TidemarkServer

from . import crowd, fanout
from .http import Connection
from .measured import SATURATED, Generator, Measured
from .poster import Poster
from .rows import Source
from .services import ROWS, UNFOLLOWED, SocketIo, fleet, tidemark

SIZES = (1_000, 5_000)
PUSHERS = 16


class _Change(msgspec.Struct):
    row: str


class _Frame(msgspec.Struct):
    t: str
    changes: list[_Change] = []


async def push_to_frame(server: TidemarkServer, rounds: int, rate: float = 0) -> tuple[float, float]:
    """(median, 99th percentile) in ms from sending a push of one row to the frame at another client of the user.

    `rate` pushes a second, whatever each takes; 0: one after the other.
    """
    source, token = Source(13 + int(rate)), server.token("streamer")
    hello = {"t": "hello", "token": token, "client": source.uuid(), "schema": 1, "watermark": {}}
    rows = source.rows(rounds)
    sent: dict[str, float] = {}
    arrived = {row.id: asyncio.get_running_loop().create_future() for row in rows}
    url = f"{server.websocket_url}/sync/stream"
    async with connect(url, subprotocols=[Subprotocol("tidemark.v1")], compression=None) as socket:
        await socket.send(json.dumps(hello))
        while json.loads(await socket.recv())["t"] != "changes":
            pass
        follower = asyncio.create_task(_follow(socket, arrived))
        connections: asyncio.Queue[Connection] = asyncio.Queue()
        for _ in range(PUSHERS if rate else 1):
            connections.put_nowait(await Connection(server.url, token).__aenter__())

        async def push(number: int) -> None:
            body = source.push([rows[number]])
            if rate:
                await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            connection = await connections.get()
            sent[rows[number].id] = time.perf_counter()
            await connection.post("/sync/push", body)
            connections.put_nowait(connection)

        began = time.perf_counter()
        if rate:
            await asyncio.gather(*(push(number) for number in range(rounds)))
        for number in range(0 if rate else rounds):
            await push(number)
            await arrived[rows[number].id]
        await asyncio.gather(*arrived.values())
        follower.cancel()
        while not connections.empty():
            await connections.get_nowait().__aexit__(None, None, None)
    times = sorted((arrived[row].result() - sent[row]) * 1_000 for row in sent)
    return fanout.percentile(times, 0.5), fanout.percentile(times, 0.99)


async def _follow(socket: ClientConnection, arrived: dict[str, asyncio.Future[float]]) -> None:
    decode = msgspec.json.Decoder(_Frame).decode
    async for message in socket:
        now = time.perf_counter()
        for change in decode(message).changes:
            arrived[change.row].set_result(now)


@contextmanager
def databases(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """A fresh database of each kind that is measured."""
    with TemporaryDirectory() as folder:
        yield {"SQLite": f"sqlite:///{folder}/bench.db", "PostgreSQL": postgres.create_database()}


def delivery(url: str, count: int, generator: Generator, scale: float) -> list[Measured]:
    """CPU of a delivery and what others feel of it, both services and all their clients alive all the time."""
    with ExitStack() as stack:
        service = stack.enter_context(tidemark(url, TIDEMARK_HEARTBEAT="1h"))
        service.admit(range(count + 1))
        service.admit([count], UNFOLLOWED)
        mine = fanout.gather(service, stack.enter_context(fleet(service)), count)
        theirs = None
        if not SocketIo.missing():
            other = stack.enter_context(SocketIo())
            theirs = fanout.gather(other, stack.enter_context(fleet(other)), count)
        poster = stack.enter_context(Poster(service.port, service.token(count)))
        found = fanout.costs(mine, theirs, poster, generator, 2 * scale)
        if count == max(SIZES):
            found += fanout.fairness(mine, theirs, service.token(count), 10 * scale)
    return found


def memory(url: str) -> Measured:
    """What an idle connection holds."""
    with tidemark(url) as service:
        mine = crowd.idle(service)
    with socket_io() as other:
        theirs = None if other is None else crowd.idle(other)
    return Measured(f"memory of an idle connection, of {crowd.IDLE:,}", mine, "KB", theirs, 28)


def arrivals(urls: dict[str, str]) -> list[Measured]:
    """How soon all are let in who come at once."""
    with socket_io() as other:
        theirs = None if other is None else crowd.arrivals(other)
    found = []
    for name, url in urls.items():
        with tidemark(url) as service:
            work = f"{crowd.ARRIVALS:,} authenticated connects at once, {name}"
            found.append(Measured(work, crowd.arrivals(service), "s", theirs, 1.1))
    return found


@contextmanager
def socket_io() -> Iterator[SocketIo | None]:
    """A fresh one, or None where there is none."""
    if SocketIo.missing():
        yield None
        return
    with SocketIo() as service:
        yield service


def trouble(url: str) -> list[Measured]:
    """One reader that stalls, and a restart under all of them."""
    with tidemark(url) as service:
        service.admit(range(crowd.ARRIVALS))
        stall = crowd.stall(service, 1_000)
        asked = crowd.storm(service, crowd.ARRIVALS, killed=False)
        killed = crowd.storm(service, crowd.ARRIVALS, killed=True)
    gone = crowd.STALL_WITHIN if stall.gone is None else stall.gone
    back = f"{crowd.ARRIVALS:,} clients back and caught up after"
    return [
        Measured("a stalled reader of 1,000: memory", stall.growth / 1_048_576, "MB", None, 1),
        Measured("a stalled reader of 1,000: its socket gone after", gone, "s", None, 35),
        Measured("the others meanwhile: push to the last frame, p99", stall.meanwhile, "ms"),
        Measured("the same before", stall.before, "ms"),
        Measured(f"{back} SIGTERM", asked.back, "s", note=f"{asked.hinted:.0%} had a hint, {asked.failed} failures"),
        Measured(f"{back} SIGKILL", killed.back, "s", note=f"{killed.failed} failures"),
    ]


def latency(url: str, scale: float) -> list[Measured]:
    """From a push to another client's frame at 100 pushes a second."""
    with tidemark(url, ROWS) as service:
        asyncio.run(push_to_frame(service.server, 200))
        p50, p99 = asyncio.run(push_to_frame(service.server, int(2_000 * scale), 100))
    work = "push to another client's frame, 100 a second"
    return [Measured(f"{work}, p50", p50, "ms", None, 5), Measured(f"{work}, p99", p99, "ms", None, 25)]


def measure(postgres: PostgresServer, scale: float) -> tuple[list[Measured], list[str]]:
    """(Everything of the stream, remarks on it)."""
    generator = Generator()
    found = latency(postgres.create_database(), scale)
    for count in SIZES:
        found += delivery(postgres.create_database(), count, generator, scale)
    with databases(postgres) as urls:
        found += arrivals(urls)
    with databases(postgres) as urls:
        found.append(memory(urls["PostgreSQL"]))
    found += trouble(postgres.create_database())
    remarks = [f"The load generator took {generator.share:.0%} of its core at the most."]
    if generator.share > SATURATED:
        remarks.append("That is too much: it may have held up what it measured.")
    lacking = SocketIo.missing()
    if lacking:
        remarks.append(f"Without socket.io to compare with: {lacking}.")
    return found, remarks
