#!/usr/bin/env python3
"""A shop at work in its own tables (tables.sql): it knows nothing of Tidemark, and talks plain SQL to the database.

    generate.py --url sqlite:////tmp/shop.db --create --rate 100
    generate.py --url postgresql://user@localhost/shop --rate 1000 --seconds 60
    generate.py --url mysql://user:password@localhost/shop --bulk 100000 --seconds 0

Orders come in, their lines are shipped and returned, some orders are cancelled, prices change, customers move. Values
keep to the domains of the public TPC-H specification; `--seed` repeats the same shop. Ctrl-C ends it after the
transaction under way.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sqlite3
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import asyncpg

HERE: Final = Path(__file__).parent
TENANTS: Final = ("north", "south")
TODAY: Final = date(1995, 6, 17)
"""TPC-H's CURRENTDATE, on which this shop lives."""

SEGMENTS = ("AUTOMOBILE", "BUILDING", "FURNITURE", "HOUSEHOLD", "MACHINERY")
PRIORITIES = ("1-URGENT", "2-HIGH", "3-MEDIUM", "4-NOT SPECIFIED", "5-LOW")
INSTRUCTIONS = ("DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN")
MODES = ("REG AIR", "AIR", "RAIL", "SHIP", "TRUCK", "MAIL", "FOB")
TYPES = (
    ("STANDARD", "SMALL", "MEDIUM", "LARGE", "ECONOMY", "PROMO"),
    ("ANODIZED", "BURNISHED", "PLATED", "POLISHED", "BRUSHED"),
    ("TIN", "NICKEL", "BRASS", "STEEL", "COPPER"),
)
CONTAINERS = (("SM", "MED", "LG", "JUMBO", "WRAP"), ("CASE", "BOX", "BAG", "JAR", "PKG", "PACK", "CAN", "DRUM"))
NATIONS = ("ARGENTINA", "BRAZIL", "CANADA", "EGYPT", "FRANCE", "INDIA", "JAPAN", "KENYA", "PERU", "VIETNAM")
COLOURS = ("almond", "azure", "beige", "coral", "ivory", "khaki", "lime", "olive", "plum", "rose", "sky", "teal")
ADVERBS = ("quickly", "slowly", "boldly", "quietly", "rarely")
VERBS = ("wake", "sleep", "haggle", "nod", "doze")
NOUNS = ("packages", "requests", "deposits", "ideas", "accounts")

COLUMNS: Final = {
    "customers": "customer_key, tenant_id, name, address, nation, phone, account_balance, market_segment, comment",
    "products": "tenant_id, sku, name, manufacturer, brand, type, size, container, retail_price, purchase_price",
    "orders": "order_key, tenant_id, customer_key, order_date, order_priority, comment, clerk",
    "order_line_items": "order_key, line_number, tenant_id, sku, quantity, extended_price, discount, tax, commit_date,"
    " ship_mode, comment, ship_instructions",
}
"""What a new row is given; the rest has defaults."""
Row: TypeAlias = list[Any]


class Statement(NamedTuple):
    """SQL with `?` for each parameter."""

    sql: str
    values: Sequence[Any] = ()


class Failed(Exception):
    """The database undid the transaction for another's sake (a deadlock, a row that is gone): the next one may pass."""


def insert(table: str, row: Row) -> Statement:
    """One new row."""
    return Statement(f"INSERT INTO {table} ({COLUMNS[table]}) VALUES ({', '.join('?' * len(row))})", row)


# ── databases ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Sqlite:
    """A file. Like its sisters below: what `write` is given is one transaction, which awaits `hold` before its end;
    `load` writes many rows at once.
    """

    kind = "sqlite"

    def __init__(self, path: str, patience: float) -> None:
        sqlite3.register_adapter(Decimal, str)
        sqlite3.register_adapter(date, date.isoformat)
        self._connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA foreign_keys = ON")

    async def write(self, statements: Sequence[Statement], hold: Awaitable[object] | None = None) -> None:
        # In a thread: it may wait for other writers.
        try:
            await asyncio.to_thread(self._begin, statements)
        except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
            self._connection.rollback()
            raise Failed(str(error)) from error
        if hold:
            await hold
        await asyncio.to_thread(self._connection.execute, "COMMIT")

    def _begin(self, statements: Sequence[Statement]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            self._connection.execute(statement.sql, statement.values)

    async def read(self, sql: str) -> list[Sequence[Any]]:
        return list(self._connection.execute(sql))

    async def load(self, table: str, rows: Sequence[Row]) -> None:
        await self.write([insert(table, row) for row in rows])

    async def script(self, text: str) -> None:
        self._connection.executescript(text)

    async def close(self) -> None:
        self._connection.close()


class Postgres:
    """PostgreSQL by asyncpg."""

    kind = "postgresql"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, url: str) -> Postgres:
        return cls(await asyncpg.connect(url))

    async def write(self, statements: Sequence[Statement], hold: Awaitable[object] | None = None) -> None:
        try:
            async with self._connection.transaction():
                for statement in statements:
                    numbers = iter(range(1, len(statement.values) + 1))
                    sql = re.sub(r"\?", lambda _: f"${next(numbers)}", statement.sql)  # noqa: B023
                    await self._connection.execute(sql, *statement.values)
                if hold:
                    await hold
        except (asyncpg.TransactionRollbackError, asyncpg.IntegrityConstraintViolationError) as error:
            raise Failed(str(error)) from error

    async def read(self, sql: str) -> list[Sequence[Any]]:
        return [tuple(row) for row in await self._connection.fetch(sql)]

    async def load(self, table: str, rows: Sequence[Row]) -> None:
        await self._connection.copy_records_to_table(table, columns=COLUMNS[table].split(", "), records=rows)

    async def script(self, text: str) -> None:
        await self._connection.execute(text)

    async def close(self) -> None:
        await self._connection.close()


class MariaDb:
    """MariaDB or MySQL by asyncmy."""

    kind = "mariadb"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, url: str) -> MariaDb:
        import asyncmy  # noqa: PLC0415

        at = urlsplit(url)
        user, password = unquote(at.username or ""), unquote(at.password or "")
        return cls(
            await asyncmy.connect(
                host=at.hostname, port=at.port or 3306, user=user, password=password, database=at.path[1:]
            )
        )

    async def write(self, statements: Sequence[Statement], hold: Awaitable[object] | None = None) -> None:
        from asyncmy.errors import IntegrityError, OperationalError  # noqa: PLC0415

        try:
            async with self._connection.cursor() as cursor:
                for statement in statements:
                    await cursor.execute(statement.sql.replace("?", "%s"), tuple(statement.values))
            if hold:
                await hold
            await self._connection.commit()
        except (OperationalError, IntegrityError) as error:
            await self._connection.rollback()
            raise Failed(str(error)) from error

    async def read(self, sql: str) -> list[Sequence[Any]]:
        async with self._connection.cursor() as cursor:
            await cursor.execute(sql)
            found = await cursor.fetchall()
        await self._connection.commit()
        return list(found)

    async def load(self, table: str, rows: Sequence[Row]) -> None:
        async with self._connection.cursor() as cursor:
            await cursor.executemany(insert(table, rows[0]).sql.replace("?", "%s"), rows)
        await self._connection.commit()

    async def script(self, text: str) -> None:
        without_notes = re.sub(r"--.*", "", text)
        async with self._connection.cursor() as cursor:
            # A body's own semicolons stand before its next line or its END.
            for statement in re.split(r";\s*\n(?=\s*CREATE|\s*$)", without_notes):
                if statement.strip():
                    await cursor.execute(statement)
        await self._connection.commit()

    async def close(self) -> None:
        await self._connection.ensure_closed()


Database: TypeAlias = Sqlite | Postgres | MariaDb


async def connect(url: str, patience: float) -> Database:
    """Connect by the URL's scheme; `patience` is how long (s) a writer on SQLite waits for another."""
    match url.partition(":")[0].partition("+")[0]:
        case "sqlite":
            return Sqlite(url.partition("///")[2], patience)
        case "postgresql" | "postgres":
            return await Postgres.connect(url)
        case "mysql" | "mariadb":
            return await MariaDb.connect(url)
        case other:
            raise SystemExit(f"generate.py: no such kind of database: {other} (sqlite, postgresql, mysql, mariadb)")


# ── the shop ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Line(NamedTuple):
    """A line that has not been shipped."""

    tenant: str
    order: int
    number: int


class Shop:
    """What the shop does next, as transactions. It remembers keys and prices, as much as it needs for that."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._customers: dict[str, list[int]] = {tenant: [] for tenant in TENANTS}
        self._prices: dict[str, dict[str, Decimal]] = {tenant: {} for tenant in TENANTS}
        self._open: list[Line] = []
        self._last_order = self._last_customer = self._last_product = 0
        self._deeds = {self.order: 30, self.ship: 46, self.cancel: 8, self.reprice: 8, self.change: 6, self.grow: 2}
        """What happens in a shop, and how often."""

    async def remember(self, database: Database) -> None:
        """Learn what the tables hold already."""
        for key, tenant in await database.read("SELECT customer_key, tenant_id FROM customers"):
            self._customers.setdefault(tenant, []).append(key)
            self._last_customer = max(self._last_customer, key)
        for tenant, sku, price in await database.read("SELECT tenant_id, sku, retail_price FROM products"):
            self._prices.setdefault(tenant, {})[sku] = Decimal(str(price))
            self._last_product = max(self._last_product, int(sku.removeprefix("P-")))
        for row in await database.read(
            "SELECT tenant_id, order_key, line_number FROM order_line_items WHERE line_status = 'O' LIMIT 10000"
        ):
            self._open.append(Line(*row))
        self._last_order = (await database.read("SELECT COALESCE(MAX(order_key), 0) FROM orders"))[0][0]

    def first_day(self) -> list[list[Statement]]:
        """What there is before the shop opens: products, customers, some orders."""
        stock = [product for _ in range(100) for product in self._product()]
        people = [insert("customers", row) for row in self.customers(100)]
        return [stock, people, *(self.order() for _ in range(100))]

    def next(self) -> list[Statement]:
        """One transaction of a working day."""
        deed = self._random.choices([*self._deeds], [*self._deeds.values()])[0]
        return deed() or self.order()

    def customers(self, count: int) -> list[Row]:
        """Rows of new customers."""
        return [self._customer(self._random.choice(TENANTS)) for _ in range(count)]

    def order(self) -> list[Statement]:
        """A customer orders one to seven things."""
        draw = self._random
        tenant = draw.choice([tenant for tenant in TENANTS if self._customers[tenant] and self._prices[tenant]])
        self._last_order += 1
        key, day = self._last_order, TODAY - timedelta(draw.randrange(30))
        row = [key, tenant, draw.choice(self._customers[tenant]), day, draw.choice(PRIORITIES), self._words()]
        lines = [Line(tenant, key, number + 1) for number in range(draw.randrange(1, 8))]
        self._open += lines
        head = insert("orders", [*row, f"Clerk#{draw.randrange(1, 1_001):09}"])
        return [head, *(insert("order_line_items", self._line(line, day)) for line in lines)]

    def _line(self, line: Line, day: date) -> Row:
        draw = self._random
        sku, price = draw.choice(list(self._prices[line.tenant].items()))
        quantity = Decimal(draw.randrange(1, 51))
        discount, tax = Decimal(draw.randrange(11)) / 100, Decimal(draw.randrange(9)) / 100
        row = [line.order, line.number, line.tenant, sku, quantity, quantity * price, discount, tax]
        return [
            *row,
            day + timedelta(draw.randrange(30, 91)),
            draw.choice(MODES),
            self._words(),
            draw.choice(INSTRUCTIONS),
        ]

    def ship(self) -> list[Statement]:
        """A line leaves the house; now and then one has arrived already, and comes back or is paid for."""
        if (line := self._take()) is None:
            return []
        arrived = self._random.random() < 0.15
        sent = TODAY - timedelta(self._random.randrange(1, 31) if arrived else 0)
        sql = (
            "UPDATE order_line_items SET line_status = 'F', ship_date = ?, receipt_date = ?, return_flag = ?"
            " WHERE order_key = ? AND line_number = ?"
        )
        values = [sent, TODAY, self._random.choice("RA")] if arrived else [sent, None, "N"]
        return [Statement(sql, [*values, line.order, line.number])]

    def cancel(self) -> list[Statement]:
        """An order goes, with its lines: by hand, since triggers of MariaDB do not see what a foreign key cascades."""
        if (line := self._take()) is None:
            return []
        self._open = [other for other in self._open if other.order != line.order]
        tables = ("order_line_items", "orders")
        return [Statement(f"DELETE FROM {table} WHERE order_key = ?", [line.order]) for table in tables]

    def reprice(self) -> list[Statement]:
        """A price moves by up to a tenth, or something is sold out."""
        tenant = self._random.choice(TENANTS)
        sku = self._random.choice(list(self._prices[tenant]))
        price = self._prices[tenant][sku] * self._random.randrange(90, 111) / 100
        self._prices[tenant][sku] = price = max(price, Decimal(1)).quantize(Decimal("0.01"))
        sql = "UPDATE products SET retail_price = ?, available = ? WHERE tenant_id = ? AND sku = ?"
        return [Statement(sql, [price, self._random.random() < 0.9, tenant, sku])]

    def change(self) -> list[Statement]:
        """A customer moves, or pays."""
        key = self._random.choice(self._customers[self._random.choice(TENANTS)])
        paid = Decimal(self._random.randrange(1, 50_000)) / 100
        pays, moves = ("account_balance = account_balance + ?", paid), ("address = ?", self._words())
        change, value = self._random.choice((pays, moves))
        return [Statement(f"UPDATE customers SET {change} WHERE customer_key = ?", [value, key])]

    def grow(self) -> list[Statement]:
        """A new customer, and a product that is new everywhere."""
        return [insert("customers", row) for row in self.customers(1)] + self._product()

    def _take(self) -> Line | None:
        """A line to do something about, no longer open."""
        return self._open.pop(self._random.randrange(len(self._open))) if self._open else None

    def _customer(self, tenant: str) -> Row:
        draw = self._random
        self._last_customer = key = self._last_customer + 1
        self._customers[tenant].append(key)
        nation, parts = draw.randrange(len(NATIONS)), (draw.randrange(100, 1_000), draw.randrange(100, 1_000))
        phone = f"{10 + nation}-{parts[0]}-{parts[1]}-{draw.randrange(1_000, 10_000)}"
        balance = Decimal(draw.randrange(-99_999, 1_000_000)) / 100
        row = [key, tenant, f"Customer#{key:09}", self._words(), NATIONS[nation], phone, balance]
        return [*row, draw.choice(SEGMENTS), self._words()]

    def _product(self) -> list[Statement]:
        """The same thing at each tenant's: its number is unique there alone."""
        draw = self._random
        self._last_product = number = self._last_product + 1
        sku, maker = f"P-{number:06}", draw.randrange(1, 6)
        price = Decimal(90_000 + number // 10 % 20_001 + 100 * (number % 1_000)) / 100
        kind, container = (" ".join(map(draw.choice, words)) for words in (TYPES, CONTAINERS))
        row: Row = [sku, " ".join(draw.sample(COLOURS, 5)), f"Manufacturer#{maker}", f"Brand#{maker}{number % 5 + 1}"]
        row += [kind, draw.randrange(1, 51), container, price, price - 300]
        for tenant in TENANTS:
            self._prices[tenant][sku] = price
        return [insert("products", [tenant, *row]) for tenant in TENANTS]

    def _words(self) -> str:
        return " ".join(map(self._random.choice, (ADVERBS, COLOURS, NOUNS, VERBS)))


# ── the day's work ───────────────────────────────────────────────────────────────────────────────────────────────────


class Tally:
    """What was done, and how long each transaction took (ms)."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.rows = 0
        self.took: list[float] = []
        self.undone: list[str] = []

    def line(self) -> str:
        """Rates and latencies in one line."""
        passed = time.perf_counter() - self.began
        took = sorted(self.took) or [0.0]
        p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
        undone = f", {len(self.undone)} undone ({self.undone[-1]})" if self.undone else ""
        return (
            f"{self.rows / passed:8,.0f} rows/s in {len(self.took) / passed:6,.0f} transactions/s,"
            f" p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {took[-1]:.1f} ms{undone}"
        )


async def work(database: Database, shop: Shop, rate: float, stop: asyncio.Event) -> None:
    """Transactions at `rate` rows a second until told to stop; a line every second."""
    whole, second, due = Tally(), Tally(), time.perf_counter()
    while not stop.is_set():
        statements = shop.next()
        began = time.perf_counter()
        try:
            await database.write(statements)
        except Failed as why:
            for tally in (whole, second):
                tally.undone.append(str(why))
        else:
            for tally in (whole, second):
                tally.rows += len(statements)
                tally.took.append((time.perf_counter() - began) * 1_000)
        # What a slow second has missed is not made up for in a burst.
        due = max(due + len(statements) / rate, time.perf_counter() - 0.1)
        if time.perf_counter() - second.began >= 1:
            print(second.line(), flush=True)
            second = Tally()
        await waited(stop, max(0.0, due - time.perf_counter()))
    print(f"in all {whole.rows:,} rows: {whole.line().strip()}", flush=True)


async def hold_open(database: Database, shop: Shop, seconds: float, stop: asyncio.Event) -> None:
    """An order of a transaction that somebody forgets to commit for a while."""
    print(f"a transaction stays open for {seconds:g} s", flush=True)
    await database.write(shop.order(), waited(stop, seconds))
    print("the open transaction is committed", flush=True)


async def waited(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but no longer than until told to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def prepare(database: Database, shop: Shop, *, create: bool, bulk: int) -> None:
    """Make the tables, or learn what they hold; then load `bulk` customers at once."""
    if create:
        await database.script((HERE / "tables.sql").read_text(encoding="utf-8"))
        await database.script((HERE / f"triggers.{database.kind}.sql").read_text(encoding="utf-8"))
        for statements in shop.first_day():
            await database.write(statements)
    else:
        await shop.remember(database)
    if bulk:
        rows, began = shop.customers(bulk), time.perf_counter()
        await database.load("customers", rows)
        took = time.perf_counter() - began
        print(f"{bulk:,} customers at once: {took:.1f} s, {bulk / took:,.0f} rows/s", flush=True)


async def run(options: argparse.Namespace) -> None:
    stop, shop = asyncio.Event(), Shop(options.seed)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    patience = options.open_for + 60
    database = await connect(options.url, patience)
    await prepare(database, shop, create=options.create, bulk=options.bulk)
    if options.seconds is not None:
        asyncio.get_running_loop().call_later(options.seconds, stop.set)
    holder = await connect(options.url, patience)
    async with asyncio.TaskGroup() as tasks:
        if options.open_for:
            tasks.create_task(hold_open(holder, shop, options.open_for, stop))
        if options.seconds != 0:
            tasks.create_task(work(database, shop, options.rate, stop))
    await holder.close()
    await database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    url = os.environ.get("DATABASE_URL")
    parser.add_argument("--url", default=url, required=url is None, help="the database (default: DATABASE_URL)")
    parser.add_argument("--create", action="store_true", help="make the tables first, and fill in a first day")
    parser.add_argument("--rate", type=float, default=100.0, help="rows a second (default: 100)")
    parser.add_argument("--seconds", type=float, help="how long (default: until Ctrl-C; 0: not at all)")
    parser.add_argument("--bulk", type=int, default=0, metavar="N", help="first load N new customers at once")
    parser.add_argument("--open-for", type=float, default=0.0, metavar="S", help="leave a transaction open for S s")
    parser.add_argument("--seed", type=int, default=1, help="another number is another shop (default: 1)")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
