"""A world on a real database beside another program that writes its tables in SQL."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.backend.engine_world import Device, Json, World
from tests.outside import Program
from tidemark.plugin import make_store
from tidemark.settings import Settings
from tidemark.store.base import Store
from tidemark.store.schema.migrate import migrate
from tidemark.sync.engine import Engine
from tidemark_protocol.model import Declaration
from tidemark_protocol.schema import parse

DECLARATION: Declaration = parse(
    """
    schema: 2
    scopes:
      workspace:
        roles: {viewer: read, editor: write}
    entities:
      customers:
        table: customers
        key: {column: customer_key, type: integer}
        scope: {kind: workspace, column: tenant_id}
        capture: true
        fields:
          name: {type: text, max: 60}
          balance: {type: decimal, precision: 15, scale: 2}
        unique: [[name]]
      orders:
        table: orders
        key: {column: order_key, type: text}
        scope: {kind: workspace, column: tenant_id}
        capture: true
        fields:
          customer_key: {type: integer, nullable: true, ref: customers, on_delete: set_null}
          status: {type: enum, values: [open, closed], default: open}
          total: {type: integer, default: 0}
          day: {type: date, nullable: true}
          seen: {type: datetime, nullable: true}
          urgent: {type: boolean, default: false}
      lines:
        table: order_lines
        key: {columns: [order_key, line], type: [text, integer]}
        scope: {kind: workspace, column: tenant_id}
        capture: true
        fields:
          parent: {type: text, ref: orders, on_delete: cascade}
          price: {type: integer}
      tags:
        table: tags
        key: {column: tag, type: text, per_scope: true}
        scope: {kind: workspace, column: tenant_id}
        capture: true
        fields:
          color: {type: text, max: 40, default: grey}
    """
)
TABLES = """
    CREATE TABLE customers (
        customer_key bigint NOT NULL PRIMARY KEY, tenant_id {key} NOT NULL, name varchar(60) NOT NULL,
        balance {decimal} NOT NULL, secret varchar(20) DEFAULT 'theirs');
    CREATE UNIQUE INDEX customers_name ON customers (tenant_id, name);
    CREATE TABLE orders (
        order_key {key} NOT NULL PRIMARY KEY, tenant_id {key} NOT NULL, customer_key bigint,
        status varchar(20) NOT NULL DEFAULT 'open', total bigint NOT NULL DEFAULT 0, day date, seen {moment},
        urgent {boolean} NOT NULL DEFAULT {false}, note varchar(80));
    CREATE TABLE order_lines (
        order_key {key} NOT NULL, line bigint NOT NULL, tenant_id {key} NOT NULL, parent {key} NOT NULL,
        price bigint NOT NULL, PRIMARY KEY (order_key, line), FOREIGN KEY (parent) REFERENCES orders (order_key));
    CREATE TABLE tags (
        tenant_id {key} NOT NULL, tag {key} NOT NULL, color varchar(40) NOT NULL, PRIMARY KEY (tenant_id, tag))
"""
TYPES = {
    "sqlite": {"key": "text", "decimal": "text", "moment": "text", "boolean": "boolean", "false": "0"},
    "postgresql": {
        "key": "text",
        "decimal": "numeric(15,2)",
        "moment": "timestamptz",
        "boolean": "boolean",
        "false": "false",
    },
    "mysql": {
        "key": "varchar(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin",
        "decimal": "decimal(15,2)",
        "moment": "datetime(6)",
        "boolean": "boolean",
        "false": "false",
    },
}
W = "workspace:7"


class SqlWorld(World):
    """An engine on a real database in real time, with another program beside it; drained when the test says so."""

    def __init__(self, store: Store, program: Program) -> None:
        super().__init__(store, DECLARATION)
        self.program = program

    @property
    def time(self) -> int:
        """Wall time."""
        return time.time_ns() // 1_000_000

    @time.setter
    def time(self, _: int) -> None: ...

    async def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """What the other program does."""
        return await self.program.run(*statements)

    async def drain(self, engine: Engine | None = None) -> int:
        """Take all that the inbox holds; how many entries."""
        taken = 0
        while some := await (engine or self.engine).drain.step():
            taken += some
        return taken

    async def backlog(self) -> int:
        """Entries that wait."""
        return (await self.store.backlog()).entries


@asynccontextmanager
async def adopted(url: str) -> AsyncIterator[SqlWorld]:
    """Adopted, empty tables; ada may write in workspaces 7 and 8."""
    async with Program(url) as program:
        await program.run(*TABLES.format(**TYPES[program.dialect]).split(";"))
        await asyncio.to_thread(migrate, url, DECLARATION)
        store = make_store(Settings(database_url=url), DECLARATION, chance=secrets.token_bytes)
        world = SqlWorld(store, program)
        await store.open()
        await world.engine.hub.start()
        try:
            for scope in (W, "workspace:8"):
                await world.grant(scope, ada="editor")
            yield world
        finally:
            await world.engine.stop()


async def orders(device: Device, scope: str = W) -> dict[str, Json]:
    """The orders of a replica that begins now, without the times."""
    rows = await device.rows(scope)
    return {row: _plain(doc) for (entity, row), doc in rows.items() if entity == "orders"}


def _plain(doc: Json) -> Json:
    return {name: value for name, value in doc.items() if name not in {"created_at", "updated_at"}}


def order(key: str, **fields: Any) -> Json:
    """An order's document."""
    blank = {"customer_key": None, "status": "open", "total": 0, "day": None, "seen": None, "urgent": False}
    return {"order_key": key, **blank, **fields}
