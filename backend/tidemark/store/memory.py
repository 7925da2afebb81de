"""The port as plain dictionaries: the reference that the other stores are held against. Nothing outlives the process.

A transaction writes into layers over the dictionaries; its end lays them down in one step that awaits nothing. So
transactions may overlap, and readers see whole ones only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from tidemark_protocol.model import Declaration, Entity

from .base import (
    ConstraintFailed,
    EventQuery,
    FeedRow,
    JournalEntry,
    JournalRow,
    RowImage,
    RowKey,
    RowTaken,
    Run,
    Saved,
    ScopeState,
    Transaction,
)

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class TableKey(NamedTuple):
    """What the declared table holds one row under; `scope` is empty where keys are unique over all scopes."""

    entity: str
    scope: str
    row: str


class Lease(NamedTuple):
    owner: str
    until: int


class MemoryStore:
    """A `Store` in this process's memory. `chance(n)` gives n random bytes."""

    exclusive = True
    pace = 10

    def __init__(self, declaration: Declaration, *, chance: Callable[[int], bytes]) -> None:
        self.declaration = declaration
        self.epoch = chance(8).hex()
        self.scopes: dict[str, ScopeState] = {}
        self.feed: dict[RowKey, FeedRow] = {}
        self.table: dict[TableKey, RowImage] = {}
        self.roles: dict[tuple[str, str], str] = {}
        self.journal: dict[int, JournalEntry] = {}
        self.leases: dict[str, Lease] = {}
        self.locks: dict[str, MemoryTransaction] = {}
        self._last_entry = 0

    async def open(self) -> None:
        """Nothing to connect to; the epoch is this object's own."""

    async def close(self) -> None:
        """Nothing to let go; the contents stay."""

    async def transact(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        with self._transaction() as transaction:
            return await body(transaction)

    @contextmanager
    def _transaction(self) -> Iterator[MemoryTransaction]:
        transaction = MemoryTransaction(self)
        try:
            yield transaction
            transaction.commit()
        finally:
            self.locks = {scope: holder for scope, holder in self.locks.items() if holder is not transaction}

    def next_entry(self) -> int:
        """The id of a new journal entry: never given twice, even if its transaction ends in nothing."""
        self._last_entry += 1
        return self._last_entry

    async def memberships(self, user: str) -> dict[str, str]:
        return {scope: role for (scope, member), role in self.roles.items() if member == user}

    async def members(self, scope: str) -> dict[str, str]:
        return {user: role for (place, user), role in self.roles.items() if place == scope}

    async def states(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        return {scope: replace(self.scopes[scope]) for scope in scopes if scope in self.scopes}

    async def run(self, scope: str, after: int, base: int, limit: int, max_bytes: int) -> Run | None:
        state = self.scopes.get(scope)
        if state is None:
            return None
        changes = sorted(
            (row for row in self.feed.values() if row.scope == scope and row.version > after),
            key=lambda row: row.version,
        )
        shown = [row for row in changes if not (row.deleted and row.version <= base)]
        page: list[bytes] = []
        size = 0
        for row in shown[:limit]:
            change = _wire(row)
            size += len(change) + 1
            if page and size - 1 > max_bytes:
                break
            page.append(change)
        to = shown[len(page) - 1].version if len(page) < len(shown) else state.head
        return Run(replace(state), len(page), to, b",".join(page))

    async def events(self, query: EventQuery) -> list[JournalRow]:
        rows = None if query.rows is None else set(query.rows)
        found = [
            _entry(number, entry)
            for number, entry in sorted(self.journal.items(), reverse=not query.ascending)
            if (query.scopes is None or entry.scope in query.scopes)
            and (rows is None or not rows.isdisjoint(entry.rows))
            and (query.after is None or number > query.after)
            and (query.before is None or number < query.before)
            and (query.since is None or entry.arrived >= query.since)
            and (query.until is None or entry.arrived < query.until)
        ]
        return found[: query.limit]

    async def rows_of(self, scope: str) -> Iterable[FeedRow]:
        return [replace(row) for row in self.feed.values() if row.scope == scope]

    async def residues(self, before: int, latest: str, limit: int) -> list[FeedRow]:
        found = [replace(r) for r in self.feed.values() if r.residue and r.arrived < before and r.root < latest]
        return sorted(found, key=lambda row: row.arrived)[:limit]

    async def forget(self, scope: str, horizon: int, dropped: Sequence[FeedRow], rewritten: Sequence[FeedRow]) -> int:
        with self._transaction() as transaction:
            state = (await transaction.lock([scope], [])).get(scope)
            return 0 if state is None else transaction.forget(state, horizon, dropped, rewritten)

    async def forget_journal(self, before: int, limit: int) -> int:
        old = [number for number, entry in self.journal.items() if entry.arrived < before][:limit]
        for number in old:
            del self.journal[number]
        return len(old)

    async def lease(self, name: str, owner: str, now: int, until: int) -> bool:
        held = self.leases.get(name)
        if held is not None and held.owner != owner and held.until > now:
            return False
        self.leases[name] = Lease(owner, until)
        return True


class Layer(Generic[K, V]):
    """What a transaction has written over a dictionary; None stands for a key taken away."""

    def __init__(self, under: dict[K, V]) -> None:
        self.under = under
        self.own: dict[K, V | None] = {}

    def get(self, key: K) -> V | None:
        return self.own[key] if key in self.own else self.under.get(key)

    def put(self, key: K, value: V | None) -> None:
        self.own[key] = value

    def items(self) -> Iterator[tuple[K, V]]:
        for key, value in {**self.under, **self.own}.items():
            if value is not None:
                yield key, value

    def lay_down(self) -> None:
        for key, value in self.own.items():
            if value is None:
                self.under.pop(key, None)
            else:
                self.under[key] = value


class MemoryTransaction:
    """A `Transaction` on a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._scopes = Layer(store.scopes)
        self._feed = Layer(store.feed)
        self._table = Layer(store.table)
        self._roles = Layer(store.roles)
        self._journal = Layer(store.journal)
        self._failure: RowTaken | ConstraintFailed | None = None

    async def lock(self, scopes: Collection[str], create: Collection[str]) -> dict[str, ScopeState]:
        locked: dict[str, ScopeState] = {}
        for scope in sorted({*scopes, *create}):
            state = self._scopes.get(scope)
            if state is None and scope in create:
                state = ScopeState(scope)
            if state is not None and self._store.locks.setdefault(scope, self) is self:
                self._scopes.put(scope, state)
                locked[scope] = replace(state)
        return locked

    async def roles(self, members: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        return {member: role for member in members if (role := self._roles.get(member)) is not None}

    async def load(self, keys: Collection[RowKey]) -> list[FeedRow]:
        exact = set(keys)
        shared = {(key.entity, key.row) for key in keys if not self._entity(key).key.per_scope}
        return [replace(row) for key, row in self._feed.items() if key in exact or (key.entity, key.row) in shared]

    async def spent(self, hashes: Collection[int]) -> list[JournalRow]:
        return [_entry(number, entry) for number, entry in self._journal.items() if entry.spent in hashes]

    async def entries_of(self, scope: str, rows: Collection[int], since: int, limit: int) -> list[JournalRow]:
        wanted = set(rows)
        found = [
            _entry(number, entry)
            for number, entry in sorted(self._journal.items())
            if entry.scope == scope
            and entry.spent is None
            and entry.arrived >= since
            and not wanted.isdisjoint(entry.rows)
        ]
        return found[:limit]

    async def referring(self, scope: str, entity: str, field: str, targets: Collection[str]) -> list[tuple[str, str]]:
        named = [(image.values[field], image.key.row) for image in self._images(scope, entity)]
        return [(str(target), row) for target, row in named if target is not None and str(target) in targets]

    async def holders(
        self, scope: str, entity: str, fields: tuple[str, ...], values: Collection[tuple[Any, ...]]
    ) -> list[tuple[tuple[Any, ...], str]]:
        held = [(tuple(image.values[f] for f in fields), image.key.row) for image in self._images(scope, entity)]
        return [(own, row) for own, row in held if None not in own and own in values]

    async def set_role(self, scope: str, user: str, role: str | None) -> None:
        self._roles.put((scope, user), role)

    async def save(self, saved: Saved) -> None:
        try:
            self._save(saved)
        except (RowTaken, ConstraintFailed) as failure:
            self._failure = failure
            raise

    def commit(self) -> None:
        if self._failure is not None:
            raise self._failure
        for key, image in self._table.own.items():
            held = self._store.table.get(key)
            if image is not None and held is not None and self._store.locks.get(held.key.scope) is not self:
                raise RowTaken(f"{key.entity}/{key.row} was taken meanwhile")
        for layer in (self._scopes, self._feed, self._table, self._roles, self._journal):
            layer.lay_down()

    def forget(self, state: ScopeState, horizon: int, dropped: Sequence[FeedRow], rewritten: Sequence[FeedRow]) -> int:
        """What `MemoryStore.forget` does once it has the scope's lock."""
        gone = 0
        for row in dropped:
            held = self._feed.get(_key(row))
            if held is not None and (held.root, held.clocks, held.arrived) == (row.root, row.clocks, row.arrived):
                self._feed.put(_key(row), None)
                state.floor = max(state.floor, held.version)
                gone += 1
        for row in rewritten:
            held = self._feed.get(_key(row))
            if held is not None and (held.version, held.arrived) == (row.version, row.arrived):
                self._feed.put(_key(row), replace(row))
                gone += 1
        state.horizon = max(state.horizon, horizon)
        self._scopes.put(state.scope, state)
        return gone

    def _save(self, saved: Saved) -> None:
        for state in saved.scopes:
            self._scopes.put(state.scope, replace(state))
        for row in saved.feed:
            self._feed.put(_key(row), replace(row))
        for entry in saved.journal:
            self._journal.put(self._store.next_entry(), replace(entry))
        for key in (*saved.gone, *saved.swapped):
            held = self._table.get(self._table_key(key))
            if held is not None and held.key.scope == key.scope:
                self._table.put(self._table_key(key), None)
        for image in saved.images:
            self._check_values(image)
            held = self._table.get(self._table_key(image.key))
            if held is not None and held.key.scope != image.key.scope:
                raise RowTaken(f"{image.key.entity}/{image.key.row} is in use in another scope")
            self._table.put(self._table_key(image.key), image)
        for scope, entity in {(image.key.scope, image.key.entity) for image in saved.images}:
            self._check_unique(scope, entity)

    def _check_values(self, image: RowImage) -> None:
        for name, field in self._entity(image.key).fields.items():
            value = image.values[name]
            allowed = field.nullable if value is None else not field.values or value in field.values
            if not allowed:
                raise ConstraintFailed(f"{image.key.entity}.{name} cannot hold {value!r}", unique=False)

    def _check_unique(self, scope: str, entity: str) -> None:
        for fields in self._store.declaration.entities[entity].unique:
            seen: set[tuple[Any, ...]] = set()
            for image in self._images(scope, entity):
                values = tuple(image.values[field] for field in fields)
                if None not in values and values in seen:
                    raise ConstraintFailed(f"{entity} {fields} holds {values!r} twice in {scope}", unique=True)
                seen.add(values)

    def _images(self, scope: str, entity: str) -> list[RowImage]:
        return [image for key, image in self._table.items() if key.entity == entity and image.key.scope == scope]

    def _entity(self, key: RowKey) -> Entity:
        return self._store.declaration.entities[key.entity]

    def _table_key(self, key: RowKey) -> TableKey:
        return TableKey(key.entity, key.scope if self._entity(key).key.per_scope else "", key.row)


def _key(row: FeedRow) -> RowKey:
    return RowKey(row.scope, row.entity, row.row)


def _entry(number: int, entry: JournalEntry) -> JournalRow:
    return JournalRow(number, entry.scope, entry.arrived, entry.events)


def _wire(row: FeedRow) -> bytes:
    doc = msgspec.Raw(b"null" if row.deleted else row.doc.encode())
    return msgspec.json.encode({"entity": row.entity, "row": row.row, "version": row.version, "doc": doc})
