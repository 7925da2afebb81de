"""SQL text, built once for each store: what PostgreSQL and SQLite say alike, and the statements of one declared table.

PostgreSQL is given whole columns as arrays and casts canonical texts itself; SQLite is given rows one by one, without a
round trip between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from .base import EventQuery, FeedRow, RowKey, Saved, ScopeState
from .entities import ColumnOf, EntityTable

STATE_COLUMNS: Final = ScopeState.__struct_fields__
FEED_COLUMNS: Final = FeedRow.__struct_fields__
STATE: Final = ", ".join(STATE_COLUMNS)
FEED: Final = ", ".join(f'"{name}"' for name in FEED_COLUMNS)
FEED_UPSERT: Final = 'ON CONFLICT (entity, "row", scope) DO UPDATE SET ' + ", ".join(
    f"{n} = excluded.{n}" for n in FEED_COLUMNS if n not in {"entity", "row", "scope"}
)
JOURNAL: Final = "id, scope, arrived, events"

WIRE: Final = ('{"entity":"', '","row":"', '","version":', ',"doc":', "}")
"""The text around the parts of a change: names of entities and rows need no escaping."""
WIRE_SIZE: Final = sum(map(len, WIRE))
WIRE_TEXT: Final = (
    f"'{WIRE[0]}' || entity || '{WIRE[1]}' || \"row\" || '{WIRE[2]}' || version || '{WIRE[3]}' || "
    f"CASE WHEN deleted THEN 'null' ELSE doc END || '{WIRE[4]}'"
)

_ARRAYS: Final = {"integer": "bigint", "number": "float8", "boolean": "boolean"}
_CASTS: Final = {
    "decimal": "::numeric",
    "date": "::date",
    "time": "::time",
    "datetime": "::timestamptz",
    "uuid": "::uuid",
    "json": "::jsonb",
    "map": "::jsonb",
}


class PostgresTable:
    """The statements of one declared table for PostgreSQL; a parameter is a whole column, named by its number."""

    def __init__(self, table: EntityTable) -> None:
        self.table = table
        columns, name, scope = table.columns, table.name, table.scope.name
        keyed = [*table.key, table.scope]
        same = _all(f"t.{c.name} = v.c{i}{_cast(c)}" for i, c in enumerate(keyed))
        self.upsert = (
            f"INSERT INTO {name} AS t ({_names(columns)}) "
            f"SELECT {', '.join(f'v.c{i}{_cast(c)}' for i, c in enumerate(columns))} FROM {unnest(columns)} "
            f"ON CONFLICT ({_names(table.identity)}) DO UPDATE SET {_excluded(table)} "
            f"WHERE t.{scope} = excluded.{scope}"
        )
        assigned = ", ".join(f"{c.name} = v.c{i}{_cast(c)}" for i, c in enumerate(columns) if c in table.own)
        self.update = (
            f"UPDATE {name} AS t SET {assigned or f'{scope} = t.{scope}'} "
            f"FROM {unnest(columns, ordinal=True)} WHERE {same} RETURNING v.n"
        )
        self.delete = f"DELETE FROM {name} AS t USING {unnest(keyed)} WHERE {same}"
        self._row = table.row_text("{}::text", "t.")

    def referring(self, field: str) -> str:
        """$1 the scope's id, $2 the targets: (target, row)."""
        column = self.table.fields[field]
        elements = "bigint" if column.kind == "integer" else _cast(column).removeprefix("::") or "text"
        return (
            f"SELECT t.{column.name}::text, {self._row} FROM {self.table.name} AS t "
            f"WHERE {self._in_scope} AND t.{column.name} = ANY($2::text[]::{elements}[])"
        )

    def holders(self, fields: Sequence[str]) -> str:
        """$1 the scope's id, then one array for each field: (number of the tuple from 1, row)."""
        columns = [self.table.fields[name] for name in fields]
        same = _all(f"t.{c.name} = v.c{i}{_cast(c)}" for i, c in enumerate(columns))
        return (
            f"SELECT v.n, {self._row} FROM {unnest(columns, first=2, ordinal=True)} "
            f"JOIN {self.table.name} AS t ON {same} WHERE {self._in_scope}"
        )

    @property
    def _in_scope(self) -> str:
        scope = self.table.scope
        return f"t.{scope.name} = $1::{_ARRAYS.get(scope.kind, 'text')}{_cast(scope)}"


class SqliteTable:
    """The statements of one declared table for SQLite; a parameter is one value."""

    def __init__(self, table: EntityTable) -> None:
        self.table = table
        columns, name, scope = table.columns, table.name, table.scope.name
        keyed = _all(f"{c.name} = ?" for c in (*table.key, table.scope))
        self.upsert = (
            f"INSERT INTO {name} ({_names(columns)}) VALUES ({marks(len(columns))}) "
            f"ON CONFLICT ({_names(table.identity)}) DO UPDATE SET {_excluded(table)} "
            f"WHERE {name}.{scope} = excluded.{scope}"
        )
        assigned = ", ".join(f"{c.name} = ?" for c in table.own) or f"{scope} = {scope}"
        self.update = f"UPDATE {name} SET {assigned} WHERE {keyed}"
        self.delete = f"DELETE FROM {name} WHERE {keyed}"
        self._row = table.row_text("CAST({} AS TEXT)")

    def referring(self, field: str) -> str:
        """The scope's id and a target: (row,)."""
        return self.holders([field])

    def holders(self, fields: Sequence[str]) -> str:
        """The scope's id and a value for each field: (row,)."""
        same = _all(f"{self.table.fields[name].name} = ?" for name in fields)
        return f"SELECT {self._row} FROM {self.table.name} WHERE {self.table.scope.name} = ? AND {same}"


def unnest(columns: Sequence[ColumnOf], *, first: int = 1, ordinal: bool = False) -> str:
    """Arrays as a table v(c0, c1, …[, n])."""
    arrays = ", ".join(f"${i}::{_ARRAYS.get(c.kind, 'text')}[]" for i, c in enumerate(columns, first))
    names = ", ".join(f"c{i}" for i in range(len(columns)))
    return f"unnest({arrays}) WITH ORDINALITY AS v({names}, n)" if ordinal else f"unnest({arrays}) AS v({names})"


def marks(count: int) -> str:
    """Parameters of SQLite."""
    return ", ".join("?" * count)


def journal_query(
    query: EventQuery, mark: str, among: str, naming: str, array: Callable[[Sequence[Any]], Any]
) -> tuple[str, list[Any]]:
    """The statement of an EventQuery and its values; `among` and `naming` test a scope and the rows for an array."""
    one = len(query.scopes) == 1  # which the index gives in order
    conditions = [f"scope {'= {}' if one else among}"]
    values: list[Any] = [query.scopes[0] if one else array(query.scopes)]
    bounds: list[tuple[str, Any]] = [
        (naming, None if query.rows is None else array(query.rows)),
        ("id > {}", query.after),
        ("id < {}", query.before),
        ("arrived >= {}", query.since),
        ("arrived < {}", query.until),
    ]
    for condition, value in bounds:
        if value is not None:
            conditions.append(condition)
            values.append(value)
    where = " AND ".join(text.format(f"{mark}{number}") for number, text in enumerate(conditions, 1))
    order = "ASC" if query.ascending else "DESC"
    return f"SELECT {JOURNAL} FROM sync_journal WHERE {where} ORDER BY id {order} LIMIT {int(query.limit)}", values


def removed(saved: Saved, tables: Mapping[str, EntityTable]) -> set[RowKey]:
    """The rows to take from their tables before others are written.

    A swapped row of an adopted table stays: with it would go what its other columns hold.
    """
    return {*saved.gone, *(key for key in saved.swapped if not tables[key.entity].entity.adopted)}


def _cast(column: ColumnOf) -> str:
    return _CASTS.get(column.kind, "")


def _names(columns: Iterable[ColumnOf]) -> str:
    return ", ".join(column.name for column in columns)


def _all(conditions: Iterable[str]) -> str:
    return " AND ".join(conditions)


def _excluded(table: EntityTable) -> str:
    own = ", ".join(f"{column.name} = excluded.{column.name}" for column in table.own)
    return own or f"{table.scope.name} = excluded.{table.scope.name}"


def new_epoch(chance: Callable[[int], bytes]) -> str:
    """Eight characters of `[0-9a-z]`, drawn anew (SPEC 1)."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    number = int.from_bytes(chance(8))
    return "".join(digits[number // 36**place % 36] for place in range(8))
