"""Bringing the feed's documents to the declared fields after a change of the declaration (SPEC 10).

Versions stay: replicas are reset by the new schema number. What a document lacks comes from its row in the declared
table, where the migration has put the default, or whatever a revision computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tidemark.store.values import from_column
from tidemark_protocol.conversion import Conversions, Translation
from tidemark_protocol.model import STAMPS, Declaration, Entity
from tidemark_protocol.rows import key_values, scope_id

from .tables import column_type, field_type, own_metadata

_BATCH: Final = 1000
_KNOWN: Final = "documents"
"""The row of `sync_meta` that says which number and fields the documents are at."""
_META = own_metadata().tables["sync_meta"]
_FEED = own_metadata().tables["sync_feed"]
_SCOPE = own_metadata().tables["sync_scope"]


class Shape(msgspec.Struct):
    """The schema number of the documents, and the fields in them by entity."""

    number: int
    fields: dict[str, list[str]]


class Change(NamedTuple):
    """How the documents of one entity change: names, texts by the new name, fields that go, fields that come."""

    rename: dict[str, str]
    values: dict[str, Mapping[str, str]]
    removed: frozenset[str]
    added: tuple[str, ...]


def pending(connection: Connection, declaration: Declaration) -> bool:
    """Whether some documents are not as declared."""
    held = _held(connection)
    return held is not None and any(True for _ in changes(held, declaration))


def number(connection: Connection) -> int | None:
    """The schema number of the documents; None where there are none yet."""
    held = _held(connection) if sa.inspect(connection).has_table(_META.name) else None
    return None if held is None else held.number


def changes(held: Shape, declaration: Declaration) -> Iterator[tuple[Entity, Change]]:
    """What is to change, by entity; those whose documents are as declared are left out."""
    conversions = Conversions(declaration)
    for name, before in held.fields.items():
        entity = declaration.entities.get(name)
        if entity is None:
            continue
        translation = conversions.translation(name, held.number) or Translation(())
        goals = {field: translation.goal(field) for field in before}
        kept = {old: new for old, new in goals.items() if new is not None and new in entity.fields}
        change = Change(
            {old: new for old, new in kept.items() if old != new},
            {field: translation.texts[field] for field in kept.values() if field in translation.texts},
            frozenset(before) - frozenset(kept),
            tuple(field for field in entity.fields if field not in kept.values()),
        )
        if any(change):
            yield entity, change


class Reshaping:
    """The work of one migration, a batch of rows for each `step`, so that no scope stays locked for long."""

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration
        self._todo: list[tuple[Entity, Change]] | None = None
        self._after = ("", "")

    def step(self, connection: Connection) -> bool:
        """Do one batch; False when all is done."""
        if self._todo is None:
            held = _held(connection)
            self._todo = [] if held is None else list(changes(held, self._declaration))
        if not self._todo:
            _record(connection, self._declaration)
            return False
        entity, change = self._todo[0]
        batch = connection.execute(
            sa.select(_FEED.c.scope, _FEED.c.row)
            .where(_FEED.c.entity == entity.name, sa.tuple_(_FEED.c.row, _FEED.c.scope) > sa.tuple_(*self._after))
            .order_by(_FEED.c.row, _FEED.c.scope)
            .limit(_BATCH)
        ).all()
        if not batch:
            self._todo.pop(0)
            self._after = ("", "")
            return True
        connection.execute(
            sa.select(_SCOPE.c.scope)
            .where(_SCOPE.c.scope.in_({scope for scope, _ in batch}))
            .order_by(_SCOPE.c.scope)
            .with_for_update()
        ).all()
        _reshape(connection, entity, change, [row for _, row in batch])
        self._after = (batch[-1].row, batch[-1].scope)
        return True


def _reshape(connection: Connection, entity: Entity, change: Change, rows: list[str]) -> None:
    """Rewrite the documents and clocks of some rows; their scopes are locked."""
    found = connection.execute(sa.select(_FEED).where(_FEED.c.entity == entity.name, _FEED.c.row.in_(rows))).all()
    table = _table_values(connection, entity, change.added, [row.row for row in found if not row.deleted])
    updates = []
    for row in found:
        doc = _renamed(msgspec.json.decode(row.doc), change)
        if not row.deleted:
            doc = _ordered(entity, table.get((scope_id(row.scope), row.row), {}) | doc)
        clocks = {} if not row.clocks else _renamed(msgspec.json.decode(row.clocks), change._replace(values={}))
        updates.append(
            {
                "b_row": row.row,
                "b_scope": row.scope,
                "b_doc": msgspec.json.encode(doc).decode(),
                "b_clocks": msgspec.json.encode(clocks).decode() if clocks else "",
            }
        )
    connection.execute(
        sa.update(_FEED)
        .where(
            _FEED.c.entity == entity.name,
            _FEED.c.row == sa.bindparam("b_row"),
            _FEED.c.scope == sa.bindparam("b_scope"),
        )
        .values(doc=sa.bindparam("b_doc"), clocks=sa.bindparam("b_clocks")),
        updates,
    )


def _renamed(content: dict[str, Any], change: Change) -> dict[str, Any]:
    """A document, or clocks by path, under the names and with the texts of today."""
    found: dict[str, Any] = {}
    for path, value in content.items():
        name, slash, key = path.partition("/")
        if name not in change.removed:
            new = change.rename.get(name, name)
            texts = change.values.get(new, {})
            found[new + slash + key] = texts.get(value, value) if isinstance(value, str) else value
    return found


def _ordered(entity: Entity, doc: dict[str, Any]) -> dict[str, Any]:
    """A document in the order of the declaration, with a default where the table holds no such row."""
    fields = {name: doc.get(name, field.initial) for name, field in entity.fields.items()}
    missing = [name for name, value in fields.items() if value is msgspec.UNSET]
    outer = {name: value for name, value in doc.items() if name not in entity.fields}
    stamps = {name: outer.pop(name) for name in STAMPS if name in outer}
    return outer | {name: value for name, value in fields.items() if name not in missing} | stamps


def _table_values(
    connection: Connection, entity: Entity, fields: tuple[str, ...], rows: list[str]
) -> dict[tuple[str, str], dict[str, Any]]:
    """(scope id, row) → the canonical values of some fields in the declared table."""
    if not fields or not rows:
        return {}
    kinds = {entity.scope.column: entity.scope.type, **dict(zip(entity.key.columns, entity.key.types, strict=True))}
    table = sa.table(
        entity.table,
        *(sa.column(name, column_type(kind)) for name, kind in kinds.items()),
        *(sa.column(name, field_type(entity.fields[name])) for name in fields),
    )
    keys = [table.c[name] for name in entity.key.columns]
    wanted = [key_values(entity, row) for row in rows]
    among = keys[0].in_([key[0] for key in wanted]) if len(keys) == 1 else sa.tuple_(*keys).in_(wanted)
    values = [_readable(entity, table.c[name]) for name in fields]
    found = connection.execute(sa.select(table.c[entity.scope.column], *keys, *values).where(among))
    return {
        (str(scope), ":".join(map(str, rest[: len(keys)]))): {
            name: from_column(entity.fields[name], value) for name, value in zip(fields, rest[len(keys) :], strict=True)
        }
        for scope, *rest in found
    }


def _readable(entity: Entity, column: sa.ColumnClause[Any]) -> Any:
    return sa.cast(column, sa.Text) if entity.fields[column.name].type in {"json", "map"} else column


def _held(connection: Connection) -> Shape | None:
    text = connection.execute(sa.select(_META.c.value).where(_META.c.name == _KNOWN)).scalar()
    return None if text is None else msgspec.json.decode(text, type=Shape)


def _record(connection: Connection, declaration: Declaration) -> None:
    shape = Shape(declaration.number, {name: list(entity.fields) for name, entity in declaration.entities.items()})
    connection.execute(sa.delete(_META).where(_META.c.name == _KNOWN))
    connection.execute(sa.insert(_META).values(name=_KNOWN, value=msgspec.json.encode(shape).decode()))
