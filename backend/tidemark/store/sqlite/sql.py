"""What the SQLite store says: a parameter is one value, for there is no round trip between statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tidemark.store import sql
from tidemark.store.entities import EntityTable
from tidemark.store.sql import all_of, marks, names, taken_over


class SqliteTable:
    """The statements of one declared table for SQLite; a parameter is one value."""

    def __init__(self, table: EntityTable) -> None:
        self.table = table
        columns, name, scope = table.columns, table.name, table.scope.name
        keyed = all_of(f"{c.name} = ?" for c in (*table.key, table.scope))
        self.upsert = (
            f"INSERT INTO {name} ({names(columns)}) VALUES ({marks(len(columns))}) "
            f"ON CONFLICT ({names(table.identity)}) DO UPDATE SET {taken_over(table)} "
            f"WHERE {name}.{scope} = excluded.{scope}"
        )
        assigned = ", ".join(f"{c.name} = ?" for c in table.own) or f"{scope} = {scope}"
        self.update = f"UPDATE {name} SET {assigned} WHERE {keyed}"
        self.delete = f"DELETE FROM {name} WHERE {keyed}"
        self._row = table.row_text("CAST({} AS TEXT)")
        values = names((*table.fields.values(), *table.identity))
        # A scope that is bytes becomes a text that no scope has.
        in_scope = f"CASE typeof({scope}) WHEN 'blob' THEN char(0) ELSE CAST({scope} AS TEXT) END"
        self._whole = f"SELECT {table.identity_text('sqlite')}, {in_scope}, {values} FROM {name} WHERE"
        no_part = " OR ".join(f"{c.name} IS NULL" for c in table.identity)
        self.nameless = f"{self._whole} {no_part} LIMIT ?"
        """A limit: rows that lack a part of their identity, as those of `find`."""

    def find(self, empty: Sequence[bool]) -> str:
        """Three readings of each part of an identity: (identity, scope, *fields, *identity's columns) of every row
        that may be meant. `empty` tells the parts that may be null.
        """
        return f"{self._whole} " + all_of(
            f"({c.name} IS NULL OR {c.name} IN (?, ?, ?))" if may_lack else f"{c.name} IN (?, ?, ?)"
            for c, may_lack in zip(self.table.identity, empty, strict=True)
        )

    def sweep(self, *, behind: bool) -> str:
        """The values of an identity's columns, unless from the beginning, a limit, and how many rows to pass by: rows
        as those of `find`.
        """
        columns = self.table.identity
        row = f"({names(columns)})"
        bound = f"{row} > ({marks(len(columns))})" if behind else all_of(f"{c.name} IS NOT NULL" for c in columns)
        return f"{self._whole} {bound} ORDER BY {names(columns)} LIMIT ? OFFSET ?"

    def referring(self, field: str) -> str:
        """The scope's id and a target: (row,)."""
        return self.holders([field])

    def holders(self, fields: Sequence[str]) -> str:
        """The scope's id and a value for each field: (row,)."""
        same = all_of(f"{self.table.fields[name].name} = ?" for name in fields)
        return f"SELECT {self._row} FROM {self.table.name} WHERE {self.table.scope.name} = ? AND {same}"


AMONG: Final = "IN (SELECT value FROM json_each({}))"
# An entry names few rows, and may be asked for many: looked up are those it names, in all that are asked for.
NAMING: Final = """EXISTS (
    SELECT 1 FROM json_each('[' || replace(trim(rows), ' ', ',') || ']') AS named
    WHERE named.value IN (SELECT value FROM json_each({})))"""
STATE: Final = f"SELECT {sql.STATE} FROM sync_scope WHERE scope = ?"
MEMBERSHIPS: Final = f'SELECT "user", scope, role FROM sync_member WHERE "user" {AMONG.format("?")}'
STATES: Final = f"SELECT {sql.STATE} FROM sync_scope WHERE scope {AMONG.format('?')}"
CREATE: Final = "INSERT INTO sync_scope (scope) VALUES (?) ON CONFLICT DO NOTHING"
SCOPE: Final = f"UPDATE sync_scope SET {', '.join(f'{name} = ?' for name in sql.STATE_COLUMNS[1:])} WHERE scope = ?"
CHANGES: Final = f"""
    SELECT version, CAST({sql.WIRE_TEXT} AS BLOB) FROM sync_feed
    WHERE scope = ? AND version > ? AND (NOT deleted OR version > ?) ORDER BY version"""
ROLE: Final = 'SELECT role FROM sync_member WHERE scope = ? AND "user" = ?'
SET_ROLE: Final = """
    INSERT INTO sync_member (scope, "user", role) VALUES (?, ?, ?)
    ON CONFLICT (scope, "user") DO UPDATE SET role = excluded.role"""
LOAD: Final = f'SELECT {sql.FEED} FROM sync_feed WHERE entity = ? AND "row" = ?'
LOAD_EXACT: Final = f"{LOAD} AND scope = ?"
FEED_UPSERT: Final = f"INSERT INTO sync_feed ({sql.FEED}) VALUES ({sql.marks(len(sql.FEED_COLUMNS))}) {sql.FEED_UPSERT}"
JOURNAL: Final = "INSERT INTO sync_journal (scope, arrived, events, rows, spent) VALUES (?, ?, ?, ?, ?)"
SPENT: Final = f"SELECT {sql.JOURNAL} FROM sync_journal WHERE spent {AMONG.format('?')}"
ENTRIES: Final = f"""
    SELECT {sql.JOURNAL} FROM sync_journal
    WHERE scope = ? AND arrived >= ? AND spent IS NULL AND {NAMING.format("?")} ORDER BY id LIMIT ?"""
ROWS_OF: Final = f"SELECT {sql.FEED} FROM sync_feed WHERE scope = ? ORDER BY version"
RESIDUES: Final = (
    f"SELECT {sql.FEED} FROM sync_feed WHERE residue AND arrived < ? AND root < ? ORDER BY arrived LIMIT ?"
)
FORGET: Final = """
    DELETE FROM sync_feed WHERE entity = ? AND "row" = ? AND scope = ? AND root = ? AND clocks = ? AND arrived = ?
    RETURNING version"""
REWRITE: Final = """
    UPDATE sync_feed SET doc = ?, root = ?, clocks = ?, residue = ?
    WHERE entity = ? AND "row" = ? AND scope = ? AND version = ? AND arrived = ?"""
RAISE_FLOOR: Final = "UPDATE sync_scope SET floor = max(floor, ?), horizon = max(horizon, ?) WHERE scope = ?"
FORGET_JOURNAL: Final = """
    DELETE FROM sync_journal WHERE id IN (
        SELECT id FROM sync_journal WHERE arrived < ? ORDER BY arrived LIMIT ?)"""
_ENTRIES: Final = "SELECT id, entity, identity, captured_at, who FROM sync_inbox"
_WAITING: Final = f"{_ENTRIES} WHERE entity {AMONG.format('?')} AND id NOT {AMONG.format('?')}"
INBOX: Final = f"{_WAITING} ORDER BY id LIMIT ?"
NEWEST: Final = f"{_WAITING} ORDER BY id DESC LIMIT ?"
CAPTURED: Final = f"{_ENTRIES} WHERE identity = ? AND entity = ? ORDER BY captured_at DESC, id DESC LIMIT 1"
BACKLOG: Final = "SELECT count(*), min(captured_at) FROM sync_inbox"
REPORT: Final = "INSERT INTO sync_inbox (entity, identity, captured_at) VALUES (?, ?, ?)"
DRAINED: Final = f"DELETE FROM sync_inbox WHERE id {AMONG.format('?')}"
LIVE: Final = f"""
    SELECT {sql.FEED} FROM sync_feed WHERE entity = ? AND NOT deleted AND ("row", scope) > (?, ?)
    ORDER BY "row", scope LIMIT ?"""
LEASE: Final = """
    INSERT INTO sync_meta (name, value) VALUES (?1, ?2)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value
    WHERE json_extract(value, '$.owner') = ?3 OR json_extract(value, '$.until') <= ?4"""
META_SET: Final = """
    INSERT INTO sync_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
