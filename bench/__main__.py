"""`python -m bench`: every figure with the limit it is held against, in one table.

The service, the database and the load share the machine; absolute figures move with it, ratios are what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.servers import PostgresServer, TidemarkServer, free_port

from . import capture, limit, measured, stream
from .http import Connection
from .rows import Source

SCHEMA = Path(__file__).parent / "schema.yaml"


class Figure(NamedTuple):
    """One line of the report. `floor` and `share` are parts of the limit; times are in ms and have no limit."""

    work: str
    value: float
    unit: str
    limit: float | None = None
    floor: float | None = None

    @property
    def share(self) -> float | None:
        return None if self.limit is None else self.value / self.limit


async def pushes(server: TidemarkServer, clients: int, batches: int, size: int, *, op: str = "put") -> float:
    """Rows a second of pushes of `size` rows, `clients` at once, each its own user."""
    sources = [Source(100 * clients + size + index) for index in range(clients)]
    rows = [[source.rows(size) for _ in range(batches)] for source in sources]
    connections = [Connection(server.url, server.token(f"pusher-{clients}-{size}-{i}")) for i in range(clients)]
    for connection in connections:
        await connection.__aenter__()
    if op == "patch":
        for connection, source, mine in zip(connections, sources, rows, strict=True):
            for batch in mine:
                await connection.post("/sync/push", source.push(batch))
    bodies = [[source.push(batch, op) for batch in mine] for source, mine in zip(sources, rows, strict=True)]

    async def run(index: int) -> None:
        for body in bodies[index]:
            answer = await connections[index].post("/sync/push", body)
            if answer.count(b'"applied"') != size:
                raise AssertionError(answer[:300])

    began = time.perf_counter()
    await asyncio.gather(*(run(index) for index in range(clients)))
    took = time.perf_counter() - began
    for connection in connections:
        await connection.__aexit__(None, None, None)
    return clients * batches * size / took


async def posts(url: str, path: str, bodies: list[list[bytes]], tokens: list[str]) -> float:
    """Requests a second over one connection for each list of bodies."""
    connections = [Connection(url, token) for token in tokens]
    for connection in connections:
        await connection.__aenter__()

    async def run(index: int) -> None:
        for body in bodies[index]:
            await connections[index].post(path, body)

    began = time.perf_counter()
    await asyncio.gather(*(run(index) for index in range(len(connections))))
    took = time.perf_counter() - began
    for connection in connections:
        await connection.__aexit__(None, None, None)
    return sum(map(len, bodies)) / took


async def single_pushes(server: TidemarkServer, connections: int, each: int) -> tuple[float, float]:
    """(durable pushes of one mutation a second, empty posts a second)."""
    sources = [Source(5000 + index) for index in range(connections)]
    bodies = [[source.push([row]) for row in source.rows(each)] for source in sources]
    tokens = [server.token(f"single-{index}") for index in range(connections)]
    async with empty_server() as url:
        empty = await posts(url, "/", [[b"{}"] * each] * connections, tokens)
        pushed = await posts(server.url, "/sync/push", bodies, tokens)
        empty = max(empty, await posts(url, "/", [[b"{}"] * each] * connections, tokens))
    return pushed, empty


@asynccontextmanager
async def empty_server() -> AsyncIterator[str]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.empty", str(port))
    try:
        for _ in range(200):
            try:
                async with Connection(f"http://127.0.0.1:{port}") as connection:
                    await connection.post("/", b"{}")
                    break
            except OSError:
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def first_pull(server: TidemarkServer, rows: int, rounds: int = 3) -> tuple[float, float]:
    """Rows a second of a first pull of `rows`: (streamed as NDJSON, in pages)."""
    source = Source(9)
    token = server.token("reader")
    best_lines = best_pages = 0.0
    async with Connection(server.url, token) as connection:
        for _ in range(rows // 1_000):
            await connection.post("/sync/push", source.push(source.rows(1_000)))
        for _ in range(rounds):
            began = time.perf_counter()
            body = await connection.post("/sync/pull", source.pull(), "application/x-ndjson")
            best_lines = max(best_lines, rows / (time.perf_counter() - began))
            if body.count(b'"version":') != rows:
                raise AssertionError(f"{body.count(b'version')} of {rows} rows")
            began = time.perf_counter()
            marks: dict[str, str] = {}
            while True:
                body = await connection.post("/sync/pull", source.pull(marks))
                found = re.match(rb'{"scopes":\[{"scope":"([^"]+)",[^[]*"watermark":"([^"]+)"', body)
                if found is None:
                    raise AssertionError(body[:300])
                marks = {found[1].decode(): found[2].decode()}
                if b'"more":false' in body[-200:]:
                    break
            best_pages = max(best_pages, rows / (time.perf_counter() - began))
    return best_lines, best_pages


async def pull_latency(server: TidemarkServer, rows: int, rounds: int) -> float:
    """Median ms of a pull of `rows` new rows."""
    source = Source(11)
    times: list[float] = []
    async with Connection(server.url, server.token("follower")) as connection:
        await connection.post("/sync/push", source.push(source.rows(1_000)))
        page = json.loads(await connection.post("/sync/pull", source.pull()))
        for _ in range(rounds):
            if rows:
                await connection.post("/sync/push", source.push(source.rows(rows)))
            marks = {run["scope"]: run["watermark"] for run in page["scopes"]}
            began = time.perf_counter()
            body = await connection.post("/sync/pull", source.pull(marks))
            times.append((time.perf_counter() - began) * 1_000)
            page = json.loads(body) if rows else page
    return statistics.median(times)


async def measure(postgres: PostgresServer, scale: float) -> list[Figure]:
    bare = postgres.create_database()
    await limit.prepare(bare)
    batches = max(5, int(100 * scale))
    figures: list[Figure] = []
    with TemporaryDirectory() as folder:
        server = TidemarkServer(
            SCHEMA, postgres.create_database(), folder=Path(folder), env={"TIDEMARK_RATE_LIMIT": "0"}
        )
        with server:
            await pushes(server, 1, 3, 100)  # warm
            for clients, floor in ((1, 0.12), (8, None)):
                top = await limit.upserts(bare, clients, batches, 100)
                value = await pushes(server, clients, batches, 99 + clients)
                work = f"push of new rows, 100 a request, {clients} at once"
                figures.append(Figure(work, value, "rows/s", top, floor))
            value = await pushes(server, 1, batches, 98, op="patch")
            top = await limit.upserts(bare, 1, batches, 98)
            figures.append(Figure("patches of these rows, 1 client", value, "rows/s", top))
            pushed, empty = await single_pushes(server, 64, max(10, int(100 * scale)))
            figures.append(Figure("one mutation a request, 64 connections", pushed, "requests/s", empty, 0.40))
            built, ready = await limit.select_json(bare, 20_000)
            lines, pages = await first_pull(server, 20_000)
            figures.append(Figure("first pull of 20,000 rows, streamed", lines, "rows/s", built, 0.25))
            figures.append(Figure("the same, limit: JSON stored as text", lines, "rows/s", ready))
            figures.append(Figure("first pull of 20,000 rows, in pages", pages, "rows/s", built, 0.25))
            figures.append(Figure("pull of 100 new rows, p50", await pull_latency(server, 100, 50), "ms"))
            figures.append(Figure("pull of nothing, p50", await pull_latency(server, 0, 200), "ms"))
            p50, p99 = await stream.push_to_frame(server, max(50, int(300 * scale)))
            figures.append(Figure("push to another client's frame, p50", p50, "ms"))
            figures.append(Figure("push to another client's frame, p99", p99, "ms"))
    return figures


def show(figures: list[Figure]) -> bool:
    """Print the table; whether every floor was reached."""
    table = Table("work", "Tidemark", "limit", "share", "floor")
    whole = True
    for figure in figures:
        value = f"{figure.value:,.2f} ms" if figure.unit == "ms" else f"{figure.value:,.0f} {figure.unit}"
        top = "" if figure.limit is None else f"{figure.limit:,.0f}"
        share = "" if figure.share is None else f"{figure.share:.0%}"
        floor = "" if figure.floor is None else f"{figure.floor:.0%}"
        if figure.floor is not None and figure.share is not None and figure.share < figure.floor:
            whole = False
            floor += " (missed)"
        table.add_row(figure.work, value, top, share, floor)
    Console(width=120).print(table)
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="length of the runs (1.0: about a minute)")
    parser.add_argument("--only", choices=["sync", "capture", "stream"], help="one of the sections")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    figures: list[Figure] = []
    captured: list[capture.Result] = []
    streamed: list[measured.Measured] = []
    remarks: list[str] = []
    with PostgresServer() as postgres:
        if options.only in {None, "sync"}:
            figures = asyncio.run(measure(postgres, options.scale))
        if options.only in {None, "capture"}:
            captured = asyncio.run(capture.measure(postgres, options.scale))
        if options.only in {None, "stream"}:
            streamed, remarks = stream.measure(postgres, options.scale)
    if options.json is not None:
        report = [{**f._asdict(), "share": f.share} for f in figures] + [one._asdict() for one in captured]
        report += [{**one._asdict(), "ratio": one.ratio} for one in streamed]
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    reached = [show(figures)] if figures else []
    reached += [capture.show(captured)] if captured else []
    reached += [measured.show(streamed, remarks)] if streamed else []
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
