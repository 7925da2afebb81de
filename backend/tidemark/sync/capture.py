"""Writers in SQL: what a row of a captured table says to the feed, and what a change of it is called (SPEC 10)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import Struct

from tidemark.store.base import UNIT, Identity, InboxEntry, RowKey, TableRow
from tidemark_protocol import rows
from tidemark_protocol.errors import Rejection
from tidemark_protocol.fields import Validator, compile_entity
from tidemark_protocol.merge import RowState, Values, same_value
from tidemark_protocol.model import ColumnType, Declaration, Entity

_size_of: Final = msgspec.json.Encoder()


class Image(Struct, frozen=True):
    """A row of a captured table as the feed can hold it."""

    key: RowKey
    values: dict[str, Any]


class UnfitRow(Struct, frozen=True):
    """A row of a captured table that the feed cannot hold, and why; `scope` where that can be told."""

    identity: Identity
    scope: str | None
    why: Rejection


class Captured(Struct, frozen=True):
    """A row that the inbox names: its `entries`, the time (ms) and the database's user of the latest, and the `scopes`
    that its difference was found to concern.
    """

    identity: Identity
    entries: tuple[InboxEntry, ...]
    at: int
    who: str
    scopes: frozenset[str]


class Reader:
    """Reads rows of captured tables as the declaration means them; `max_doc` bounds a document, in bytes."""

    def __init__(self, declaration: Declaration, max_doc: int) -> None:
        self._validators: Mapping[str, Validator] = {
            name: compile_entity(e) for name, e in declaration.entities.items()
        }
        self._declared = declaration.entities
        self._max_doc = max_doc

    def read(self, row: TableRow) -> Image | UnfitRow:
        """What the feed can hold of a table row."""
        entity = self._declared[row.identity.entity]
        scope: str | None = None
        try:
            scope = _scope(entity, row.scope)
            name = row_of(entity, row.identity)
            problem = rows.row_problem(entity, name)
            if problem is not None:
                raise Rejection("invalid_row", f"the key: {problem}")
            values = self._validators[entity.name].put(row.values)
            if len(_size_of.encode(values)) > self._max_doc:
                raise Rejection("too_large", f"the document would hold more than {self._max_doc} bytes")
        except Rejection as why:
            return UnfitRow(row.identity, scope, why)
        return Image(RowKey(scope, entity.name, name), values)


def row_of(entity: Entity, identity: Identity) -> str:
    """The row that an identity names, representable or not."""
    columns = len(entity.key.columns) + entity.key.per_scope
    # What a column itself holds of UNIT stays, and makes the row one that cannot be.
    parts = identity.text.split(UNIT, columns - 1)
    return ":".join(parts[1:] if entity.key.per_scope else parts)


def scope_of(entity: Entity, identity: Identity) -> str | None:
    """The scope that an identity names, where keys are `per_scope`; None where it names none that there could be."""
    return scope_in(entity, identity.text.partition(UNIT)[0]) if entity.key.per_scope else None


def scope_in(entity: Entity, text: str | None) -> str | None:
    """The scope of a row whose scope column holds this text; None where there could be none."""
    try:
        return _scope(entity, text)
    except Rejection:
        return None


def anywhere(entity: Entity, identity: Identity) -> RowKey:
    """A key under which the feed's rows of an identity are found, whatever their scope."""
    return RowKey(scope_of(entity, identity) or "", entity.name, row_of(entity, identity))


def identity_of(entity: Entity, key: RowKey) -> Identity:
    """What names a row in its table."""
    parts = key.row.split(":") if len(entity.key.columns) > 1 else [key.row]
    if entity.key.per_scope:
        parts.insert(0, rows.scope_id(key.scope))
    return Identity(entity.name, UNIT.join(parts))


def changed(state: RowState, values: Values) -> Values:
    """The fields of a visible row that a table holds otherwise, as the patch that says so."""
    return {name: value for name, value in values.items() if not same_value(state.fields.get(name), value)}


def _scope(entity: Entity, text: str | None) -> str:
    if text is None:
        raise Rejection("invalid_scope", f"{entity.scope.column} holds nothing")
    try:
        return _spelled_scope(entity.scope.kind, entity.scope.type, text)
    except ValueError as fault:
        raise Rejection("invalid_scope", f"{entity.scope.column}: {fault}") from fault


@lru_cache(maxsize=4096)
def _spelled_scope(kind: str, id_type: ColumnType, text: str) -> str:
    """Remembered, since the same few scopes come again and again; ValueError for an id that none can have."""
    problem = rows.id_problem(id_type, text)
    if problem is not None:
        raise ValueError(problem)
    return rows.format_scope(kind, text)
