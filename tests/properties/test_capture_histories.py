"""Random histories of clients and other programs on captured tables: whatever happens in whatever order, the feed ends
as the tables stand (SPEC 10).

A history is made by its seed, which is part of the test's name.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from tests.backend.engine_world import Device, World
from tidemark.store.base import UNIT, Identity, JournalRow, RowKey
from tidemark.sync.capture import Image, Reader
from tidemark.sync.journal import Event, decode
from tidemark_protocol.messages import Mutation, Result
from tidemark_protocol.model import Declaration
from tidemark_protocol.schema import parse

DECLARATION: Declaration = parse(
    """
    schema: 2
    scopes:
      workspace:
        roles: {editor: write}
    entities:
      orders:
        table: orders
        key: {column: order_key, type: text}
        scope: {kind: workspace, column: tenant_id}
        capture: true
        fields:
          count: {type: integer, default: 0}
          title: {type: text, max: 3, nullable: true}
          labels: {type: map}
      lines:
        table: lines
        key: {columns: [order_key, line], type: [text, integer]}
        scope: {kind: workspace, column: tenant_id}
        capture: true
        fields:
          parent: {type: text, nullable: true, ref: orders, on_delete: cascade}
      tags:
        table: tags
        key: {column: tag, type: text, per_scope: true}
        scope: {kind: workspace, column: tenant_id}
        capture: true
        fields:
          color: {type: text, default: grey}
        unique: [[color]]
    """
)
SCOPES = ["workspace:7", "workspace:8"]
PLACES = ["7", "7", "7", "8", "8", ""]
"""What the scope column holds; the last is no scope."""
ORDERS = ["a", "b", "c", "no row"]
LINES = [f"{order}{UNIT}{line}" for order in "ab" for line in ("1", "2", "x")]
READER = Reader(DECLARATION, 100_000)


class History:
    """One history, on plain dictionaries."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world = World(declaration=DECLARATION)
        self.engines = [self.world.engine, self.world.process(DECLARATION)]
        self.devices = [self.world.device(user, engine=self.chance.choice(self.engines)) for user in ("ada", "bob")]
        self.number = 0

    async def play(self, steps: int) -> None:
        """So many steps; now and then, and at the end, everything settles."""
        for scope in SCOPES:
            await self.world.grant(scope, ada="editor", bob="editor")
        for _ in range(steps):
            self.world.time += self.chance.randrange(40)
            step = self.chance.random()
            if step < 0.4:
                self.write_outside()
            elif step < 0.7:
                await asyncio.gather(*(self.push(self.chance.choice(self.devices)) for _ in range(2)))
            elif step < 0.85:
                await asyncio.gather(*(engine.drain.step() for engine in self.engines), self.push(self.devices[0]))
            elif step < 0.9:
                self.hold()
            elif step < 0.93:
                await self.world.store.report([self.identity() for _ in range(3)], self.world.time)
            else:
                await self.settle()
        await self.settle()
        self.tell()

    def identity(self) -> Identity:
        """One of few rows, some of which cannot be."""
        match self.chance.randrange(3):
            case 0:
                return Identity("orders", self.chance.choice(ORDERS))
            case 1:
                return Identity("lines", self.chance.choice(LINES))
            case _:
                return Identity("tags", f"{self.chance.choice(PLACES)}{UNIT}{self.chance.choice('xyz')}")

    def values(self, entity: str, *, outside: bool) -> dict[str, Any]:
        """A whole row; of another program's, some break their declaration."""
        chance = self.chance
        self.number += 1
        if entity == "orders":
            title = chance.choice([None, "a", "abc", *(["long"] if outside and chance.random() < 0.3 else [])])
            labels = {key: chance.randrange(3) for key in chance.sample("kl", chance.randrange(3))}
            return {
                "count": "many" if outside and chance.random() < 0.1 else self.number,
                "title": title,
                "labels": labels,
            }
        if entity == "lines":
            return {"parent": chance.choice(["a", "b", "c", None])}
        return {"color": f"c{self.number}"}

    def write_outside(self) -> None:
        """Another program writes or deletes a row, by a clock of its own; not one that a program holds already."""
        memory, identity = self.world.memory, self.identity()
        if identity in memory.held:
            memory.let_go(identity)
        at = self.world.time + self.chance.randrange(-5_000, 5_000)
        if self.chance.random() < 0.3:
            memory.write_outside(identity, None, None, at, "cron")
            return
        values = self.values(identity.entity, outside=True)
        there = memory.table.get(identity)
        if there is not None and self.chance.random() < 0.7:
            some = self.chance.sample(sorted(values), self.chance.randrange(1, len(values) + 1))
            memory.write_outside(
                identity, there.scope, there.values | {name: values[name] for name in some}, at, "cron"
            )
            return
        scope = identity.text.partition(UNIT)[0] if identity.entity == "tags" else self.chance.choice(PLACES)
        memory.write_outside(identity, scope, values, at, "cron")

    def hold(self) -> None:
        """Another program's transaction begins or ends."""
        memory = self.world.memory
        if memory.held and self.chance.random() < 0.6:
            memory.let_go(self.chance.choice(sorted(memory.held)))
        else:
            memory.hold(self.identity())

    async def push(self, device: Device) -> list[Result]:
        """Some mutations at once; each has one verdict, and none is unknown."""
        results = await device.push(*(self.mutation(device) for _ in range(self.chance.randrange(1, 5))))
        for result in results:
            assert result.status in {"applied", "superseded", "rejected", "retry"}
        return results

    def mutation(self, device: Device) -> Mutation:
        """A write of one of the rows that can be."""
        scope = self.chance.choice(SCOPES)
        entity = self.chance.choice(["orders", "lines", "tags"])
        row = {"orders": "abc", "lines": ["a:1", "b:2"], "tags": "xyz"}[entity]
        key = self.chance.choice(row)
        at = device.at(self.chance.choice([0, 0, -2_000]))
        match self.chance.randrange(4):
            case 0 | 1:
                return device.put(entity, key, scope=scope, at=at, fields=self.values(entity, outside=False))
            case 2:
                return device.delete(entity, key, scope=scope, at=at)
            case _:
                name, value = self.chance.choice(sorted(self.values(entity, outside=False).items()))
                return device.patch(entity, key, {name: value}, scope=scope, at=at)

    async def settle(self) -> None:
        """Nobody holds anything any more and the inbox is taken: feed and tables agree, and the digests are right."""
        for identity in sorted(self.world.memory.held):
            self.world.memory.let_go(identity)
        for _ in range(50):
            if not (await self.world.store.backlog()).entries:
                break
            self.world.time += 5_000  # whatever was put off is tried again
            await self.chance.choice(self.engines).drain.step()
        assert (await self.world.store.backlog()).entries == 0
        for scope in SCOPES:
            await self.world.proved(scope)
        self.compare()

    def compare(self) -> None:
        """Each row that the feed can hold is there as its table has it, and no other."""
        memory = self.world.memory
        read = [READER.read(row) for row in memory.table.values()]
        expected = {image.key: image.values for image in read if isinstance(image, Image)}
        shown = {key: json.loads(row.doc) for key, row in memory.feed.items() if not row.deleted}
        assert shown.keys() == expected.keys()
        for key, doc in shown.items():
            assert {name: doc[name] for name in expected[key]} == expected[key], key

    def tell(self) -> None:
        """The journal names the write that each row shows; those of other programs under their user's name."""
        memory = self.world.memory
        told: dict[RowKey, Event] = {}
        by_sql = []
        for number, entry in sorted(memory.journal.items()):
            for event in decode(JournalRow(number, entry.scope, entry.arrived, entry.events)):
                if event.outcome == "applied":
                    told[RowKey(entry.scope, event.entity, event.row)] = event
                    by_sql += [event] if event.by == "sql" else []
        assert {key: row.version for key, row in memory.feed.items() if not row.deleted}.items() <= {
            key: event.version for key, event in told.items()
        }.items()
        assert {event.user for event in by_sql} <= {"cron", ""}
        assert {event.op for event in by_sql} == {"put", "patch", "delete"}


@pytest.mark.parametrize("seed", range(12))
async def test_feed_and_tables_agree_in_the_end(seed: int) -> None:
    """Two processes, clients and another program on the same rows, some of which the feed cannot hold: whenever the
    inbox is empty, the feed holds exactly what the tables hold of it (I53, I54, I55).
    """
    history = History(seed)
    await history.world.store.open()
    for engine in history.engines:
        await engine.hub.start()
    try:
        await history.play(300)
    finally:
        for engine in history.engines:
            await engine.stop()
