"""Declared tables as SQL statements see them: columns, parameters, and canonical values back from columns (SPEC 10)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tidemark_protocol.model import STAMPS, Declaration, Entity, Field
from tidemark_protocol.rows import id_problem, key_values, scope_id

from .base import UNIT, ConstraintFailed, Identity, RowImage, RowKey, TableRow
from .values import from_column

_JSON: Final = frozenset({"json", "map"})
_MYSQL: Final = (
    "CONVERT({0} USING utf8mb4)",
    lambda parts: f"CONCAT_WS(CHAR(31 USING utf8mb4), {', '.join(parts)})",
)
_IDENTITY: Final[dict[str, tuple[str, Callable[[list[str]], str]]]] = {
    "postgresql": ("{0}::text", lambda parts: f"pg_catalog.concat_ws(pg_catalog.chr(31), {', '.join(parts)})"),
    # Bytes that are no text must not reach the inbox as one: nobody could read it. No key is spelled as they are.
    "sqlite": ("CASE typeof({0}) WHEN 'blob' THEN quote({0}) ELSE CAST({0} AS TEXT) END", " || char(31) || ".join),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}
"""By dialect, the text of a column and how the texts are joined."""
_encode_json = msgspec.json.Encoder().encode


class ColumnOf(NamedTuple):
    """A column's quoted name and the declared type of what it holds."""

    name: str
    kind: str


def quote(name: str) -> str:
    """An identifier as SQL text."""
    return '"' + name.replace('"', '""') + '"'


class EntityTable:
    """One entity's table: its columns in the order of `arguments`, the key's first, then scope, fields and stamps."""

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.name = quote(entity.table)
        self.key = [ColumnOf(quote(n), t) for n, t in zip(entity.key.columns, entity.key.types, strict=True)]
        self.scope = ColumnOf(quote(entity.scope.column), entity.scope.type)
        self.fields = {name: ColumnOf(quote(name), field.type) for name, field in entity.fields.items()}
        stamps = [] if entity.adopted else [ColumnOf(quote(name), "datetime") for name in STAMPS]
        self.own = [*self.fields.values(), *stamps]
        """Columns that a write of a row that exists may change."""
        self.columns = [*self.key, self.scope, *self.own]
        self.identity = [*([self.scope] if entity.key.per_scope else []), *self.key]
        """Columns that no two rows share."""
        self._identity_types = [*([entity.scope.type] if entity.key.per_scope else []), *entity.key.types]
        self._encoders = [(name, _encoder(field)) for name, field in entity.fields.items()]

    def arguments(self, images: Sequence[RowImage]) -> list[list[Any]]:
        """For each of `columns` the values of all images."""
        found = self.key_arguments([image.key for image in images])
        for name, encode in self._encoders:
            if encode is None:
                found.append([image.values[name] for image in images])
            else:
                found.append([encode(image.values[name]) for image in images])
        if not self.entity.adopted:
            found.append([image.created_at for image in images])
            found.append([image.updated_at for image in images])
        return found

    def key_arguments(self, keys: Sequence[RowKey]) -> list[list[Any]]:
        """For each key column and the scope column the values of all keys."""
        ids = {scope: self.scope_value(scope) for scope in {key.scope for key in keys}}
        scopes = [ids[key.scope] for key in keys]
        if len(self.key) == 1 and self.key[0].kind != "integer":
            return [[key.row for key in keys], scopes]
        parts = zip(*(key_values(self.entity, key.row) for key in keys), strict=True)
        return [*map(list, parts), scopes]

    def scope_value(self, scope: str) -> str | int:
        """What the scope column holds for a scope."""
        decoded = scope_id(scope)
        if self.scope.kind != "integer":
            return decoded
        try:
            return int(decoded)
        except ValueError:
            raise ConstraintFailed(
                f"{self.entity.name} takes scopes with a number, not {scope}", unique=False
            ) from None

    def row_text(self, as_text: str, prefix: str = "") -> str:
        """The SQL that spells a table row's key; `as_text` is a cast, with `{}` for the column."""
        return " || ':' || ".join(as_text.format(prefix + column.name) for column in self.key)

    def identity_text(self, dialect: str, prefix: str = "") -> str:
        """The SQL that spells a table row's identity, as `base.Identity` has it: in triggers and statements alike."""
        as_text, join = _IDENTITY[dialect]
        parts = [f"COALESCE({as_text.format(prefix + column.name)}, '')" for column in self.identity]
        return parts[0] if len(parts) == 1 else join(parts)

    def identity_arguments(self, identities: Iterable[Identity]) -> list[list[Any]]:
        """For each of `identity` the values of all identities, without those that no row of the table can have."""
        whole = []
        for identity in identities:
            parts = identity.text.split(UNIT)
            if len(parts) == len(self.identity) and not any(
                id_problem(kind, part) for kind, part in zip(self._identity_types, parts, strict=True)
            ):
                whole.append(parts)
        columns = zip(*whole, strict=True) if whole else [()] * len(self.identity)
        return [
            [int(part) if column.kind == "integer" else part for part in parts]
            for column, parts in zip(self.identity, columns, strict=True)
        ]

    def table_row(self, found: Sequence[Any]) -> TableRow:
        """A row from its identity, the text of its scope column, and the values of its fields."""
        identity, scope, *values = found
        fields = self.entity.fields.values()
        return TableRow(
            Identity(self.entity.name, identity),
            scope,
            {field.name: from_column(field, value) for field, value in zip(fields, values, strict=True)},
        )

    def encoded(self, fields: Iterable[str], values: Collection[tuple[Any, ...]]) -> list[list[Any]]:
        """For each field the parameters of all value tuples."""
        encoders = dict(self._encoders)
        columns = list(zip(*values, strict=True))
        return [
            [encode(value) for value in column] if (encode := encoders[name]) else list(column)
            for name, column in zip(fields, columns, strict=True)
        ]


def tables_of(declaration: Declaration) -> Mapping[str, EntityTable]:
    """The table of each entity, by the entity's name."""
    return {name: EntityTable(entity) for name, entity in declaration.entities.items()}


def by_entity(keys: Iterable[RowKey]) -> dict[str, list[RowKey]]:
    """Keys sorted out by entity as these come; in text order, so that transactions meet rows in one order."""
    keys = list(keys)
    found: dict[str, list[RowKey]] = {key.entity: [] for key in keys}
    for key in sorted(keys, key=lambda key: (key.row, key.scope)):
        found[key.entity].append(key)
    return found


def identities_by_entity(identities: Iterable[Identity]) -> dict[str, list[Identity]]:
    """The same for identities."""
    found: dict[str, list[Identity]] = {}
    for identity in sorted(identities):
        found.setdefault(identity.entity, []).append(identity)
    return found


def images_by_entity(images: Iterable[RowImage]) -> dict[str, list[RowImage]]:
    """The same for images."""
    images = list(images)
    found: dict[str, list[RowImage]] = {image.key.entity: [] for image in images}
    for image in sorted(images, key=lambda image: (image.key.row, image.key.scope)):
        found[image.key.entity].append(image)
    return found


def _encoder(field: Field) -> Callable[[Any], Any] | None:
    """Turns a canonical value into a parameter; None where they are the same."""
    if field.type not in _JSON:
        return None
    return lambda value: None if value is None else _encode_json(value).decode()
