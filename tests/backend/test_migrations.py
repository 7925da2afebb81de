"""Migrations: what they make equals the metadata, and changed declarations reach tables and documents (SPEC 10)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tests.conformance.declared import DECLARATION
from tests.servers import MariadbServer
from tidemark.store.base import Unfit
from tidemark.store.schema.difference import difference
from tidemark.store.schema.documents import Shape, changes
from tidemark.store.schema.fit import claim, is_mysql, sqlite_path
from tidemark.store.schema.migrate import _in_transaction as in_transaction
from tidemark.store.schema.migrate import check, migrate, revision
from tidemark.store.schema.tables import metadata_for
from tidemark_protocol.model import Declaration
from tidemark_protocol.schema import parse

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    path
    for path in sorted((ROOT / "examples").glob("*/schema.yaml"))
    if not any(entity.adopted for entity in parse(path.read_text()).entities.values())
]
UUID = "0192f3a4-b5c6-7000-8000-00000000000{}"


def declared(fields: str, *, number: int = 1, more: str = "", table: str = "") -> Declaration:
    """One entity `tasks` of workspaces with these fields."""
    return parse(f"""
schema: {number}
scopes: {{workspace: {{roles: {{editor: write}}}}}}
{more}
entities:
  tasks:
    {table}
    scope: workspace
    fields: {{{fields}}}
""")


def unique_title(limit: str) -> Declaration:
    """The same with one unique text of this limit."""
    return declared(f"title: {{type: text, {limit}}}", table="unique: [[title]]")


def sql(url: str, statement: str) -> list[Any]:
    """Run one statement; the rows it gives."""

    def work(connection: Connection) -> list[Any]:
        result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []

    return in_transaction(url, work)


def shape(connection: Connection) -> dict[str, Any]:
    """All that a database says of its tables, in an order that does not tell how they came to be."""
    inspector = sa.inspect(connection)
    return {
        name: {
            "columns": {
                c["name"]: (str(c["type"]), getattr(c["type"], "collation", None), c["nullable"], c["default"])
                for c in inspector.get_columns(name)
            },
            "key": inspector.get_pk_constraint(name)["constrained_columns"],
            "indexes": {
                str(i["name"]): (
                    i["column_names"],
                    bool(i["unique"]),
                    {option: str(value) for option, value in i.get("dialect_options", {}).items()},
                )
                for i in inspector.get_indexes(name)
            },
            "checks": {str(c["name"]): c["sqltext"] for c in inspector.get_check_constraints(name)},
        }
        for name in inspector.get_table_names()
        if not name.startswith("alembic_")
    }


def add_task(url: str, row: str, doc: dict[str, Any], columns: dict[str, str], clocks: str = "") -> None:
    """A live task as the service would have stored it; `columns` hold SQL."""
    stamp = "'2026-01-01 00:00:00.000000'" if is_mysql(url) else "'2026-01-01T00:00:00.000000Z'"
    cells = {"id": f"'{row}'", "workspace_id": "'7'", "created_at": stamp, "updated_at": stamp, **columns}
    sql(url, f"INSERT INTO tasks ({', '.join(cells)}) VALUES ({', '.join(cells.values())})")
    sql(
        url,
        'INSERT INTO sync_feed (entity, "row", scope, version, deleted, doc, root, clocks, arrived, residue) VALUES '
        f"('tasks', '{row}', 'workspace:7', 1, false, '{json.dumps({'id': row, **doc})}', 'r', '{clocks}', 1, false)",
    )


def document(url: str, row: str) -> dict[str, Any]:
    """A task's document in the feed."""
    found = sql(url, f"SELECT doc FROM sync_feed WHERE \"row\" = '{row}'")
    doc: dict[str, Any] = json.loads(found[0][0])
    return doc


@pytest.fixture(params=["declared", *(path.parent.name for path in EXAMPLES)])
def declaration(request: pytest.FixtureRequest) -> Declaration:
    """A declaration with every type and kind of key, then the examples."""
    if request.param == "declared":
        return DECLARATION
    return parse((ROOT / "examples" / request.param / "schema.yaml").read_text())


@pytest.fixture
def another_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """A second empty database of the same kind."""
    if database_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'another.db'}"
    server = "mariadb_server" if is_mysql(database_url) else "postgres_server"
    url: str = request.getfixturevalue(server).create_database()
    return url


@pytest.fixture
def another_mariadb_url(mariadb_server: MariadbServer) -> str:
    """A second empty database of MariaDB."""
    return mariadb_server.create_database()


def test_an_upgraded_database_equals_the_metadata(
    database_url: str, another_url: str, declaration: Declaration
) -> None:
    """Migrations of an empty database make just what the metadata makes, to the last index and check."""
    migrate(database_url, declaration)
    in_transaction(another_url, metadata_for(declaration).create_all)
    assert in_transaction(database_url, shape) == in_transaction(another_url, shape)
    left = in_transaction(database_url, lambda connection: difference(connection, declaration))
    assert left == ([], [], [], [])


def test_revisions_lead_to_the_metadata(
    database_url: str, another_url: str, declaration: Declaration, tmp_path: Path
) -> None:
    """A revision written from an empty database makes the same tables in another."""
    migrations = tmp_path / "migrations"
    assert len(revision(another_url, declaration, migrations, "first tables")) == 1
    migrate(database_url, declaration, migrations)
    assert check(database_url, declaration) == []
    migrate(another_url, declaration)
    assert in_transaction(database_url, shape) == in_transaction(another_url, shape)


def test_migrating_again_changes_nothing(database_url: str) -> None:
    """Migrations run at every start, and find nothing to do."""
    assert check(database_url, DECLARATION)
    migrate(database_url, DECLARATION)
    before = in_transaction(database_url, shape)
    migrate(database_url, DECLARATION)
    assert in_transaction(database_url, shape) == before
    assert check(database_url, DECLARATION) == []


BEFORE = declared("title: {type: text, max: 50}, status: {type: enum, values: [todo, done, ':z'], default: todo}")
AFTER = declared(
    "title: {type: text, max: 80}, status: {type: enum, values: [todo, doing, done, ':z'], default: todo}, "
    "color: {type: text, default: 'blue :x'}, budget: {type: decimal, precision: 8, scale: 2, default: '1.50'}, "
    "due: {type: datetime, nullable: true}, labels: {type: map}, done: {type: boolean, default: false}",
    number=2,
)
ADDED: dict[str, Any] = {"color": "blue :x", "budget": "1.50", "due": None, "labels": {}, "done": False}


def test_additions_reach_tables_and_documents(database_url: str, another_url: str) -> None:
    """New fields, wider texts and more enum values come by difference; documents get the defaults, versions stay."""
    migrate(database_url, BEFORE)
    add_task(database_url, UUID.format(1), {"title": "a", "status": "done"}, {"title": "'a'", "status": "'done'"})
    assert check(database_url, AFTER)
    migrate(database_url, AFTER)
    assert check(database_url, AFTER) == []
    assert document(database_url, UUID.format(1)) == {"id": UUID.format(1), "title": "a", "status": "done", **ADDED}
    assert sql(database_url, "SELECT version, root, title FROM sync_feed, tasks") == [(1, "r", "a")]
    migrate(another_url, AFTER)
    assert in_transaction(database_url, shape) == in_transaction(another_url, shape)


def test_the_first_revision_of_a_used_database_makes_its_tables_too(
    database_url: str, another_url: str, tmp_path: Path
) -> None:
    """Who starts with revisions late gets two: the tables as they were, and the change; an empty database follows."""
    migrations = tmp_path / "migrations"
    migrate(database_url, BEFORE)
    add_task(database_url, UUID.format(1), {"title": "a", "status": "done"}, {"title": "'a'", "status": "'done'"})
    written = revision(database_url, AFTER, migrations, "more fields")
    assert [path.name for path in written] == ["0001_tables_as_they_were.py", "0002_more_fields.py"]
    for url in (database_url, another_url):
        migrate(url, AFTER, migrations)
        assert check(url, AFTER) == []
    assert document(database_url, UUID.format(1))["color"] == "blue :x"
    assert in_transaction(database_url, shape) == in_transaction(another_url, shape)
    assert revision(database_url, AFTER, migrations, "nothing") == []


def test_a_revision_wants_the_database_at_the_latest(database_url: str, another_url: str, tmp_path: Path) -> None:
    """A difference is taken from a database that has all revisions so far."""
    migrations = tmp_path / "migrations"
    for url in (database_url, another_url):
        migrate(url, BEFORE)
    revision(database_url, AFTER, migrations, "more fields")
    with pytest.raises(Unfit, match="migrate it first"):
        revision(another_url, AFTER, migrations, "again")


def test_revisions_that_stop_short_are_applied_and_the_next_can_be_written(database_url: str, tmp_path: Path) -> None:
    """A declaration edited again before its revision was run leads to one more revision, not to a dead end."""
    migrations = tmp_path / "migrations"
    revision(database_url, BEFORE, migrations, "tasks")
    with pytest.raises(Unfit, match=r"stop short of the declaration \(not as declared: tasks\)"):
        migrate(database_url, AFTER, migrations)
    assert "tasks" in in_transaction(database_url, shape)
    assert revision(database_url, AFTER, migrations, "more fields")
    migrate(database_url, AFTER, migrations)
    assert check(database_url, AFTER) == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("title: {type: text, max: 50}", "status is not declared any more"),
        ("title: {type: text, max: 9}, status: {type: enum, values: [todo, done], default: todo}", "title changes"),
        ("title: {type: text, max: 50}, status: {type: enum, values: [todo], default: todo}", "not declared any more"),
        (
            "title: {type: text}, status: {type: enum, values: [todo, done], default: todo}, due: {type: date}",
            "due needs a default or nullable",
        ),
    ],
)
def test_what_would_lose_data_wants_a_revision(
    database_url: str, fields: str, reason: str, request: pytest.FixtureRequest
) -> None:
    """A difference that drops, narrows or cannot fill is refused with its reason, and nothing is done."""
    if "title changes" in reason and database_url.startswith("sqlite"):
        return  # SQLite's texts have no length
    migrate(database_url, BEFORE)
    add_task(database_url, UUID.format(1), {"title": "a", "status": "done"}, {"title": "'a'", "status": "'done'"})
    before = in_transaction(database_url, shape)
    with pytest.raises(Unfit, match=reason):
        migrate(database_url, declared(fields, number=2))
    assert in_transaction(database_url, shape) == before


def test_a_required_field_comes_to_an_empty_table(database_url: str) -> None:
    """Without rows there is nothing to fill."""
    migrate(database_url, BEFORE)
    after = declared(
        "title: {type: text, max: 50}, status: {type: enum, values: [todo, done], default: todo}, due: {type: date}"
    )
    migrate(database_url, after)
    assert check(database_url, after) == []


def test_a_rename_goes_through_a_revision(database_url: str, tmp_path: Path) -> None:
    """A developer's revision moves the column; documents and clocks follow the declared changes."""
    migrations = tmp_path / "migrations"
    before = declared(
        "name: {type: text}, status: {type: enum, values: [open, todo], default: todo}, old: {type: json}"
    )
    after = declared(
        "title: {type: text}, status: {type: enum, values: [open, todo], default: todo}, size: {type: integer}",
        number=2,
        more="changes: {2: {tasks: {rename: {name: title}, remove: [old], values: {status: {open: todo}}}}}",
    )
    migrate(database_url, before)
    add_task(
        database_url,
        UUID.format(1),
        {"name": "a", "status": "open", "old": 1},
        {"name": "'a'", "status": "'open'", "old": "'1'"},
        clocks='{"name": "c1", "old": "c2"}',
    )
    migrations.mkdir()
    (migrations / "0001_title.py").write_text("""
from alembic import op

revision = "a"
down_revision = None


def upgrade():
    op.execute("ALTER TABLE tasks RENAME COLUMN name TO title")
    op.execute("ALTER TABLE tasks DROP COLUMN old")
    op.execute("UPDATE tasks SET status = 'todo'")
    op.execute("ALTER TABLE tasks ADD COLUMN size BIGINT NOT NULL DEFAULT 0")
    op.execute("UPDATE tasks SET size = length(title)")
""")
    migrate(database_url, after, migrations)
    assert document(database_url, UUID.format(1)) == {
        "id": UUID.format(1),
        "title": "a",
        "status": "todo",
        "size": 1,
    }
    assert json.loads(sql(database_url, "SELECT clocks FROM sync_feed")[0][0]) == {"title": "c1"}


def test_several_numbers_are_converted_at_once() -> None:
    """Documents that stand some numbers back follow every rename, and their texts every change on the way."""
    after = declared(
        "title: {type: text}, state: {type: text}",
        number=3,
        more="changes: {2: {tasks: {rename: {name: label}, values: {status: {open: todo}}}},"
        " 3: {tasks: {rename: {label: title, status: state}, values: {state: {todo: planned}, title: {a: b}}}}}",
    )
    ((_, change),) = changes(Shape(1, {"tasks": ["name", "status", "old"]}), after)
    assert change.rename == {"name": "title", "status": "state"}
    assert change.values == {"title": {"a": "b"}, "state": {"open": "planned", "todo": "planned"}}
    assert change.removed == {"old"} and not change.added
    ((_, change),) = changes(Shape(2, {"tasks": ["label", "status"]}), after)
    assert change.values["state"] == {"todo": "planned"}


@pytest.mark.parametrize(
    ("ddl", "reason"),
    [
        (None, "table orders of tasks is missing"),
        ("CREATE TABLE orders (id UUID PRIMARY KEY, workspace_id TEXT)", "has no column title"),
        ("CREATE TABLE orders (id UUID, workspace_id TEXT, title TEXT)", "neither a primary key nor a unique index"),
        ("CREATE TABLE orders (id UUID PRIMARY KEY, workspace_id TEXT, title TEXT)", None),
    ],
)
def test_an_adopted_table_is_checked_and_left_alone(database_url: str, ddl: str | None, reason: str | None) -> None:
    """A table named by `table:` is neither made nor altered; what it lacks keeps the service from starting."""
    adopted = declared("title: {type: text, nullable: true}", table="table: orders")
    if ddl is not None:
        sql(database_url, ddl)
    before = in_transaction(database_url, shape)
    migrate(database_url, adopted)
    after = in_transaction(database_url, shape)
    assert {name: after[name] for name in before} == before
    assert ("orders" in after) == (ddl is not None)
    found = check(database_url, adopted)
    assert found == [] if reason is None else reason in found[0]


def test_adopted_columns_must_hold_what_is_declared(postgresql_url: str) -> None:
    """On PostgreSQL the types are looked at: a column that rounds or is of another kind is refused."""
    adopted = declared("price: {type: decimal, precision: 8, scale: 2}, day: {type: date}", table="table: orders")
    sql(
        postgresql_url,
        "CREATE TABLE orders (id uuid PRIMARY KEY, workspace_id text, price numeric(8, 1), day timestamptz)",
    )
    migrate(postgresql_url, adopted)
    assert [reason.split(",")[0] for reason in check(postgresql_url, adopted)] == [
        "column orders.day is TIMESTAMP",
        "column orders.price rounds to 1 digits after the point",
    ]


def test_adopted_columns_of_mariadb_must_hold_what_is_declared(mariadb_url: str) -> None:
    """So they are on MariaDB: a set or bytes are refused, its own spellings of a boolean, a map and an enum are not."""
    adopted = declared(
        "price: {type: decimal, precision: 8, scale: 2}, open: {type: boolean}, labels: {type: map}, size: {type: text}"
        ", state: {type: enum, values: [a, b]}, share: {type: number}, token: {type: uuid}, day: {type: date}",
        table="table: orders",
    )
    sql(
        mariadb_url,
        "CREATE TABLE orders (id CHAR(36) PRIMARY KEY, workspace_id TEXT, price DECIMAL(8, 1), open BOOLEAN, "
        "labels JSON, size SET ('a', 'b'), state ENUM ('a', 'b'), share DOUBLE, token BINARY(16), day DATE)",
    )
    migrate(mariadb_url, adopted)
    assert [reason.split(",")[0] for reason in check(mariadb_url, adopted)] == [
        "column orders.size is SET",
        "column orders.token is BINARY(16)",
        "column orders.price rounds to 1 digits after the point",
    ]


def test_a_migration_of_mariadb_that_was_cut_off_can_be_run_again(mariadb_url: str, another_mariadb_url: str) -> None:
    """Where statements that make tables stand alone, whatever came first is passed over by the second attempt."""
    migrate(another_mariadb_url, DECLARATION)
    migrate(mariadb_url, DECLARATION)
    for statement in (
        "DELETE FROM alembic_sync_version",
        "DROP TABLE sync_member",
        "DROP INDEX ix_sync_feed_version ON sync_feed",
        "ALTER TABLE notes DROP COLUMN labels",
        "DROP TABLE tags",
    ):
        sql(mariadb_url, statement)
    assert check(mariadb_url, DECLARATION)
    migrate(mariadb_url, DECLARATION)
    assert in_transaction(mariadb_url, shape) == in_transaction(another_mariadb_url, shape)


def test_migrations_of_mariadb_run_one_at_a_time(mariadb_url: str) -> None:
    """Processes that start together on an empty database come to the same tables."""
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: migrate(mariadb_url, DECLARATION), range(3)))
    assert check(mariadb_url, DECLARATION) == []


def test_texts_of_mariadb_are_told_apart_by_every_byte(mariadb_url: str) -> None:
    """Case, accents and trailing blanks count in unique texts, whatever the database's own collation says."""
    migrate(mariadb_url, DECLARATION)
    names = ["Work", "work", "Work ", "W\N{LATIN SMALL LETTER O WITH DIAERESIS}rk"]
    for number, name in enumerate(names):
        sql(
            mariadb_url,
            "INSERT INTO names (id, workspace_id, name, created_at, updated_at) "
            f"VALUES ('{UUID.format(number)}', '7', '{name}', UTC_TIMESTAMP(), UTC_TIMESTAMP())",
        )
    assert sql(mariadb_url, "SELECT id FROM names WHERE name = 'Work'") == [(UUID.format(0),)]
    with pytest.raises(Unfit, match="Duplicate entry"):
        sql(mariadb_url, f"UPDATE names SET name = 'Work' WHERE id = '{UUID.format(1)}'")


def test_a_unique_text_too_long_for_an_index_of_mariadb_is_refused(mariadb_url: str) -> None:
    """Which declared length is too much is said before anything is made; without one the text gets what there is."""
    wide = unique_title("max: 641")
    with pytest.raises(Unfit, match="unique title of tasks take more than the 3072 bytes"):
        migrate(mariadb_url, wide)
    assert sql(mariadb_url, "SHOW TABLES") == []
    for fits in ("max: 640", "min: 1"):
        migrate(mariadb_url, unique_title(fits))
    assert check(mariadb_url, unique_title("min: 1")) == []


def test_migrating_a_served_file_is_refused(tmp_path: Path) -> None:
    """SQLite has one process: migrations do not touch a file that a service holds."""
    url = f"sqlite:///{tmp_path / 'tidemark.db'}"
    with claim(Path(sqlite_path(url))), pytest.raises(Unfit, match="in use by another process"):
        migrate(url, DECLARATION)


def test_checking_makes_nothing(tmp_path: Path) -> None:
    """Asking what a file lacks does not make the file."""
    path = tmp_path / "tidemark.db"
    assert "does not exist" in check(f"sqlite:///{path}", DECLARATION)[0]
    assert not path.exists()
