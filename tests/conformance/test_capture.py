"""Captured tables and the inbox: what the port says of rows that other programs write (SPEC 10)."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from tests.conformance.declared import DECLARATION, complete
from tests.conformance.stores import Database
from tests.conformance.test_overlapping import holding, lock
from tests.conformance.test_tables import VALUES
from tests.conformance.writing import Change, apply, at, delete, entry, put, save, saved, uuid, write
from tidemark.store.base import UNIT, Backlog, FeedRow, Held, Identity, InboxEntry, Store, TableRow, Transaction
from tidemark_protocol.rows import scope_id

CAPTURED = replace(DECLARATION, entities={n: replace(e, capture=True) for n, e in DECLARATION.entities.items()})
W, V = "workspace:7", "workspace:8"
SHOP = "shop:7"
KEYS: dict[str, Callable[[random.Random], str]] = {
    "samples": lambda chance: uuid(chance.randrange(1 << 48)),
    "slugs": lambda chance: "".join(chance.choices("aAbB~._-09", k=chance.randrange(1, 4))),
    "numbers": lambda chance: str(chance.choice([chance.randrange(-50, 50), chance.randrange(-(2**63), 2**63)])),
    "lines": lambda chance: f"{''.join(chance.choices('aA09', k=2))}:{chance.randrange(-9, 100)}",
    "tags": lambda chance: "".join(chance.choices("ab-", k=chance.randrange(1, 3))),
}
"""A key of each kind, at random."""


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    """A store whose tables are all captured, on an empty database."""
    store = database.store(CAPTURED)
    await store.open()
    yield store
    await store.close()


def identity(change: Change) -> Identity:
    """What names a row in its table."""
    key, declared = change.key, DECLARATION.entities[change.key.entity].key
    parts = key.row.split(":") if len(declared.columns) > 1 else [key.row]
    return Identity(key.entity, UNIT.join([scope_id(key.scope), *parts] if declared.per_scope else parts))


async def look(
    store: Store, identities: Collection[Identity], lock: Collection[Identity] = ()
) -> tuple[dict[Identity, TableRow], set[Identity]]:
    """What a transaction of its own finds: the rows by identity, and those held elsewhere."""
    rows, held = await store.transact(lambda transaction: transaction.table_rows(identities, lock))
    assert len({row.identity for row in rows}) == len(rows)
    return {row.identity: row for row in rows}, held


def locking(*wanted: Identity) -> Callable[[Transaction], Awaitable[Any]]:
    """The body of a transaction that locks rows."""
    return lambda transaction: transaction.table_rows(wanted, wanted)


# ── rows of tables ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", VALUES)
async def test_rows_come_with_canonical_values(store: Store, field: str) -> None:
    """What was saved is read back as it was, to the last digit and of the same type."""
    changes = [put(W, "samples", uuid(n), **{field: value}) for n, value in enumerate(VALUES[field])]
    await write(store, *changes)
    rows, _ = await look(store, [identity(change) for change in changes])
    for change in changes:
        assert repr(rows[identity(change)].values) == repr(change.values)


async def test_json_and_maps_come_decoded(store: Store) -> None:
    """Values of any shape, and numbers that fit a double alone, are as they were."""
    shapes: list[Any] = [[], "text", False, 0, {"a": [1, 2.5, True, None, {"b": "ä☃😀"}], "": {}}, None]
    changes = [put(W, "samples", uuid(n), data=shape, labels={"k/~": n}) for n, shape in enumerate(shapes)]
    await write(store, *changes)
    rows, _ = await look(store, [identity(change) for change in changes])
    for change in changes:
        found, given = rows[identity(change)].values, change.values
        assert json.dumps(found, sort_keys=True) == json.dumps(given, sort_keys=True)


async def test_keys_of_every_kind_name_rows(store: Store) -> None:
    """A row is found by the texts of its columns, and says in which scope the table has it."""
    changes = [
        put("user:%C3%A4%20b", "notes", uuid(1)),
        put(SHOP, "slugs", "a.b~c:d@e-f"),
        put(SHOP, "slugs", "007"),
        put(SHOP, "numbers", "-42"),
        put(SHOP, "numbers", str(2**63 - 1)),
        put(SHOP, "lines", "o-1:7"),
        put(W, "tags", "x"),
        put(V, "tags", "x", color="blue"),
    ]
    await write(store, *changes)
    rows, held = await look(store, [identity(change) for change in changes])
    assert held == set()
    assert rows == {
        identity(c): TableRow(identity(c), scope_id(c.key.scope), complete(c.key.entity, **(c.values or {})))
        for c in changes
    }


async def test_keys_are_compared_byte_by_byte(store: Store) -> None:
    """Keys that a person might take for one are two, and what differs in its spelling alone is no row."""
    await write(store, put(SHOP, "slugs", "a", title="small"), put(SHOP, "slugs", "A", title="large"))
    wanted = [Identity("slugs", text) for text in ("a", "A", "a ", " a", "á")]
    rows, _ = await look(store, wanted)
    assert {found.text: row.values["title"] for found, row in rows.items()} == {"a": "small", "A": "large"}
    await write(store, put(SHOP, "numbers", "7"))
    assert await look(store, [Identity("numbers", text) for text in ("07", "+7", "7.0", " 7")]) == ({}, set())


@pytest.mark.parametrize(
    ("entity", "text"),
    [
        ("numbers", "seven"),
        ("numbers", ""),
        ("numbers", str(2**63)),
        ("samples", "no uuid"),
        ("samples", uuid(0xABC).upper()),
        ("slugs", "y"),
        ("slugs", ""),
        ("slugs", "x" * 10_000),
        ("lines", "x"),
        ("lines", f"x{UNIT}1{UNIT}2"),
        ("lines", f"x{UNIT}one"),
        ("tags", "x"),
        ("tags", f"{UNIT}x"),
    ],
)
async def test_what_names_no_row_is_not_there(store: Store, entity: str, text: str) -> None:
    """An identity that no row can have disturbs neither the others nor the transaction."""
    there = [put(SHOP, "slugs", "x"), put(SHOP, "numbers", "7"), put(SHOP, "lines", "x:1"), put(W, "tags", "x")]
    await write(store, *there, put(W, "samples", uuid(0xABC)))
    wanted = [Identity(entity, text), *map(identity, there)]
    rows, held = await look(store, wanted, wanted)
    assert (set(rows), held) == (set(map(identity, there)), set())


async def test_a_row_that_went_is_not_there(store: Store) -> None:
    """Nothing is said of it, locked or not."""
    await write(store, put(SHOP, "slugs", "x"))
    await write(store, delete(SHOP, "slugs", "x"))
    assert await look(store, [Identity("slugs", "x")], [Identity("slugs", "x")]) == ({}, set())


async def test_a_transaction_sees_what_it_saved(store: Store) -> None:
    """Rows as they stand are those that it leaves, if it goes through."""
    change = put(SHOP, "slugs", "x", title="new")

    async def body(transaction: Transaction) -> list[TableRow]:
        await apply(transaction, [change])
        return (await transaction.table_rows([identity(change)], [identity(change)]))[0]

    (row,) = await store.transact(body)
    assert row.values == {"title": "new"}


# ── locks on rows ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_row_locked_elsewhere_is_told_not_waited_for(overlapping: Store) -> None:
    """Who locks a row holds it to the end; others see its values meanwhile, and may lock every other row."""
    first, second = put(SHOP, "slugs", "x", title="one"), put(SHOP, "slugs", "y")
    await write(overlapping, first, second)
    both = [identity(first), identity(second)]
    async with holding(overlapping, work=locking(both[0])):
        rows, held = await look(overlapping, both, both)
        assert (rows[both[0]].values, set(rows), held) == ({"title": "one"}, set(both), {both[0]})
        assert (await look(overlapping, both))[1] == set()
    assert (await look(overlapping, both, both))[1] == set()


async def test_a_row_being_written_elsewhere_is_held(overlapping: Store) -> None:
    """A transaction that has saved a row holds it to the end; before, others see what it was."""
    before, after = put(SHOP, "slugs", "x", title="old"), put(SHOP, "slugs", "x", title="new")
    await write(overlapping, before)
    wanted = [identity(before)]
    async with holding(overlapping, after):
        rows, held = await look(overlapping, wanted, wanted)
        assert (rows[wanted[0]].values, held) == ({"title": "old"}, set(wanted))
    rows, held = await look(overlapping, wanted, wanted)
    assert (rows[wanted[0]].values, held) == ({"title": "new"}, set())


async def test_a_key_being_taken_elsewhere_is_held(overlapping: Store) -> None:
    """Whose save would have to wait for a key that is not committed yet is told so, and can try again."""
    await lock(overlapping, SHOP, "shop:8")
    async with holding(overlapping, put(SHOP, "slugs", "x")):
        with pytest.raises(Held):
            await write(overlapping, put("shop:8", "slugs", "x"))
        await write(overlapping, put("shop:8", "slugs", "y"))
    assert (await overlapping.states(["shop:8"]))["shop:8"].head == 1


# ── the inbox ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_inbox_comes_in_order(store: Store) -> None:
    """Entries come by their ids, as they were reported, up to the limit, without those passed over."""
    reported = [Identity("slugs", "x"), Identity("tags", f"7{UNIT}ö ☃"), Identity("slugs", "x"), Identity("slugs", "")]
    for number, one in enumerate(reported):
        await store.report([one], 1_000 + number)
    entries = await store.inbox([], 10)
    assert [(e.entity, e.identity, e.captured_at) for e in entries] == [
        (*one, 1_000 + number) for number, one in enumerate(reported)
    ]
    assert all(first.id < second.id for first, second in pairwise(entries))
    assert await store.inbox([], 2) == entries[:2]
    assert await store.inbox([entries[3].id], 2, newest=True) == [entries[2], entries[1]]
    assert await store.inbox([entries[0].id, entries[2].id, 10**9], 2) == [entries[1], entries[3]]
    assert await store.inbox([entry.id for entry in entries], 10) == []


async def test_what_is_not_captured_waits_for_others(store: Store) -> None:
    """An entry of an entity that this declaration does not know is left alone, and counted."""
    await store.report([Identity("unknown", "x"), Identity("slugs", "y")], 1_000)
    assert [entry.entity for entry in await store.inbox([], 10)] == ["slugs"]
    assert (await store.backlog()).entries == 2


async def test_the_backlog_is_counted(store: Store) -> None:
    """How many entries wait, and the time of the oldest."""
    assert await store.backlog() == Backlog(0, None)
    await store.report([Identity("slugs", "x"), Identity("slugs", "y")], 2_000)
    await store.report([Identity("slugs", "z")], 1_000)
    assert await store.backlog() == Backlog(3, 1_000)


async def test_entries_of_rows_are_found(store: Store) -> None:
    """The latest of each row asked for; none of rows or entities that are called alike."""
    for one, moment in (("x", 1_000), ("y", 1_000), ("x", 3_000), ("X", 4_000), ("x", 2_000), ("y", 1_000)):
        await store.report([Identity("slugs", one), Identity("names", one)], moment)

    async def captured(*wanted: Identity) -> list[InboxEntry]:
        return await store.transact(lambda transaction: transaction.captured(wanted))

    def of(entity: str, identity: str, moment: int) -> InboxEntry:
        return [e for e in every if e[1:4] == (entity, identity, moment)][-1]

    every = await store.inbox([], 100)
    assert await captured(Identity("slugs", "x")) == [of("slugs", "x", 3_000)]
    both = await captured(Identity("slugs", "y"), Identity("names", "x"), Identity("names", "nobody"))
    assert sorted(both) == sorted([of("slugs", "y", 1_000), of("names", "x", 3_000)])
    assert await captured() == []


async def test_drained_entries_go_with_the_rest(store: Store) -> None:
    """Entries leave the inbox when the transaction that took them goes through, and stay when it does not."""
    await store.report([Identity("slugs", text) for text in "abc"], 1_000)
    first, second, third = await store.inbox([], 10)

    async def fails(transaction: Transaction) -> None:
        await transaction.save(saved(drained=[first, second]))
        raise KeyError

    with pytest.raises(KeyError):
        await store.transact(fails)
    assert await store.inbox([], 10) == [first, second, third]
    await save(store, saved(drained=[first, third, third._replace(id=10**9)], journal=[entry(W, 1_000)]))
    assert await store.inbox([], 10) == [second]


async def test_sets_may_be_empty(store: Store) -> None:
    """Asking for nothing gives nothing."""
    assert await look(store, [], []) == ({}, set())
    await store.report([], 1_000)
    await save(store, saved())
    assert await store.inbox([], 10) == []


# ── page by page ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def swept(store: Store, entity: str, limit: int) -> list[TableRow]:
    """A table page by page; no page is longer than asked for."""
    found: list[TableRow] = []
    behind: Identity | None = None
    while page := await store.sweep(entity, behind, limit):
        assert len(page) <= limit
        found += page
        behind = page[-1].identity
    return found


def columns_of(row: TableRow) -> list[Any]:
    """The values of an identity's columns."""
    key = DECLARATION.entities[row.identity.entity].key
    kinds = ["text", *key.types] if key.per_scope else key.types
    parts = zip(row.identity.text.split(UNIT), kinds, strict=True)
    return [int(part) if kind == "integer" else part.encode() for part, kind in parts]


@pytest.mark.parametrize("entity", KEYS)
@pytest.mark.parametrize("seed", range(3))
async def test_a_sweep_covers_every_row_once(store: Store, entity: str, seed: int) -> None:
    """Whatever the keys and the size of pages: each row of the table comes once, in the order of its columns."""
    chance = random.Random(seed)
    scopes = ["workspace:7", "workspace:70", "workspace:ä"] if entity in {"samples", "tags"} else ["shop:7", "shop:-8"]
    scopes = [scope.replace("ä", "%C3%A4") for scope in scopes]
    rows = {KEYS[entity](chance): chance.choice(scopes) for _ in range(chance.randrange(10, 60))}
    changes = [put(scope, entity, row) for row, scope in rows.items()]
    if entity == "tags":
        changes = [put(scope, entity, row) for row in rows for scope in chance.sample(scopes, 2)]
    await write(store, *changes)
    whole = await store.sweep(entity, None, 1_000)
    assert {row.identity: row.scope for row in whole} == {identity(c): scope_id(c.key.scope) for c in changes}
    assert [columns_of(row) for row in whole] == sorted(columns_of(row) for row in whole)
    for limit in (1, chance.randrange(2, 20), len(changes), len(changes) + 1):
        assert await swept(store, entity, limit) == whole


async def test_a_sweep_goes_on_while_rows_go(store: Store) -> None:
    """The row that a page ended with may be gone by the time of the next."""
    changes = [put(SHOP, "numbers", str(n)) for n in range(-3, 4)]
    await write(store, *changes)
    first = await store.sweep("numbers", None, 3)
    await write(store, delete(SHOP, "numbers", "-1"), delete(SHOP, "numbers", "1"))
    rest = await store.sweep("numbers", first[-1].identity, 10)
    assert [row.identity.text for row in (*first, *rest)] == ["-3", "-2", "-1", "0", "2", "3"]


async def test_a_sweep_sees_one_table(store: Store) -> None:
    """Rows of other entities are no part of it, and an empty table has none."""
    await write(store, put(SHOP, "numbers", "1"), put(SHOP, "slugs", "1", title="x"))
    assert await store.sweep("slugs", None, 10) == [TableRow(Identity("slugs", "1"), "7", {"title": "x"})]
    assert await store.sweep("lines", None, 10) == []


async def test_live_rows_come_page_by_page(store: Store) -> None:
    """Each live row of the feed once, by row and scope, whatever the size of pages; tombstones and others never."""
    changes = [put(scope, "tags", f"t{n}") for n in range(12) for scope in (W, V, "workspace:70")]
    gone = [delete(change.key.scope, "tags", change.key.row, 2_000) for change in changes[::5]]
    await write(store, *changes, put(W, "names", uuid(1)))
    await write(store, *gone)
    left = sorted({(c.key.row, c.key.scope) for c in changes} - {(c.key.row, c.key.scope) for c in gone})
    for limit in (1, 4, len(left), 1_000):
        found: list[FeedRow] = []
        while page := await store.live("tags", (found[-1].row, found[-1].scope) if found else None, limit):
            assert len(page) <= limit
            found += page
        assert [(row.row, row.scope) for row in found] == left
        assert {(row.entity, row.deleted, row.root) for row in found} == {("tags", False, at(1_000))}
