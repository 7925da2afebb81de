"""What only real databases do: fingerprints, lost connections, other programs' tables, one process for a file."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conformance.declared import DECLARATION
from tests.conformance.writing import STAMP, apply, put, saved, uuid
from tests.servers import MariadbServer, PostgresServer
from tidemark.store.base import ConstraintFailed, RowImage, RowKey, Transaction, Unavailable, Unfit
from tidemark.store.mysql import MysqlStore
from tidemark.store.postgresql import PostgresStore
from tidemark.store.schema.migrate import _in_transaction as in_transaction
from tidemark.store.schema.migrate import migrate
from tidemark.store.sqlite import SqliteStore
from tidemark_protocol.model import Declaration
from tidemark_protocol.schema import parse

DatabaseStore = SqliteStore | PostgresStore | MysqlStore
KINDS: dict[str, type[DatabaseStore]] = {"sqlite": SqliteStore, "postgresql": PostgresStore, "mariadb": MysqlStore}
W = "workspace:w"


def store_at(url: str, declaration: Declaration = DECLARATION) -> DatabaseStore:
    """A store on a URL, not opened yet."""
    return KINDS[url.partition(":")[0]](url, declaration, chance=secrets.token_bytes)


@asynccontextmanager
async def opened(url: str, declaration: Declaration = DECLARATION) -> AsyncIterator[DatabaseStore]:
    """A store on a URL, open."""
    store = store_at(url, declaration)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def prepared(url: str, declaration: Declaration = DECLARATION) -> None:
    """Make the tables."""
    await asyncio.to_thread(migrate, url, declaration)


async def sql(url: str, statement: str) -> list[Any]:
    """Run one statement as another program would; the rows it gives."""

    def work(connection: Any) -> list[Any]:
        result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []

    return await asyncio.to_thread(in_transaction, url, work, alone=False)


def writing(*changes: Any) -> Callable[[Transaction], Awaitable[Any]]:
    """The body of a transaction that applies changes."""
    return lambda transaction: apply(transaction, changes)


@pytest.fixture(params=["postgresql", "mariadb"])
def shared_url(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh, empty database that any number of processes may have open."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


MADE = "SELECT create_time FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'sync_meta'"


async def eventually(ask: Callable[[], Awaitable[object]], seconds: float = 20) -> None:
    """Ask until the answer is yes."""
    async with asyncio.timeout(seconds):
        while not await ask():  # noqa: ASYNC110 - another process decides it
            await asyncio.sleep(0.01)


async def hang_up(url: str) -> None:
    """End every connection to a database but the one that does so."""
    if url.startswith("postgresql"):
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        await sql(url, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {others}")
        return
    others = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    for (number,) in await sql(url, others):
        await sql(url, f"KILL {number}")


async def test_the_epoch_stays_with_the_database(database_url: str) -> None:
    """Opened again, a database keeps its epoch; renewed, it has another for good."""
    await prepared(database_url)
    async with opened(database_url) as store:
        first = store.epoch
        assert len(first) == 8
    async with opened(database_url) as store:
        assert store.epoch == first
        renewed = await store.renew_epoch()
        assert store.epoch == renewed != first
    async with opened(database_url) as store:
        assert store.epoch == renewed


async def test_a_copied_file_has_another_epoch(tmp_path: Path) -> None:
    """A restored file is another one: its versions are not those that replicas know."""
    path, copy = tmp_path / "tidemark.db", tmp_path / "copy.db"
    await prepared(f"sqlite:///{path}")
    async with opened(f"sqlite:///{path}") as store:
        first = store.epoch
    shutil.copy(path, copy)
    async with opened(f"sqlite:///{copy}") as store:
        assert store.epoch != first


async def test_a_copied_database_has_another_epoch(postgres_server: PostgresServer, postgresql_url: str) -> None:
    """The same for PostgreSQL, by the database's name and number."""
    await prepared(postgresql_url)
    async with opened(postgresql_url) as store:
        first = store.epoch
    name = postgresql_url.rpartition("/")[2]
    postgres_server.sql(f"CREATE DATABASE {name}_copy TEMPLATE {name}")
    async with opened(f"{postgresql_url}_copy") as store:
        assert store.epoch != first
    postgres_server.drop_database(f"{postgresql_url}_copy")


async def test_a_restored_mariadb_has_another_epoch(mariadb_server: MariadbServer, mariadb_url: str) -> None:
    """So has one under another name, or of the same name whose table was made again by a restore."""
    await prepared(mariadb_url)
    epochs = []
    name = mariadb_url.rpartition("/")[2]
    remade = "CREATE TABLE again LIKE sync_meta; INSERT INTO again SELECT * FROM sync_meta; "
    async with opened(mariadb_url) as store:
        epochs.append(store.epoch)
    made = mariadb_server.sql(MADE, name)

    async def later() -> bool:  # the time is told in whole seconds
        return mariadb_server.sql("SELECT NOW()", name) > made

    await eventually(later)
    mariadb_server.sql(remade + "DROP TABLE sync_meta; RENAME TABLE again TO sync_meta", name)
    async with opened(mariadb_url) as store:
        epochs.append(store.epoch)
    assert len(set(epochs)) == 2


async def test_several_processes_settle_on_one_epoch(shared_url: str) -> None:
    """Of stores that open a new database at once, all have the same epoch."""
    await prepared(shared_url)
    stores = [store_at(shared_url) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    assert len({store.epoch for store in stores}) == 1
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_database_without_tables_is_refused(database_url: str) -> None:
    """The reason names what is to be done."""
    store = store_at(database_url)
    with pytest.raises(Unfit, match="--migrate"):
        await store.open()
    await store.close()


async def test_a_file_has_one_process(tmp_path: Path) -> None:
    """A second service on the same SQLite file is refused with the reason; it may come when the first has gone."""
    url = f"sqlite:///{tmp_path / 'tidemark.db'}"
    await prepared(url)
    async with opened(url):
        second = store_at(url)
        with pytest.raises(Unfit, match="SQLite serves one process"):
            await second.open()
        await second.close()
    async with opened(url):
        pass


async def test_a_body_may_not_wait_in_the_writing_thread(tmp_path: Path) -> None:
    """Awaiting anything but the transaction is a mistake that is named, and nothing is kept."""
    url = f"sqlite:///{tmp_path / 'tidemark.db'}"
    await prepared(url)

    async def body(transaction: Transaction) -> None:
        await transaction.lock([], [W])
        await asyncio.sleep(0)

    async with opened(url) as store:
        with pytest.raises(RuntimeError, match="other than its transaction"):
            await store.transact(body)
        assert await store.states([W]) == {}


async def test_a_lost_connection_is_unavailable_and_heals(shared_url: str) -> None:
    """When the server ends the connections, what is under way fails as `Unavailable`, and the next one works."""
    await prepared(shared_url)

    async def body(transaction: Transaction) -> None:
        await transaction.lock([], [W])
        await hang_up(shared_url)
        await transaction.lock([W], [])

    async with opened(shared_url) as store:
        with pytest.raises(Unavailable):
            await store.transact(body)
        assert await store.transact(writing(put(W, "names", uuid(1))))
        assert (await store.states([W]))[W].head == 1


async def test_connections_lost_while_idle_are_replaced(shared_url: str) -> None:
    """Nobody notices that the server has ended the connections that were not in use."""
    await prepared(shared_url)
    async with opened(shared_url) as store:
        await store.transact(writing(put(W, "names", uuid(1))))
        await hang_up(shared_url)
        await asyncio.sleep(0)  # the loop learns of it, as it does in a service
        assert (await store.states([W]))[W].head == 1
        assert await store.transact(writing(put(W, "names", uuid(2), name="two")))


async def test_what_was_cancelled_holds_nothing(shared_url: str) -> None:
    """A transaction cancelled within a statement or between two leaves no lock and no half of its writing."""
    await prepared(shared_url)
    within = asyncio.Event()

    async def between(transaction: Transaction) -> None:
        await apply(transaction, [put(W, "names", uuid(1))])
        within.set()
        await asyncio.Event().wait()

    async def inside(transaction: Transaction) -> None:
        await transaction.lock([], [W])
        within.set()
        while True:
            await apply(transaction, [put(W, "names", uuid(1))])

    async with opened(shared_url) as store:
        for body in (between, inside) * 3:
            within.clear()
            task = asyncio.ensure_future(store.transact(body))
            await within.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await eventually(lambda: store.transact(lambda transaction: transaction.lock([W], [W])))
        assert (await store.states([W]))[W].head == 0
        assert list(await store.rows_of(W)) == []


@pytest.mark.parametrize("url", ["postgresql://postgres@127.0.0.1:9/none", "mariadb://root@127.0.0.1:9/none"])
async def test_a_server_that_is_away_is_unavailable(url: str) -> None:
    """Nobody listens on the discard port."""
    store = store_at(url)
    with pytest.raises(Unavailable):
        await store.open()
    await store.close()


async def test_a_value_too_large_for_an_index_is_a_constraint(postgresql_url: str) -> None:
    """What PostgreSQL cannot index will never be accepted: a constraint other than uniqueness."""
    await prepared(postgresql_url)
    async with opened(postgresql_url) as store:
        with pytest.raises(ConstraintFailed) as failure:
            await store.transact(writing(put(W, "names", uuid(1), name=secrets.token_hex(50_000))))
        assert not failure.value.unique


ADOPTED = parse("""
schema: 1
scopes: {tenant: {roles: {editor: write}}}
entities:
  orders:
    table: orders
    key: {columns: [order_key, line], type: [text, integer]}
    scope: {kind: tenant, column: tenant_id, type: integer}
    fields: {title: {type: text, nullable: true}}
""")


async def test_an_adopted_table_keeps_its_other_columns(database_url: str) -> None:
    """Rows of a table of others are changed in place; new ones take the table's own defaults."""
    await sql(
        database_url,
        "CREATE TABLE orders (tenant_id BIGINT, order_key VARCHAR(9), line BIGINT, title TEXT, "
        "secret TEXT NOT NULL DEFAULT 'theirs', PRIMARY KEY (order_key, line))",
    )
    await sql(database_url, "INSERT INTO orders VALUES (7, 'a', 1, 'old', 'kept'), (7, 'a', 2, 'old', 'kept')")
    await prepared(database_url, ADOPTED)

    def image(row: str, *, new: bool) -> RowImage:
        return RowImage(RowKey("tenant:7", "orders", row), {"title": "new"}, STAMP, STAMP, new)

    async def body(transaction: Transaction) -> None:
        await transaction.lock([], ["tenant:7"])
        images = [image("a:1", new=False), image("a:2", new=False), image("b:1", new=False), image("b:2", new=True)]
        await transaction.save(saved(images=images, swapped=[images[1].key]))

    async with opened(database_url, ADOPTED) as store:
        await store.transact(body)
    assert await sql(database_url, "SELECT * FROM orders ORDER BY order_key, line") == [
        (7, "a", 1, "new", "kept"),
        (7, "a", 2, "new", "kept"),
        (7, "b", 1, "new", "theirs"),
        (7, "b", 2, "new", "theirs"),
    ]


async def test_values_stand_in_columns_of_their_types(postgresql_url: str) -> None:
    """Other programs read the declared table with PostgreSQL's own types."""
    await prepared(postgresql_url)
    given: dict[str, Any] = {
        "count": 2**53 - 1,
        "ratio": 0.1,
        "price": "12.50",
        "open": True,
        "day": "0001-01-01",
        "hour": "23:59:59.5",
        "moment": "9999-12-31T23:59:59.999999Z",
        "token": uuid(7),
        "data": {"a": ["é", None]},
        "labels": {"x/y": 1},
    }
    async with opened(postgresql_url) as store:
        await store.transact(writing(put(W, "samples", uuid(1), **given)))
    connection = await asyncpg.connect(postgresql_url)
    found = await connection.fetchval("SELECT to_jsonb(samples) #>> '{}' FROM samples")
    await connection.close()
    for text in ('"day": "0001-01-01"', '"price": 12.50', '"count": 9007199254740991', '"data": {"a": ["é", null]}'):
        assert text in found


async def test_transactions_look_rows_up_by_their_keys(postgresql_url: str) -> None:
    """With no statistics of tables that were empty a moment ago, no statement of a transaction reads a whole table."""
    await prepared(postgresql_url)
    async with opened(postgresql_url) as store:
        for batch in range(20):
            await store.transact(
                writing(*(put(W, "names", uuid(batch * 50 + n), name=f"{batch}/{n}") for n in range(50)))
            )
    # PostgreSQL counts when a connection is idle or ends; the store has closed its own.
    found = await sql(
        postgresql_url,
        "SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE relname IN ('sync_feed', 'names', 'sync_scope')",
    )
    assert {name: read for name, read in found if read > 100} == {}


def test_a_faulty_sqlite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions whose WAL mode can damage a file shared by several writers come with a warning."""
    url = f"sqlite:///{tmp_path / 'tidemark.db'}"
    migrate(url, DECLARATION)

    async def warnings() -> list[str]:
        async with opened(url) as store:
            return store.warnings

    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 51, 2))
    assert "3.51.3" in asyncio.run(warnings())[0]
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 51, 3))
    assert asyncio.run(warnings()) == []


def test_memory_is_no_file() -> None:
    """A SQLite database that is not a file would lose everything, and is refused."""
    with pytest.raises(Unfit, match="needs a file"):
        store_at("sqlite://")


async def test_a_deadlock_is_run_again(mariadb_url: str) -> None:
    """Of two transactions that wait for each other one is ended by MariaDB, and begun again by the store."""
    await prepared(mariadb_url)
    first_rows = asyncio.Barrier(2)

    def giving(*users: str) -> Callable[[Transaction], Awaitable[int]]:
        runs = 0

        async def body(transaction: Transaction) -> int:
            nonlocal runs
            runs += 1
            await transaction.set_role(W, users[0], "owner")
            if runs == 1:
                await first_rows.wait()
            await transaction.set_role(W, users[1], "owner")
            return runs

        return body

    async with opened(mariadb_url) as store:
        runs = await asyncio.gather(store.transact(giving("ada", "bob")), store.transact(giving("bob", "ada")))
        assert sorted(runs) == [1, 2]
        assert await store.members(W) == {"ada": "owner", "bob": "owner"}
