"""`tidemark adopt` and `tidemark release`: tables of other programs, taken as they are and let go without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.backend.shop import SCHEMA, Shop, note
from tests.servers import TidemarkServer
from tidemark.admin import work
from tidemark.settings import variable
from tidemark_protocol import digest

ROWS = 5_000
MANY = 4 * ROWS
"""So many that there is time to interrupt."""
WITH_TAGS = (
    SCHEMA
    + """
  tags:
    scope: workspace
    key: {column: tag, type: text}
    fields:
      color: {type: text, default: grey}
"""
)
WITHOUT_ORDERS = WITH_TAGS[: WITH_TAGS.index("  orders:")] + WITH_TAGS[WITH_TAGS.index("  notes:") :]


def migrated(url: str, folder: Path, rows: int = 0, schema: str = SCHEMA) -> Shop:
    """A shop whose database has our tables."""
    shop = Shop(url, folder, rows, schema)
    done = shop.run("migrate")
    assert done.exit_code == 0, done.output
    return shop


def customers(shop: Shop) -> dict[str, str]:
    """What the feed says of the customers by order."""
    return {row: doc["customer"] for row, doc in shop.feed().items()}


def test_rows_are_taken_while_a_writer_goes_on(database_url: str, tmp_path: Path) -> None:
    """Every row that was there is taken, and so is everything that another program writes meanwhile."""
    shop = migrated(database_url, tmp_path, ROWS)
    with shop.written_to(ROWS) as written:
        done = shop.run("adopt")
        assert done.exit_code == 0, done.output
    assert written.is_set(), "the writer has not written while rows were taken"
    assert shop.run("adopt").exit_code == 0
    assert customers(shop) == shop.table()
    assert shop.doctor().findings == {}


def test_interrupted_and_repeated(database_url: str, tmp_path: Path) -> None:
    """Interrupted, it leaves nothing that differs, only what waits; repeated, it goes on where it was."""
    shop = migrated(database_url, tmp_path, MANY)
    running = begin_adopting(shop)
    until(lambda: shop.sql("SELECT count(*) FROM sync_feed WHERE entity = 'orders'")[0][0], running)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert (running.returncode, "interrupted" in output) == (130, True), output
    found = shop.doctor()
    assert found.code == 0, found
    assert 0 < found.entities["orders"]["waiting"] < MANY
    assert shop.run("adopt").exit_code == 0
    assert customers(shop) == shop.table()


def test_rows_that_were_written_without_triggers(database_url: str, tmp_path: Path) -> None:
    """Adopting again takes what was changed, added and deleted while nothing reported it; a third time, nothing."""
    shop = migrated(database_url, tmp_path, 50)
    assert shop.run("adopt").exit_code == 0
    with shop.unwatched():
        shop.sql("UPDATE shop_orders SET customer = 'somebody' WHERE tenant_id = 't3'")
        shop.sql("DELETE FROM shop_orders WHERE tenant_id = 't4'")
        shop.fill(100, 110)
    again = shop.run("adopt")
    assert again.exit_code == 0, again.output
    assert customers(shop) == shop.table()
    assert "0 reported rows" in shop.run("adopt").output


def test_what_cannot_be_represented_is_told(database_url: str, tmp_path: Path) -> None:
    """The first few rows are named with their reason, the rest is counted, and all others are taken."""
    shop = migrated(database_url, tmp_path, 20)
    shop.sql("UPDATE shop_orders SET tenant_id = '' WHERE tenant_id = 't1'")
    for number in range(8):
        shop.sql(f"INSERT INTO shop_orders VALUES ('bad {number}', 't1', 'c', '1.00', '')")
    done = shop.run("adopt")
    assert done.exit_code == 0, done.output
    assert "orders: 17 of 28 rows of shop_orders are taken" in done.output
    assert done.output.count("cannot be represented: ") == 5
    assert "and 6 more" in done.output
    assert len(shop.feed()) == 17


def test_columns_that_clients_cannot_fill(database_url: str, tmp_path: Path) -> None:
    """A column that needs a value and is not declared is warned of, and so is one that is too short."""
    shop = Shop(database_url, tmp_path)
    shop.sql("DROP TABLE shop_orders")
    shop.sql(
        "CREATE TABLE shop_orders (order_key VARCHAR(190) PRIMARY KEY, tenant_id VARCHAR(190) NOT NULL, "
        "customer VARCHAR(20) NOT NULL, total NUMERIC(15, 2) NOT NULL, branch INTEGER NOT NULL)"
    )
    assert shop.run("migrate").exit_code == 0
    output = shop.run("adopt").output
    assert "column shop_orders.branch needs a value" in output
    assert "column shop_orders.customer holds 20 characters, customer up to 40" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("adopt", "notes"), "notes is not declared with `capture: true`"),
        (("adopt", "nothing"), "nothing is not declared with `capture: true`"),
        (("release", "orders"), "orders is declared with `capture: true` still"),
        (("release", "Bad Name"), "Bad Name is no name of an entity"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """Only captured entities are adopted, and only those that are none any more released."""
    shop = migrated(f"sqlite:///{tmp_path / 't.db'}", tmp_path)
    done = shop.run(*arguments)
    assert (done.exit_code, said in done.output) == (1, True), done.output


def test_a_table_that_does_not_fit(tmp_path: Path) -> None:
    """It is refused before anything is touched: a missing column, or one of ours that is to be migrated."""
    shop = Shop(f"sqlite:///{tmp_path / 't.db'}", tmp_path)
    shop.declare(SCHEMA.replace("      customer:", "      branch: {type: text, max: 4}\n      customer:"))
    done = shop.run("adopt")
    assert (done.exit_code, "has no column branch" in done.output) == (1, True)
    assert shop.sql("SELECT name FROM sqlite_master WHERE name LIKE 'sync_%'") == []
    shop.declare(SCHEMA)
    assert shop.run("migrate").exit_code == 0
    shop.declare(SCHEMA.replace("      title:", "      body: {type: text, default: ''}\n      title:"))
    done = shop.run("adopt")
    assert (done.exit_code, "migrate the database" in done.output or "migrate it" in done.output) == (1, True)


def test_a_database_without_tables_of_ours(database_url: str, tmp_path: Path) -> None:
    """They are made, and the rows are taken, by one command."""
    shop = Shop(database_url, tmp_path, 20)
    done = shop.run("adopt")
    assert done.exit_code == 0, done.output
    assert customers(shop) == shop.table()
    assert shop.doctor().findings == {}


# ── beside a service ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_beside_a_service(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A running service takes the rows; where it has the database alone, adopt only hands them over."""
    url = f"sqlite:///{tmp_path / 't.db'}" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    shop = migrated(url, tmp_path, 200)
    with TidemarkServer(shop.schema, url, migrate=False):
        shop.silence()
        shop.sql("UPDATE shop_orders SET customer = 'somebody'")
        done = shop.run("adopt")
        assert done.exit_code == 0, done.output
        assert set(customers(shop).values()) == {"somebody"}


def test_beside_a_service_that_does_not_know_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service of an older declaration takes nothing; adopt says so instead of waiting for ever."""
    monkeypatch.setattr(work, "PATIENCE", 0.5)
    url = f"sqlite:///{tmp_path / 't.db'}"
    shop = Shop(url, tmp_path, 20, WITHOUT_ORDERS)
    assert shop.run("migrate").exit_code == 0
    with TidemarkServer(shop.schema, url, migrate=False):
        shop.declare(WITH_TAGS)
        done = shop.run("adopt")
        assert done.exit_code == 1
        assert "20 reports wait in the inbox: the running service takes none of them" in done.output
    assert shop.run("adopt").exit_code == 0
    assert customers(shop) == shop.table()


def test_beside_a_service_that_drains_another_table(postgresql_url: str, tmp_path: Path) -> None:
    """Where a service of an older declaration leads the drain, adopt takes the rows itself."""
    older = WITHOUT_ORDERS.replace("  tags:\n", "  tags:\n    capture: true\n")
    newer = WITH_TAGS.replace("  tags:\n", "  tags:\n    capture: true\n")
    shop = Shop(postgresql_url, tmp_path, 2_500, older)
    assert shop.run("migrate").exit_code == 0
    with TidemarkServer(shop.schema, postgresql_url, migrate=False):
        shop.declare(newer)
        done = shop.run("adopt")
        assert done.exit_code == 0, done.output
        assert customers(shop) == shop.table()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_nothing_is_released_beside_a_service(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Its streams could not be told, so it is to be stopped first."""
    url = f"sqlite:///{tmp_path / 't.db'}" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    shop = migrated(url, tmp_path, 20)
    assert shop.run("adopt").exit_code == 0
    shop.declare(WITHOUT_ORDERS)
    with TidemarkServer(shop.schema, url):
        done = shop.run("release", "orders", "--yes")
        assert done.exit_code == 1
        assert "in use by another process" in done.output or "stop it first" in done.output
        assert len(shop.feed()) == 20


# ── release ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def adopted(database_url: str, tmp_path: Path) -> Shop:
    """A shop with orders and tags in the same scopes, by SQL and by clients, and notes in a scope of their own."""
    shop = migrated(database_url, tmp_path, 40, WITH_TAGS)
    assert shop.run("adopt").exit_code == 0
    shop.sql("INSERT INTO sync_member VALUES ('workspace:t1', 'ada', 'editor')")
    shop.push(
        [
            ("orders", "mine", "workspace:t1", {"customer": "ada"}),
            ("tags", "red", "workspace:t1", {"color": "red"}),
            ("notes", note(1), None, {"title": "keep"}),
        ]
    )
    shop.sql("DELETE FROM shop_orders WHERE order_key = 'o3'")
    return shop


def test_release_leaves_nothing(adopted: Shop) -> None:
    """Triggers, reports, rows of the feed and history are gone; the table and all other entities are as they were."""
    shop = adopted
    table, tags, notes = shop.table(), shop.feed("tags"), shop.feed("notes")
    shop.declare(WITHOUT_ORDERS)
    assert shop.run("migrate").exit_code == 0
    done = shop.run("release", "orders", "--yes")
    assert done.exit_code == 0, done.output
    assert shop.triggers() == []
    for name in ("sync_feed", "sync_inbox"):
        assert shop.sql(f"SELECT count(*) FROM {name} WHERE entity = 'orders'") == [(0,)]
    assert [events for (events,) in shop.sql("SELECT events FROM sync_journal") if '"orders"' in events] == []
    assert shop.sql("SELECT count(*) FROM sync_meta WHERE name LIKE '%orders%'") == [(0,)]
    if shop.kind == "postgresql":
        assert shop.sql("SELECT count(*) FROM pg_proc WHERE proname LIKE 'tidemark%orders%'") == [(0,)]
    assert shop.table() == table
    assert (shop.feed("tags"), shop.feed("notes")) == (tags, notes)
    assert [events for (events,) in shop.sql("SELECT events FROM sync_journal") if '"red"' in events] != []
    assert shop.doctor().findings == {}


def test_replicas_drop_what_was_released(adopted: Shop) -> None:
    """A replica that held the rows copies its scopes anew without them; others go on from where they were."""
    shop = adopted
    before = {run.scope: run for run in shop.pull().scopes}
    assert {change.entity for change in before["workspace:t1"].changes} == {"orders", "tags"}
    marks = {scope: run.watermark for scope, run in before.items()}
    shop.declare(WITHOUT_ORDERS)
    assert shop.run("migrate").exit_code == 0
    assert shop.run("release", "orders", "--yes").exit_code == 0
    (run,) = shop.pull(marks).scopes
    assert (run.scope, run.reset) == ("workspace:t1", True)
    rows = [(change.entity, change.row, change.version) for change in run.changes]
    assert [row[:2] for row in rows] == [("tags", "red")]
    assert run.digest == digest.of_rows(rows)
    assert shop.pull(marks | {run.scope: run.watermark}).scopes == []


def test_capture_alone_is_released(adopted: Shop) -> None:
    """Of an entity that stays declared, triggers and reports go, and the feed stays as it is."""
    shop = adopted
    shop.declare(WITH_TAGS.replace("    capture: true\n", ""))
    before = shop.sql("SELECT count(*) FROM sync_feed WHERE entity = 'orders'")
    done = shop.run("release", "orders", "--yes")
    assert done.exit_code == 0, done.output
    assert (shop.triggers(), shop.sql("SELECT count(*) FROM sync_inbox")) == ([], [(0,)])
    assert shop.sql("SELECT count(*) FROM sync_feed WHERE entity = 'orders'") == before


def test_release_asks(adopted: Shop) -> None:
    """Without `--yes` it says what would go, and does nothing unless told to."""
    shop = adopted
    shop.declare(WITHOUT_ORDERS)
    before = shop.sql("SELECT count(*) FROM sync_feed WHERE entity = 'orders'")
    done = shop.run("release", "orders")
    assert done.exit_code == 1
    assert "orders: remove" in done.output
    assert shop.sql("SELECT count(*) FROM sync_feed WHERE entity = 'orders'") == before


def begin_adopting(shop: Shop) -> subprocess.Popen[str]:
    """`tidemark adopt` in a process of its own."""
    own = {variable("schema"): str(shop.schema), variable("database_url"): shop.url}
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("tidemark")), "adopt"],
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(condition: Callable[[], Any], running: subprocess.Popen[str]) -> None:
    """Ask again and again, for as long as the process runs and a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()[0]
