"""`tidemark doctor`: each finding provoked for real, and what `--repair` makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from tests.backend.shop import Shop, note
from tests.servers import MariadbServer, TidemarkServer
from tidemark.store import health, settings_health
from tidemark.store.schema.migrate import beside

HOUR = 3_600_000


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Shop:
    """A shop with 30 orders, adopted."""
    return Shop(database_url, tmp_path, 30).prepared()


@pytest.fixture
def postgres_shop(postgresql_url: str, tmp_path: Path) -> Shop:
    """The same on PostgreSQL."""
    return Shop(postgresql_url, tmp_path, 30).prepared()


# ── what is well ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_healthy_database(shop: Shop) -> None:
    """Nothing is found, every row was compared, and the exit code is 0."""
    shop.write_notes(3)
    found = shop.doctor()
    assert (found.code, found.findings) == (0, {})
    assert found.entities["orders"]["rows"] == 30
    assert found.entities["notes"]["rows"] == 3
    assert shop.run("doctor").output.endswith("healthy\n")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_beside_a_service(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A running service is no hindrance; what differs is repaired through it."""
    url = f"sqlite:///{tmp_path / 't.db'}" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    shop = Shop(url, tmp_path, 30).prepared()
    with TidemarkServer(shop.schema, url, migrate=False):
        assert shop.doctor().code == 0
        shop.silence()
        shop.sql("UPDATE shop_orders SET customer = 'somebody' WHERE order_key = 'o1'")
        assert shop.doctor().code == 2
        assert shop.doctor("--repair").code == 0
        assert shop.feed()["o1"]["customer"] == "somebody"
        assert shop.doctor().findings == {}


def test_nothing_differs_while_everybody_writes(database_url: str, tmp_path: Path) -> None:
    """Rows that another program changes and the service takes in during the sweep are never called different."""
    shop = Shop(database_url, tmp_path, 2_500).prepared()
    with TidemarkServer(shop.schema, database_url, migrate=False), shop.written_to(2_500) as written:
        for _ in range(3):
            found = shop.doctor()
            assert "rows_differ" not in found, found
            assert found.code == 0, found
        assert written.wait(30)


# ── triggers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_trigger(shop: Shop) -> None:
    """A dropped trigger is a fault; it is made again, and what was written meanwhile is taken."""
    for name in shop.triggers():
        shop.sql(f"DROP TRIGGER {name}{' ON shop_orders' if shop.kind == 'postgresql' else ''}")
    shop.sql("UPDATE shop_orders SET customer = 'somebody' WHERE order_key = 'o1'")
    found = shop.doctor()
    assert found.code == 2
    assert "shop_orders" in found["trigger_missing"]["message"]
    assert "rows_differ" in found
    repaired = shop.doctor("--repair")
    assert repaired.code == 0, repaired
    assert shop.doctor().findings == {}
    assert shop.feed()["o1"]["customer"] == "somebody"


def test_a_disabled_trigger(postgres_shop: Shop) -> None:
    """A trigger that is switched off is a fault, and is switched on again."""
    postgres_shop.silence()
    assert "switched off" in postgres_shop.doctor()["trigger_disabled"]["message"]
    assert postgres_shop.doctor("--repair").code == 0
    assert postgres_shop.doctor().findings == {}


# ── rows that differ ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_written_past_the_triggers(shop: Shop) -> None:
    """A changed, a new and a deleted row are found, named, and taken in by a repair."""
    with shop.unwatched():
        shop.sql("UPDATE shop_orders SET customer = 'somebody' WHERE order_key = 'o1'")
        shop.sql("INSERT INTO shop_orders VALUES ('new', 't1', 'c', '1.00', '')")
        shop.sql("DELETE FROM shop_orders WHERE order_key = 'o2'")
    found = shop.doctor()
    assert found.code == 2
    assert {row["row"]: row["reason"] for row in found["rows_differ"]["rows"]} == {
        "o1": "other values of customer",
        "new": "the feed lacks it",
        "o2": "the feed holds what the table does not",
    }
    repaired = shop.doctor("--repair")
    assert (repaired.code, repaired.entities["orders"]["repaired"]) == (0, 3), repaired
    assert shop.doctor().findings == {}
    assert {row: doc["customer"] for row, doc in shop.feed().items()} == shop.table()


def test_a_row_that_moved_past_the_triggers(shop: Shop) -> None:
    """A row whose scope column changed is found once, and ends up in the scope that the table says."""
    with shop.unwatched():
        shop.sql("UPDATE shop_orders SET tenant_id = 'elsewhere' WHERE order_key = 'o1'")
    assert [row["row"] for row in shop.doctor()["rows_differ"]["rows"]] == ["o1"]
    assert shop.doctor("--repair").code == 0
    assert shop.sql("SELECT scope FROM sync_feed WHERE \"row\" = 'o1' AND NOT deleted") == [("workspace:elsewhere",)]
    assert shop.doctor().findings == {}


def test_rows_that_wait_are_not_called_different(shop: Shop) -> None:
    """What the inbox names is on its way."""
    shop.sql("UPDATE shop_orders SET customer = 'somebody'")
    found = shop.doctor()
    assert "rows_differ" not in found
    assert (found.entities["orders"]["different"], found.entities["orders"]["waiting"]) == (0, 30)


def test_a_table_of_ours_is_written_anew(shop: Shop) -> None:
    """Of a table that Tidemark made, the feed is right: rows changed, removed or added by hand are put back."""
    shop.write_notes(3)
    before = shop.sql("SELECT id, user_id, title FROM notes ORDER BY id")
    shop.sql(f"UPDATE notes SET title = 'scribble' WHERE id = '{note(0)}'")
    shop.sql(f"DELETE FROM notes WHERE id = '{note(1)}'")
    shop.sql(
        "INSERT INTO notes (id, user_id, title, created_at, updated_at) SELECT "
        f"'{note(9)}', user_id, title, created_at, updated_at FROM notes WHERE id = '{note(2)}'"
    )
    found = shop.doctor()
    assert (found.code, len(found["rows_differ"]["rows"])) == (2, 3)
    assert shop.doctor("--repair").code == 0
    assert shop.sql("SELECT id, user_id, title FROM notes ORDER BY id") == before
    assert shop.doctor().findings == {}


def test_a_table_of_others_is_left_alone(shop: Shop) -> None:
    """Without capture, differences of a table of others are told, and never written into it."""
    shop.declare(shop.schema.read_text().replace("    capture: true\n", "").replace("schema: 1", "schema: 2"))
    assert shop.run("migrate").exit_code == 0
    shop.sql("UPDATE shop_orders SET customer = 'somebody' WHERE order_key = 'o1'")
    found = shop.doctor("--repair")
    assert (found.code, found["rows_differ"]["level"]) == (1, "warning")
    assert shop.table()["o1"] == "somebody"


def test_a_sample(shop: Shop) -> None:
    """`--sample` looks at some rows of table and feed; as many as there are find what a whole sweep finds."""
    with shop.unwatched():
        shop.sql("UPDATE shop_orders SET customer = 'somebody'")
        shop.sql("DELETE FROM shop_orders WHERE order_key = 'o2'")
    assert len(shop.doctor("--sample", "1000")["rows_differ"]["rows"]) == 30
    assert 3 <= shop.doctor("--sample", "3").entities["orders"]["rows"] <= 6


def test_a_row_that_cannot_be(shop: Shop) -> None:
    """It is named with the reason and the scope, is a warning, and the others are taken."""
    shop.sql("INSERT INTO shop_orders VALUES ('a b', 't1', 'c', '1.00', ''), ('fine', '', 'c', '1.00', '')")
    assert shop.run("adopt").exit_code == 0
    found = shop.doctor()
    assert found.code == 1
    assert {(row["row"], row["scope"], row["code"]) for row in found["rows_unfit"]["rows"]} == {
        ("a b", "workspace:t1", "invalid_row"),
        ("fine", "", "invalid_scope"),
    }
    assert "a b in workspace:t1: the key: a row is named by" in shop.run("doctor").output.replace("key a", "key: a")


# ── our own tables ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_corrupt_digest(shop: Shop) -> None:
    """A digest that is not the one of the feed's rows is a fault, and is counted anew."""
    before = shop.sql("SELECT scope, live, total, head FROM sync_scope ORDER BY scope")
    shop.sql("UPDATE sync_scope SET live = live + 1 WHERE scope = 'workspace:t1'")
    shop.sql("UPDATE sync_scope SET total = total + 7 WHERE scope = 'workspace:t2'")
    found = shop.doctor()
    assert found.code == 2
    assert "digest" in found["digest_differs"]["message"]
    assert shop.doctor("--repair")["digest_differs"]["level"] == "note"
    assert shop.sql("SELECT scope, live, total, head FROM sync_scope ORDER BY scope") == before
    assert shop.doctor().findings == {}


def test_a_scope_that_is_missing(shop: Shop) -> None:
    """Rows of the feed whose scope is gone are a fault."""
    shop.sql("DELETE FROM sync_scope WHERE scope = 'workspace:t1'")
    found = shop.doctor()
    assert found.code == 2
    assert "workspace:t1" in found["scope_missing"]["message"]


def test_the_inbox_lags(shop: Shop) -> None:
    """What has waited for longer than allowed is a warning, with its count and age."""
    shop.sql("UPDATE shop_orders SET customer = 'somebody'")
    assert "inbox_lag" not in shop.doctor()
    shop.sql(f"UPDATE sync_inbox SET captured_at = {time.time_ns() // 1_000_000 - 3 * HOUR}")
    assert shop.doctor()["inbox_lag"]["message"] == ("30 writes made in SQL wait to be taken in, the first for 3 hours")
    assert "inbox_lag" not in shop.doctor("--inbox-lag", "12h")


def test_scopes_of_unusual_size(shop: Shop) -> None:
    """Scopes above the thresholds are named with their size."""
    for user in ("ada", "bob"):
        shop.sql(f"INSERT INTO sync_member VALUES ('workspace:t1', '{user}', 'editor')")
    found = shop.doctor("--scope-rows", "4", "--scope-members", "1")
    assert found.code == 1
    assert "workspace:t1 (5)" in found["scope_rows"]["message"]
    assert "workspace:t1 (2)" in found["scope_members"]["message"]


@pytest.mark.parametrize(("ago", "level"), [(HOUR, "note"), (48 * HOUR, "warning")])
def test_nobody_keeps_house(shop: Shop, ago: int, level: str) -> None:
    """A lease that ran out is told, and is a warning after a day."""
    until = time.time_ns() // 1_000_000 - ago
    shop.sql("DELETE FROM sync_meta WHERE name = 'lease:housekeeping'")
    shop.sql(
        "INSERT INTO sync_meta (name, value) VALUES "
        f"""('lease:housekeeping', '{{"owner": "x", "until": {until}}}')"""
    )
    found = shop.doctor()
    assert found["lease_expired"]["level"] == level
    assert found.code == (1 if level == "warning" else 0)


def test_what_is_not_migrated(database_url: str, tmp_path: Path) -> None:
    """Without our tables, and without a declared column, doctor says to migrate."""
    shop = Shop(database_url, tmp_path)
    assert shop.doctor()["not_migrated"]["remedy"] == "tidemark migrate"
    shop.prepared()
    shop.declare(shop.schema.read_text().replace("title: {", "body: {type: text, default: ''}\n      title: {"))
    found = shop.doctor()
    assert found.code == 2
    assert "notes" in found["not_migrated"]["message"]


# ── the database ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_long_transaction(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """It is named with its user and how it can be ended; the usual threshold lets it pass."""
    shop = Shop(request.getfixturevalue(f"{kind}_url"), tmp_path, 3).prepared()
    with held_open(shop, "UPDATE shop_orders SET customer = 'x' WHERE order_key = 'o1'") as run:
        found = run(lambda: shop.doctor("--long-transaction", "1ms"))
        assert found.code == 1
        assert "has been open for" in found["long_transaction"]["message"]
        assert any(word in found["long_transaction"]["remedy"] for word in ("pg_terminate_backend(", "KILL "))
        assert "long_transaction" not in run(shop.doctor)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_transactions_that_may_not_be_seen(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A user without the right to see them is told so, and is no fault."""
    shop = Shop(request.getfixturevalue(f"{kind}_url"), tmp_path, 3).prepared()
    assert "transactions_unseen" not in shop.doctor()
    name = shop.url.rpartition("/")[2]
    user = f"u_{name[2:12]}"
    grants = {
        "postgresql": [
            f"CREATE ROLE {user} LOGIN",
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {user}",
        ],
        "mariadb": [f"CREATE USER {user}@'%'", f"GRANT ALL ON {name}.* TO {user}@'%'"],
    }
    revoked = {"postgresql": [f"DROP OWNED BY {user}", f"DROP ROLE {user}"], "mariadb": [f"DROP USER {user}@'%'"]}
    for statement in grants[kind]:
        shop.sql(statement)
    own = shop.url
    try:
        shop.url = own.replace("postgres@" if kind == "postgresql" else "root@", f"{user}@")
        found = shop.doctor()
    finally:
        shop.url = own
        for statement in revoked[kind]:
            shop.sql(statement)
    assert (found.code, found["transactions_unseen"]["level"]) == (0, "note"), found


def test_a_sqlite_file_that_is_held(tmp_path: Path) -> None:
    """A program that keeps the lock of writers is found out, where the database cannot tell of transactions."""
    shop = Shop(f"sqlite:///{tmp_path / 't.db'}", tmp_path, 3).prepared()
    with held_open(shop, "UPDATE shop_orders SET customer = 'x' WHERE order_key = 'o1'") as run:
        assert run(shop.doctor)["long_transaction"]["level"] == "fault"


@pytest.mark.parametrize("setting", ["synchronous_commit"])
def test_commits_that_are_not_durable(postgres_shop: Shop, setting: str) -> None:
    """A setting under which a crash loses what was confirmed is a fault, wherever it was set."""
    name = postgres_shop.url.rpartition("/")[2]
    postgres_shop.sql(f"ALTER DATABASE {name} SET {setting} = off")
    found = postgres_shop.doctor()
    assert (found.code, found[f"{setting}_off"]["level"]) == (2, "fault")
    postgres_shop.sql(f"ALTER DATABASE {name} RESET {setting}")
    assert postgres_shop.doctor().findings == {}


def test_too_few_connections(postgres_shop: Shop) -> None:
    """More workers than the server has connections for are a warning."""
    assert postgres_shop.doctor(workers="200")["connections_few"]["level"] == "warning"


def test_vacuum_switched_off(postgres_shop: Shop) -> None:
    """A table of ours that is never vacuumed is a warning."""
    postgres_shop.sql("ALTER TABLE sync_feed SET (autovacuum_enabled = off)")
    assert "sync_feed" in postgres_shop.doctor()["vacuum_off"]["message"]


def test_clocks_that_differ(postgres_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database's clock far behind ours is a fault: its writes would lose against ours."""
    ahead = SimpleNamespace(time_ns=lambda: time.time_ns() + 90 * 60 * 10**9)
    monkeypatch.setattr(health, "time", ahead)
    found = postgres_shop.doctor()
    assert found["clock_difference"]["level"] == "fault"
    assert "minutes behind" in found["clock_difference"]["message"]


def test_settings_of_mariadb(own_mariadb_server: MariadbServer, tmp_path: Path) -> None:
    """A log that is not flushed is a fault, values that are cut a warning, another engine a fault."""
    shop = Shop(own_mariadb_server.create_database(), tmp_path, 3).prepared()
    assert shop.doctor().findings == {}
    own_mariadb_server.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    own_mariadb_server.sql("SET GLOBAL sql_mode = ''")
    found = shop.doctor()
    assert found["flush_log_off"]["level"] == "fault"
    assert found["sql_mode_lax"]["level"] == "warning"
    shop.sql("ALTER TABLE shop_orders ENGINE = MyISAM")
    assert "MyISAM" in shop.doctor()["not_innodb"]["message"]
    shop.sql("ALTER TABLE shop_orders MODIFY tenant_id VARCHAR(190) COLLATE utf8mb4_general_ci NOT NULL")
    assert "shop_orders.tenant_id" in shop.doctor()["collation_folds"]["message"]


def test_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite file that is mounted from elsewhere is a fault."""
    shop = Shop(f"sqlite:///{tmp_path / 't.db'}", tmp_path).prepared()
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/root / ext4 rw 0 0\nhost:/export {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(settings_health, "_MOUNTS", mounts)
    assert "nfs4" in shop.doctor()["network_filesystem"]["message"]


def test_a_database_that_is_away(tmp_path: Path, postgresql_url: str) -> None:
    """It is a finding like any other."""
    shop = Shop(postgresql_url, tmp_path)
    shop.url = "postgresql://nobody@127.0.0.1:1/nothing"
    found = shop.doctor()
    assert (found.code, found["unavailable"]["level"]) == (2, "fault")


@contextmanager
def held_open(shop: Shop, statement: str) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Run a statement and leave its transaction open; gives what runs something meanwhile, in another thread."""
    with ThreadPoolExecutor(2) as threads:
        begun, over = Event(), Event()

        def hold(connection: Any) -> None:
            connection.exec_driver_sql(statement)
            begun.set()
            over.wait(60)

        done = threads.submit(lambda: beside(shop.url, hold, reading=False))
        assert begun.wait(10)
        try:
            yield lambda work: threads.submit(work).result()
        finally:
            over.set()
            done.result()
