"""Revisions carry out what is declared to change between numbers: columns are renamed and texts converted (SPEC 10)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.backend.shop import Shop, kind_of, note
from tests.backend.test_migrations import UUID, add_task, another_url, declared, document, shape, sql
from tidemark.store.base import Unfit
from tidemark.store.schema.migrate import _in_transaction as in_transaction
from tidemark.store.schema.migrate import check, migrate, revision
from tidemark_protocol.schema import parse

__all__ = ["another_url"]

HEAD = """scopes: {workspace: {roles: {editor: write}}}
entities:
  orders:
    table: shop_orders
    key: {column: order_key, type: text}
    scope: {kind: workspace, column: tenant_id}
    fields: {customer: {type: text, max: 40}}"""
BEFORE = f"""
schema: 1
{HEAD}
  memos:
    scope: user
    capture: true
    fields:
      body:   {{type: text, max: 50}}
      cost:   {{type: integer, nullable: true}}
      status: {{type: enum, values: [open, closed, "shut:x"], default: open}}
      kind:   {{type: text, max: 9, default: a}}
      left:   {{type: enum, values: [x, y]}}
      right:  {{type: enum, values: [x, y]}}
      flag:   {{type: boolean, nullable: true}}
      note:   {{type: text, max: 20}}
    index: [[status], [left]]
    unique: [[body], [kind, cost]]
"""
AFTER = f"""
schema: 3
oldest: 1
{HEAD}
  memos:
    scope: user
    capture: true
    fields:
      content: {{type: text, max: 80}}
      price:   {{type: integer, nullable: true}}
      status:  {{type: enum, values: [todo, done], default: todo}}
      sort:    {{type: text, max: 9, default: a}}
      left:    {{type: enum, values: [x, y]}}
      right:   {{type: enum, values: [x, y]}}
      body:    {{type: text, max: 20}}
      size:    {{type: integer, default: 5}}
    index: [[status], [left], [body]]
    unique: [[content], [sort, price]]
changes:
  2:
    memos:
      rename: {{body: content, cost: price, kind: sort, left: right, right: left}}
      remove: [flag]
      values: {{status: {{open: todo, closed: done, "shut:x": done}}, sort: {{a: b, b: a}}}}
  3: {{memos: {{rename: {{note: body}}}}}}
"""
ROWS: dict[str, dict[str, Any]] = {
    note(1): {"body": "one", "cost": 1, "status": "open", "kind": "a", "left": "x", "right": "y", "note": "n1"},
    note(2): {"body": "two", "cost": 1, "status": "closed", "kind": "b", "left": "y", "right": "x", "note": "n2"},
    note(3): {"body": "three", "cost": None, "status": "shut:x", "kind": "c", "left": "x", "right": "x", "note": "n3"},
}
MOVED = {
    note(1): ("one", 1, "todo", "b", "y", "x", "n1", 5),
    note(2): ("two", 1, "done", "a", "x", "y", "n2", 5),
    note(3): ("three", None, "done", "c", "x", "x", "n3", 5),
}
NAMES = ("content", "price", "status", "sort", "left", "right", "body", "size")


def run(shop: Shop, *arguments: str) -> str:
    """What a command says that succeeds."""
    done = shop.run(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


def rows(shop: Shop) -> dict[str, tuple[object, ...]]:
    """The memos of the table."""
    names = ", ".join(f'"{name}"' for name in NAMES)
    return {str(row): tuple(values) for row, *values in shop.sql(f"SELECT id, {names} FROM memos")}


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Shop:
    """A shop whose captured table of ours has three rows, at number 1."""
    shop = Shop(database_url, tmp_path, 0, BEFORE)
    run(shop, "migrate")
    shop.push([("memos", row, None, fields) for row, fields in ROWS.items()])
    return shop


@pytest.fixture
def risen(shop: Shop) -> Shop:
    """The same at number 3, by a revision."""
    shop.declare(AFTER)
    refused = shop.run("migrate")
    assert refused.exit_code != 0
    assert "column memos.body becomes content" in refused.output
    assert "rows of memos hold texts of status that become others" in refused.output
    run(shop, "schema", "revision", "-m", "new names")
    run(shop, "migrate")
    return shop


def test_renamed_columns_keep_their_values(risen: Shop) -> None:
    """Values stand under the new names with the new texts, required or not, places changed or taken by a new field; the
    feed says the same, and nothing is left to do.
    """
    assert rows(risen) == MOVED
    assert {row: tuple(doc[name] for name in NAMES) for row, doc in risen.feed("memos").items()} == MOVED
    found = risen.doctor()
    assert (found.code, found.findings) == (0, {})
    assert "0003" not in run(risen, "schema", "revision", "-m", "nothing")


def test_a_captured_table_sends_only_what_is_written_after(risen: Shop) -> None:
    """Of a row that another program then changes, clients are sent that change and nothing that the revision did."""
    run(risen, "adopt", "memos")
    before = risen.pull()
    marks = {run.scope: run.watermark for run in before.scopes}
    assert {change.row: change.doc and change.doc["body"] for change in before.scopes[0].changes} == {
        row: fields["body"] for row, fields in ROWS.items()
    }
    risen.sql(f"UPDATE memos SET price = 7 WHERE id = '{note(2)}'")
    run(risen, "adopt", "memos")
    (changes,) = [run.changes for run in risen.pull(marks).scopes]
    assert [change.row for change in changes] == [note(2)]
    doc = changes[0].doc
    assert doc is not None
    assert {name: doc[name] for name in ROWS[note(2)]} == ROWS[note(2)] | {"cost": 7}
    events = risen.sql("SELECT events FROM sync_journal WHERE events LIKE '%sql%'")
    assert len(events) == 1 and "price" in events[0][0] and "content" not in events[0][0]
    assert risen.doctor().findings == {}


def test_triggers_and_indexes_work_under_the_new_names(risen: Shop) -> None:
    """What is written after a revision is reported, from its own transaction on, and uniqueness holds."""
    run(risen, "adopt", "memos")
    risen.sql(f"UPDATE memos SET content = 'else' WHERE id = '{note(1)}'")
    if risen.kind == "sqlite":
        risen.sql(
            'INSERT OR REPLACE INTO memos (id, user_id, content, body, "left", "right") '
            f"SELECT '{note(4)}', user_id, content, body, 'x', 'y' FROM memos WHERE id = '{note(3)}'"
        )
    run(risen, "adopt", "memos")
    gone = note(3) if risen.kind == "sqlite" else ""
    assert {row for row, doc in risen.feed("memos").items() if doc["content"] in {"else", "two", "three"}} == {
        note(1),
        note(2),
        note(4) if gone else note(3),
    }
    columns, values = 'id, user_id, content, body, "left", "right"', f"'{note(5)}', 'ada', 'five', 'n', 'x', 'y'"
    risen.sql(f"INSERT INTO memos ({columns}) VALUES ({values})")
    assert risen.sql(f"SELECT status, size FROM memos WHERE id = '{note(5)}'") == [("todo", 5)]
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        risen.sql(f"UPDATE memos SET content = 'else' WHERE id = '{note(2)}'")
    assert risen.doctor().findings == {}


def test_an_empty_database_comes_to_the_same(risen: Shop, another_url: str, tmp_path: Path) -> None:
    """The revisions make of nothing what they made of the tables that were there."""
    other = Shop(another_url, tmp_path, 0, AFTER)
    run(other, "migrate")
    assert in_transaction(other.url, shape)["memos"] == in_transaction(risen.url, shape)["memos"]
    sql(other.url, "DROP TABLE memos")
    sql(other.url, "DELETE FROM alembic_schema_version")
    migrate(other.url, parse(AFTER))
    assert in_transaction(other.url, shape)["memos"] == in_transaction(risen.url, shape)["memos"]


STATES = "state: {type: text, max: 9}"
ONE = declared(f"a: {{type: text, max: 9}}, {STATES}", table="unique: [[a]]")
SWAPPED = "values: {state: {on: off, off: on}}"
TWO = declared(
    f"b: {{type: text, max: 9}}, {STATES}",
    number=2,
    table="unique: [[b]]",
    more=f"changes: {{2: {{tasks: {{rename: {{a: b}}, {SWAPPED}}}}}}}",
)
THREE = declared(
    f"c: {{type: text, max: 9}}, {STATES}",
    number=3,
    table="unique: [[c]]",
    more=f"changes: {{2: {{tasks: {{rename: {{a: b}}, {SWAPPED}}}}}, "
    "3: {tasks: {rename: {b: c}, values: {state: {off: gone}}}}}",
)


def first(url: str) -> None:
    """A task at number 1."""
    migrate(url, ONE)
    add_task(url, UUID.format(1), {"a": "x", "state": "on"}, {"a": "'x'", "state": "'on'"})


def at_once(url: str, migrations: Path) -> None:
    """From 1 to 3 by one revision."""
    assert len(revision(url, THREE, migrations, "three")) == 2


def one_by_one(url: str, migrations: Path) -> None:
    """By a revision each."""
    revision(url, TWO, migrations, "two")
    migrate(url, TWO, migrations)
    assert sql(url, "SELECT b, state FROM tasks") == [("x", "off")]
    revision(url, THREE, migrations, "three")


def edited_again(url: str, migrations: Path) -> None:
    """By two, of which the second is written when the first is applied and stops short: documents are at 1 still."""
    revision(url, TWO, migrations, "two")
    with pytest.raises(Unfit, match="stop short of the declaration"):
        migrate(url, THREE, migrations)
    revision(url, THREE, migrations, "three")


@pytest.mark.parametrize("way", [at_once, one_by_one, edited_again])
def test_several_numbers_are_carried_out_whichever_way(
    database_url: str, another_url: str, tmp_path: Path, way: Callable[[str, Path], None]
) -> None:
    """Names and texts are followed from number to number, each of them once."""
    migrations = tmp_path / "migrations"
    first(database_url)
    way(database_url, migrations)
    migrate(database_url, THREE, migrations)
    assert sql(database_url, "SELECT c, state FROM tasks") == [("x", "gone")]
    assert document(database_url, UUID.format(1)) == {"id": UUID.format(1), "c": "x", "state": "gone"}
    assert check(database_url, THREE) == []
    assert revision(database_url, THREE, migrations, "nothing") == []
    migrate(another_url, THREE, migrations)
    assert in_transaction(another_url, shape) == in_transaction(database_url, shape)


def test_texts_alone_want_a_revision(database_url: str, tmp_path: Path) -> None:
    """No column differs, and yet rows and documents would say different things."""
    migrations = tmp_path / "migrations"
    texts = declared(
        f"a: {{type: text, max: 9}}, {STATES}",
        number=2,
        table="unique: [[a]]",
        more=f"changes: {{2: {{tasks: {{{SWAPPED}}}}}}}",
    )
    first(database_url)
    with pytest.raises(Unfit, match="rows of tasks hold texts of state that become others"):
        migrate(database_url, texts)
    revision(database_url, texts, migrations, "texts")
    for _ in range(2):
        migrate(database_url, texts, migrations)
        assert sql(database_url, "SELECT state FROM tasks") == [("off",)]
    assert document(database_url, UUID.format(1))["state"] == "off"


def test_a_revision_written_before_is_applied_as_it_is(database_url: str, tmp_path: Path) -> None:
    """One that says no number, whatever it does, is taken for what is declared, and nothing is done twice."""
    migrations = tmp_path / "migrations"
    first(database_url)
    migrations.mkdir()
    index = "DROP INDEX uq_tasks_workspace_id_a" + (" ON tasks" if kind_of(database_url) == "mariadb" else "")
    (migrations / "0001_by_hand.py").write_text(f"""
from alembic import op

revision = "a"
down_revision = None


def upgrade():
    op.execute("{index}")
    op.execute("ALTER TABLE tasks RENAME COLUMN a TO b")
    op.create_index("uq_tasks_workspace_id_b", "tasks", ["workspace_id", "b"], unique=True)
    op.execute("UPDATE tasks SET state = 'off'")
""")
    for _ in range(2):
        migrate(database_url, TWO, migrations)
    assert sql(database_url, "SELECT b, state FROM tasks") == [("x", "off")]
    assert document(database_url, UUID.format(1))["state"] == "off"
    assert revision(database_url, TWO, migrations, "nothing") == []


def test_a_name_that_is_taken_is_no_rename(database_url: str, tmp_path: Path) -> None:
    """Where somebody has renamed columns by hand, one to what another was called, nothing is renamed over them."""
    migrations = tmp_path / "migrations"
    first(database_url)
    after = declared(
        f"b: {{type: text, max: 9}}, a: {{type: text, max: 9}}, {STATES}, due: {{type: date, nullable: true}}",
        number=3,
        more="changes: {2: {tasks: {rename: {a: b}}}, 3: {tasks: {rename: {n: a}}}}",
    )
    sql(database_url, "DROP INDEX uq_tasks_workspace_id_a" + " ON tasks" * (kind_of(database_url) == "mariadb"))
    sql(database_url, "ALTER TABLE tasks RENAME COLUMN a TO b")
    sql(database_url, "ALTER TABLE tasks ADD COLUMN a VARCHAR(9) DEFAULT 'new' NOT NULL")
    revision(database_url, after, migrations, "due")
    migrate(database_url, after, migrations)
    assert sql(database_url, "SELECT b, a, due FROM tasks") == [("x", "new", None)]
