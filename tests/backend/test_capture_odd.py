"""What other programs seldom do, and what happens to the rows of others meanwhile (SPEC 10)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.backend.engine_world import Device, fates
from tests.backend.sql_world import SqlWorld, W, adopted, order, orders
from tests.outside import Program
from tidemark.store.base import Identity, RowImage, RowKey, RowTaken, Saved, Transaction


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[SqlWorld]:
    """A world on each database."""
    async with adopted(database_url) as world:
        yield world


@pytest.fixture(params=["postgresql_url", "mariadb_url"])
async def held_world(request: pytest.FixtureRequest) -> AsyncIterator[SqlWorld]:
    """One on each database whose programs hold single rows and tables."""
    async with adopted(request.getfixturevalue(request.param)) as world:
        yield world


@pytest.fixture
def ada(world: SqlWorld) -> Device:
    """A device of ada's."""
    return world.device()


async def test_a_key_with_a_unit_separator_is_nobody_elses(world: SqlWorld, ada: Device) -> None:
    """A key of SQL that holds the separator of identities names no row of the feed, and takes none away (I55)."""
    await ada.apply(ada.put("orders", "a:b", scope=W, fields={"total": 1}))
    separated = {"postgresql": "'a' || chr(31) || 'b'", "sqlite": "'a' || char(31) || 'b'"}
    key = separated.get(world.program.dialect, "CONCAT('a', CHAR(31), 'b')")
    await world.sql(f"INSERT INTO orders (order_key, tenant_id, total) VALUES ({key}, '7', 2)")
    await world.sql(f"INSERT INTO tags VALUES ('7', {key}, 'red'), ('7', 'a:b', 'green')")
    await world.drain()
    assert await orders(ada) == {"a:b": order("a:b", total=1)}
    assert [doc["color"] for (entity, _), doc in (await ada.rows(W)).items() if entity == "tags"] == ["green"]
    await world.sql(f"DELETE FROM orders WHERE order_key = {key}", f"DELETE FROM tags WHERE tag = {key}")
    await world.drain()
    assert await orders(ada) == {"a:b": order("a:b", total=1)}
    assert ("tags", "a:b") in await ada.rows(W)
    assert await world.backlog() == 0


async def test_a_row_inserted_between_the_look_and_the_write_is_not_overwritten(held_world: SqlWorld) -> None:
    """A new row that SQL has committed since its table was looked at makes the transaction begin again (I54)."""
    world = held_world

    async def body(transaction: Transaction) -> None:
        identity = Identity("orders", "a")
        assert await transaction.table_rows([identity], [identity]) == ([], set())
        await world.sql("INSERT INTO orders (order_key, tenant_id, total) VALUES ('a', '7', 9)")
        stamp = "2026-01-01T00:00:00.000000Z"
        values = {n: v for n, v in order("a").items() if n != "order_key"}
        image = RowImage(RowKey(W, "orders", "a"), values, stamp, stamp, new=True)
        await transaction.save(Saved([], [], [image], [], [], []))

    with pytest.raises(RowTaken):
        await world.store.transact(body)
    assert await world.sql("SELECT total FROM orders") == [(9,)]


async def test_the_latest_write_of_a_row_gives_the_time_though_much_waits(world: SqlWorld, ada: Device) -> None:
    """An edit made before the last of a row's writes in SQL loses, wherever the entries of it stand (I53)."""
    await ada.apply(ada.put("orders", "a", scope=W, fields={}))
    await world.drain()
    await world.sql("UPDATE orders SET total = 1 WHERE order_key = 'a'")
    for first in range(0, 1_200, 300):
        rows = ", ".join(f"('x{n}', '7')" for n in range(first, first + 300))
        await world.sql(f"INSERT INTO orders (order_key, tenant_id) VALUES {rows}")
    early = ada.patch("orders", "a", {"total": 5}, scope=W)
    began = world.time
    while world.time <= began + 1:
        pass
    await world.sql("UPDATE orders SET total = 2 WHERE order_key = 'a'")
    await world.engine.drain.step()
    (result,) = await ada.push(early)
    assert result.status == "superseded"
    await world.drain()
    assert await world.sql("SELECT total FROM orders WHERE order_key = 'a'") == [(2,)]
    assert (await orders(ada))["a"]["total"] == 2


async def test_a_table_held_whole_holds_up_no_other(held_world: SqlWorld) -> None:
    """While SQL has emptied a table and not committed, rows of other tables come and go as ever (I54)."""
    world, ada = held_world, held_world.device()
    await ada.apply(ada.put("tags", "x", scope=W, fields={}), ada.put("orders", "a", scope=W, fields={}))
    await world.drain()
    async with Program(world.program.url) as other:
        await world.sql("UPDATE tags SET color = 'red'")
        if world.program.dialect == "postgresql":
            await world.program.begin()
            await world.sql("TRUNCATE tags")
        else:
            await world.sql("LOCK TABLES tags WRITE")
        await other.run("INSERT INTO orders (order_key, tenant_id) VALUES ('b', '7')")
        began = time.monotonic()
        for _ in range(3):
            await world.engine.drain.step()
        assert set(await orders(ada)) == {"a", "b"}
        pushed = await asyncio.gather(
            ada.push(ada.patch("orders", "a", {"total": 3}, scope=W)),
            ada.push(ada.patch("tags", "x", {"color": "blue"}, scope=W)),
        )
        assert [fates(results) for results in pushed] == [["applied"], ["unavailable"]]
        assert time.monotonic() - began < 8
        await world.sql("COMMIT" if world.program.dialect == "postgresql" else "UNLOCK TABLES")
    deadline = time.monotonic() + 10
    while await world.backlog():
        await world.engine.drain.step()
        assert time.monotonic() < deadline
    assert ("tags", "x") in await ada.rows(W) or world.program.dialect == "postgresql"


async def test_a_column_that_its_owner_has_dropped_stops_one_table(world: SqlWorld, ada: Device) -> None:
    """Rows of a table that does not fit any more wait, those of others do not; once it fits again, they come (I55)."""
    await world.sql("INSERT INTO tags VALUES ('7', 'x', 'red')")
    await world.drain()
    await world.sql("ALTER TABLE tags RENAME COLUMN color TO colour", "INSERT INTO tags VALUES ('7', 'y', 'blue')")
    await world.sql("INSERT INTO orders (order_key, tenant_id) VALUES ('b', '7')")
    for _ in range(3):
        await world.engine.drain.step()
    assert set(await orders(ada)) == {"b"}
    pushed = await asyncio.gather(
        ada.push(ada.patch("orders", "b", {"total": 3}, scope=W)),
        ada.push(ada.put("tags", "z", scope=W, fields={})),
    )
    assert [fates(results) for results in pushed] == [["applied"], ["unavailable"]]
    await world.sql("ALTER TABLE tags RENAME COLUMN colour TO color")
    deadline = time.monotonic() + 10
    while await world.backlog():
        await world.engine.drain.step()
        assert time.monotonic() < deadline
    assert {row for entity, row in await ada.rows(W) if entity == "tags"} == {"x", "y"}


async def test_a_row_is_unfit_and_fit_by_turns(world: SqlWorld, ada: Device) -> None:
    """A row comes and goes as it can be represented, whoever writes it between (I55)."""
    await world.sql("INSERT INTO orders (order_key, tenant_id, status) VALUES ('a', '7', 'odd')")
    for status, seen in (("open", True), ("odd", False), ("closed", True), ("odd", False)):
        await world.sql(f"UPDATE orders SET status = '{status}'")
        await world.drain()
        assert set(await orders(ada)) == ({"a"} if seen else set())
    await ada.apply(ada.put("orders", "a", scope=W, fields={"total": 4}))
    await world.drain()
    assert await orders(ada) == {"a": order("a", total=4)}
    await world.proved(W)


@pytest.mark.parametrize("hours", [-1, 1, -24 * 400])
async def test_a_databases_clock_that_is_wrong(world: SqlWorld, ada: Device, hours: int) -> None:
    """Entries with a time far ahead or behind are taken, and clients go on writing the rows (I53)."""
    off = hours * 3_600_000
    await ada.apply(ada.put("orders", "a", scope=W, fields={}))
    await world.sql("UPDATE orders SET total = 1", "INSERT INTO orders (order_key, tenant_id) VALUES ('b', '7')")
    await world.sql(f"UPDATE sync_inbox SET captured_at = captured_at + ({off})")
    await world.drain()
    assert await orders(ada) == {"a": order("a", total=1), "b": order("b")}
    await ada.pull()
    at = max((await world.store.states([W]))[W].clock, ada.at())
    for row in ("a", "b"):
        at = f"{at[:18]}{'f' * 16}"
        await ada.apply(ada.patch("orders", row, {"total": 2}, scope=W, at=at))
    await world.sql("DELETE FROM orders")
    await world.sql(f"UPDATE sync_inbox SET captured_at = captured_at + ({off})")
    await world.drain()
    assert await orders(ada) == {}
    await world.proved(W)


async def test_a_table_emptied_and_filled_again_in_one_transaction(held_world: SqlWorld) -> None:
    """What is there in the end is all that is seen of it (I53)."""
    world, ada = held_world, held_world.device()
    await world.sql("INSERT INTO tags VALUES ('7', 'a', 'red'), ('7', 'b', 'red')")
    await world.drain()
    head = (await world.store.states([W]))[W].head
    await world.program.begin()
    await world.sql("TRUNCATE tags" if world.program.dialect == "postgresql" else "DELETE FROM tags")
    await world.sql("INSERT INTO tags VALUES ('7', 'a', 'red'), ('7', 'c', 'blue')")
    await world.program.commit()
    await world.drain()
    assert {row: doc["color"] for (_, row), doc in (await ada.rows(W)).items()} == {"a": "red", "c": "blue"}
    assert (await world.store.states([W]))[W].head == head + 2


async def test_new_rows_do_not_wait_behind_those_that_are_held_up(postgresql_url: str) -> None:
    """More rows put off than a page holds are passed by, and taken once nobody holds what follows from them (I54)."""
    async with adopted(postgresql_url) as world, Program(postgresql_url) as holder:
        ada = world.device()
        numbers = "generate_series(1, 1200) AS n"
        await world.sql(
            f"INSERT INTO customers SELECT n, '7', 'c' || n, 0 FROM {numbers}",
            f"INSERT INTO orders (order_key, tenant_id, customer_key) SELECT 'o' || n, '7', n FROM {numbers}",
        )
        await world.drain()
        await holder.begin()
        await holder.run("UPDATE orders SET note = 'held'")
        await world.sql("DELETE FROM customers")
        await world.drain()
        await world.engine.drain.step()
        began = world.time
        while world.time <= began + 60:
            pass
        await world.sql("INSERT INTO tags VALUES ('7', 'new', 'red')")
        await world.engine.drain.step()
        assert ("tags", "new") in await ada.rows(W)
        assert await world.backlog() >= 1_200
        await holder.commit()
        deadline = time.monotonic() + 30
        while await world.backlog():
            await world.engine.drain.step()
            assert time.monotonic() < deadline
        assert await world.sql("SELECT count(*) FROM orders WHERE customer_key IS NOT NULL") == [(0,)]


async def test_a_new_row_does_not_wait_behind_a_great_many(world: SqlWorld, ada: Device) -> None:
    """Beside what waits longest, what was written last is taken at once (I53)."""
    await world.store.report([Identity("orders", f"many-{number}") for number in range(3_000)], world.time)
    await world.sql("INSERT INTO orders (order_key, tenant_id) VALUES ('new', '7')")
    await world.engine.drain.step()
    assert set(await orders(ada)) == {"new"}
    assert await world.backlog() > 1_000
    await world.drain()
    assert await world.backlog() == 0
