"""A shop that other programs write in SQL while clients push to the same rows: what was written by whom, and when."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from tests.contract.client import Device, Json, Service
from tests.outside import Program

DECLARATION: Final = """
schema: 3
scopes:
  workspace:
    roles: {viewer: read, editor: write}
entities:
  orders:
    table: orders
    key: {column: order_key, type: text}
    scope: {kind: workspace, column: tenant_id}
    capture: true
    fields:
      mark: {type: text, default: ""}
      total: {type: integer, default: 0}
      word: {type: text, default: ""}
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
      mark: {type: text, default: ""}
  notes:
    scope: workspace
    fields:
      title: {type: text}
"""
TABLES: Final = """
    CREATE TABLE orders (
        order_key {key} NOT NULL PRIMARY KEY, tenant_id {key} NOT NULL, mark varchar(60) NOT NULL DEFAULT '',
        total bigint NOT NULL DEFAULT 0, word varchar(60) NOT NULL DEFAULT '', theirs varchar(20) DEFAULT 'theirs');
    CREATE TABLE order_lines (
        order_key {key} NOT NULL, line bigint NOT NULL, tenant_id {key} NOT NULL, parent {key} NOT NULL,
        price bigint NOT NULL, PRIMARY KEY (order_key, line), FOREIGN KEY (parent) REFERENCES orders (order_key));
    CREATE TABLE tags (
        tenant_id {key} NOT NULL, tag {key} NOT NULL, mark varchar(60) NOT NULL DEFAULT '',
        PRIMARY KEY (tenant_id, tag))
"""
KEY: Final = {
    "sqlite": "text",
    "postgresql": "text",
    "mysql": "varchar(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
}
TENANTS: Final = ("a", "b", "c")
ORDERS: Final = [f"o{number:02}" for number in range(60)]
LINES: Final = [f"{order}:{number}" for order in ORDERS[:20] for number in (1, 2)]
TAGS: Final = [f"t{number:02}" for number in range(20)]
ROLLED_BACK: Final = 0.2
REFUSALS: Final = {"row_taken", "row_unknown", "ref_missing", "ref_in_use", "constraint_violation", "group_rejected"}
"""What the clients' mutations may be refused for: other writers were there before."""


def owners_triggers(dialect: str) -> list[str]:
    """An order's total is kept by triggers on its lines, its word in lower case by another."""
    add, take = (
        f"UPDATE orders SET total = total {sign} WHERE order_key = {side}.parent"
        for sign, side in (("+ NEW.price", "NEW"), ("- OLD.price", "OLD"))
    )
    bodies = {"INSERT": [add], "UPDATE": [take, add], "DELETE": [take]}
    if dialect == "postgresql":
        low = "BEGIN NEW.word := lower(NEW.word); RETURN NEW; END"
        made = [
            f"CREATE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS $${low}$$",
            "CREATE TRIGGER low BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION low()",
        ]
        for event, body in bodies.items():
            text = f"BEGIN {'; '.join(body)}; RETURN NULL; END"
            made += [
                f"CREATE FUNCTION sum_{event}() RETURNS trigger LANGUAGE plpgsql AS $${text}$$",
                f"CREATE TRIGGER sum_{event} AFTER {event} ON order_lines FOR EACH ROW EXECUTE FUNCTION sum_{event}()",
            ]
        return made
    each = "" if dialect == "sqlite" else "FOR EACH ROW"
    made = [
        f"CREATE TRIGGER sum_{event} AFTER {event} ON order_lines {each} BEGIN {'; '.join(body)}; END"
        for event, body in bodies.items()
    ]
    if dialect == "sqlite":
        lower = "UPDATE orders SET word = lower(word) WHERE order_key = NEW.order_key AND word <> lower(word)"
        return [*made, f"CREATE TRIGGER low AFTER UPDATE ON orders BEGIN {lower}; END"]
    return [*made, "CREATE TRIGGER low BEFORE UPDATE ON orders FOR EACH ROW SET NEW.word = lower(NEW.word)"]


Wrote = tuple[str, str, str | None, float]
"""Entity, row, mark (None: it went) and when that was begun (seconds)."""


@dataclass(frozen=True)
class Written:
    """A write of a row: its mark (None: it went), begun no earlier than `since`, there by `by` (seconds)."""

    entity: str
    row: str
    mark: str | None
    since: float
    by: float


@dataclass
class SqlWriter:
    """A program with a session of its own; the first of them keeps its transactions open, for `longest` seconds."""

    url: str
    number: int
    chance: random.Random
    longest: float
    written: list[Written] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    commits: int = 0

    def work(self, over: threading.Event) -> None:
        """Transactions without rest until told to stop."""
        asyncio.run(self._work(over))

    async def _work(self, over: threading.Event) -> None:
        async with Program(self.url) as program:
            for number in itertools.count():
                if over.is_set():
                    return
                await self._transaction(program, f"s{self.number}.{number}")
                over.wait(self.chance.uniform(0, 0.02))

    async def _transaction(self, program: Program, mark: str) -> None:
        try:
            await program.begin()
            found: list[Wrote] = []
            for step in range(1 if self.number == 0 else self.chance.randint(1, 4)):
                found += await self._statement(program, f"{mark}.{step}")
            if self.number == 0 and (program.dialect != "sqlite" or self.chance.random() < 0.1):
                await asyncio.sleep(self.chance.uniform(0, self.longest))
            if self.chance.random() < ROLLED_BACK:
                await program.run("ROLLBACK")
                return
            await program.commit()
        except Exception as error:  # noqa: BLE001 - counted, and looked at in the end
            self.faults[str(error)[:60]] += 1
            with suppress(Exception):
                await program.run("ROLLBACK")
            return
        now = time.time()
        self.commits += 1
        self.written += [Written(entity, row, left, since, now) for entity, row, left, since in found]

    async def _statement(self, program: Program, mark: str) -> list[Wrote]:
        """Run something at random; the rows that it surely wrote."""
        chance = self.chance
        works = (self._mark, self._mark_many, self._move, self._upsert, self._remove, self._tag, self._tag, self._line)
        return await chance.choice(works)(program, mark)

    async def _mark(self, program: Program, mark: str) -> list[Wrote]:
        where = f"order_key = '{self.chance.choice(ORDERS)}'"
        return await self._update(program, f"mark = '{mark}', word = 'W{mark}'", where, mark)

    async def _mark_many(self, program: Program, mark: str) -> list[Wrote]:
        first = self.chance.choice(ORDERS)
        where = f"tenant_id = '{self.chance.choice(TENANTS)}' AND order_key BETWEEN '{first}' AND '{first[:2]}9'"
        return await self._update(program, f"mark = '{mark}'", where, mark)

    async def _move(self, program: Program, mark: str) -> list[Wrote]:
        changed = f"mark = '{mark}', tenant_id = '{self.chance.choice(TENANTS)}'"
        return await self._update(program, changed, f"order_key = '{self.chance.choice(ORDERS)}'", mark)

    async def _update(self, program: Program, changed: str, where: str, mark: str) -> list[Wrote]:
        """Change orders, having looked which are there: those alone, for others may come before the change."""
        since = time.time()
        lock = "" if program.dialect == "sqlite" else " FOR UPDATE"
        rows = await program.run(f"SELECT order_key FROM orders WHERE {where}{lock}")
        if rows:
            found = ", ".join(f"'{row}'" for (row,) in rows)
            await program.run(f"UPDATE orders SET {changed} WHERE order_key IN ({found})")
        return [("orders", row, mark, since) for (row,) in rows]

    async def _upsert(self, program: Program, mark: str) -> list[Wrote]:
        order, since = self.chance.choice(ORDERS), time.time()
        values = f"('{order}', '{self.chance.choice(TENANTS)}', '{mark}')"
        what = _or_update(program, "order_key")
        await program.run(f"INSERT INTO orders (order_key, tenant_id, mark) VALUES {values} {what}")
        return [("orders", order, mark, since)]

    async def _remove(self, program: Program, _: str) -> list[Wrote]:
        order, since = self.chance.choice(ORDERS), time.time()
        for table, column in (("order_lines", "parent"), ("orders", "order_key")):
            await program.run(f"DELETE FROM {table} WHERE {column} = '{order}'")
        return [("orders", order, None, since)]

    async def _tag(self, program: Program, mark: str) -> list[Wrote]:
        """Upsert two rows, remove one, or change its key."""
        tenant, tag, since = self.chance.choice(TENANTS), self.chance.choice(TAGS), time.time()
        row = f"tenant_id = '{tenant}' AND tag = '{tag}'"
        match self.chance.randrange(4):
            case 0:
                await program.run(f"DELETE FROM tags WHERE {row}")
            case 1:
                await program.run(
                    f"DELETE FROM tags WHERE tenant_id = '{tenant}' AND tag = 'new{tag}'",
                    f"UPDATE tags SET tag = 'new{tag}' WHERE {row}",
                )
            case _:
                values = ", ".join(f"('{tenant}', '{one}', '{mark}')" for one in (tag, f"{tag}.b"))
                await program.run(f"INSERT INTO tags VALUES {values} {_or_update(program, 'tenant_id, tag')}")
                return [("tags", f"{tenant}/{one}", mark, since) for one in (tag, f"{tag}.b")]
        return [("tags", f"{tenant}/{tag}", None, since)]

    async def _line(self, program: Program, _: str) -> list[Wrote]:
        """Put a line in the place of another; its order may not be there, which is a fault of this program's."""
        key, _, line = self.chance.choice(LINES).partition(":")
        values = f"'{key}', {line}, '{self.chance.choice(TENANTS)}', '{key}', {self.chance.randint(1, 9)}"
        await program.run(
            f"DELETE FROM order_lines WHERE order_key = '{key}' AND line = {line}",
            f"INSERT INTO order_lines VALUES ({values})",
        )
        return []


def _or_update(program: Program, key: str) -> str:
    if program.dialect == "mysql":
        return "ON DUPLICATE KEY UPDATE mark = VALUES(mark)"
    return f"ON CONFLICT ({key}) DO UPDATE SET mark = excluded.mark"


@dataclass
class Client:
    """A device that pushes to the same rows and keeps what is answered `retry`."""

    device: Device
    chance: random.Random
    written: list[Written] = field(default_factory=list)
    maybe: set[str] = field(default_factory=set)
    pending: list[Json] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    serial: int = 0
    retries: int = 0
    slowest: float = 0.0

    def work(self, over: threading.Event) -> None:
        """Push without rest until told to stop."""
        while not over.is_set():
            self.push()
            over.wait(self.chance.uniform(0, 0.02))

    def settle(self, until: float) -> None:
        """Push until nothing is pending."""
        while self.pending:
            self.push()
            assert time.time() < until, self.pending

    def push(self) -> None:
        """Push what is pending, or something new."""
        sent = self.pending = self.pending or [self._mutation() for _ in range(self.chance.randint(1, 5))]
        began = time.monotonic()
        try:
            response = self.device.post("/sync/push", self.device.envelope(sent))
        except httpx2.TransportError:
            time.sleep(0.05)  # nobody listens
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        if response.status_code != 200:
            self.failed.append(f"{response.status_code} {response.text[:200]}")
            return
        now, answer = time.time(), response.json()
        self.device.clock.advance(answer["clock"])
        self.pending = []
        for mutation, result in zip(sent, answer["results"], strict=True):
            if result["status"] == "retry":
                self.pending.append(mutation)
                self.retries += 1
            elif result["status"] == "rejected":
                self.refused[result["error"]["code"]] += 1
            elif result["status"] == "applied":
                self._took(mutation, result, now)

    def _took(self, mutation: Json, result: Json, now: float) -> None:
        entity, row, since = mutation["entity"], mutation["row"], int(mutation["at"][:12], 16) / 1000
        if entity == "tags":
            row = f"{mutation['scope'].partition(':')[2]}/{row}"
        if mutation["op"] == "delete":
            self.written.append(Written(entity, row, None, since, now))
        elif "mark" in mutation["fields"] and "mark" not in result.get("superseded_fields", ()):
            self.written.append(Written(entity, row, mutation["fields"]["mark"], since, now))

    def _mutation(self) -> Json:
        chance, device = self.chance, self.device
        self.serial += 1
        mark, scope = f"c{device.user}.{self.serial}", f"workspace:{chance.choice(TENANTS)}"
        self.maybe.add(mark)
        entity, row = chance.choice([("orders", ORDERS), ("orders", ORDERS), ("tags", TAGS), ("lines", LINES)])
        key = chance.choice(row)
        at = None
        if chance.random() < 0.1:  # written offline a moment ago
            at = f"{int(time.time() * 1000) - chance.randint(1, 800):012x}-0000-{device.clock.node}"
        if chance.random() < 0.15:
            return device.delete(entity, key, scope=scope, at=at)
        if entity == "lines":
            fields: Json = {"parent": key.partition(":")[0], "price": chance.randint(1, 9)}
            return device.put("lines", key, scope=scope, at=at, **fields)
        if chance.random() < 0.5:
            return device.patch(entity, key, scope=scope, at=at, mark=mark)
        return device.put(entity, key, scope=scope, at=at, mark=mark)


def lost(written: list[Written], left: dict[tuple[str, str], str]) -> list[tuple[Written, str | None]]:
    """Writes that something which was over before them has undone; `left` is the mark of each row that is there.

    What a row is left at was written by somebody; whatever began after that was over must show instead.
    """
    last: dict[tuple[str, str], float] = {}
    for one in written:
        place = one.entity, one.row
        if one.mark == left.get(place):
            last[place] = max(last.get(place, 0.0), one.by)
    return [
        (one, left.get((one.entity, one.row)))
        for one in written
        if one.since > last.get((one.entity, one.row), float("inf")) + 0.001
    ]


def at_once(works: Sequence[Callable[[threading.Event], None]], meanwhile: Callable[[], None]) -> list[BaseException]:
    """Run all works in threads of their own until `meanwhile` returns; what they raised."""
    over = threading.Event()
    raised: list[BaseException] = []

    def run(work: Callable[[threading.Event], None]) -> None:
        try:
            work(over)
        except BaseException as error:  # noqa: BLE001 - handed on
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        meanwhile()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return raised


def device(service: Service, name: str, admin: Device) -> Device:
    """A device of a user who may write every workspace."""
    found = service.device(name)
    for tenant in TENANTS:
        admin.grant(f"workspace:{tenant}", name, "editor")
    return found


async def rows_of(url: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What the tables hold: (tenant, entity, row) → values."""
    async with Program(url) as program:
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        for key, tenant, mark, total, word in await program.run(
            "SELECT order_key, tenant_id, mark, total, word FROM orders"
        ):
            found[tenant, "orders", key] = {"mark": mark, "total": total, "word": word}
        for key, line, tenant, parent, price in await program.run(
            "SELECT order_key, line, tenant_id, parent, price FROM order_lines"
        ):
            found[tenant, "lines", f"{key}:{line}"] = {"parent": parent, "price": price}
        for tenant, tag, mark in await program.run("SELECT tenant_id, tag, mark FROM tags"):
            found[tenant, "tags", tag] = {"mark": mark}
        return found


async def backlog(url: str) -> int:
    """Entries that wait in the inbox."""
    async with Program(url) as program:
        return int((await program.run("SELECT COUNT(*) FROM sync_inbox"))[0][0])
