"""Writers in SQL (SPEC 10): what other programs write reaches the feed, whatever they do and in whatever order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.backend.engine_world import Device, fates
from tests.backend.sql_world import DECLARATION, SqlWorld, W, adopted, order, orders


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[SqlWorld]:
    """A world on each database."""
    async with adopted(database_url) as world:
        yield world


@pytest.fixture
async def postgresql_world(postgresql_url: str) -> AsyncIterator[SqlWorld]:
    """One on PostgreSQL."""
    async with adopted(postgresql_url) as world:
        yield world


@pytest.fixture
async def mariadb_world(mariadb_url: str) -> AsyncIterator[SqlWorld]:
    """One on MariaDB."""
    async with adopted(mariadb_url) as world:
        yield world


@pytest.fixture(params=["postgresql_url", "mariadb_url"])
async def held_world(request: pytest.FixtureRequest) -> AsyncIterator[SqlWorld]:
    """One on each database whose programs hold single rows."""
    async with adopted(request.getfixturevalue(request.param)) as world:
        yield world


@pytest.fixture
def ada(world: SqlWorld) -> Device:
    """A device of ada's."""
    return world.device()


def _next_millisecond(world: SqlWorld) -> None:
    """Let the clocks move on, whoever reads them."""
    began = world.time
    while world.time <= began + 1:
        pass


async def test_inserts_updates_and_deletes_in_sql_reach_replicas(world: SqlWorld, ada: Device) -> None:
    """A row inserted in SQL arrives in its canonical form, changes column by column, and goes (I53)."""
    await world.sql(
        "INSERT INTO orders (order_key, tenant_id, total, day, seen, urgent) "
        "VALUES ('a', '7', 5, '2026-02-03', '2026-02-03 04:05:06.5', true), ('b', '7', 1, NULL, NULL, false)",
        "INSERT INTO customers (customer_key, tenant_id, name, balance) VALUES (12, '7', 'Bo', '3.5')",
    )
    await world.drain()
    assert await orders(ada) == {
        "a": order("a", total=5, day="2026-02-03", seen="2026-02-03T04:05:06.500000Z", urgent=True),
        "b": order("b", total=1),
    }
    assert (await ada.rows(W))["customers", "12"]["balance"] == "3.50"
    before = await ada.pull()
    await world.sql("UPDATE orders SET total = 6 WHERE order_key = 'a'", "DELETE FROM orders WHERE order_key = 'b'")
    await world.drain()
    marks = {run.scope: run.watermark for run in before.scopes}
    after = await ada.pull(marks)
    changes = {change.row: change.doc for run in after.scopes for change in run.changes}
    assert changes["b"] is None
    assert changes["a"] is not None
    assert changes["a"]["total"] == 6
    assert len(changes) == 2
    assert await world.backlog() == 0
    await world.proved(W)


async def test_the_journal_tells_who_wrote_in_sql(world: SqlWorld, ada: Device) -> None:
    """An outside write is an event with `by` sql, the database's user, what it set and what it overwrote (I53)."""
    await world.sql("INSERT INTO tags VALUES ('7', 'new', 'red')")
    await world.drain()
    await world.sql("UPDATE tags SET color = 'blue'")
    await world.drain()
    put, patch = await ada.events(scope=W, entity="tags")
    assert (put["op"], put["by"], put["outcome"], put["client"]) == ("put", "sql", "applied", None)
    assert (patch["op"], patch["set"], patch["overwrote"]) == ("patch", ["color"], {"color": "red"})
    assert ("postgres" in (put["user"] or "")) == (world.program.dialect == "postgresql")


async def test_key_and_scope_changes_move_a_row(world: SqlWorld, ada: Device) -> None:
    """A changed key or scope column is a delete in the old place and a put in the new one (I53)."""
    await world.sql("INSERT INTO orders (order_key, tenant_id, total) VALUES ('a', '7', 5)")
    await world.sql("INSERT INTO tags VALUES ('7', 'new', 'red')")
    await world.drain()
    await world.sql("UPDATE orders SET order_key = 'z'", "UPDATE tags SET tenant_id = '8'")
    await world.drain()
    assert await orders(ada) == {"z": order("z", total=5)}
    assert ("tags", "new") in await ada.rows("workspace:8")
    assert ("tags", "new") not in await ada.rows(W)
    await world.sql("UPDATE orders SET tenant_id = '8', total = 6")
    await world.drain()
    assert await orders(ada) == {}
    assert await orders(ada, "workspace:8") == {"z": order("z", total=6)}


async def test_a_pushed_write_builds_on_what_sql_did_meanwhile(world: SqlWorld, ada: Device) -> None:
    """A mutation of a row that SQL has changed, not drained yet, keeps the other columns' new values (I54)."""
    await ada.apply(ada.put("orders", "a", scope=W, fields={"total": 1}))
    await world.sql("UPDATE orders SET status = 'closed', note = 'theirs' WHERE order_key = 'a'")
    await ada.apply(ada.patch("orders", "a", {"total": 2}, scope=W))
    await world.drain()
    assert await orders(ada) == {"a": order("a", total=2, status="closed")}
    assert await world.sql("SELECT status, total, note FROM orders") == [("closed", 2, "theirs")]


async def test_the_time_of_capture_is_the_clock_of_what_sql_wrote(world: SqlWorld, ada: Device) -> None:
    """An edit made offline before a write in SQL loses to it, one made after wins, whenever they arrive (I53)."""
    await ada.apply(ada.put("orders", "a", scope=W, fields={}))
    early = ada.patch("orders", "a", {"total": 1, "status": "closed"}, scope=W)
    _next_millisecond(world)
    await world.sql("UPDATE orders SET total = 5 WHERE order_key = 'a'")
    _next_millisecond(world)
    late = ada.patch("orders", "a", {"day": "2026-01-01"}, scope=W)
    first, second = await ada.push(early, late)
    assert (first.status, first.superseded_fields) == ("applied", ["total"])
    assert second.status == "applied"
    await world.drain()
    assert await orders(ada) == {"a": order("a", total=5, status="closed", day="2026-01-01")}
    assert await world.sql("SELECT total, status FROM orders") == [(5, "closed")]


async def test_owners_triggers_have_the_last_word(world: SqlWorld, ada: Device) -> None:
    """What an owner's BEFORE trigger makes of a value, written by SQL or by a client, is what replicas get (I53)."""
    if world.program.dialect == "sqlite":
        await world.sql(
            "CREATE TRIGGER lower_tags AFTER INSERT ON tags BEGIN "
            "UPDATE tags SET color = lower(color) WHERE tag = NEW.tag; END"
        )
    elif world.program.dialect == "postgresql":
        await world.sql(
            "CREATE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN NEW.color := lower(NEW.color); RETURN NEW; END'",
            "CREATE TRIGGER lower_tags BEFORE INSERT OR UPDATE ON tags FOR EACH ROW EXECUTE FUNCTION low()",
        )
    else:
        await world.sql("CREATE TRIGGER lower_tags BEFORE INSERT ON tags FOR EACH ROW SET NEW.color = lower(NEW.color)")
    await world.sql("INSERT INTO tags VALUES ('7', 'sql', 'RED')")
    await ada.apply(ada.put("tags", "own", scope=W, fields={"color": "BLUE"}))
    await world.drain()
    rows = await ada.rows(W)
    assert rows["tags", "sql"]["color"] == "red"
    assert rows["tags", "own"]["color"] == "blue"


async def test_a_trigger_that_writes_another_captured_table_is_seen(world: SqlWorld, ada: Device) -> None:
    """An owner's trigger that keeps an order's total reaches replicas, whoever wrote the line (I53)."""
    body = "UPDATE orders SET total = total + NEW.price WHERE order_key = NEW.parent"
    if world.program.dialect == "postgresql":
        await world.sql(
            f"CREATE FUNCTION sum_up() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {body}; RETURN NEW; END'",
            "CREATE TRIGGER sum_up AFTER INSERT ON order_lines FOR EACH ROW EXECUTE FUNCTION sum_up()",
        )
    elif world.program.dialect == "sqlite":
        await world.sql(f"CREATE TRIGGER sum_up AFTER INSERT ON order_lines BEGIN {body}; END")
    else:
        await world.sql(f"CREATE TRIGGER sum_up AFTER INSERT ON order_lines FOR EACH ROW {body}")
    await ada.apply(ada.put("orders", "a", scope=W, fields={}))
    await ada.apply(ada.put("lines", "a:1", scope=W, fields={"parent": "a", "price": 5}))
    await world.sql("INSERT INTO order_lines VALUES ('a', 2, '7', 'a', 7)")
    await world.drain()
    assert (await orders(ada))["a"]["total"] == 12
    assert ("lines", "a:2") in await ada.rows(W)


async def test_upserts_are_seen(world: SqlWorld, ada: Device) -> None:
    """INSERT … ON CONFLICT, and its kin, report the rows they make and those they change (I53)."""
    await world.sql("INSERT INTO tags VALUES ('7', 'old', 'red')")
    await world.drain()
    values = "INSERT INTO tags VALUES ('7', 'old', 'blue'), ('7', 'new', 'green')"
    if world.program.dialect == "mysql":
        await world.sql(f"{values} ON DUPLICATE KEY UPDATE color = VALUES(color)")
    else:
        await world.sql(f"{values} ON CONFLICT (tenant_id, tag) DO UPDATE SET color = excluded.color")
    await world.drain()
    rows = await ada.rows(W)
    assert {row: doc["color"] for (_, row), doc in rows.items()} == {"old": "blue", "new": "green"}


async def test_copy_and_truncate_are_seen(postgresql_world: SqlWorld) -> None:
    """A bulk COPY arrives whole, TRUNCATE takes every row from every scope (I53)."""
    world, ada = postgresql_world, postgresql_world.device()
    records = [(f"o{n}", str(7 + n % 2), n) for n in range(5_000)]
    await world.program.postgresql.copy_records_to_table(
        "orders", records=records, columns=["order_key", "tenant_id", "total"]
    )
    assert await world.drain() == 5_000
    assert len(await orders(ada)) == len(await orders(ada, "workspace:8")) == 2_500
    await world.sql("TRUNCATE orders CASCADE")
    await world.drain()
    assert await orders(ada) == await orders(ada, "workspace:8") == {}
    await world.proved(W)


async def test_an_open_transaction_holds_up_the_rows_it_holds_alone(held_world: SqlWorld) -> None:
    """While SQL holds a row, only mutations of that row wait; once it commits, nothing of it is skipped (I54)."""
    world, ada = held_world, held_world.device()
    await ada.apply(ada.put("orders", "a", scope=W, fields={}), ada.put("orders", "b", scope=W, fields={}))
    await world.program.begin()
    await world.sql(
        "UPDATE orders SET total = 9 WHERE order_key = 'a'",
        "INSERT INTO orders (order_key, tenant_id) VALUES ('c', '7')",
        "INSERT INTO customers VALUES (1, '7', 'Bo', 0, NULL)",
    )
    assert fates(await ada.push(ada.patch("orders", "a", {"status": "closed"}, scope=W))) == ["unavailable"]
    assert fates(await ada.push(ada.put("orders", "c", scope=W, fields={}))) == ["unavailable"]
    bo = ada.put("customers", "2", scope=W, fields={"name": "Bo", "balance": "0.00"})
    assert fates(await ada.push(bo)) == ["unavailable"]
    await ada.apply(ada.patch("orders", "b", {"total": 3}, scope=W), ada.put("tags", "x", scope=W, fields={}))
    await world.drain()
    await world.program.commit()
    await ada.apply(ada.patch("orders", "a", {"status": "closed"}, scope=W))
    assert fates(await ada.push(bo)) == ["unique_violation"]
    await world.drain()
    held = await orders(ada)
    assert held["a"] == order("a", total=9, status="closed")
    assert held["c"] == order("c")
    assert ("customers", "1") in await ada.rows(W)
    assert await world.backlog() == 0


async def test_a_row_that_cannot_be_stops_nothing(world: SqlWorld, ada: Device) -> None:
    """A key, scope or value outside the declaration keeps its row out of the feed, and the journal says why; in its
    table it stays (I55).
    """
    await world.sql(
        "INSERT INTO orders (order_key, tenant_id) VALUES ('sp ace', '7'), ('good', '7'), ('none', '')",
        "INSERT INTO orders (order_key, tenant_id, status) VALUES ('odd', '7', 'paused'), ('was', '7', 'open')",
    )
    await world.drain()
    assert set(await orders(ada)) == {"good", "was"}
    await world.sql("UPDATE orders SET status = 'lost' WHERE order_key = 'was'")
    await world.drain()
    assert set(await orders(ada)) == {"good"}
    rejected = await ada.events(scope=W, outcome="rejected")
    assert {event["row"]: event["error"]["code"] for event in rejected} == {
        "sp ace": "invalid_row",
        "odd": "invalid_field",
        "was": "invalid_field",
    }
    await world.sql("UPDATE orders SET status = 'open', total = 4 WHERE order_key IN ('odd', 'was')")
    await world.drain()
    held = await orders(ada)
    assert (held["odd"], held["was"]) == (order("odd", total=4), order("was", total=4))
    assert await world.backlog() == 0


async def test_a_key_that_sql_put_into_another_scope_is_taken(world: SqlWorld, ada: Device) -> None:
    """A put of a key that a table holds in another scope is `row_taken`, drained or not, and changes nothing (I54)."""
    await world.sql("INSERT INTO orders (order_key, tenant_id, total) VALUES ('a', '8', 5)")
    assert fates(await ada.push(ada.put("orders", "a", scope=W, fields={}))) == ["row_taken"]
    await world.drain()
    assert fates(await ada.push(ada.put("orders", "a", scope=W, fields={}))) == ["row_taken"]
    assert await orders(ada, "workspace:8") == {"a": order("a", total=5)}


async def test_what_refers_to_a_row_deleted_in_sql_follows(world: SqlWorld, ada: Device) -> None:
    """`set_null` is carried out for a parent deleted in SQL, in the table too, as writes of the server (I53)."""
    await world.sql(
        "INSERT INTO customers VALUES (1, '7', 'Bo', 0, NULL)",
        "INSERT INTO orders (order_key, tenant_id, customer_key) VALUES ('a', '7', 1), ('b', '7', 1)",
    )
    await world.drain()
    await world.sql("DELETE FROM customers")
    await world.drain()
    assert await orders(ada) == {"a": order("a"), "b": order("b")}
    assert await world.sql("SELECT customer_key FROM orders") == [(None,), (None,)]
    assert await world.backlog() == 0


async def test_parents_and_children_are_written_in_the_order_of_their_foreign_keys(
    world: SqlWorld, ada: Device
) -> None:
    """A group with an order and its lines is one transaction, whatever their tables' names, and so is its end (I13)."""
    await ada.apply(
        ada.put("orders", "z", scope=W, fields={}, group="g"),
        ada.put("lines", "z:1", scope=W, fields={"parent": "z", "price": 1}, group="g"),
    )
    await ada.apply(ada.delete("orders", "z", scope=W))
    await world.drain()
    assert await world.sql("SELECT * FROM order_lines") == []
    assert await ada.rows(W) == {}


async def test_own_writes_are_no_differences(world: SqlWorld, ada: Device) -> None:
    """Draining what our own writes reported changes no row, takes no version and journals nothing."""
    await ada.apply(*(ada.put("orders", f"o{n}", scope=W, fields={"total": n, "urgent": True}) for n in range(20)))
    await ada.apply(ada.delete("orders", "o3", scope=W), ada.patch("orders", "o4", {"day": "2026-01-01"}, scope=W))
    before, events = await ada.pull(), await ada.events()
    if world.program.dialect == "postgresql":
        assert await world.backlog() == 0
    await world.drain()
    after = await ada.pull()
    assert [run.head for run in after.scopes] == [run.head for run in before.scopes]
    assert await ada.events() == events
    assert await world.backlog() == 0


async def test_processes_that_drain_at_once_take_each_change_once(postgresql_world: SqlWorld) -> None:
    """Two processes on one inbox: every row arrives, no version is given twice for one write (I53)."""
    world = postgresql_world
    other = world.process(DECLARATION)
    await world.sql("INSERT INTO orders (order_key, tenant_id) SELECT 'o' || n, '7' FROM generate_series(1, 3000) AS n")
    await asyncio.gather(world.drain(), world.drain(other))
    await world.drain()
    state = (await world.store.states([W]))[W]
    assert (state.head, state.live) == (3_000, 3_000)
    assert await world.backlog() == 0
    await world.proved(W)


async def test_a_table_blind_to_case_mixes_up_no_rows(mariadb_world: SqlWorld) -> None:
    """Where the owner's collation takes two spellings for one key, a client's write touches neither the row nor the
    tenant of the other spelling (I33).
    """
    world = mariadb_world
    key = "varchar(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL"
    await world.sql(
        f"ALTER TABLE tags MODIFY tenant_id {key}, MODIFY tag {key}",
        "INSERT INTO tags VALUES ('ACME', 'x', 'red'), ('8', 'Y', 'blue')",
    )
    await world.grant("workspace:acme", ada="editor")
    ada = world.device()
    twins = (ada.put("tags", "x", scope="workspace:acme", fields={}), ada.put("tags", "y", scope="workspace:8"))
    assert fates(await ada.push(*twins)) == ["row_taken", "row_taken"]
    await world.drain()
    await ada.push(ada.delete("tags", "y", scope="workspace:8"), ada.delete("tags", "x", scope="workspace:acme"))
    assert await world.sql("SELECT * FROM tags ORDER BY tag") == [("ACME", "x", "red"), ("8", "Y", "blue")]
    assert await ada.rows("workspace:acme") == {}
    assert list(await ada.rows("workspace:8")) == [("tags", "Y")]
    assert await world.backlog() == 0
