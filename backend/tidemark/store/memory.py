"""The port as plain dictionaries: the reference that the other stores are held against. Nothing outlives the process.

A transaction writes into layers over the dictionaries; its end lays them down in one step that awaits nothing. So
transactions may overlap, and readers see whole ones only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from tidemark_protocol.model import Declaration, Entity
from tidemark_protocol.rows import id_problem, scope_id

from .base import (
    UNIT,
    Backlog,
    Connections,
    ConstraintFailed,
    EventQuery,
    FeedRow,
    Held,
    Identity,
    InboxEntry,
    JournalEntry,
    JournalRow,
    RowImage,
    RowKey,
    RowTaken,
    Run,
    Saved,
    ScopeState,
    TableRow,
    Transaction,
)
from .sql import by_user

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class Lease(NamedTuple):
    owner: str
    until: int


class MemoryStore:
    """A `Store` in this process's memory. `chance(n)` gives n random bytes.

    Other programs write its tables by `write_outside`, and have transactions open that `hold` rows.
    """

    exclusive = True
    pace = 10

    def __init__(self, declaration: Declaration, *, chance: Callable[[int], bytes]) -> None:
        self.declaration = declaration
        self.epoch = chance(8).hex()
        self.scopes: dict[str, ScopeState] = {}
        self.feed: dict[RowKey, FeedRow] = {}
        self.table: dict[Identity, TableRow] = {}
        self.roles: dict[tuple[str, str], str] = {}
        self.journal: dict[int, JournalEntry] = {}
        self.leases: dict[str, Lease] = {}
        self.locks: dict[str, MemoryTransaction] = {}
        self.row_locks: dict[Identity, MemoryTransaction] = {}
        self.held: set[Identity] = set()
        self.waiting: dict[int, InboxEntry] = {}
        self._last_entry = 0
        self._last_report = 0

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
            self.row_locks = {row: holder for row, holder in self.row_locks.items() if holder is not transaction}

    def next_entry(self) -> int:
        """The id of a new journal entry: never given twice, even if its transaction ends in nothing."""
        self._last_entry += 1
        return self._last_entry

    async def memberships(self, users: Collection[str]) -> dict[str, dict[str, str]]:
        return by_user((user, scope, role) for (scope, user), role in self.roles.items() if user in users)

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

    async def inbox(
        self, passed: Collection[int], limit: int, without: Collection[str] = (), *, newest: bool = False
    ) -> list[InboxEntry]:
        entities = {name: e for name, e in self.declaration.entities.items() if name not in without}
        found = (
            entry
            for number, entry in sorted(self.waiting.items(), reverse=newest)
            if number not in passed and entry.entity in entities and entities[entry.entity].capture
        )
        return list(islice(found, limit))

    async def backlog(self) -> Backlog:
        times = [entry.captured_at for entry in self.waiting.values()]
        return Backlog(len(times), min(times, default=None))

    def connections(self) -> Connections:
        return Connections(0, 0)

    async def report(self, identities: Collection[Identity], at: int) -> None:
        for identity in identities:
            self._report(identity, at, None)

    async def sweep(self, entity: str, after: Identity | None, limit: int) -> list[TableRow]:
        rows = sorted((row for row in self.table.values() if row.identity.entity == entity), key=self._place)
        place = None if after is None else self._order(after)
        return [row for row in rows if place is None or self._place(row) > place][:limit]

    async def live(self, entity: str, after: tuple[str, str] | None, limit: int) -> list[FeedRow]:
        rows = [row for row in self.feed.values() if row.entity == entity and not row.deleted]
        behind = [replace(row) for row in rows if after is None or (row.row, row.scope) > after]
        return sorted(behind, key=lambda row: (row.row, row.scope))[:limit]

    def write_outside(
        self, identity: Identity, scope: str | None, values: dict[str, Any] | None, at: int, who: str | None = None
    ) -> None:
        """Write a row as another program does, or delete it (None), in a transaction of its own; the trigger tells the
        time and the user. Raises Held while a transaction of ours has written or locked the row.
        """
        if identity in self.row_locks:
            raise Held(f"{identity} is locked by the service")
        if values is None:
            self.table.pop(identity, None)
        else:
            self.table[identity] = TableRow(identity, scope, dict(values))
        self._report(identity, at, who)

    def hold(self, identity: Identity) -> None:
        """Have another program's open transaction hold a row, or a key that it has taken."""
        self.held.add(identity)

    def let_go(self, identity: Identity) -> None:
        """That transaction has ended."""
        self.held.discard(identity)

    def _report(self, identity: Identity, at: int, who: str | None) -> None:
        self._last_report += 1
        entry = InboxEntry(self._last_report, identity.entity, identity.text, at, who)
        self.waiting[entry.id] = entry

    def _place(self, row: TableRow) -> list[tuple[int, int | str]]:
        return self._order(row.identity)

    def _order(self, identity: Identity) -> list[tuple[int, int | str]]:
        """Where a row stands by the values of its columns: numbers before texts that should be some."""
        entity = self.declaration.entities[identity.entity]
        kinds = [entity.scope.type] if entity.key.per_scope else []
        kinds += entity.key.types
        parts = zip(kinds, identity.text.split(UNIT), strict=False)
        is_number = [(part, kind == "integer" and id_problem(kind, part) is None) for kind, part in parts]
        return [*((0, int(part)) if number else (1, part) for part, number in is_number), (2, identity.text)]


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
        self._waiting = Layer(store.waiting)
        self._found: dict[Identity, TableRow | None] = {}
        self._failure: RowTaken | ConstraintFailed | Held | None = None

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
        named = [(row.values[field], self._row(row)) for row in self._rows(scope, entity)]
        return [(str(target), row) for target, row in named if target is not None and str(target) in targets]

    async def holders(
        self, scope: str, entity: str, fields: tuple[str, ...], values: Collection[tuple[Any, ...]]
    ) -> list[tuple[tuple[Any, ...], str]]:
        held = [(tuple(row.values[f] for f in fields), self._row(row)) for row in self._rows(scope, entity)]
        return [(own, row) for own, row in held if None not in own and own in values]

    async def set_role(self, scope: str, user: str, role: str | None) -> None:
        self._roles.put((scope, user), role)

    async def table_rows(
        self, identities: Collection[Identity], lock: Collection[Identity]
    ) -> tuple[list[TableRow], set[Identity]]:
        there = {identity: row for identity in identities if (row := self._table.get(identity)) is not None}
        locks = self._store.row_locks
        held = {
            identity
            for identity in there.keys() & set(lock)
            if identity in self._store.held or locks.setdefault(identity, self) is not self
        }
        return list(there.values()), held

    async def captured(self, identities: Collection[Identity]) -> list[InboxEntry]:
        latest: dict[Identity, InboxEntry] = {}
        for _, entry in sorted(self._waiting.items(), key=lambda item: (item[1].captured_at, item[0])):
            latest[Identity(entry.entity, entry.identity)] = entry
        return [latest[identity] for identity in dict.fromkeys(identities) if identity in latest]

    async def save(self, saved: Saved) -> None:
        try:
            self._save(saved)
        except (RowTaken, ConstraintFailed, Held) as failure:
            self._failure = failure
            raise

    def commit(self) -> None:
        if self._failure is not None:
            raise self._failure
        for identity, row in self._table.own.items():
            held = self._store.table.get(identity)
            if held is None or row is None or held is self._found[identity]:
                continue
            if held.scope != row.scope:
                raise RowTaken(f"{identity} was taken meanwhile")
        for layer in (self._scopes, self._feed, self._table, self._roles, self._journal, self._waiting):
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
        for drained in saved.drained:
            self._waiting.put(drained.id, None)
        for key in (*saved.gone, *saved.swapped):
            held = self._table.get(self._claimed(key))
            if held is not None and held.scope == scope_id(key.scope):
                self._table.put(held.identity, None)
        written: dict[tuple[str, str], set[Identity]] = {}
        for image in saved.images:
            self._check_values(image)
            identity, scope = self._claimed(image.key), scope_id(image.key.scope)
            held = self._table.get(identity)
            if held is not None and held.scope != scope:
                raise RowTaken(f"{image.key.entity}/{image.key.row} is in use in another scope")
            self._table.put(identity, TableRow(identity, scope, dict(image.values)))
            written.setdefault((image.key.scope, image.key.entity), set()).add(identity)
        for (scope, entity), identities in written.items():
            self._check_unique(scope, entity, identities)

    def _claimed(self, key: RowKey) -> Identity:
        """The identity of a row to write, which other programs cannot write until the end; nor can other transactions
        where it is captured.
        """
        entity = self._entity(key)
        parts = key.row.split(":") if len(entity.key.columns) > 1 else [key.row]
        identity = Identity(key.entity, UNIT.join([scope_id(key.scope), *parts] if entity.key.per_scope else parts))
        holder = self._store.row_locks.setdefault(identity, self)
        if identity in self._store.held or (entity.capture and holder is not self):
            raise Held(f"another transaction holds {key.entity}/{key.row}")
        self._found.setdefault(identity, self._store.table.get(identity))
        return identity

    def _check_values(self, image: RowImage) -> None:
        for name, field in self._entity(image.key).fields.items():
            value = image.values[name]
            allowed = field.nullable if value is None else not field.values or value in field.values
            if not allowed:
                raise ConstraintFailed(f"{image.key.entity}.{name} cannot hold {value!r}", unique=False)

    def _check_unique(self, scope: str, entity: str, written: set[Identity]) -> None:
        """No row of `written` holds what another holds; what other programs left so is theirs."""
        for fields in self._store.declaration.entities[entity].unique:
            seen: dict[tuple[Any, ...], Identity] = {}
            for row in self._rows(scope, entity):
                values = tuple(row.values[field] for field in fields)
                other = None if None in values else seen.setdefault(values, row.identity)
                if other not in {None, row.identity} and not written.isdisjoint((other, row.identity)):
                    raise ConstraintFailed(f"{entity} {fields} holds {values!r} twice in {scope}", unique=True)

    def _rows(self, scope: str, entity: str) -> list[TableRow]:
        place = scope_id(scope)
        return [row for key, row in self._table.items() if key.entity == entity and row.scope == place]

    def _row(self, row: TableRow) -> str:
        parts = row.identity.text.split(UNIT)
        return ":".join(parts[1:] if self._store.declaration.entities[row.identity.entity].key.per_scope else parts)

    def _entity(self, key: RowKey) -> Entity:
        return self._store.declaration.entities[key.entity]


def _key(row: FeedRow) -> RowKey:
    return RowKey(row.scope, row.entity, row.row)


def _entry(number: int, entry: JournalEntry) -> JournalRow:
    return JournalRow(number, entry.scope, entry.arrived, entry.events)


def _wire(row: FeedRow) -> bytes:
    doc = msgspec.Raw(b"null" if row.deleted else row.doc.encode())
    return msgspec.json.encode({"entity": row.entity, "row": row.row, "version": row.version, "doc": doc})
