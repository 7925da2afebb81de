"""Tables that other programs write, declared as captured, and such a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tidemark.store.schema import triggers
from tidemark.store.schema.migrate import _in_transaction as in_transaction
from tidemark.store.schema.migrate import check, migrate
from tidemark.store.schema.triggers_sql import Trigger
from tidemark_protocol.model import Declaration
from tidemark_protocol.schema import parse

HEAD = "schema: 1\nscopes: {workspace: {roles: {editor: write}}}\nentities:"
TASKS = """
  tasks:
    scope: workspace
    capture: true
    fields: {title: {type: text, max: 50}, size: {type: integer, default: 1}}
    unique: [[title]]"""
PARTS = """
  parts:
    scope: workspace
    capture: true
    key: {columns: [kind, number], type: [text, integer], per_scope: true}
    fields: {title: {type: text, nullable: true}}"""
ORDERS = """
  orders:
    table: Orders
    scope: {kind: workspace, column: tenant}
    key: {column: order_key, type: text}
    capture: true
    fields: {total: {type: integer, nullable: true}}"""
DECLARATION = parse(HEAD + TASKS + PARTS + ORDERS)
UUID = "0192f3a4-b5c6-7000-8000-00000000000{}"


class Writer:
    """Another program: it writes tables by SQL, and a test looks at what that left in the inbox."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.kind = url.partition(":")[0]

    def sql(self, *statements: str, **values: Any) -> list[Any]:
        """Run statements in one transaction; the rows that the last one gives."""

        def work(connection: Connection) -> list[Any]:
            for statement in statements:
                result = connection.execute(sa.text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else []

        return in_transaction(self.url, work)

    def inbox(self) -> list[tuple[str, str]]:
        """Entity and identity of each entry, sorted; the inbox is empty afterwards."""
        found = [(entity, identity) for entity, identity in self.sql("SELECT entity, identity FROM sync_inbox")]
        self.sql("DELETE FROM sync_inbox")
        return sorted(found)

    def orders(self, *statements: str, **values: Any) -> list[str]:
        """The identities of orders that statements leave in the inbox."""
        self.sql(*statements, **values)
        found = self.inbox()
        assert {entity for entity, _ in found} <= {"orders"}
        return [identity for _, identity in found]

    def upsert(self, table: str, columns: str, values: str, key: str, change: str) -> str:
        """An insert that changes the row in its way."""
        insert = f"INSERT INTO {table} ({columns}) VALUES {values}"
        if self.kind == "mariadb":
            return f"{insert} ON DUPLICATE KEY UPDATE {change}"
        return f"{insert} ON CONFLICT ({key}) DO UPDATE SET {change}"

    def do(self, work: Callable[[Connection], Any]) -> Any:
        """Something on a connection."""
        return in_transaction(self.url, work)


ORDERS_TABLE = (
    'CREATE TABLE "Orders" (n INTEGER PRIMARY KEY, order_key VARCHAR(700) NOT NULL, tenant VARCHAR(50), total BIGINT)'
)
ORDERS_INDEX = 'CREATE UNIQUE INDEX orders_by_key ON "Orders" (order_key)'

THREE = "INSERT INTO \"Orders\" VALUES (1, 'a', 't', 1), (2, 'b', 't', 2), (3, 'c', 't', 3)"


def set_up(url: str, *tables: str) -> Writer:
    """A writer of a migrated database, in which statements have made a table of its own; the inbox is empty."""
    writer = Writer(url)
    writer.sql(*(tables or (ORDERS_TABLE, ORDERS_INDEX)))
    migrate(url, DECLARATION)
    assert check(url, DECLARATION) == []
    assert writer.inbox() == []
    return writer


def names(writer: Writer) -> list[tuple[str, str | None]]:
    """The triggers that a database has."""
    return sorted((one.name, one.table) for one in writer.do(triggers._held))


def wanted(writer: Writer, declaration: Declaration = DECLARATION) -> list[Trigger]:
    """The triggers that it is to have."""
    found: list[Trigger] = writer.do(lambda connection: triggers.wanted(connection, declaration))
    return found


def kinds(writer: Writer, declaration: Declaration = DECLARATION) -> set[str]:
    """The kinds of problems it has."""
    return {problem.kind for problem in writer.do(lambda connection: triggers.problems(connection, declaration))}
