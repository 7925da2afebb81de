"""A shop in SQL beside a running service: its tables, its sessions, and the command line held against both."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from tests.contract.client import Device, Json, Service
from tests.outside import Program
from tests.servers import TidemarkServer

T = TypeVar("T")

DECLARATION: Final = Path(__file__).with_name("shop.yaml")
INTERVAL: Final = {"sqlite": 0.05, "postgresql": 0.01, "mysql": 0.1}
"""Seconds between two looks into the inbox, as docs/sql.md says."""
_JSON: Final = {"sqlite": "JSON", "postgresql": "JSONB", "mysql": "JSON"}
_BINARY: Final = {"mysql": " CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"}
_NUMBERS: Final = count(1)


class Sql:
    """One session of another program, for tests that run in no event loop."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._program = Program(url)
        self.dialect = self._program.dialect
        self._runner.run(self._program.__aenter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements; the rows of the last one."""
        return self._runner.run(self._program.run(*statements))

    def begin(self) -> None:
        """Open a transaction."""
        self._runner.run(self._program.begin())

    def commit(self) -> None:
        """Commit it."""
        self._runner.run(self._program.commit())

    def rollback(self) -> None:
        """Undo it."""
        self.run("ROLLBACK")

    def close(self) -> None:
        """End the session, and the transaction that it may hold open."""
        self._runner.run(self._program.__aexit__())
        self._runner.close()


def make_tables(sql: Sql) -> None:
    """Make the shop's tables, wider than their declaration: it rules out some of what they can hold."""
    text, document = f"VARCHAR(190){_BINARY.get(sql.dialect, '')}", _JSON[sql.dialect]
    sql.run(
        f"CREATE TABLE shop_orders (order_key BIGINT PRIMARY KEY, tenant_id {text}, customer {text} NOT NULL, "
        f"total NUMERIC(15, 2) DEFAULT 0 NOT NULL, status {text} DEFAULT 'open' NOT NULL, "
        f"labels {document} DEFAULT '{{}}' NOT NULL, details {document}, number {text}, "
        f"remark {text} DEFAULT 'own' NOT NULL, UNIQUE (tenant_id, number))",
        f"CREATE TABLE shop_lines (invoice BIGINT NOT NULL, line BIGINT NOT NULL, tenant_id {text} NOT NULL, "
        f"order_key BIGINT, quantity BIGINT NOT NULL, PRIMARY KEY (invoice, line))",
    )


@dataclass
class Shop:
    """A service, the way to speak to it, and a session of the other program on its database."""

    server: TidemarkServer
    service: Service
    sql: Sql

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.server.database

    @property
    def dialect(self) -> str:
        """sqlite, postgresql or mysql."""
        return self.sql.dialect

    def workspace(self, member: Device | None = None) -> tuple[Device, str, str]:
        """A new workspace: its owner, the scope, and the id that the tables hold."""
        owner = member or self.service.device()
        scope = self.service.workspace(owner=owner)
        return owner, scope, scope.partition(":")[2]

    def insert(self, tenant: str | None, customer: str = "ada", sql: Sql | None = None, /, **columns: str) -> str:
        """Insert an order in SQL, further columns as SQL writes them; its key."""
        order = str(next(_NUMBERS))
        given = {"order_key": order, "tenant_id": "NULL" if tenant is None else f"'{tenant}'"}
        given |= {"customer": f"'{customer}'"} | columns
        (sql or self.sql).run(f"INSERT INTO shop_orders ({', '.join(given)}) VALUES ({', '.join(given.values())})")
        return order

    def fill(self, tenant: str, rows: int) -> None:
        """Insert so many orders by one statement."""
        values = ", ".join(f"({next(_NUMBERS)}, '{tenant}', 'filled')" for _ in range(rows))
        self.sql.run(f"INSERT INTO shop_orders (order_key, tenant_id, customer) VALUES {values}")

    def update(self, order: str, sql: Sql | None = None, /, **columns: str) -> None:
        """Change an order in SQL, columns as SQL writes them."""
        assignments = ", ".join(f"{column} = {value}" for column, value in columns.items())
        (sql or self.sql).run(f"UPDATE shop_orders SET {assignments} WHERE order_key = {order}")

    def delete(self, order: str, sql: Sql | None = None) -> None:
        """Delete an order in SQL."""
        (sql or self.sql).run(f"DELETE FROM shop_orders WHERE order_key = {order}")

    def stored(self, order: str, *columns: str) -> tuple[Any, ...] | None:
        """Columns of an order as its table holds them."""
        found = self.sql.run(f"SELECT {', '.join(columns)} FROM shop_orders WHERE order_key = {order}")
        return found[0] if found else None

    def drained(self) -> None:
        """Wait until the service has taken all that SQL reported."""
        eventually(lambda: self.sql.run("SELECT count(*) FROM sync_inbox") == [(0,)], seconds=30)

    @contextmanager
    def session(self) -> Iterator[Sql]:
        """Another session of the other program."""
        with Sql(self.database) as sql:
            yield sql

    def arrives(self, device: Device, order: str, scope: str, **fields: Any) -> Json:
        """Wait until `device` finds the order in the scope with these fields."""

        def look() -> Json | None:
            doc = device.doc("orders", order, scope)
            return doc if doc is not None and fields.items() <= doc.items() else None

        return eventually(look)

    def goes(self, device: Device, order: str, scope: str) -> None:
        """Wait until `device` does not find the order in the scope."""
        eventually(lambda: device.doc("orders", order, scope) is None)


def eventually(look: Callable[[], T | None], seconds: float = 15) -> T:
    """What `look` gives once that is true of anything; it is asked again and again until then."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds:g} s"
        time.sleep(0.005)
    return found


def later() -> None:
    """Let the millisecond end, and the next one: what comes is later by anybody's clock of this machine."""
    begun = time.time_ns() // 1_000_000
    eventually(lambda: time.time_ns() // 1_000_000 > begun + 1)


@dataclass
class Done:
    """How a command ended."""

    code: int
    output: str

    @property
    def report(self) -> Json:
        """What `--json` wrote."""
        found: Json = json.loads(self.output)
        return found

    @property
    def findings(self) -> dict[str, Json]:
        """What `doctor --json` found, by code."""
        return {finding["code"]: finding for finding in self.report["findings"]}


def tidemark(*arguments: str, schema: Path, database: str) -> Done:
    """Run the command line on a database."""
    program = Path(sys.executable).with_name("tidemark")
    env = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMARK_")}
    env |= {"TIDEMARK_SCHEMA": str(schema), "TIDEMARK_DATABASE_URL": database}
    done = subprocess.run([str(program), *arguments], env=env, check=False, capture_output=True, text=True)
    return Done(done.returncode, done.stdout or done.stderr)
