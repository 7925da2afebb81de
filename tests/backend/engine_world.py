"""A world around the engine: a store of plain dictionaries, time that the test moves, and devices of users."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from tidemark.settings import Settings
from tidemark.store.base import Store
from tidemark.store.memory import MemoryStore
from tidemark.sync.access import Principal
from tidemark.sync.engine import Engine
from tidemark.wake.local import LocalWake
from tidemark_protocol import clock, digest
from tidemark_protocol.messages import Mutation, PullRequest, PullResponse, Result, Run, Trailer
from tidemark_protocol.model import Declaration
from tidemark_protocol.rows import user_scope
from tidemark_protocol.schema import parse

Json = dict[str, Any]

DECLARATION: Final[Declaration] = parse(
    """
    schema: 2
    scopes:
      workspace:
        roles: {viewer: read, editor: write, owner: manage}
    entities:
      notes:
        scope: user
        fields:
          title: {type: text, max: 120, default: ""}
          body: {type: text, default: ""}
          count: {type: integer, default: 0}
          labels: {type: map}
          extra: {type: json, nullable: true}
      strict:
        scope: user
        fields:
          title: {type: text}
      drafts:
        scope: user
        fields:
          title: {type: text, default: ""}
          state: {type: enum, values: [open, locked, banned], default: open}
        rules:
          - {when: put, refuse_if: {state: banned}, message: "no draft starts banned"}
          - {when: patch, refuse_if: {title: "", state: locked}, message: "a locked draft has a title"}
          - {when: delete, refuse_if: {state: locked}, message: "a locked draft stays"}
      nodes:
        scope: workspace
        fields:
          parent: {type: uuid, nullable: true, ref: nodes, on_delete: cascade}
          name: {type: text, nullable: true}
          labels: {type: map}
        unique: [[name]]
      pins:
        scope: workspace
        fields:
          node: {type: uuid, nullable: true, ref: nodes, on_delete: restrict}
          owner: {type: uuid, nullable: true, ref: nodes, on_delete: cascade}
      hints:
        scope: workspace
        fields:
          node: {type: uuid, nullable: true, ref: nodes, on_delete: set_null}
          text: {type: text, default: ""}
      traces:
        scope: workspace
        fields:
          node: {type: uuid, nullable: true, ref: nodes, on_delete: keep}
      tags:
        scope: workspace
        key: {column: tag, type: text, per_scope: true}
        fields:
          color: {type: text, default: grey}
      numbers:
        scope: workspace
        key: {column: number, type: integer}
        fields:
          title: {type: text, default: ""}
      links:
        scope: workspace
        fields:
          number: {type: integer, nullable: true, ref: numbers, on_delete: cascade}
    """
)
START: Final = 1_800_000_000_000
"""Where the world's time begins, in Unix milliseconds."""


def key(number: int) -> str:
    """The key of that number."""
    return f"00000000-0000-4000-8000-{number:012d}"


class World:
    """An engine, and `time`, its wall clock in Unix milliseconds."""

    def __init__(self, store: Store | None = None, declaration: Declaration = DECLARATION, **settings: Any) -> None:
        self.time = START
        self.chance = random.Random(7)
        self.store = store or MemoryStore(declaration, chance=self.chance.randbytes)
        self.engine = self.process(declaration, **settings)
        self._nodes = 0

    def process(self, declaration: Declaration = DECLARATION, **settings: Any) -> Engine:
        """An engine on the same store, as of another process."""
        return Engine(
            store=self.store,
            declaration=declaration,
            settings=Settings(**settings),
            wake=LocalWake(),
            now=lambda: self.time,
            chance=self.chance.randbytes,
        )

    @property
    def memory(self) -> MemoryStore:
        """The store, to look into."""
        assert isinstance(self.store, MemoryStore)
        return self.store

    def device(self, user: str = "ada", *, admin: bool = False, engine: Engine | None = None) -> Device:
        """A device of a user, with a clock and a name of its own."""
        self._nodes += 1
        return Device(self, engine or self.engine, user, admin, self._nodes)

    async def grant(self, scope: str, **roles: str | None) -> None:
        """Give users their roles in a scope, or take them away, as an admin does."""
        admin = self.device("root", admin=True).principal
        for user, role in roles.items():
            if role is None:
                await self.engine.delete_member(admin, scope, user)
            else:
                await self.engine.put_member(admin, scope, user, role)

    async def proved(self, scope: str) -> str:
        """The digest that the feed's rows have, which the scope's state must say too."""
        rows = [(row.entity, row.row, row.version) for row in await self.store.rows_of(scope) if not row.deleted]
        state = (await self.store.states([scope]))[scope]
        assert digest.text(state.live, state.total) == digest.of_rows(rows)
        return digest.of_rows(rows)


class Device:
    """One client of a user."""

    def __init__(self, world: World, engine: Engine, user: str, admin: bool, number: int) -> None:
        self.world = world
        self.engine = engine
        self.principal = Principal(user, user_scope(user), admin, 0)
        self.client = str(uuid.UUID(int=number))
        self.clock = clock.Clock(f"{number:016x}")

    def at(self, offset: int = 0) -> str:
        """The next reading of this device, or any that far (ms) from the world's time."""
        if not offset:
            return self.clock.issue(self.world.time)
        return clock.reading(self.world.time + offset, 0, self.clock.latest[18:])

    def put(self, entity: str, row: str, *, fields: Json | None = None, **more: Any) -> Mutation:
        """A put; `scope`, `at` and `group` among `more` are the mutation's own."""
        return self._write("put", entity, row, {} if fields is None else fields, more)

    def patch(self, entity: str, row: str, fields: Json, **more: Any) -> Mutation:
        """A patch."""
        return self._write("patch", entity, row, fields, more)

    def delete(self, entity: str, row: str, **more: Any) -> Mutation:
        """A delete."""
        return self._write("delete", entity, row, None, more)

    def _write(self, op: str, entity: str, row: str, fields: Json | None, more: Json) -> Mutation:
        at = more.pop("at", None) or self.at()
        return Mutation(1, op=op, entity=entity, row=row, at=at, fields=fields, **more)

    async def push(self, *mutations: Mutation, schema: int = 2) -> list[Result]:
        """The verdicts, of which there is one for each, under its number."""
        numbered = [replace(mutation, seq=seq) for seq, mutation in enumerate(mutations, 1)]
        began = self.world.time
        answer = await self.engine.push(self.principal, self.client, schema, numbered)
        assert [result.seq for result in answer.results] == [mutation.seq for mutation in numbered]
        assert clock.is_reading(answer.clock)
        assert clock.millis_of(answer.clock) >= began
        return answer.results

    async def apply(self, *mutations: Mutation) -> list[Result]:
        """The verdicts, all of them `applied`."""
        results = await self.push(*mutations)
        assert [result.status for result in results] == ["applied"] * len(mutations), results
        return results

    async def pull(self, watermark: dict[str, str] | None = None, **more: Any) -> PullResponse:
        """One answer."""
        request = PullRequest(self.client, more.pop("schema", 2), watermark=watermark, **more)
        return msgspec.json.decode(await self.engine.pull(self.principal, request), type=PullResponse)

    async def lines(self, watermark: dict[str, str] | None = None, **more: Any) -> tuple[list[Run], Trailer]:
        """The runs of a streamed answer, and what ends it."""
        request = PullRequest(self.client, 2, watermark=watermark, **more)
        lines = [line async for line in self.engine.pull_lines(self.principal, request)]
        runs = [msgspec.json.decode(line, type=Run) for line in lines[:-1]]
        return runs, msgspec.json.decode(lines[-1], type=Trailer)

    async def rows(self, scope: str | None = None) -> dict[tuple[str, str], Json]:
        """What a replica that begins now holds of a scope."""
        runs, _ = await self.lines()
        wanted = scope or self.principal.own
        return {
            (change.entity, change.row): change.doc
            for run in runs
            for change in run.changes
            if run.scope == wanted and change.doc is not None
        }

    async def events(self, **parameters: str) -> list[Json]:
        """One page of the journal, oldest first unless asked otherwise."""
        body = await self.engine.events(self.principal, {"order": "asc", **parameters})
        events: list[Json] = json.loads(body)["events"]
        return events


def fates(results: list[Result]) -> list[str]:
    """The codes of what was not accepted, the statuses of the rest."""
    return [result.error.code if isinstance(result.error, msgspec.Struct) else result.status for result in results]


@asynccontextmanager
async def running(world: World) -> AsyncIterator[World]:
    """The world, its engine started."""
    await world.engine.start()
    try:
        yield world
    finally:
        await world.engine.stop()
