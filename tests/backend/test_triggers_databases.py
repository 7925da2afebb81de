"""Triggers where one database differs from the others: rights, bulk statements, partitions, and odd writers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tests.backend.trigger_world import DECLARATION, THREE, Writer, kinds, set_up
from tests.servers import MariadbServer, PostgresServer
from tidemark.store.base import UNIT, Unavailable
from tidemark.store.schema import triggers
from tidemark.store.schema.migrate import check, migrate


@pytest.fixture
def postgresql(postgresql_url: str) -> Writer:
    """A writer of PostgreSQL."""
    return set_up(postgresql_url)


@pytest.fixture
def mariadb(mariadb_url: str) -> Writer:
    """A writer of MariaDB."""
    return set_up(mariadb_url)


@pytest.fixture
def sqlite_url(tmp_path: object) -> str:
    """A file that is not there yet."""
    return f"sqlite:///{tmp_path}/tidemark.db"


@pytest.fixture
def role(postgresql: Writer, postgres_server: PostgresServer) -> Iterator[str]:
    """A role of PostgreSQL that may write the tables, and nothing of ours."""
    name = f"writer_{uuid4().hex}"
    postgresql.sql(
        f"CREATE ROLE {name}",
        f'GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON "Orders", parts, tasks TO {name}',
        f"GRANT CREATE, TEMPORARY ON DATABASE {postgresql.url.rpartition('/')[2]} TO {name}",
    )
    yield name
    postgres_server.sql(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}", postgresql.url.rpartition("/")[2])


def test_a_writer_needs_no_rights_on_the_inbox(postgresql: Writer, role: str) -> None:
    """A role that cannot read or write what is ours writes its tables as ever, and is named."""
    as_role = f"SET SESSION AUTHORIZATION {role}"
    with pytest.raises(Exception, match="permission denied"):
        postgresql.sql(as_role, "SELECT * FROM sync_inbox")
    postgresql.sql(as_role, THREE, "UPDATE \"Orders\" SET order_key = 'z' WHERE n = 1", 'TRUNCATE "Orders"')
    assert {who for (who,) in postgresql.sql("SELECT who FROM sync_inbox")} == {role}
    assert [identity for _, identity in postgresql.inbox()] == ["a", "a", "b", "b", "c", "c", "z", "z"]


def test_nobody_else_may_use_our_functions(postgresql: Writer, role: str) -> None:
    """What a trigger of ours calls, no trigger of another table may."""
    ((function,),) = postgresql.sql("SELECT proname FROM pg_proc WHERE proname LIKE 'tidemark_orders_delete_%'")
    with pytest.raises(Exception, match="permission denied for function"):
        postgresql.sql(
            f"SET SESSION AUTHORIZATION {role}",
            "CREATE TEMPORARY TABLE bait (order_key text)",
            f"CREATE TRIGGER bite AFTER DELETE ON bait REFERENCING OLD TABLE AS old_rows EXECUTE FUNCTION {function}()",
        )


HOSTILE = [
    "CREATE SCHEMA evil",
    *(
        f"CREATE FUNCTION evil.{signature} LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'evil ran'; END $$"
        for signature in (
            "concat_ws(text, text, text, text) RETURNS text",
            "chr(integer) RETURNS text",
            "floor(numeric) RETURNS numeric",
            "clock_timestamp() RETURNS timestamptz",
            "current_setting(text, boolean) RETURNS text",
            "joined(text, text) RETURNS text",
        )
    ),
    "CREATE OPERATOR evil.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.joined)",
    "CREATE TEMPORARY TABLE sync_inbox (entity text, identity text, captured_at bigint, who text)",
    "CREATE TEMPORARY TABLE new_rows (workspace_id text, kind text, number bigint)",
    "CREATE TEMPORARY TABLE old_rows (workspace_id text, kind text, number bigint)",
    "SET search_path = evil, pg_temp, pg_catalog, public",
]


def test_a_search_path_does_not_mislead_triggers(postgresql: Writer, role: str) -> None:
    """Functions, operators and tables that a writer puts in front of ours are not used with our rights."""
    left = postgresql.sql(
        f"SET SESSION AUTHORIZATION {role}",
        *HOSTILE,
        "INSERT INTO public.parts (workspace_id, kind, number) VALUES ('7', 'x', 1)",
        "UPDATE public.parts SET number = 2",
        "TRUNCATE public.parts",
        "SELECT identity FROM pg_temp.sync_inbox",
    )
    assert left == []
    one, two = (UNIT.join(("7", "x", number)) for number in "12")
    assert postgresql.inbox() == [("parts", identity) for identity in (one, one, two, two)]


def test_bulk_statements_report_every_row(postgresql: Writer) -> None:
    """COPY and TRUNCATE, which no trigger of rows sees, report the rows that they load and remove."""
    program = r"seq 1 500 | sed s/.*/\&,k\&,t,\&/"
    keys = sorted(f"k{number}" for number in range(1, 501))
    assert postgresql.orders(f"COPY \"Orders\" FROM PROGRAM '{program}' (FORMAT csv)") == keys
    assert postgresql.orders('TRUNCATE "Orders"') == keys


def test_own_writes_are_reported_only_below_triggers_of_others(postgresql: Writer) -> None:
    """In a session of ours, what it writes is not reported; what another program's trigger writes in it, is."""
    postgresql.sql(
        "CREATE FUNCTION chained() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO parts (workspace_id, kind, "
        "number) VALUES ('7', NEW.order_key, NEW.n); RETURN NULL; END $$",
        'CREATE TRIGGER chained AFTER INSERT ON "Orders" FOR EACH ROW EXECUTE FUNCTION chained()',
    )
    postgresql.sql("SET tidemark.own = 'on'", "INSERT INTO \"Orders\" VALUES (1, 'a', 't', 1)", 'DELETE FROM "Orders"')
    assert postgresql.inbox() == [("parts", UNIT.join(("7", "a", "1")))]


def test_triggers_fire_for_sessions_that_switch_ordinary_ones_off(postgresql: Writer) -> None:
    """Programs that load data often do so as if they were replicas; their rows are reported all the same."""
    assert postgresql.orders("SET session_replication_role = replica", THREE) == ["a", "b", "c"]


def test_a_trigger_that_was_switched_off_is_made_anew(postgresql: Writer) -> None:
    """Start is refused; migrating switches it on, and reports the rows that may have been missed."""
    postgresql.sql('ALTER TABLE "Orders" DISABLE TRIGGER ALL', THREE)
    assert kinds(postgresql) == {"disabled"}
    assert "switched off" in check(postgresql.url, DECLARATION)[0]
    migrate(postgresql.url, DECLARATION)
    assert check(postgresql.url, DECLARATION) == []
    assert [identity for _, identity in postgresql.inbox()] == ["a", "b", "c"]


def test_keys_that_their_collation_calls_equal_are_two(postgresql: Writer) -> None:
    """A key may change to one that its column takes for the same."""
    postgresql.sql(
        "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        'ALTER TABLE "Orders" ALTER order_key TYPE varchar(700) COLLATE blind',
    )
    postgresql.orders("INSERT INTO \"Orders\" (n, order_key) VALUES (1, 'a')")
    assert postgresql.orders("UPDATE \"Orders\" SET order_key = 'A'") == ["A", "a"]


def test_a_table_held_for_long_does_not_hold_up_its_writers(
    postgresql: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making triggers gives up on a table that a transaction keeps: others wait behind whoever waits for it."""
    monkeypatch.setitem(triggers._PATIENCE, "postgresql", "SET LOCAL lock_timeout = '50ms'")
    postgresql.do(lambda connection: triggers.remove(connection, "orders"))
    held, done = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        connection.execute(sa.text(THREE))
        held.set()
        assert done.wait(30)

    other = threading.Thread(target=postgresql.do, args=[hold])
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(Unavailable, match="holds a captured table"):
            migrate(postgresql.url, DECLARATION)
    finally:
        done.set()
        other.join()
    migrate(postgresql.url, DECLARATION)
    assert [identity for _, identity in postgresql.inbox()] == ["a", "b", "c"]


def test_making_triggers_ends_no_transaction_of_mariadb(mariadb: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that has read a table goes on to write it while triggers are waiting to be made."""
    waiting = threading.Event()
    monkeypatch.setattr(triggers, "sleep", lambda _: waiting.set())
    mariadb.do(lambda connection: triggers.remove(connection, "orders"))
    making = threading.Thread(target=migrate, args=[mariadb.url, DECLARATION])

    def shop(connection: Connection) -> None:
        connection.execute(sa.text('SELECT * FROM "Orders"'))
        making.start()
        assert waiting.wait(30)
        connection.execute(sa.text(THREE))

    try:
        mariadb.do(shop)
    finally:
        making.join()
    assert kinds(mariadb) == set()
    assert [identity for _, identity in mariadb.inbox()] == ["a", "b", "c"]


PARTITIONED = [
    'CREATE TABLE "Orders" (order_key text PRIMARY KEY, tenant text, total bigint) PARTITION BY RANGE (order_key)',
    "CREATE TABLE early PARTITION OF \"Orders\" FOR VALUES FROM ('a') TO ('h') PARTITION BY LIST (order_key)",
    "CREATE TABLE earliest PARTITION OF early FOR VALUES IN ('a', 'b')",
    "CREATE TABLE middle PARTITION OF \"Orders\" FOR VALUES FROM ('h') TO ('p')",
]
LATER = "CREATE TABLE late PARTITION OF \"Orders\" FOR VALUES FROM ('p') TO ('z')"


def test_writes_to_partitions_are_reported_by_whatever_name(postgresql_url: str) -> None:
    """Of the table, of a partition, of one within it, and of one that was made after the triggers."""
    writer = set_up(postgresql_url, *PARTITIONED)
    writer.sql(LATER)
    assert check(postgresql_url, DECLARATION) == []
    assert writer.orders("INSERT INTO \"Orders\" VALUES ('a'), ('i'), ('q')") == ["a", "i", "q"]
    assert writer.orders("INSERT INTO early VALUES ('b')", "INSERT INTO late VALUES ('r')") == ["b", "r"]
    assert writer.orders("UPDATE earliest SET total = 1 WHERE order_key = 'a'") == ["a"]
    assert set(writer.orders("UPDATE \"Orders\" SET order_key = 'k' WHERE order_key = 'b'")) == {"b", "k"}
    assert writer.orders("DELETE FROM late WHERE order_key = 'q'") == ["q"]
    assert writer.orders("TRUNCATE middle") == ["i", "k"]
    assert set(writer.orders('TRUNCATE "Orders"')) == {"a", "r"}


def test_a_later_partition_wants_one_more_trigger(postgresql_url: str) -> None:
    """A TRUNCATE by the name of a new partition is reported once migrated; until then that does not stop a start."""
    writer = set_up(postgresql_url, *PARTITIONED)
    writer.sql(LATER, "INSERT INTO late VALUES ('q')")
    assert kinds(writer) == {"partition"}
    assert writer.inbox() == [("orders", "q")]
    migrate(postgresql_url, DECLARATION)
    assert kinds(writer) == set() and writer.inbox() == []
    assert writer.orders("TRUNCATE late") == ["q"]
    writer.do(lambda connection: triggers.remove(connection, "orders"))
    assert writer.orders("INSERT INTO late VALUES ('q')", "TRUNCATE late") == []


def test_a_user_without_rights_on_the_inbox_writes_as_ever(mariadb: Writer, mariadb_server: MariadbServer) -> None:
    """A trigger of MariaDB runs with the rights of who made it, and names who wrote."""
    name, database = f"w{uuid4().hex[:20]}", mariadb.url.rpartition("/")[2]
    mariadb_server.sql(f"CREATE USER {name}@127.0.0.1 IDENTIFIED BY 'secret'")
    mariadb_server.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.`Orders` TO {name}@127.0.0.1")
    other = Writer(mariadb.url.replace("root@", f"{name}:secret@"))
    with pytest.raises(Exception, match="denied"):
        other.sql("SELECT * FROM sync_inbox")
    other.sql(THREE, "UPDATE \"Orders\" SET order_key = 'z' WHERE n = 1", 'DELETE FROM "Orders"')
    assert {who for (who,) in mariadb.sql("SELECT who FROM sync_inbox")} == {f"{name}@127.0.0.1"}
    assert [identity for _, identity in mariadb.inbox()] == ["a", "a", "b", "b", "c", "c", "z", "z"]
    mariadb_server.sql(f"DROP USER {name}@127.0.0.1")


def test_triggers_stand_beside_those_of_the_owner(mariadb: Writer) -> None:
    """A table may have triggers of its own for the same events, which change what is written."""
    mariadb.sql(
        'CREATE TRIGGER shouting BEFORE INSERT ON "Orders" FOR EACH ROW SET NEW.order_key = UPPER(NEW.order_key)',
        'CREATE TRIGGER counting AFTER INSERT ON "Orders" FOR EACH ROW SET @count = 1',
    )
    assert mariadb.orders(THREE) == ["A", "B", "C"]
    assert mariadb.orders(f"REPLACE {THREE.removeprefix('INSERT')}") == ["A", "A", "B", "B", "C", "C"]
    assert kinds(mariadb) == set()


@pytest.mark.parametrize("strict", [True, False])
def test_bytes_that_are_no_text_do_not_fail_a_write(mariadb_url: str, strict: bool) -> None:
    """Whatever a key's column holds, and however strict its writer is, the inbox takes it."""
    writer = Writer(mariadb_url)
    writer.sql('CREATE TABLE "Orders" (order_key VARBINARY(20) PRIMARY KEY, tenant VARCHAR(9) CHARACTER SET latin1)')
    migrate(mariadb_url, DECLARATION)
    mode = "SET SESSION sql_mode = 'ANSI_QUOTES" + (",STRICT_ALL_TABLES'" if strict else "'")
    writer.sql(mode, "INSERT INTO \"Orders\" VALUES (x'ff00fe', x'e9'), (x'c3a9', '')")
    assert writer.sql('SELECT COUNT(*) FROM "Orders"') == [(2,)]
    found = writer.orders("SET @done = 1")
    assert len(found) == 2 and "é" in found


UNIQUE_TOTAL = (
    'CREATE TABLE "Orders" (n INTEGER PRIMARY KEY, order_key TEXT COLLATE NOCASE UNIQUE, tenant TEXT, total UNIQUE)'
)


def test_rows_that_a_replacement_removes_are_reported(sqlite_url: str) -> None:
    """SQLite calls no delete trigger for what OR REPLACE removes: it is reported before."""
    writer = set_up(sqlite_url, UNIQUE_TOTAL)
    assert writer.orders(THREE) == ["a", "b", "c"]
    assert writer.orders("INSERT OR REPLACE INTO \"Orders\" VALUES (4, 'd', 't', 2)") == ["b", "d"]
    assert writer.orders("REPLACE INTO \"Orders\" VALUES (1, 'e', 't', 9)") == ["a", "e"]
    assert writer.orders("REPLACE INTO \"Orders\" VALUES (7, 'E', 't', 9)") == ["E", "e"]
    assert writer.orders("UPDATE OR REPLACE \"Orders\" SET total = 9 WHERE order_key = 'c'") == ["E", "c"]
    assert writer.sql('SELECT order_key FROM "Orders" ORDER BY n') == [("c",), ("d",)]
    assert writer.orders('UPDATE "Orders" SET tenant = order_key') == ["c", "d"]


def test_any_value_may_be_a_key(sqlite_url: str) -> None:
    """SQLite keeps anything in any column: what is no text or number is spelled so that it can be read."""
    writer = set_up(sqlite_url, UNIQUE_TOTAL)
    rows = "(1, NULL, 't', 1), (2, x'ff', 't', 2), (3, 7, 't', 3), (4, 1.5, 't', 4)"
    assert writer.orders(f'INSERT INTO "Orders" VALUES {rows}') == ["", "1.5", "7", "X'FF'"]
    writer.do(lambda connection: triggers.remove(connection, "orders"))
    migrate(sqlite_url, DECLARATION)
    assert [identity for _, identity in writer.inbox()] == ["1.5", "7"]
