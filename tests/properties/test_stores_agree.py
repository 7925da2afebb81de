"""Stores in lockstep: whatever is done to the plain dictionaries and to a database, both show the same."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from tests.conformance.declared import DECLARATION
from tests.conformance.stores import empty
from tests.conformance.writing import Change, apply, at, delete, entry, pages, put, read, uuid
from tests.servers import MariadbServer, PostgresServer
from tidemark.store.base import ConstraintFailed, EventQuery, FeedRow, JournalRow, RowKey, RowTaken, Store, Transaction
from tidemark.store.memory import MemoryStore
from tidemark.store.mysql import MysqlStore
from tidemark.store.postgresql import PostgresStore
from tidemark.store.schema.migrate import migrate
from tidemark.store.sqlite import SqliteStore

T = TypeVar("T")

SCOPES = ["workspace:7", "workspace:8"]
USERS = ["ada", "bob"]
HASHES = [1, 2, (1 << 63) - 1]

scopes = st.sampled_from(SCOPES)
times = st.integers(1_000, 1_010)
hashes = st.lists(st.sampled_from(HASHES), unique=True)
names = st.builds(
    lambda scope, row, arrived, name, shelf, place: put(
        scope, "names", uuid(row), arrived, name=name, shelf=shelf, place=place
    ),
    scopes,
    st.integers(1, 3),
    times,
    st.sampled_from("abc"),
    st.none() | st.just(uuid(9)),
    st.none() | st.integers(0, 1),
)
tags = st.builds(
    lambda scope, row, arrived, color: put(scope, "tags", row, arrived, color=color),
    scopes,
    st.sampled_from("tT"),
    times,
    st.sampled_from(["red", "ä☃"]),
)
states = st.builds(
    lambda scope, state: put(scope, "states", uuid(7), state=state), scopes, st.sampled_from(["todo", "nonsense"])
)
deletes = st.builds(delete, scopes, st.just("names"), st.integers(1, 3).map(uuid), times) | st.builds(
    delete, scopes, st.just("tags"), st.sampled_from("tT"), times
)
changes = st.lists(names | names | tags | deletes | deletes | states, min_size=1, max_size=5)
entries = st.lists(
    st.builds(entry, scopes, times, hashes, st.none() | st.sampled_from(HASHES), st.sampled_from("xyz")), max_size=2
)


class Stop(Exception):
    """Ends a transaction without effect."""


class Lockstep(RuleBasedStateMachine):
    """Does everything to both stores and compares what they answer."""

    def __init__(self, other: Callable[[], Store]) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stores: list[Store] = [MemoryStore(DECLARATION, chance=secrets.token_bytes), other()]
        self.forgettable: list[FeedRow] = []
        for store in self.stores:
            self.loop.run_until_complete(store.open())

    def teardown(self) -> None:
        """Close both."""
        for store in self.stores:
            self.loop.run_until_complete(store.close())
        self.loop.close()

    def both(self, ask: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """What both stores answer, which must be the same; a refusal is an answer."""
        mine, its = [self.loop.run_until_complete(_answer(ask(store))) for store in self.stores]
        assert mine == its
        return mine  # type: ignore[return-value]

    def inside(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """What both answer in a transaction."""
        return self.both(lambda store: store.transact(body))

    @rule(changes=changes, entries=entries, fail=st.sampled_from([False, False, False, True]))
    def write(self, changes: list[Change], entries: list[Any], fail: bool) -> None:
        """A transaction that commits, is refused or raises."""

        async def body(transaction: Transaction) -> dict[str, Any]:
            written = await apply(
                transaction, changes, swapped=await self._swapped(transaction, changes), journal=entries
            )
            if fail:
                raise Stop
            return written

        self.inside(body)

    async def _swapped(self, transaction: Transaction, changes: list[Change]) -> list[RowKey]:
        """Rows whose unique values another row of the same save takes."""
        last = {change.key: change for change in changes if change.key.entity == "names"}
        taken: set[RowKey] = set()
        for key, change in last.items():
            for fields in DECLARATION.entities["names"].unique if change.values else ():
                values = tuple((change.values or {})[field] for field in fields)
                if None not in values:
                    held = await transaction.holders(key.scope, "names", fields, [values])
                    taken |= {RowKey(key.scope, "names", row) for _, row in held} - {key}
        return sorted(key for key in taken if key in last and last[key].values)

    @rule(scope=scopes, user=st.sampled_from(USERS), role=st.none() | st.sampled_from(["viewer", "owner"]))
    def set_role(self, scope: str, user: str, role: str | None) -> None:
        """A member comes, changes or goes."""
        self.inside(lambda transaction: transaction.set_role(scope, user, role))

    @rule(scope=scopes, after=st.integers(0, 12), base=st.integers(0, 12), limit=st.integers(1, 6))
    def run(self, scope: str, after: int, base: int, limit: int) -> None:
        """One page, and everything in pages of that size."""

        async def page(store: Store) -> object:
            run = await store.run(scope, after, base, limit, 1 << 20)
            return run and (run.state, run.count, run.to, read(run))

        self.both(page)
        if self.both(lambda store: store.states([scope])):
            self.both(lambda store: pages(store, scope, after, base, limit))
            self.both(lambda store: pages(store, scope, after, base, limit, max_bytes=250))

    @rule(data=st.data())
    def events(self, data: st.DataObject) -> None:
        """A selection of the journal; ids differ between stores, so their edges are drawn as places in the whole."""
        places = st.none() | st.integers(0, 10)
        after, before = data.draw(places), data.draw(places)
        selected = data.draw(st.lists(scopes, max_size=2, unique=True))
        rows, since, until = data.draw(st.none() | hashes), data.draw(st.none() | times), data.draw(st.none() | times)
        ascending, limit = data.draw(st.booleans()), data.draw(st.integers(1, 5))

        async def ask(store: Store) -> object:
            ids = [row.id for row in await store.events(EventQuery(SCOPES, ascending=True, limit=1_000))]
            edge = dict(enumerate(ids))
            query = EventQuery(
                selected,
                rows=rows,
                after=None if after is None else edge.get(after),
                before=None if before is None else edge.get(before),
                since=since,
                until=until,
                ascending=ascending,
                limit=limit,
            )
            return _without_ids(await store.events(query))

        self.both(ask)

    @rule(
        scope=scopes,
        rows=hashes,
        since=times,
        limit=st.integers(1, 5),
        values=st.lists(st.tuples(st.sampled_from("abc")), unique=True),
    )
    def look(self, scope: str, rows: list[int], since: int, limit: int, values: list[tuple[str]]) -> None:
        """Everything that can be asked within a transaction."""

        async def body(transaction: Transaction) -> object:
            keys = [RowKey(scope, "names", uuid(1)), RowKey(scope, "tags", "t"), RowKey(scope, "tags", "x")]
            return (
                sorted(map(repr, await transaction.load(keys))),
                await transaction.roles([(scope, user) for user in USERS]),
                _without_ids(await transaction.entries_of(scope, rows, since, limit)),
                sorted(_without_ids(await transaction.spent(rows))),
                sorted(await transaction.holders(scope, "names", ("name",), values)),
                sorted(await transaction.holders(scope, "names", ("shelf", "place"), [(uuid(9), 0), (uuid(9), 1)])),
                await transaction.lock([scope], []),
            )

        self.inside(body)

    @rule(before=times, root=times, limit=st.integers(1, 5))
    def find_residues(self, before: int, root: int, limit: int) -> None:
        """What retention would look at; some of it is forgotten later, when it may have changed."""
        self.both(lambda store: _arrivals(store, before, root, limit))
        found = self.loop.run_until_complete(self.stores[0].residues(before, at(root), 10))
        self.forgettable += found

    @precondition(lambda self: self.forgettable)
    @rule(data=st.data(), horizon=times)
    def forget(self, data: st.DataObject, horizon: int) -> None:
        """Drop or rewrite what was found before."""
        scope = data.draw(st.sampled_from([row.scope for row in self.forgettable]))
        found = [row for row in self.forgettable if row.scope == scope]
        chosen = data.draw(st.lists(st.sampled_from(found), unique_by=lambda row: (row.entity, row.row)))
        rewritten = [replace(row, clocks="", residue=False) for row in chosen[1::2]]
        self.both(lambda store: store.forget(scope, horizon, chosen[::2], rewritten))

    @rule(before=times, limit=st.integers(1, 3))
    def forget_journal(self, before: int, limit: int) -> None:
        """Some of the old entries go; which ones is the store's, unless all do."""
        if self.both(lambda store: _old_entries(store, before)) <= limit:
            self.both(lambda store: store.forget_journal(before, limit))

    @invariant()
    def all_is_the_same(self) -> None:
        """Scopes, feed, members and journal."""
        self.both(_everything)


async def _answer(coroutine: Coroutine[Any, Any, T]) -> T | str:
    try:
        return await coroutine
    except (RowTaken, ConstraintFailed):
        return "refused"  # a save may break both; which is found first is the store's
    except Stop:
        return "stopped"


async def _everything(store: Store) -> object:
    rows = [row for scope in SCOPES for row in await store.rows_of(scope)]
    return (
        await store.states(SCOPES),
        sorted(map(repr, rows)),
        [await store.members(scope) for scope in SCOPES],
        await store.memberships(USERS),
        _without_ids(await store.events(EventQuery(SCOPES, limit=1_000))),
    )


async def _arrivals(store: Store, before: int, root: int, limit: int) -> list[int]:
    return [row.arrived for row in await store.residues(before, at(root), limit)]


async def _old_entries(store: Store, before: int) -> int:
    return len(await store.events(EventQuery(SCOPES, until=before, limit=1_000)))


def _without_ids(rows: list[JournalRow]) -> list[tuple[str, int, str]]:
    return [(row.scope, row.arrived, row.events) for row in rows]


def _run(other: Callable[[], Store], examples: int) -> None:
    class Bound(Lockstep):
        """On these two stores."""

        def __init__(self) -> None:
            super().__init__(other)

    run_state_machine_as_test(
        Bound,
        settings=settings(max_examples=examples, stateful_step_count=20, suppress_health_check=list(HealthCheck)),
    )


@pytest.mark.timeout(300)
def test_sqlite_agrees_with_the_dictionaries(tmp_path: Path) -> None:
    """Random histories of transactions, pages, events and forgetting; a new file for each."""
    template = tmp_path / "template.db"
    migrate(f"sqlite:///{template}", DECLARATION, None)
    numbers = count()

    def other() -> Store:
        path = shutil.copy(template, tmp_path / f"{next(numbers)}.db")
        return SqliteStore(f"sqlite:///{path}", DECLARATION, chance=secrets.token_bytes)

    _run(other, examples=20)


@pytest.mark.timeout(300)
def test_postgresql_agrees_with_the_dictionaries(postgres_server: PostgresServer, postgresql_url: str) -> None:
    """The same on PostgreSQL; one database, emptied before each history."""
    migrate(postgresql_url, DECLARATION, None)

    def other() -> Store:
        empty(postgres_server, postgresql_url)
        return PostgresStore(postgresql_url, DECLARATION, chance=secrets.token_bytes)

    _run(other, examples=10)


@pytest.mark.timeout(300)
def test_mariadb_agrees_with_the_dictionaries(mariadb_server: MariadbServer, mariadb_url: str) -> None:
    """The same on MariaDB."""
    migrate(mariadb_url, DECLARATION, None)

    def other() -> Store:
        empty(mariadb_server, mariadb_url)
        return MysqlStore(mariadb_url, DECLARATION, chance=secrets.token_bytes)

    _run(other, examples=10)
