"""Beside writers in SQL: the journal, older clients, a service that comes and goes, commands (SPEC sections 7, 10)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.contract.client import Device, Json, assert_problem, timestamp
from tests.contract.conftest import Launcher
from tests.contract.replica import Replica
from tests.contract.shop import DECLARATION, Done, Shop, Sql, eventually, later, make_tables, tidemark
from tests.contract.stream import Stream, following

SCHEMA = DECLARATION.read_text(encoding="utf-8")
OLD = 2


# The journal


def outside(device: Device, scope: str, **asked: Any) -> list[Json]:
    """The events of SQL in a scope, oldest first."""
    return device.events(scope=scope, by="sql", order="asc", **asked)


def user_of(shop: Shop) -> str | None:
    """The database's user, as that database names whom it let in."""
    asked = {"sqlite": "SELECT NULL", "postgresql": "SELECT session_user", "mysql": "SELECT user()"}
    found = shop.sql.run(asked[shop.dialect])[0][0]
    return None if found is None else str(found).partition("@")[0]


def test_the_journal_tells_what_sql_wrote(shop: Shop) -> None:
    """The journal tells outside writes by the database's user, without client, what they set and replaced (I46)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "first")
    shop.arrives(ada, row, scope)
    before = ada.doc("orders", row, scope)
    assert before is not None
    later()
    ada.apply(ada.patch("orders", row, total="3.00", scope=scope))
    later()
    shop.update(row, customer="'second'")
    shop.arrives(ada, row, scope, customer="second")
    last = ada.doc("orders", row, scope)
    assert last is not None
    shop.delete(row)
    shop.drained()
    put, patch, delete = outside(ada, scope, row=row)
    for event in (put, patch, delete):
        assert (event["by"], event["client"], event["outcome"]) == ("sql", None, "applied")
        assert (event["entity"], event["row"], event["scope"], event["schema"]) == ("orders", row, scope, None)
        user = event["user"]
        assert (None if user is None else user.partition("@")[0]) == user_of(shop)
    assert [event["op"] for event in (put, patch, delete)] == ["put", "patch", "delete"]
    assert (patch["set"], patch["overwrote"]) == (["customer"], {"customer": "first"})
    assert timestamp(patch["at"]) == last["updated_at"]
    shown = {name: value for name, value in last.items() if name in delete["overwrote"]}
    assert delete["overwrote"] == shown
    assert shown.keys() >= {"customer", "total", "status", "labels", "details", "number"}
    assert delete["overwrote"]["total"] == "3.00"


def test_the_journal_finds_and_pages_outside_writes(shop: Shop) -> None:
    """Filters find outside writes or clients' alone, and pages give each event once in either order (I46)."""
    ada, scope, tenant = shop.workspace()
    rows = []
    for number in range(5):
        rows.append(shop.insert(tenant, f"c{number}"))
        shop.arrives(ada, rows[-1], scope)
        ada.apply(ada.patch("orders", rows[-1], status="shipped", scope=scope))
    everything = [event["id"] for event in ada.events(scope=scope, order="asc", entity="orders")]
    assert len(everything) == 10
    assert [event["row"] for event in outside(ada, scope)] == rows
    mine = ada.events(scope=scope, client=ada.client, order="asc")
    assert [event["row"] for event in mine] == rows
    user = user_of(shop)
    if user is not None:
        given = outside(ada, scope)[0]["user"]
        assert [event["row"] for event in ada.events(scope=scope, user=given, order="asc")] == rows
    for order, bound in (("asc", "after"), ("desc", "before")):
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = ada.get("/sync/events", scope=scope, entity="orders", order=order, limit=3, **cursor).json()
            seen += [event["id"] for event in page["events"]]
            if page["next"] is None:
                break
            cursor = {bound: page["next"]}
        assert seen == (everything if order == "asc" else everything[::-1])
    assert_problem(ada.get("/sync/events", scope=scope, by="psql"), 400)


# Clients of an older number


class OldClient(Device):
    """A device whose app was built for the number before."""

    def envelope(self, mutations: Any, **rest: Any) -> Json:
        """A push under the app's number."""
        return super().envelope(mutations, **({"schema": OLD} | rest))

    def pull_body(self, watermark: Any = None, **rest: Any) -> Json:
        """A pull under the app's number."""
        return super().pull_body(watermark, **({"schema": OLD} | rest))


def test_older_clients_and_writers_in_sql(shop: Shop) -> None:
    """What SQL writes comes to an older client in its shape, and its writes merge with those of SQL (I51, I52, I53)."""
    old = OldClient(shop.service, f"old-{os.urandom(4).hex()}")
    new, scope, tenant = shop.workspace()
    shop.service.admin().grant(scope, old.user, "editor")
    row = shop.insert(tenant, "sql")
    with Stream(old, schema=OLD, scopes=[scope]) as stream:
        stream.welcome()
        doc = stream.change(row)["doc"]
        assert (doc["client"], doc["status"]) == ("sql", "new")
        assert "customer" not in doc
        later()
        early = old.patch("orders", row, client="early", status="sent", scope=scope)
        later()
        shop.update(row, customer="'later'")
        (result,) = old.push(early)
        assert (result["status"], result["superseded_fields"]) == ("applied", ["client"])
        shop.arrives(new, row, scope, customer="later", status="shipped")
        eventually(lambda: stream.change(row)["doc"]["status"] == "sent")
    shop.drained()
    assert shop.stored(row, "customer", "status") == ("later", "shipped")
    held = old.doc("orders", row, scope)
    assert held is not None
    assert (held["client"], held["status"]) == ("later", "sent")


# The service comes and goes


@contextmanager
def alone(launch: Launcher, schema: Path = DECLARATION, **env: str) -> Iterator[Shop]:
    """A shop with a service and a database that no other test uses."""
    database = launch.new_database()
    with Sql(database) as sql:
        make_tables(sql)
        running = launch(database=database, schema=schema, env=env)
        try:
            yield Shop(running.server, running.service, sql)
        finally:
            running.server.kill()


def proved(shop: Shop, device: Device, scope: str, tenant: str) -> Replica:
    """A replica of everything that SQL has written, equal to the table."""
    shop.drained()
    replica = Replica()
    replica.pull(device, scopes=[scope])
    table = shop.sql.run(f"SELECT order_key, customer FROM shop_orders WHERE tenant_id = '{tenant}'")
    held = {row: doc["customer"] for (_, row), (_, doc) in replica.copy(scope).rows.items()}
    assert held == {str(row): customer for row, customer in table}
    assert replica.proved
    return replica


def test_what_sql_wrote_while_the_service_was_down(launch: Launcher) -> None:
    """Rows made, changed and deleted beside a stopped service arrive when it is back, and edits made offline before and
    after them win and lose by their time (I53).
    """
    with alone(launch) as shop:
        ada, scope, tenant = shop.workspace()
        kept, gone = shop.insert(tenant, "kept"), shop.insert(tenant, "gone")
        replica = proved(shop, ada, scope, tenant)
        shop.server.stop()
        early = ada.patch("orders", kept, customer="early", status="shipped", scope=scope)
        later()
        shop.update(kept, customer="'sql'", number="'n'")
        shop.delete(gone)
        made = shop.insert(tenant, "made")
        later()
        late = ada.patch("orders", kept, number="late", scope=scope)
        shop.server.start()
        results = ada.push(early, late)
        assert [result.get("superseded_fields") for result in results] == [["customer"], None]
        shop.drained()
        (run,) = replica.pull(ada, scopes=[scope])
        assert not run["reset"]
        docs = {row: doc for (_, row), doc in replica.docs(scope).items()}
        assert docs.keys() == {kept, made}
        held = [docs[kept][name] for name in ("customer", "status", "number")]
        assert held == ["sql", "shipped", "late"]
        assert shop.stored(kept, "customer", "status", "number") == ("sql", "shipped", "late")


def test_entries_that_wait_survive_a_kill(launch: Launcher) -> None:
    """A service killed before, and again amid, what SQL reported takes each row once when it is back (I14, I53)."""
    with alone(launch) as shop:
        ada, scope, tenant = shop.workspace()
        shop.insert(tenant, "first")
        replica = proved(shop, ada, scope, tenant)
        os.kill(shop.server.pid, signal.SIGSTOP)
        shop.fill(tenant, 200)
        ((waiting,),) = shop.sql.run("SELECT count(*) FROM sync_inbox")
        assert waiting >= 200
        shop.server.kill()
        shop.server.start()
        assert len(proved(shop, ada, scope, tenant).copy(scope).rows) == 201
        shop.fill(tenant, 2_000)
        eventually(lambda: ada.pull(replica.watermark, scopes=[scope], limit=1)["scopes"][0]["head"] > 201)
        shop.server.kill()
        shop.server.start()
        replica.pull(ada)
        whole = proved(shop, ada, scope, tenant)
        replica.pull(ada)
        assert replica.docs(scope) == whole.docs(scope)
        assert len(whole.copy(scope).rows) == 2_201
        told = shop.sql.run("SELECT count(*), count(DISTINCT version) FROM sync_feed WHERE entity = 'orders'")
        assert told == [(2_201, 2_201)]


@pytest.mark.databases("postgresql", "mariadb")  # SQLite serves one process
def test_two_processes_drain_one_inbox(launch: Launcher, shop: Shop) -> None:
    """With two processes on one database streams of both bring every row that SQL writes, none twice (I38, I53)."""
    other = launch(database=shop.database, schema=DECLARATION).service
    ada, scope, tenant = shop.workspace()
    with following(ada, scopes=[scope]) as here, following(ada.again().on(other), scopes=[scope]) as there:
        rows = {shop.insert(tenant, f"c{number}") for number in range(60)}
        for row in sorted(rows)[:20]:
            shop.update(row, customer="'changed'")
            later()
            ada.apply(ada.patch("orders", row, status="shipped", scope=scope))
        whole = proved(shop, ada, scope, tenant)
        for follower in (here, there):
            follower.reach(scope, whole.copy(scope).to)
            assert follower.replica.docs(scope) == whole.docs(scope)
    told = [event["row"] for event in outside(ada, scope, limit=1000) if event["op"] == "put"]
    assert sorted(told) == sorted(rows)


BARE = SCHEMA[: SCHEMA.index("  orders:")] + SCHEMA[SCHEMA.index("  tags:") : SCHEMA.index("changes:")]
"""The declaration without the shop's tables and what refers to them."""


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """A file for declarations that change."""
    return tmp_path / "schema.yaml"


def command(shop: Shop, schema: Path, *arguments: str) -> Done:
    """The command line on the shop's database."""
    return tidemark(*arguments, schema=schema, database=shop.database)


def test_adopting_and_letting_go(launch: Launcher, declared: Path) -> None:
    """A table with rows is adopted beside a service that newly captures it, twice to no effect, and released without a
    trace in it; replicas then start anew without its rows (I30, I53).
    """
    declared.write_text(BARE.replace("schema: 3", "schema: 2"))
    with alone(launch, declared) as shop:
        ada, scope, tenant = shop.workspace()
        rows = {shop.insert(tenant, f"c{number}") for number in range(50)}
        shop.server.stop()
        declared.write_text(SCHEMA)
        shop.server.start()
        newer = shop.insert(tenant, "newer")
        shop.arrives(ada, newer, scope)
        adopted = command(shop, declared, "adopt")
        assert adopted.code == 0, adopted.output
        assert {row for _, row in proved(shop, ada, scope, tenant).copy(scope).rows} == rows | {newer}
        ada.apply(ada.put("tags", "red", scope=scope))
        replica = Replica()
        replica.pull(ada)
        again = command(shop, declared, "adopt")
        assert again.code == 0, again.output
        shop.drained()
        assert replica.pull(ada) == []
        assert len(ada.events(scope=scope, by="sql", limit=1000)) == 51

        shop.server.stop()
        declared.write_text(BARE.replace("schema: 3\noldest: 2", "schema: 4\noldest: 3"))
        for arguments in (("migrate",), ("release", "orders", "lines", "holders", "hints", "traces", "--yes")):
            done = command(shop, declared, *arguments)
            assert done.code == 0, done.output
        shop.server.start()
        (run,) = [run for run in replica.pull(ada) if run["scope"] == scope]
        assert run["reset"]
        assert replica.versions(scope).keys() == {("tags", "red")}
        shop.update(newer, customer="'free'")
        assert shop.sql.run("SELECT count(*) FROM shop_orders, sync_inbox") == [(0,)]
        assert shop.stored(newer, "customer", "remark") == ("free", "own")
        assert ada.events(scope=scope, entity="orders") == []


def judged(done: Done) -> tuple[int, set[str]]:
    """A diagnosis: its exit code, which must be that of its gravest finding, and its codes."""
    weights = {"note": 0, "warning": 1, "fault": 2}
    gravest = max((weights[finding["level"]] for finding in done.report["findings"]), default=0)
    assert done.code == gravest, done.output
    return done.code, done.findings.keys() - {"sqlite_wal_fault"}


def test_doctor_tells_by_its_exit_code(launch: Launcher) -> None:
    """Doctor ends with 1 for warnings and 2 for faults, names what SQL did unseen, and `--repair` sends it on (I55)."""
    with alone(launch) as shop:
        ada, scope, tenant = shop.workspace()
        row, unfit = shop.insert(tenant, "seen"), shop.insert(tenant, status="'weird'")
        shop.drained()
        done = command(shop, DECLARATION, "doctor", "--json")
        code, unfitting = judged(done)
        assert code == 1
        assert unfit in str(done.findings["rows_unfit"])
        shop.update(unfit, status="'open'")
        shop.arrives(ada, unfit, scope)
        for trigger in triggers(shop):
            shop.sql.run(trigger)
        shop.update(row, customer="'unseen'")
        code, found = judged(command(shop, DECLARATION, "doctor", "--json"))
        assert code == 2
        assert found >= {"trigger_missing", "rows_differ"}
        command(shop, DECLARATION, "doctor", "--repair")
        shop.arrives(ada, row, scope, customer="unseen")
        shop.drained()
        _, found = judged(command(shop, DECLARATION, "doctor", "--json"))
        assert found == unfitting - {"rows_unfit"}
        shop.insert(tenant, "seen again")
        assert len(proved(shop, ada, scope, tenant).copy(scope).rows) == 3


def triggers(shop: Shop) -> list[str]:
    """Statements that drop the triggers on the orders."""
    query = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'shop_orders'",
        "postgresql": "SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop_orders'::regclass AND NOT tgisinternal",
        "mysql": "SELECT trigger_name FROM information_schema.triggers "
        "WHERE trigger_schema = DATABASE() AND event_object_table = 'shop_orders'",
    }
    on = " ON shop_orders" if shop.dialect == "postgresql" else ""
    return [f"DROP TRIGGER {name}{on}" for (name,) in shop.sql.run(query[shop.dialect])]
