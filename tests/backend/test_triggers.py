"""Triggers of captured tables: what each statement leaves in the inbox, on every database; and how they come and go."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from tests.backend.trigger_world import (
    DECLARATION,
    HEAD,
    ORDERS,
    PARTS,
    TASKS,
    THREE,
    UUID,
    Writer,
    kinds,
    names,
    set_up,
    wanted,
)
from tidemark.store.base import UNIT
from tidemark.store.schema import triggers
from tidemark.store.schema.migrate import check, migrate, revision
from tidemark.store.schema.triggers_sql import label
from tidemark_protocol.schema import parse


@pytest.fixture
def writer(database_url: str) -> Writer:
    """A program with a database where everything is set up."""
    return set_up(database_url)


STATEMENTS: list[tuple[str, list[str]]] = [
    ("INSERT INTO \"Orders\" VALUES (4, 'd', 't', 4)", ["d"]),
    ("INSERT INTO \"Orders\" VALUES (4, 'd', 't', 4), (5, 'e', 't', 5)", ["d", "e"]),
    (
        'INSERT INTO "Orders" SELECT n + 10, concat(order_key, \'x\'), tenant, total FROM "Orders"',
        ["ax", "bx", "cx"],
    ),
    ("UPDATE \"Orders\" SET total = 7 WHERE order_key = 'b'", ["b"]),
    ('UPDATE "Orders" SET total = total', ["a", "b", "c"]),
    ("UPDATE \"Orders\" SET tenant = 'u' WHERE n < 3", ["a", "b"]),
    ("UPDATE \"Orders\" SET order_key = 'z' WHERE n = 2", ["b", "z"]),
    ('UPDATE "Orders" SET total = 7 WHERE n = 9', []),
    ("DELETE FROM \"Orders\" WHERE order_key = 'c'", ["c"]),
    ('DELETE FROM "Orders"', ["a", "b", "c"]),
    ('DELETE FROM "Orders" WHERE n = 9', []),
]


def test_a_statement_reports_the_rows_it_touched(writer: Writer) -> None:
    """One entry for each row that a statement made, changed or removed; with another key, for the old and the new."""
    for statement, reported in STATEMENTS:
        assert writer.orders('DELETE FROM "Orders"', "DELETE FROM sync_inbox", THREE) == ["a", "b", "c"]
        spelled = (
            statement.replace("concat(order_key, 'x')", "order_key || 'x'") if writer.kind == "sqlite" else statement
        )
        assert writer.orders(spelled) == reported, statement


def test_an_upsert_reports_what_it_made_and_what_it_changed(writer: Writer) -> None:
    """Each row of it once, whichever it was."""
    writer.orders(THREE)
    columns, rows = "n, order_key, tenant, total", "(2, 'b', 't', 9), (4, 'd', 't', 9)"
    statement = writer.upsert('"Orders"', columns, rows, "order_key", "total = 9")
    assert writer.orders(statement) == ["b", "d"]


def test_keys_of_scopes_are_reported_with_their_scope(writer: Writer) -> None:
    """An identity is the scope's text and those of the key, in the declared order; a row that moves has two."""
    writer.sql("INSERT INTO parts (workspace_id, kind, number) VALUES ('7', 'x', 10), ('8', 'x', 10)")
    assert writer.inbox() == [("parts", UNIT.join(("7", "x", "10"))), ("parts", UNIT.join(("8", "x", "10")))]
    writer.sql("UPDATE parts SET workspace_id = '9' WHERE workspace_id = '7'")
    assert writer.inbox() == [("parts", UNIT.join(("7", "x", "10"))), ("parts", UNIT.join(("9", "x", "10")))]


def test_a_row_that_changes_its_scope_alone_keeps_its_identity(writer: Writer) -> None:
    """Where keys are unique over all scopes, the scope is no part of the identity; stamps need not be given."""
    writer.sql(f"INSERT INTO tasks (id, workspace_id, title) VALUES ('{UUID.format(1)}', '7', 'a')")
    writer.sql("UPDATE tasks SET workspace_id = '8'")
    assert writer.inbox() == [("tasks", UUID.format(1))] * 2


def test_what_is_rolled_back_is_not_reported(writer: Writer) -> None:
    """Entries belong to the writer's transaction."""

    def fail(connection: Connection) -> None:
        connection.execute(sa.text(THREE))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        writer.do(fail)
    assert writer.inbox() == []


def test_an_entry_tells_when_and_who(writer: Writer) -> None:
    """The database's time in milliseconds, and its user where it has users."""
    before = time.time_ns() // 1_000_000
    writer.sql(THREE)
    after = time.time_ns() // 1_000_000
    found = writer.sql("SELECT captured_at, who FROM sync_inbox")
    assert all(before - 1 <= at <= after for at, _ in found)
    assert {who for _, who in found} == {{"sqlite": None, "postgresql": "postgres"}.get(writer.kind, "root@127.0.0.1")}


KEYS = [
    "it's",
    'a "quoted" one',
    "back\\slash",
    "50% :name $1 {}",
    "two\nlines",
    "",
    " ",
    "🌊é",
    f"a{UNIT}b",
    "k" * 700,
]


def test_any_text_may_be_a_key(writer: Writer) -> None:
    """Whatever a key's text is, it stands in the inbox as it is."""
    for key in KEYS:
        assert writer.orders('INSERT INTO "Orders" (n, order_key) VALUES (1, :key)', key=key) == [key]
        assert writer.orders("UPDATE \"Orders\" SET order_key = 'z'") == sorted([key, "z"])
        assert writer.orders('DELETE FROM "Orders"') == ["z"]


def test_keys_that_differ_in_case_or_blanks_are_two(writer: Writer) -> None:
    """Identities are compared byte by byte, whatever the table does."""
    writer.orders("INSERT INTO \"Orders\" (n, order_key) VALUES (1, 'a')")
    assert writer.orders("UPDATE \"Orders\" SET order_key = 'A'") == ["A", "a"]
    assert writer.orders("UPDATE \"Orders\" SET order_key = 'A '") == ["A", "A "]


def test_migrating_again_leaves_triggers_alone(writer: Writer) -> None:
    """The triggers are as declared already: nothing is made, dropped, or reported anew."""
    writer.orders(THREE)
    before = names(writer)
    assert before == sorted((one.name, one.table) for one in wanted(writer))
    migrate(writer.url, DECLARATION)
    assert names(writer) == before
    assert writer.inbox() == []


def test_missing_triggers_keep_the_service_from_starting(writer: Writer) -> None:
    """Start is refused with the table's name and what to run; migrating makes them, and reports the rows there."""
    writer.do(lambda connection: triggers.remove(connection, "orders"))
    assert writer.orders(THREE) == []
    assert kinds(writer) == {"missing"}
    (found,) = check(writer.url, DECLARATION)
    assert "Orders has no triggers that report insert, update, delete" in found and "--migrate" in found
    migrate(writer.url, DECLARATION)
    assert check(writer.url, DECLARATION) == []
    assert [identity for _, identity in writer.inbox()] == ["a", "b", "c"]


def test_outdated_triggers_are_replaced(writer: Writer) -> None:
    """A table whose declared key changed gets triggers of the new one; none of the old stays."""
    writer.orders(THREE)
    changed = parse(HEAD + TASKS + PARTS + ORDERS.replace("column: order_key, type: text", "column: n, type: integer"))
    assert kinds(writer, changed) == {"stale"}
    assert "outdated triggers" in check(writer.url, changed)[0]
    migrate(writer.url, changed)
    assert names(writer) == sorted((one.name, one.table) for one in wanted(writer, changed))
    assert writer.orders("UPDATE \"Orders\" SET order_key = 'z' WHERE n = 2") == ["2"]


def test_what_is_no_longer_captured_loses_its_triggers(writer: Writer) -> None:
    """Triggers of an entity that became plain are left over, which migrating mends."""
    plain = parse(HEAD + TASKS + PARTS + ORDERS.replace("capture: true", "capture: false"))
    assert kinds(writer, plain) == {"leftover"}
    assert check(writer.url, plain) == []
    migrate(writer.url, plain)
    assert kinds(writer, plain) == set()
    assert writer.orders(THREE) == []


def test_removing_leaves_no_trace(writer: Writer) -> None:
    """No trigger, function, mark or entry of an entity is left; those of others stay."""
    writer.sql(THREE, f"INSERT INTO tasks (id, workspace_id, title) VALUES ('{UUID.format(1)}', '7', 'a')")
    writer.do(lambda connection: triggers.remove(connection, "orders"))
    assert {name.split("_")[1] for name, _ in names(writer)} == {"tasks", "parts"}
    assert writer.inbox() == [("tasks", UUID.format(1))]
    for entity in ("tasks", "parts"):
        writer.do(partial(triggers.remove, entity=entity))
    assert names(writer) == []
    assert writer.sql("SELECT name FROM sync_meta WHERE name LIKE 'report:%'") == []


def test_earlier_rows_are_reported_in_pages(writer: Writer) -> None:
    """Pages cover all rows, each once, in whatever sizes; and who was interrupted goes on behind the last page."""
    keys = [(scope, kind, number) for scope in "78" for kind in "xy" for number in (-1, 9, 10)]
    rows = ", ".join(str(key) for key in keys)
    writer.sql(f"INSERT INTO parts (workspace_id, kind, number) VALUES {rows}")
    for limit in (1, 2, 3, 100):
        writer.do(lambda connection: triggers.remove(connection, "parts"))
        while writer.do(lambda connection: triggers.install_next(connection, DECLARATION)):
            pass
        assert "not reported yet" in check(writer.url, DECLARATION)[0]
        steps = 0
        while writer.do(partial(triggers.report_next, declaration=DECLARATION, limit=limit)):
            steps += 1
        assert steps == len(keys) // limit + 1
        assert [identity for _, identity in writer.inbox()] == sorted(UNIT.join(map(str, key)) for key in keys)
        assert check(writer.url, DECLARATION) == []


def test_revisions_make_and_drop_triggers(writer: Writer, tmp_path: Path) -> None:
    """Who reviews revisions finds the triggers in them; what they make is what is wanted, and back goes all of it."""
    for entity in ("tasks", "parts", "orders"):
        writer.do(partial(triggers.remove, entity=entity))
    migrations = tmp_path / "migrations"
    written = revision(writer.url, DECLARATION, migrations, "capture")[-1]
    text = written.read_text(encoding="utf-8")
    upgrade, downgrade = text.split("def downgrade()")
    for one in wanted(writer):
        assert one.name in upgrade and one.name in downgrade
    migrate(writer.url, DECLARATION, migrations)
    assert names(writer) == sorted((one.name, one.table) for one in wanted(writer))
    assert writer.orders(THREE) == ["a", "b", "c"]
    assert revision(writer.url, DECLARATION, migrations, "nothing") == []


def test_stamps_come_from_the_database_once_a_table_is_captured(writer: Writer) -> None:
    """A table that becomes captured gets defaults for its stamps: a writer in SQL need not know of them."""
    plain = parse(HEAD + TASKS.replace("tasks:", "jobs:").replace("capture: true", "capture: false"))
    captured = parse(HEAD + TASKS.replace("tasks:", "jobs:"))
    migrate(writer.url, plain)
    migrate(writer.url, captured)
    assert check(writer.url, captured) == []
    writer.sql(f"INSERT INTO jobs (id, workspace_id, title) VALUES ('{UUID.format(1)}', '7', 'a')")
    ((created, updated),) = writer.sql("SELECT created_at, updated_at FROM jobs")
    assert created == updated
    if writer.kind == "sqlite":
        assert len(created) == len("2026-01-01T00:00:00.000000Z") and created.endswith("000Z")


@given(st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,62}", fullmatch=True), min_size=2, max_size=2, unique=True))
def test_names_of_triggers_fit_and_differ(entities: list[str]) -> None:
    """No database cuts a trigger's name, and no two entities share one."""
    one, another = map(label, entities)
    assert one != another
    assert all(len(f"tidemark_{name}_partition_12345678") <= 64 for name in (one, another))
