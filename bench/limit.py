"""The limit: the same rows in the same database, written and read without any service."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg

from .rows import Row, Source

_TABLE = """
CREATE TABLE bare (id uuid PRIMARY KEY, list_id uuid, title text, done boolean, priority bigint, notes text,
                   updated_at timestamptz)
"""
_UPSERT = """
INSERT INTO bare SELECT * FROM unnest($1::text[]::uuid[], $2::text[]::uuid[], $3::text[], $4::bool[], $5::bigint[],
                                      $6::text[], $7::text[]::timestamptz[])
ON CONFLICT (id) DO UPDATE SET list_id = excluded.list_id, title = excluded.title, done = excluded.done,
  priority = excluded.priority, notes = excluded.notes, updated_at = excluded.updated_at
"""
_STAMP = "2026-01-01T00:00:00.000000Z"


async def prepare(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(_TABLE)
    await connection.close()


def _columns(rows: list[Row]) -> list[list[Any]]:
    names = ("list_id", "title", "done", "priority", "notes")
    return [[r.id for r in rows], *([r.fields[name] for r in rows] for name in names), [_STAMP] * len(rows)]


async def upserts(url: str, clients: int, batches: int, size: int) -> float:
    """Rows a second of bare `unnest` upserts of new rows, one transaction a batch."""
    sources = [Source(2000 + client) for client in range(clients)]
    work = [[_columns(source.rows(size)) for _ in range(batches)] for source in sources]
    connections = [await asyncpg.connect(url) for _ in range(clients)]
    statements = [await connection.prepare(_UPSERT) for connection in connections]

    async def run(index: int) -> None:
        for columns in work[index]:
            await statements[index].fetch(*columns)

    began = time.perf_counter()
    await asyncio.gather(*(run(index) for index in range(clients)))
    took = time.perf_counter() - began
    for connection in connections:
        await connection.close()
    return clients * batches * size / took


async def select_json(url: str, rows: int, rounds: int = 3) -> tuple[float, float]:
    """Rows a second of a bare SELECT of rows as JSON, the best of some rounds: (made by the database, stored)."""
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE ready (id uuid PRIMARY KEY, doc text)")
    await connection.execute("TRUNCATE bare")
    await connection.execute(_UPSERT, *_columns(Source(7).rows(rows)))
    await connection.execute("INSERT INTO ready SELECT id, row_to_json(bare)::text FROM bare")
    built = await _best(connection, "SELECT row_to_json(bare)::text FROM bare", rounds)
    ready = await _best(connection, "SELECT doc FROM ready", rounds)
    await connection.close()
    return built, ready


async def _best(connection: asyncpg.Connection, query: str, rounds: int) -> float:
    best = 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        found = await connection.fetch(query)
        best = max(best, len(found) / (time.perf_counter() - began))
    return best
