"""What the MySQL store says: values stand in the text, so that columns are compared in their collation, by an index.

Many rows are looked up with nested conditions (`any_of`) and written by one statement for each, sent together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from tidemark.store import sql
from tidemark.store.base import UNIT, Identity, RowImage, RowKey
from tidemark.store.entities import EntityTable
from tidemark.store.sql import all_of, names
from tidemark.store.values import from_column

Condition = tuple[str, list[Any]]
"""SQL text with `%s` for each of the values."""


class MysqlTable:
    """The statements of one declared table for MySQL and MariaDB."""

    def __init__(self, table: EntityTable) -> None:
        self.table = table
        columns, name, scope = table.columns, table.name, table.scope.name
        self._keyed = [*table.key, table.scope]
        # Columns of other programs may be blind to case and accents, in which an index finds more than one is looking
        # for: what is written is the row whose bytes are the same.
        self._exact = [i for i, c in enumerate(self._keyed) if table.entity.adopted and c.kind == "text"]
        bytes_of = "CAST(CONVERT({} USING utf8mb4) AS BINARY) = CAST(%s AS BINARY)"
        exact = [bytes_of.format(self._keyed[i].name) for i in self._exact]
        same = all_of([*(f"{column.name} = %s" for column in self._keyed), *exact])
        assigned = ", ".join(f"{column.name} = %s" for column in table.own) or f"{scope} = {scope}"
        self.insert = f"INSERT INTO {name} ({names(columns)}) VALUES ({marks(len(columns))})"
        self.update = f"UPDATE {name} SET {assigned} WHERE {same}"
        self.delete = f"DELETE FROM {name} WHERE {same}"
        fields = "".join(f", t.{column.name}" for column in table.fields.values())
        self._whole = (
            f"SELECT {table.identity_text('mysql', 't.')}, CONVERT(t.{scope} USING utf8mb4){fields} FROM {name} AS t"
        )

    def rows(self, images: Sequence[RowImage]) -> list[tuple[Any, ...]]:
        """The values of `insert` for each image."""
        arguments = zip(self.table.columns, self.table.arguments(images), strict=True)
        return list(zip(*(_parameters(column.kind, values) for column, values in arguments), strict=True))

    def changes(self, images: Sequence[RowImage]) -> list[tuple[Any, ...]]:
        """The values of `update` for each image."""
        keyed = len(self._keyed)
        return [(*row[keyed:], *row[:keyed], *(row[i] for i in self._exact)) for row in self.rows(images)]

    def gone(self, keys: Sequence[RowKey]) -> list[tuple[Any, ...]]:
        """The values of `delete` for each key."""
        return [(*row, *(row[i] for i in self._exact)) for row in self.keys(keys)]

    def keys(self, keys: Sequence[RowKey]) -> list[tuple[Any, ...]]:
        """The values of the key's columns and the scope column for each key."""
        return list(zip(*self.table.key_arguments(keys), strict=True))

    def places(self, keys: Sequence[RowKey]) -> Condition:
        """(key…, scope column) of the rows under these keys, whatever scope they are in unless keys are `per_scope`."""
        columns = [column.name for column in self._keyed]
        kept = len(columns) if self.table.entity.key.per_scope else len(columns) - 1
        where, values = any_of(columns[:kept], {row[:kept] for row in self.keys(keys)})
        return f"SELECT {', '.join(columns)} FROM {self.table.name} WHERE {where}", values

    def holders(self, scope: str, fields: Sequence[str], tuples: Collection[tuple[Any, ...]]) -> Condition:
        """(field…, key…) of the rows in the scope that hold any of these tuples."""
        columns = [self.table.fields[name] for name in fields]
        encoded = zip(columns, self.table.encoded(fields, tuples), strict=True)
        rows = zip(*(_parameters(column.kind, values) for column, values in encoded), strict=True)
        where, values = any_of([column.name for column in columns], set(rows))
        statement = (
            f"SELECT {names(columns)}, {names(self.table.key)} FROM {self.table.name} "
            f"WHERE {self.table.scope.name} = %s AND ({where})"
        )
        return statement, [self.table.scope_value(scope), *values]

    def held(self, fields: Sequence[str], found: Sequence[Any]) -> tuple[tuple[Any, ...], str]:
        """Canonical values and key of a row that `holders` found."""
        declared = self.table.entity.fields
        values = (from_column(declared[name], value) for name, value in zip(fields, found, strict=False))
        return tuple(values), ":".join(map(str, found[len(fields) :]))

    def read(self, identities: Iterable[Identity]) -> Condition | None:
        """Whole rows for `EntityTable.table_row`; None when no row can be under any of these identities."""
        rows = set(zip(*self.table.identity_arguments(identities), strict=True))
        if not rows:
            return None
        where, values = any_of([f"t.{column.name}" for column in self.table.identity], rows)
        return f"{self._whole} WHERE {where}", values

    def sweep(self, after: Identity | None, limit: int) -> Condition:
        """Whole rows behind an identity in the order of its columns."""
        columns = [f"t.{column.name}" for column in self.table.identity]
        order = f"ORDER BY {', '.join(columns)} LIMIT {int(limit)}"
        if after is None:
            return f"{self._whole} {order}", []
        parts = zip(self.table.identity, after.text.split(UNIT), strict=True)
        where, values = behind(columns, [int(part) if column.kind == "integer" else part for column, part in parts])
        return f"{self._whole} WHERE {where} {order}", values


def marks(count: int) -> str:
    """Parameters."""
    return ", ".join(["%s"] * count)


def any_of(columns: Sequence[str], rows: Collection[tuple[Any, ...]]) -> Condition:
    """That these columns hold any of these rows of values (at least one); the last column should differ most."""
    first, *rest = columns
    if not rest:
        return f"{first} IN %s", [tuple(row[0] for row in rows)]
    by_first: dict[Any, list[tuple[Any, ...]]] = {}
    for row in rows:
        by_first.setdefault(row[0], []).append(row[1:])
    parts, values = [], []
    for value, others in by_first.items():
        part, further = any_of(rest, others)
        parts.append(f"{first} = %s AND ({part})")
        values += [value, *further]
    return " OR ".join(parts), values


def behind(columns: Sequence[str], values: Sequence[Any]) -> Condition:
    """That these columns hold more than these values, in their order."""
    parts = [all_of([*(f"{c} = %s" for c in columns[:n]), f"{columns[n]} > %s"]) for n in range(len(columns))]
    return f"({' OR '.join(parts)})", [value for n in range(len(columns)) for value in values[: n + 1]]


def _parameters(kind: str, values: Sequence[Any]) -> Iterator[Any]:
    if kind == "datetime":
        return (value and value.removesuffix("Z") for value in values)
    if kind == "number":
        return (None if value is None else float(value) for value in values)
    return iter(values)


_FIRST: Final = "FORCE INDEX (PRIMARY)"
LOCK: Final = f"SELECT {sql.STATE} FROM sync_scope {_FIRST} WHERE scope IN %s ORDER BY scope FOR UPDATE SKIP LOCKED"
MEMBERSHIPS: Final = 'SELECT "user", scope, role FROM sync_member WHERE "user" IN %s'
STATES: Final = f"SELECT {sql.STATE} FROM sync_scope WHERE scope IN %s"
CREATE: Final = "INSERT INTO sync_scope (scope) VALUES (%s)"
SCOPE: Final = f"UPDATE sync_scope SET {', '.join(f'{name} = %s' for name in sql.STATE_COLUMNS[1:])} WHERE scope = %s"
SET_ROLE: Final = 'INSERT INTO sync_member (scope, "user", role) VALUES (%s, %s, %s) ON DUPLICATE KEY UPDATE role = %s'
LOAD: Final = f"SELECT {sql.FEED} FROM sync_feed {_FIRST} WHERE "
JOURNAL: Final = 'INSERT INTO sync_journal (scope, arrived, events, "rows", spent) VALUES (%s, %s, %s, %s, %s)'
AMONG: Final = "IN {}"
NAMING: Final = '"rows" REGEXP {}'
SPENT: Final = f"SELECT {sql.JOURNAL} FROM sync_journal WHERE spent IN %s"
_LATELY: Final = 100_000
# No index knows the rows that entries name. Where few have arrived since, their ids bound what is read of the scope's.
EARLIEST: Final = f"""
    SELECT IF(COUNT(*) < {_LATELY}, MIN(id), 0) FROM (
        SELECT id FROM sync_journal FORCE INDEX (ix_sync_journal_arrived) WHERE arrived >= %s LIMIT {_LATELY}
    ) AS lately"""
ENTRIES: Final = f"""
    SELECT {sql.JOURNAL} FROM sync_journal FORCE INDEX (ix_sync_journal_scope)
    WHERE scope = %s AND id >= %s AND arrived >= %s AND spent IS NULL AND {NAMING.format("%s")} ORDER BY id LIMIT %s"""
# The state comes first, as version 0.
RUN: Final = f"""
    SELECT 0, CAST(CONCAT_WS(' ', head, floor, live, total, members, horizon, clock) AS BINARY)
    FROM sync_scope WHERE scope = %s
    UNION ALL (
        SELECT version, CAST({sql.WIRE_TEXT} AS BINARY) FROM sync_feed FORCE INDEX (ix_sync_feed_version)
        WHERE scope = %s AND version > %s AND (NOT deleted OR version > %s) ORDER BY version LIMIT %s)"""
ROWS_OF: Final = f"SELECT {sql.FEED} FROM sync_feed WHERE scope = %s ORDER BY version"
RESIDUES: Final = (
    f"SELECT {sql.FEED} FROM sync_feed WHERE residue = 1 AND arrived < %s AND root < %s ORDER BY arrived LIMIT %s"
)
FORGET: Final = "DELETE FROM sync_feed WHERE scope = %s AND ({})"
REWRITE: Final = """
    UPDATE sync_feed SET doc = %s, root = %s, clocks = %s, residue = %s
    WHERE entity = %s AND "row" = %s AND scope = %s AND version = %s AND arrived = %s"""
RAISE_FLOOR: Final = (
    "UPDATE sync_scope SET floor = GREATEST(floor, %s), horizon = GREATEST(horizon, %s) WHERE scope = %s"
)
FORGET_JOURNAL: Final = "DELETE FROM sync_journal WHERE arrived < %s ORDER BY arrived LIMIT %s"
ENTRY: Final = "SELECT id, entity, identity, captured_at, who FROM sync_inbox"
CAPTURED: Final = """
    SELECT id, entity, identity, captured_at, who FROM (
        SELECT i.*, ROW_NUMBER() OVER (PARTITION BY entity, identity ORDER BY captured_at DESC, id DESC) AS number
        FROM sync_inbox AS i WHERE {}
    ) AS numbered WHERE number = 1"""
REPORT: Final = "INSERT INTO sync_inbox (entity, identity, captured_at, who) VALUES (%s, %s, %s, %s)"
WHO: Final = "SELECT USER()"
BACKLOG: Final = "SELECT COUNT(*), MIN(captured_at) FROM sync_inbox"
# By their numbers, one by one: a scan would wait for entries that other programs have not committed.
DRAINED: Final = """
    DELETE i FROM JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) AS v
    STRAIGHT_JOIN sync_inbox AS i ON i.id = v.id"""
META: Final = f"SELECT name, value FROM sync_meta {_FIRST} WHERE name IN %s ORDER BY name FOR UPDATE"
META_HELD: Final = "SELECT name FROM sync_meta WHERE name IN %s"
META_FREE: Final = f"SELECT name FROM sync_meta {_FIRST} WHERE name IN %s ORDER BY name FOR UPDATE SKIP LOCKED"
META_KEEP: Final = "INSERT INTO sync_meta (name, value) VALUES (%s, %s) ON DUPLICATE KEY UPDATE name = sync_meta.name"
META_SET: Final = "UPDATE sync_meta SET value = %s WHERE name = %s"
LEASE: Final = """
    UPDATE sync_meta SET value = %s WHERE name = %s AND (
        JSON_UNQUOTE(JSON_EXTRACT(value, '$.owner')) = %s OR JSON_EXTRACT(value, '$.until') <= %s)"""
# A restored table was made anew, or its file was. A cluster has one name for all of its servers.
PLACE: Final = """
    SELECT database(), create_time FROM information_schema.tables
    WHERE table_schema = database() AND table_name = 'sync_meta'"""
SERVER: Final = "SELECT @@server_uuid"
CLUSTER: Final = "SHOW GLOBAL STATUS LIKE 'wsrep_cluster_state_uuid'"


def feed_upsert(mariadb: bool) -> str:
    """An INSERT of feed rows that takes over what is there; the two databases name the new values differently."""
    new, alias = ("VALUES({})", "") if mariadb else ("new.{}", "AS new ")
    changed = [f'"{name}"' for name in sql.FEED_COLUMNS if name not in {"entity", "row", "scope"}]
    taken = ", ".join(f"{name} = {new.format(name)}" for name in changed)
    return (
        f"INSERT INTO sync_feed ({sql.FEED}) VALUES ({marks(len(sql.FEED_COLUMNS))}) "
        f"{alias}ON DUPLICATE KEY UPDATE {taken}"
    )


def pattern(hashes: Iterable[int]) -> str:
    """For NAMING: the column holds its numbers between spaces."""
    return f" ({'|'.join(map(str, hashes))}) "
