"""Rows of captured tables and entries of the inbox, as a SQLite file holds them: any column may hold anything.

A text that is no UTF-8 is read with a NUL at its end: no key, scope or value may hold one, so every check refuses it.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tidemark.store.base import UNIT, Identity, InboxEntry, TableRow
from tidemark.store.entities import EntityTable
from tidemark_protocol.rows import id_problem

from .sql import SqliteTable

_BYTES: Final = re.compile(r"X'((?:[0-9A-F]{2})*)'")
_REAL: Final = re.compile(r"-?[0-9]+\.[0-9]+(?:e[+-][0-9]+)?")
_NO_TEXT: Final = "\0"


def entries(connection: sqlite3.Connection, statement: str, values: Sequence[Any]) -> list[InboxEntry]:
    """What a statement finds in the inbox."""
    with _any_text(connection):
        return [InboxEntry(*found) for found in connection.execute(statement, values)]


def find(connection: sqlite3.Connection, table: SqliteTable, identity: Identity) -> TableRow | None:
    """The row of an identity."""
    found = _lookup(connection, table, identity)
    return None if found is None else table.table.table_row(found[: -len(table.table.identity)])


def sweep(connection: sqlite3.Connection, table: SqliteTable, after: Identity | None, limit: int) -> list[TableRow]:
    """The rows behind an identity in the order of its columns, up to `limit`; first those without a whole identity.

    Left out is what nobody could go on behind: rows whose identity is no text, and those without a whole one that
    leave no room for another on the first page.
    """
    size = len(table.table.identity)
    page: list[TableRow] = []
    with _any_text(connection):
        if after is None:
            nameless = connection.execute(table.nameless, (limit - 1,))
            page += [table.table.table_row(found[:-size]) for found in nameless]
        place = None if after is None else _place(connection, table, after)
        beyond = 0
        while left := limit - len(page):
            rows = connection.execute(table.sweep(behind=bool(place)), (*(place or ()), left, beyond)).fetchall()
            for found in rows:
                if found[0].endswith(_NO_TEXT):
                    beyond += 1
                else:
                    page.append(table.table.table_row(found[:-size]))
                    place, beyond = found[-size:], 0
            if len(rows) < left:
                break
    return page


def _place(connection: sqlite3.Connection, table: SqliteTable, after: Identity) -> Sequence[Any] | None:
    """The values of the columns of an identity; None if some are null, for no whole one comes before those."""
    found = _lookup(connection, table, after)
    if found is not None:
        place = found[-len(table.table.identity) :]
        return None if None in place else place
    parts = _parts(table.table, after)
    if parts is None or not all(parts):
        return None
    return [
        int(part) if column.kind == "integer" and id_problem("integer", part) is None else part
        for column, part in zip(table.table.identity, parts, strict=True)
    ]


def _lookup(connection: sqlite3.Connection, table: SqliteTable, identity: Identity) -> Sequence[Any] | None:
    """What `table.find` gives of the row that is called so; keys that are equal for a column's collation are not."""
    parts = _parts(table.table, identity)
    if parts is None:
        return None
    statement = table.find([not part for part in parts])
    with _any_text(connection):
        rows = connection.execute(statement, [value for part in parts for value in _readings(part)])
        alike = [found for found in rows if found[0] == identity.text]
        return min(alike, key=lambda found: None in found[-len(parts) :], default=None)


def _parts(table: EntityTable, identity: Identity) -> list[str] | None:
    parts = identity.text.split(UNIT) if len(table.identity) > 1 else [identity.text]
    return parts if len(parts) == len(table.identity) else None


def _readings(part: str) -> tuple[Any, Any, Any]:
    """The values that a column may hold where its text is this one: a text, a number, bytes."""
    number = int(part) if id_problem("integer", part) is None else float(part) if _REAL.fullmatch(part) else part
    data = _BYTES.fullmatch(part)
    return part, number, bytes.fromhex(data[1]) if data is not None else part


@contextmanager
def _any_text(connection: sqlite3.Connection) -> Iterator[None]:
    before, connection.text_factory = connection.text_factory, _text
    try:
        yield
    finally:
        connection.text_factory = before


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode(errors="replace") + _NO_TEXT
