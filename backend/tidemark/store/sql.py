"""What the databases have in common: parts that their statements are made of, and how their answers are read."""

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


def marks(count: int) -> str:
    """Parameters of SQLite."""
    return ", ".join("?" * count)


def journal_query(
    query: EventQuery, mark: str, among: str, naming: str, array: Callable[[Sequence[Any]], Any]
) -> tuple[str, list[Any]]:
    """The statement of an EventQuery and its values; `among` and `naming` test a scope and the rows for an array."""
    conditions: list[str] = []
    values: list[Any] = []
    scopes = query.scopes
    one = scopes is not None and len(scopes) == 1  # which the index gives in order
    bounds: list[tuple[str, Any]] = [
        (f"scope {'= {}' if one else among}", None if scopes is None else scopes[0] if one else array(scopes)),
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
    where = " AND ".join(text.format(f"{mark}{number}") for number, text in enumerate(conditions, 1)) or "TRUE"
    order = "ASC" if query.ascending else "DESC"
    return f"SELECT {JOURNAL} FROM sync_journal WHERE {where} ORDER BY id {order} LIMIT {int(query.limit)}", values


def feed_rows(found: Iterable[Sequence[Any]]) -> list[FeedRow]:
    """Rows of the feed from a database that keeps booleans as numbers."""
    return [
        FeedRow(scope, entity, row, version, bool(deleted), doc, root, clocks, arrived, bool(residue))
        for scope, entity, row, version, deleted, doc, root, clocks, arrived, residue in found
    ]


def by_user(found: Iterable[Sequence[str]]) -> dict[str, dict[str, str]]:
    """User → scope → role, of rows (user, scope, role)."""
    roles: dict[str, dict[str, str]] = {}
    for user, scope, role in found:
        roles.setdefault(user, {})[scope] = role
    return roles


def removed(saved: Saved, tables: Mapping[str, EntityTable]) -> list[RowKey]:
    """The rows to take from their tables before others are written.

    A swapped row of an adopted table stays: with it would go what its other columns hold.
    """
    swapped = (key for key in saved.swapped if not tables[key.entity].entity.adopted)
    return list(dict.fromkeys((*saved.gone, *swapped)))


def names(columns: Iterable[ColumnOf]) -> str:
    """A list of columns."""
    return ", ".join(column.name for column in columns)


def all_of(conditions: Iterable[str]) -> str:
    """Conditions that must all hold."""
    return " AND ".join(conditions)


def taken_over(table: EntityTable) -> str:
    """What an upsert sets on a row that is there."""
    own = ", ".join(f"{column.name} = excluded.{column.name}" for column in table.own)
    return own or f"{table.scope.name} = excluded.{table.scope.name}"


def new_epoch(chance: Callable[[int], bytes]) -> str:
    """Eight characters of `[0-9a-z]`, drawn anew (SPEC 1)."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    number = int.from_bytes(chance(8))
    return "".join(digits[number // 36**place % 36] for place in range(8))
