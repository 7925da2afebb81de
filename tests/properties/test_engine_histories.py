"""Random histories of several users and devices: whatever is sent, in whatever order and however often, replicas end
as the plain fold of section 3 over what was accepted (SPEC 9), on every store.

A history is made by its seed, which is part of the test's name.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from tests.backend.engine_world import DECLARATION, Device, Json, World, fates, key, running
from tests.properties.fold import Folded
from tests.properties.plain_rows import REFERRING, Model, Name, restricted, target_of, write_of
from tidemark.store.base import EventQuery, Store
from tidemark.store.postgresql import PostgresStore
from tidemark.store.schema.migrate import migrate
from tidemark.store.sqlite import SqliteStore
from tidemark.sync.journal import decode
from tidemark_protocol import clock, digest
from tidemark_protocol.merge import Write
from tidemark_protocol.messages import Mutation, Result, Run

SHARED = ["workspace:7", "workspace:8"]
USERS = ["ada", "bob", "cy"]
ROWS = [key(n) for n in range(1, 7)]
KEYS = {"tags": ["a", "b"], "numbers": ["1", "2", "3"]}
RIGHTS = {"editor", "owner"}


Unit = list[Mutation]


class Copy(Struct):
    """One scope on a replica: rows with their versions, and up to where."""

    rows: dict[tuple[str, str], tuple[int, Json]] = {}
    to: int = 0


class Peer(Struct):
    """A device, what it has not sent yet, what it has sent with its verdicts, and its replica."""

    device: Device
    skew: int
    outbox: list[Unit] = []
    sent: list[tuple[Mutation, Result]] = []
    copies: dict[str, Copy] = {}
    marks: dict[str, str] = {}


class History:
    """One history on one store, by `engines` processes."""

    def __init__(self, store: Store | None, seed: int, engines: int) -> None:
        self.chance = random.Random(seed)
        self.world = World(store)
        processes = [self.world.engine, *(self.world.process() for _ in range(engines - 1))]
        self.peers = [
            Peer(self.world.device(user, engine=self.chance.choice(processes)), self.chance.randrange(-20_000, 20_000))
            for user in USERS * 2
        ]
        self.model = Model()
        self.roles: dict[tuple[str, str], str | None] = {}
        self.heads: dict[str, set[int]] = {scope: {0} for scope in self.scopes()}
        """Heads that commits left behind, as the journal tells them."""
        self.seen: set[tuple[str, int]] = set()
        """Heads that were pulled."""
        self.entries: dict[tuple[str, str], int] = {}
        """The journal entry of (user, at): the commit that it took effect in."""
        self.groups: list[tuple[str, Unit]] = []
        self.faulty: set[str] = set()
        self._commits = dict.fromkeys(self.scopes(), 0)
        self.count = self.last_entry = self.number = 0

    async def play(self, mutations: int) -> None:
        """Until so many mutations were sent; then everybody catches up, and everything is sent once more."""
        for user in USERS:
            for scope in SHARED:
                await self.change_role(scope, user, "editor")
        while self.count < mutations:
            self.world.time += self.chance.randrange(40)
            step = self.chance.random()
            if step < 0.35:
                self.write(self.chance.choice(self.peers))
            elif step < 0.55:
                await self.push_alone(self.chance.choice(self.peers))
            elif step < 0.75:
                await self.push_together()
            elif step < 0.98:
                await self.pull(self.chance.choice(self.peers))
            else:
                role = self.chance.choice(["editor", "owner", "viewer", None])
                await self.change_role(self.chance.choice(SHARED), self.chance.choice(USERS), role)
        await self.settle()
        await self.replay()
        await self.settle()

    # ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def change_role(self, scope: str, user: str, role: str | None) -> None:
        """A member comes, changes or goes."""
        self.roles[scope, user] = role
        await self.world.grant(scope, **{user: role})

    def write(self, peer: Peer) -> None:
        """New mutations into the outbox, some of them in groups."""
        for _ in range(self.chance.randrange(1, 6)):
            self.number += 1
            size = self.chance.choice([1, 1, 1, 1, 2, 3])
            group = f"g{self.number}" if size > 1 or self.chance.random() < 0.05 else None
            peer.outbox.append([replace(self.mutation(peer), group=group) for _ in range(size)])

    def mutation(self, peer: Peer) -> Mutation:
        """A write of one of few rows, at a reading of now or some time ago that nobody else has."""
        self.number += 1
        entity = self.chance.choice(["notes", "notes", "nodes", "nodes", "nodes", "pins", "hints", "traces", "links"])
        entity = self.chance.choice([entity] * 4 + ["tags", "numbers"])
        scope = None if entity == "notes" else self.chance.choice(SHARED)
        row = self.chance.choice(KEYS.get(entity, ROWS))
        millis = self.world.time + peer.skew - self.chance.choice([0, 0, 500, 20_000])
        at = clock.reading(millis, self.number % 65_536, peer.device.clock.latest[18:])
        op = self.chance.choices(["put", "patch", "delete"], [4, 5, 2])[0]
        fields = None if op == "delete" else self.fields(entity, op)
        if fields is not None and self.chance.random() < 0.02:
            fields["nothing"] = 1
            self.faulty.add(at)
        return Mutation(1, op=op, entity=entity, row=row, at=at, scope=scope, fields=fields)

    def fields(self, entity: str, op: str) -> Json:
        """Good values for some fields."""
        names = [*DECLARATION.entities[entity].fields]
        some = self.chance.sample(names, self.chance.randrange(1 if op == "patch" else 0, len(names) + 1))
        values: Json = {}
        for name in some:
            if name == "labels" and op == "patch" and self.chance.random() < 0.7:
                for inner in self.chance.sample(["a", "b", "c~1d"], 2):
                    values[f"labels/{inner}"] = self.chance.choice([None, 1, {"deep": [2]}])
            else:
                values[name] = self.value(name)
        return values

    def value(self, name: str) -> Any:
        """A canonical value of a field."""
        choice = self.chance.choice
        if name in {"parent", "node", "owner"}:
            return choice([None, *ROWS])
        if name == "labels":
            return {inner: self.chance.randrange(3) for inner in self.chance.sample("abc", self.chance.randrange(3))}
        values: dict[str, list[Any]] = {
            "count": [0, 1, -7],
            "number": [None, 1, 2, 3],
            "name": [None, None, "a", "b", "c", "d"],
            "extra": [None, [], {"a": [1, {"b": None}]}, "text", 7, False],
        }
        return choice(values.get(name, ["", "a", "é", "日本"]))

    async def push_alone(self, peer: Peer) -> None:
        """One unit by itself: its verdict must have its reason."""
        if not peer.outbox:
            return
        unit = peer.outbox.pop(self.chance.randrange(len(peer.outbox)))
        before = self.model.visible(_scope(peer, unit[0]))
        kept = self.model.folded(_name(peer, unit[0]))
        results = await self.send(peer, [unit])
        if len(unit) == 1:
            self.judge(peer, unit[0], results[0], before, kept)

    async def push_together(self) -> None:
        """Several devices at once, each some of its outbox in any order and some of what it sent before."""
        peers = self.chance.sample(self.peers, self.chance.randrange(1, 4))
        batches: list[Coroutine[Any, Any, object]] = []
        for peer in peers:
            self.chance.shuffle(peer.outbox)
            size = self.chance.randrange(len(peer.outbox) + 1)
            batch, peer.outbox = peer.outbox[:size], peer.outbox[size:]
            old = self.chance.sample(peer.sent, min(len(peer.sent), self.chance.randrange(6)))
            batch += [[mutation] for mutation, _ in old]
            batch += self.chance.sample(batch, min(len(batch), self.chance.randrange(2)))
            self.chance.shuffle(batch)
            batches.append(self.send(peer, batch))
        if self.chance.random() < 0.5:
            batches.append(self.pull(self.chance.choice(self.peers)))
        await asyncio.gather(*batches)

    async def send(self, peer: Peer, units: list[Unit]) -> list[Result]:
        """Push, and take in what is answered."""
        mutations = [mutation for unit in units for mutation in unit]
        known = {mutation.at: result for mutation, result in peer.sent}
        results = await peer.device.push(*mutations)
        self.count += len(mutations)
        fates_of = dict(zip((mutation.at for mutation in mutations), results, strict=True))
        self.groups += [
            (peer.device.principal.user, unit) for unit in units if len(unit) > 1 and unit[0].at not in known
        ]
        for unit in units:
            assert len({fates_of[mutation.at].status == "rejected" for mutation in unit}) == 1, unit
        for mutation, result in zip(mutations, results, strict=True):
            first = known.get(mutation.at)
            assert result.status in _allowed(first), (mutation, first, result)
            if first is not None and first.status == "rejected":
                assert result.error == first.error
            if result.status in {"applied", "superseded"}:
                self.model.accept(_name(peer, mutation), write_of(mutation))
            if first is None:
                known[mutation.at] = result
                peer.sent.append((mutation, result))
        await self.absorb()
        return results

    async def absorb(self) -> None:
        """Take in what the journal tells: commits, and what the server wrote itself (`cascade`, `set_null`)."""
        entries = await self.world.store.events(
            EventQuery(self.scopes(), after=self.last_entry, ascending=True, limit=10_000)
        )
        for entry in entries:
            for event in decode(entry):
                name = entry.scope, event.entity, event.row
                if event.by is None and event.outcome in {"applied", "superseded"}:
                    self.entries.setdefault((event.user, event.at), entry.id)
                elif event.by == "cascade":
                    self.model.accept(name, Write("delete", event.at, {}))
                elif event.by == "set_null":
                    self.model.accept(name, Write("patch", event.at, dict.fromkeys(event.names or ())))
                if event.outcome == "applied":
                    self._commits[entry.scope] = max(self._commits[entry.scope], event.version)
            self.heads[entry.scope].add(self._commits[entry.scope])
            self.last_entry = max(self.last_entry, entry.id)

    async def pull(self, peer: Peer) -> None:
        """Some pages of any size, perhaps not all, or a stream of them."""
        limit = self.chance.choice([1, 2, 5, 1_000])
        if self.chance.random() < 0.3:
            runs, trailer = await peer.device.lines(peer.marks, limit=limit)
            self.take(peer, runs, trailer.revoked)
            return
        for _ in range(self.chance.randrange(1, 5)):
            page = await peer.device.pull(peer.marks, limit=limit)
            assert sum(len(run.changes) for run in page.scopes) <= limit
            self.take(peer, page.scopes, page.revoked)
            if not page.more:
                return

    def take(self, peer: Peer, runs: list[Run], revoked: list[str]) -> None:
        """Apply runs; whatever reaches the head is proved by its digest."""
        for scope in revoked:
            peer.copies.pop(scope, None)
            peer.marks.pop(scope, None)
        for run in runs:
            assert not run.reset
            if run.from_ == 0:
                peer.copies[run.scope] = Copy()
            copy = peer.copies[run.scope]
            assert run.from_ == copy.to
            assert [change.version for change in run.changes] == sorted({change.version for change in run.changes})
            for change in run.changes:
                copy.rows.pop((change.entity, change.row), None)
                if change.doc is not None:
                    copy.rows[change.entity, change.row] = (change.version, change.doc)
            copy.to = run.to
            peer.marks[run.scope] = run.watermark
            assert (run.digest is not None) == (run.to == run.head)
            if run.digest is not None:
                self.seen.add((run.scope, run.head))
                mine = digest.of_rows((entity, row, version) for (entity, row), (version, _) in copy.rows.items())
                assert run.digest == mine

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────────

    def judge(
        self, peer: Peer, mutation: Mutation, result: Result, before: dict[tuple[str, str], Json], kept: Folded | None
    ) -> None:
        """The verdict of a mutation that was sent alone, for the first time, has its reason in what was there."""
        (fate,) = fates([result])
        scope, entity, row = _name(peer, mutation)
        forbidden = scope in SHARED and self.roles[scope, peer.device.principal.user] not in RIGHTS
        assert (fate == "forbidden") == forbidden, (mutation, result)
        if forbidden:
            return
        assert (fate == "unknown_field") == (mutation.at in self.faulty), (mutation, result)
        per_scope = DECLARATION.entities[entity].key.per_scope
        elsewhere = not per_scope and any(
            self.model.doc((other, entity, row)) is not None for other in self.scopes() if other != scope
        )
        fields = mutation.fields or {}
        present = before.keys() | ({(entity, row)} if mutation.op != "delete" else set())
        if fate == "row_taken":
            assert elsewhere
        elif fate == "row_unknown":
            assert (mutation.op, kept) == ("patch", None)
        elif fate == "ref_missing":
            named = {
                (target_of(entity), str(fields[name])) for name in REFERRING[entity] if fields.get(name) is not None
            }
            assert named - present
        elif fate == "unique_violation":
            names = {fields.get("name"), kept and kept.kept.get("name")} - {None}
            assert any(
                doc["name"] in names for other, doc in before.items() if other != (entity, row) and "name" in doc
            )
        elif fate == "ref_in_use":
            assert mutation.op == "delete"
            assert restricted(before, (entity, row))
        else:
            assert fate in {"applied", "superseded", "unknown_field"}, (mutation, result)
            assert not elsewhere or fate == "unknown_field"
        if fate == "applied":
            self._check_applied(mutation, (entity, row), before, self.model.visible(scope))

    def _check_applied(
        self,
        mutation: Mutation,
        name: tuple[str, str],
        before: dict[tuple[str, str], Json],
        after: dict[tuple[str, str], Json],
    ) -> None:
        """What an applied write refers to, if it still stands, is there; what restricted a delete is gone."""
        if name in before and name not in after:
            assert not restricted(before, name), mutation
        for field in REFERRING.get(name[0], ()) if name in after and mutation.op == "patch" else ():
            target = mutation.fields.get(field)
            if target is not None and after[name][field] == target:
                assert (target_of(name[0]), str(target)) in after, mutation

    async def settle(self) -> None:
        """Everybody catches up, and holds the fold of what was accepted; so do the stored digests."""
        for scope in self.scopes():
            await self.world.proved(scope)
        for peer in self.peers:
            while (page := await peer.device.pull(peer.marks, limit=self.chance.choice([3, 1_000]))).scopes:
                self.take(peer, page.scopes, page.revoked)
            self.take(peer, [], page.revoked)
            mine = {s for s in SHARED if self.roles[s, peer.device.principal.user] is not None}
            assert peer.copies.keys() == {peer.device.principal.own, *mine}
            for scope, copy in peer.copies.items():
                self.compare(scope, copy)
        assert {head for scope, head in self.seen if head not in self.heads[scope]} == set()
        for user, unit in self.groups:
            by_scope: dict[str | None, set[int]] = defaultdict(set)
            for mutation in unit:
                entry = self.entries.get((user, mutation.at))
                by_scope[mutation.scope] |= set() if entry is None else {entry}
            assert all(len(entries) <= 1 for entries in by_scope.values()), unit
        for scope in SHARED:
            names = [doc["name"] for (entity, _), doc in self.model.visible(scope).items() if entity == "nodes"]
            held = [name for name in names if name is not None]
            assert len(held) == len(set(held))

    def compare(self, scope: str, copy: Copy) -> None:
        """A replica at the head holds what the fold says, and nothing else."""
        expected = self.model.visible(scope)
        assert copy.rows.keys() == expected.keys()
        for (entity, row), (_, doc) in copy.rows.items():
            plain = {name: doc[name] for name in DECLARATION.entities[entity].fields}
            assert plain == expected[entity, row], (scope, entity, row)
            assert doc["updated_at"] == self.model.latest((scope, entity, row))
            assert {clock.instant(at) for at in self.model.writes[scope, entity, row]} >= {doc["created_at"]}

    async def replay(self) -> None:
        """Everything once more, in any order: nothing changes."""
        before = await self.world.store.states(self.scopes())
        for peer in self.peers:
            again = [[mutation] for mutation, result in peer.sent if result.status != "retry"]
            self.chance.shuffle(again)
            for start in range(0, len(again), 100):
                await self.send(peer, again[start : start + 100])
        after = await self.world.store.states(self.scopes())
        assert {s: (a.head, a.live, a.total, a.clock) for s, a in after.items()} == {
            s: (b.head, b.live, b.total, b.clock) for s, b in before.items()
        }

    @staticmethod
    def scopes() -> list[str]:
        """Every scope of the history."""
        return [*SHARED, *(f"user:{user}" for user in USERS)]


def _scope(peer: Peer, mutation: Mutation) -> str:
    return mutation.scope or peer.device.principal.own


def _name(peer: Peer, mutation: Mutation) -> Name:
    return _scope(peer, mutation), mutation.entity, mutation.row


def _allowed(first: Result | None) -> set[str]:
    """What a mutation may be answered, given what it was answered first."""
    if first is None:
        return {"applied", "superseded", "rejected"}
    return {"rejected"} if first.status == "rejected" else {"applied", "superseded"}


# ── on every store ───────────────────────────────────────────────────────────────────────────────────────────────────


async def run(store: Store | None, seed: int, mutations: int, engines: int) -> None:
    """One history from its beginning to its end."""
    history = History(store, seed, engines)
    async with running(history.world):
        await history.play(mutations)


@pytest.mark.parametrize("seed", range(26))
async def test_histories_on_plain_dictionaries(seed: int) -> None:
    """Two processes over plain dictionaries, 2,000 mutations: replicas equal the fold, digests are proved (I7, I8,
    I13, I15, I29, I32).
    """
    await run(None, seed, 2_000, engines=2)


def now() -> int:
    """The wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


@pytest.mark.parametrize("seed", range(100, 102))
async def test_histories_on_sqlite(tmp_path: Path, sqlite_file: Path, seed: int) -> None:
    """The same on a SQLite file."""
    path = shutil.copy(sqlite_file, tmp_path / "tidemark.db")
    await run(SqliteStore(f"sqlite:///{path}", DECLARATION, chance=random.Random(seed).randbytes), seed, 700, 1)


@pytest.mark.parametrize("seed", range(200, 202))
async def test_histories_on_postgresql(postgresql_url: str, seed: int) -> None:
    """The same on PostgreSQL, by two processes."""
    await asyncio.to_thread(migrate, postgresql_url, DECLARATION, None)
    await run(PostgresStore(postgresql_url, DECLARATION, chance=random.Random(seed).randbytes), seed, 700, 2)


@pytest.fixture(scope="module")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the tables, to be copied."""
    path = tmp_path_factory.mktemp("histories") / "tidemark.db"
    migrate(f"sqlite:///{path}", DECLARATION, None)
    return path
