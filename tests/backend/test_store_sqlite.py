"""A SQLite file that other programs write too: what its columns may hold, and whose turn it is."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.writing import STAMP, entry, save, saved, write
from tests.conformance.writing import put as row_put
from tidemark.store.base import UNIT, Identity, RowImage, RowKey, TableRow, Transaction, Unavailable, Unfit
from tidemark.store.schema.migrate import migrate
from tidemark.store.sqlite import SqliteStore
from tidemark.store.sqlite import store as sqlite
from tidemark.sync.capture import Image, Reader, UnfitRow
from tidemark_protocol.model import Declaration
from tidemark_protocol.schema import parse

SCHEMA = """
schema: 1
scopes: {workspace: {roles: {editor: write}}}
entities:
  orders:
    table: orders
    key: {column: order_key, type: text}
    scope: {kind: workspace, column: tenant_id}
    capture: true
    fields:
      title: {type: text, nullable: true}
      count: {type: integer, nullable: true}
      price: {type: decimal, precision: 9, scale: 2, nullable: true}
      open: {type: boolean, nullable: true}
      seen: {type: datetime, nullable: true}
      data: {type: json, nullable: true}
  lines:
    table: lines
    key: {columns: [order_key, line], type: [text, integer]}
    scope: {kind: workspace, column: tenant_id}
    capture: true
    fields: {title: {type: text, nullable: true}}
"""
CAPTURED = parse(SCHEMA)
ALONE = parse(SCHEMA.replace("    capture: true\n", ""))
TABLES = """
CREATE TABLE orders (order_key PRIMARY KEY, tenant_id, title, count, price DECIMAL(9, 2), open BOOLEAN, seen DATETIME,
    data JSON);
CREATE TABLE lines (order_key TEXT, line INTEGER, tenant_id TEXT, title TEXT, PRIMARY KEY (order_key, line))
"""
"""Columns without a type keep whatever they are given."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with tables of another program, adopted."""
    path = tmp_path / "tidemark.db"
    with closing(sqlite3.connect(path)) as program:
        program.executescript(TABLES)
    migrate(str(path), CAPTURED)
    return path


@asynccontextmanager
async def opened(path: Path, declaration: Declaration = CAPTURED) -> AsyncIterator[SqliteStore]:
    """A store on the file."""
    store = SqliteStore(str(path), declaration, chance=secrets.token_bytes)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """An open one."""
    async with opened(path) as store:
        yield store


@pytest.fixture
def program(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection, which waits as long as most do."""
    with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as program:
        yield program


async def look(store: SqliteStore, *identities: Identity) -> list[TableRow]:
    """The rows that the store finds."""
    rows, held = await store.transact(lambda transaction: transaction.table_rows(identities, identities))
    assert held == set()
    return rows


async def reported(store: SqliteStore) -> list[Identity]:
    """The rows that triggers named, each once."""
    return list(dict.fromkeys(Identity(e.entity, e.identity) for e in await store.inbox([], 1_000)))


# ── what columns may hold ────────────────────────────────────────────────────────────────────────────────────────────


async def test_values_are_read_as_other_programs_write_them(store: SqliteStore, program: sqlite3.Connection) -> None:
    """Numbers, truth values and moments in the forms that SQLite's own functions give have one canonical form."""
    program.execute(
        "INSERT INTO orders VALUES ('a', 7, 12, 3.0, 12.5, TRUE, datetime('2026-11-21 12:00:00'), json('{\"a\": 1}'))"
    )
    (row,) = await look(store, *await reported(store))
    read = Reader(CAPTURED, 10_000).read(row)
    assert read == Image(
        RowKey("workspace:7", "orders", "a"),
        {
            "title": "12",
            "count": 3,
            "price": "12.50",
            "open": True,
            "seen": "2026-11-21T12:00:00.000000Z",
            "data": {"a": 1},
        },
    )


@pytest.mark.parametrize(
    ("column", "held"),
    [
        ("title", "x'ff'"),
        ("title", "CAST(x'61ff62' AS TEXT)"),
        ("count", "'many'"),
        ("count", "1.5"),
        ("count", "9e999"),
        ("price", "0.125"),
        ("price", "'much'"),
        ("price", "-9e999"),
        ("open", "2"),
        ("open", "'yes'"),
        ("seen", "1790000000"),
        ("seen", "'tomorrow'"),
        ("seen", "CAST(x'ff' AS TEXT)"),
        ("data", "'{'"),
        ("data", "x'7b7d'"),
        ("data", "CAST(x'22ff22' AS TEXT)"),
        ("tenant_id", "NULL"),
        ("tenant_id", "''"),
        ("tenant_id", "x'37'"),
        ("tenant_id", "CAST(x'ff' AS TEXT)"),
    ],
)
async def test_values_that_cannot_be_are_read_and_refused(
    store: SqliteStore, program: sqlite3.Connection, column: str, held: str
) -> None:
    """A column of SQLite may hold anything: what the declared type does not know is handed on, never an error."""
    program.execute("INSERT INTO orders (order_key, tenant_id) VALUES ('a', 7)")
    program.execute(f"UPDATE orders SET {column} = {held}")
    (row,) = await look(store, Identity("orders", "a"))
    refused = Reader(CAPTURED, 10_000).read(row)
    assert isinstance(refused, UnfitRow)
    assert (refused.why.field or "tenant_id") == column
    assert await store.sweep("orders", None, 10) == [row]


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("7", True),
        ("'007'", True),
        ("-1", True),
        ("1.5", True),
        ("'a'", True),
        ("''", False),
        ("NULL", False),
        ("'sp ace'", False),
        ("x'6162'", False),
        ("x''", False),
        ("'a' || char(31) || 'b'", False),
        ("'X''6162'''", False),
        (f"'{'x' * 200}'", False),
    ],
)
async def test_keys_of_every_storage_class_are_found(
    store: SqliteStore, program: sqlite3.Connection, key: str, fits: bool
) -> None:
    """What a trigger calls a row is how it is found again, whatever its key is; none passes for another."""
    program.execute(f"INSERT INTO orders (order_key, tenant_id, title) VALUES ({key}, 7, 'this')")
    program.execute("INSERT OR IGNORE INTO orders (order_key, tenant_id) VALUES ('A', 7), ('b', 7), (8, 7)")
    named = (await reported(store))[0]
    (row,) = await look(store, named)
    assert (row.identity, row.values["title"]) == (named, "this")
    assert isinstance(Reader(CAPTURED, 10_000).read(row), Image) == fits


async def test_a_number_and_its_text_are_one_row_to_the_feed(store: SqliteStore, program: sqlite3.Connection) -> None:
    """Two keys that have one text are one identity: one of them is read, always the same."""
    program.execute("INSERT INTO orders (order_key, tenant_id, title) VALUES ('7', 7, 'text'), (7, 7, 'number')")
    assert len(await reported(store)) == 1
    (row,) = await look(store, Identity("orders", "7"))
    assert (await look(store, Identity("orders", "7")))[0] == row


async def test_keys_that_a_collation_takes_for_one_are_two(tmp_path: Path) -> None:
    """A column that ignores case finds no row for a key in other letters."""
    path = tmp_path / "tidemark.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as program:
        program.executescript(TABLES.replace("order_key PRIMARY", "order_key TEXT COLLATE NOCASE PRIMARY"))
        program.execute("INSERT INTO orders (order_key, tenant_id) VALUES ('Abc', 7)")
    migrate(str(path), CAPTURED)
    async with opened(path) as store:
        assert await look(store, Identity("orders", "abc")) == []
        assert len(await look(store, Identity("orders", "Abc"))) == 1


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_a_sweep_ends_whatever_keys_there_are(
    store: SqliteStore, program: sqlite3.Connection, limit: int
) -> None:
    """Keys of every storage class come once each; those that are no text are passed by, and so is what lacks a key
    where the first page has no room for it.
    """
    program.execute("INSERT INTO orders (order_key) VALUES (1), (20), (3), (1.5), ('3x'), ('b'), (x'ff'), (x'')")
    program.execute("INSERT INTO orders (order_key) VALUES (CAST(x'61ff' AS TEXT)), (CAST(x'ff' AS TEXT)), ('~')")
    program.execute("INSERT INTO orders (order_key, title) VALUES (NULL, 'one'), (NULL, 'two'), ('', 'empty')")
    found: list[str] = []
    behind: Identity | None = None
    while page := await store.sweep("orders", behind, limit):
        found += [row.identity.text for row in page]
        behind = page[-1].identity
    nameless = [""] * min(limit - 1, 2)
    assert found == [*nameless, "1", "1.5", "3", "20", "", "3x", "b", "~", "X''", "X'FF'"]


async def test_a_sweep_goes_behind_a_row_that_has_gone(store: SqliteStore, program: sqlite3.Connection) -> None:
    """Of several columns too, with texts and numbers in their own order."""
    program.executemany("INSERT INTO lines VALUES (?, ?, '7', '')", [("a", 9), ("a", 10), ("b", 1), ("b", 2)])
    first = await store.sweep("lines", None, 2)
    program.execute("DELETE FROM lines WHERE order_key = 'a'")
    assert [row.identity.text for row in first] == [f"a{UNIT}9", f"a{UNIT}10"]
    rest = await store.sweep("lines", first[-1].identity, 10)
    assert [row.identity.text for row in rest] == [f"b{UNIT}1", f"b{UNIT}2"]


async def test_the_service_writes_canonical_values(store: SqliteStore, program: sqlite3.Connection) -> None:
    """A row in another program's forms, written by the service, holds canonical ones, and reads the same."""
    program.execute("INSERT INTO orders (order_key, tenant_id, seen) VALUES ('a', '7', '2026-11-21 12:00:00')")
    (row,) = await look(store, Identity("orders", "a"))
    values = row.values | {"price": "12.50", "data": [1]}
    image = RowImage(RowKey("workspace:7", "orders", "a"), values, STAMP, STAMP, new=False)
    await save(store, saved(images=[image]))
    assert program.execute("SELECT seen, price, data FROM orders").fetchall() == [
        ("2026-11-21T12:00:00.000000Z", 12.5, "[1]")
    ]
    (again,) = await look(store, Identity("orders", "a"))
    assert again.values == values


# ── the journal of a file that several programs write ────────────────────────────────────────────────────────────────


def journal_mode(path: Path) -> str:
    """What another program finds."""
    with closing(sqlite3.connect(path)) as program:
        return str(program.execute("PRAGMA journal_mode").fetchone()[0])


async def test_the_log_that_may_break_is_not_used_where_others_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release with the fault keeps a rollback journal once tables are captured, and says so; else it is WAL, and a
    file that was left otherwise is switched.
    """
    monkeypatch.setattr(sqlite, "FAULTY_WAL", ((0, 0, 0), (99, 0, 0)))
    for declaration, mode, said in ((ALONE, "wal", "alone"), (CAPTURED, "delete", "rollback journal")) * 2:
        async with opened(path, declaration) as store:
            assert journal_mode(path) == mode
            assert said in store.warnings[0]
    monkeypatch.setattr(sqlite, "FAULTY_WAL", ((0, 0, 0), (0, 0, 0)))
    async with opened(path) as store:
        assert journal_mode(path) == "wal"
        assert store.warnings == []


async def test_a_journal_that_cannot_be_switched_is_named(
    path: Path, program: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another program works with the log, the service does not start, and says what is to be done."""
    monkeypatch.setattr(sqlite, "FAULTY_WAL", ((0, 0, 0), (99, 0, 0)))
    program.execute("PRAGMA journal_mode = wal")
    program.execute("SELECT count(*) FROM orders").fetchall()
    with pytest.raises(Unfit, match="close it once"):
        async with opened(path):
            pass


# ── whose turn it is ─────────────────────────────────────────────────────────────────────────────────────────────────

FAULTY = [((0, 0, 0), (99, 0, 0)), ((0, 0, 0), (0, 0, 0))]
WRITER = """
import sqlite3, sys
program = sqlite3.connect(sys.argv[1], timeout=5, isolation_level=None)
for number in range(int(sys.argv[2])):
    program.execute("INSERT INTO lines VALUES ('sql', ?, '7', 'x')", (number,))
"""


@pytest.fixture(params=FAULTY, ids=["rollback journal", "log"])
def journal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to keep a file that others write too."""
    monkeypatch.setattr(sqlite, "FAULTY_WAL", request.param)


@pytest.mark.usefixtures("journal")
async def test_another_program_writes_while_the_service_is_busy(path: Path) -> None:
    """A process that waits five seconds at most never finds the file locked, though the service writes and reads all
    the time; and all that it wrote is reported.
    """

    async def occupied(transaction: Transaction) -> None:
        await transaction.save(saved(journal=[entry("workspace:7", 1)]))
        time.sleep(0.15)  # noqa: ASYNC251 what a large batch takes; this is the writing thread

    async with opened(path) as store:
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(path), "4")
        ended = asyncio.ensure_future(program.wait())

        async def busy(work: Any) -> None:
            while not ended.done():
                await work()

        await asyncio.gather(
            *(busy(lambda: store.transact(occupied)) for _ in range(3)),
            *(busy(lambda: store.inbox([], 100)) for _ in range(2)),
        )
        assert ended.result() == 0
        assert await reported(store) == [Identity("lines", f"sql{UNIT}{number}") for number in range(4)]


@pytest.mark.usefixtures("journal")
async def test_the_service_writes_while_another_program_is_busy(path: Path) -> None:
    """Nor does a program that writes one transaction after another keep the service from its own."""
    async with opened(path) as store:
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(path), "1000000")
        try:
            while not await store.inbox([], 1):
                pass
            for number in range(10):
                change = row_put("workspace:7", "lines", f"own:{number}", title="x")
                await write(store, change)
            assert (await store.states(["workspace:7"]))["workspace:7"].head == 10
        finally:
            program.kill()
            await program.wait()


@pytest.mark.usefixtures("journal")
async def test_an_open_transaction_delays_writes_and_loses_none(
    path: Path, program: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another program's transaction is open, writes of the service fail within the time limit and reads go on;
    afterwards both have what they wrote.
    """
    monkeypatch.setattr(sqlite, "_PATIENCE", 0.2)
    change = row_put("workspace:7", "lines", "own:1", title="x")
    async with opened(path) as store:
        program.execute("BEGIN IMMEDIATE")
        program.execute("INSERT INTO lines VALUES ('sql', 1, '7', 'x')")
        with pytest.raises(Unavailable):
            await write(store, change)
        assert await store.states(["workspace:7"]) == {}
        program.execute("COMMIT")
        await write(store, change)
        assert await reported(store) == [Identity("lines", f"sql{UNIT}1"), Identity("lines", f"own{UNIT}1")]
    assert len(program.execute("SELECT * FROM lines").fetchall()) == 2
