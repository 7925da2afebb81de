"""The declaration, from a schema file and over the wire (SPEC 7, SPEC 10).

`parse` reads a file's text. `to_wire` is what `GET /sync/schema` answers and `from_wire` reads it again: all that
concerns a client. Table names, capture and the changes between numbers stay on the server.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .declaration.whole import parse
from .errors import DeclarationError, Fault
from .model import (
    STAMPS,
    USER,
    ColumnType,
    Conversion,
    Declaration,
    Entity,
    Field,
    FieldType,
    Grant,
    Key,
    OnDelete,
    Rule,
    ScopeColumn,
    When,
)

__all__ = [
    "STAMPS",
    "USER",
    "ColumnType",
    "Conversion",
    "Declaration",
    "Entity",
    "Field",
    "FieldType",
    "Grant",
    "Key",
    "OnDelete",
    "Rule",
    "ScopeColumn",
    "When",
    "from_wire",
    "parse",
    "to_wire",
]


def to_wire(declaration: Declaration) -> dict[str, Any]:
    """The declaration as JSON.

    `{"schema", "oldest", "scopes": {kind: {"roles": {role: grant}}}, "entities": {name: {"scope": {"kind", "column",
    "type"}, "key": {"columns", "types", "per_scope"}, "fields": {name: {"type", ...}}, "index", "unique", "rules",
    "display"}}}`. Of a field, what is not declared is left out.
    """
    return {
        "schema": declaration.number,
        "oldest": declaration.oldest,
        "scopes": {kind: {"roles": dict(roles)} for kind, roles in declaration.scopes.items()},
        "entities": {name: _entity_to_wire(entity) for name, entity in declaration.entities.items()},
    }


def _entity_to_wire(entity: Entity) -> dict[str, Any]:
    wire: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(entity))
    for server_only in ("name", "table", "adopted", "capture"):
        del wire[server_only]
    wire["fields"] = {name: _field_to_wire(field) for name, field in entity.fields.items()}
    return wire


def _field_to_wire(field: Field) -> dict[str, Any]:
    bare = Field("", "text")
    wire: dict[str, Any] = {"type": field.type}
    for option in ("nullable", "default", "min", "max", "pattern", "values", "precision", "scale", "ref"):
        value = getattr(field, option)
        if value != getattr(bare, option):
            wire[option] = list(value) if option == "values" else value
    if field.ref is not None:
        wire["on_delete"] = field.on_delete
    return wire


def from_wire(wire: object) -> Declaration:
    """The declaration that a server answered; DeclarationError if it is none.

    Tables bear the names of their entities. Values are taken as the server has checked them.
    """
    try:
        document = msgspec.convert(wire, _Document)
        entities = {name: _entity_from_wire(name, tree) for name, tree in document.entities.items()}
    except msgspec.ValidationError as error:
        raise DeclarationError([Fault("", str(error))]) from None
    dangling = [
        Fault(f"entities.{entity.name}.fields.{field.name}.ref", f"there is no entity {field.ref}")
        for entity in entities.values()
        for field in entity.refs
        if field.ref not in entities
    ]
    if dangling:
        raise DeclarationError(dangling)
    scopes = {kind: scope.roles for kind, scope in document.scopes.items()}
    return Declaration(document.schema, document.oldest, scopes, entities)


class _Scope(msgspec.Struct):
    roles: dict[str, Grant]


class _Document(msgspec.Struct):
    schema: int
    oldest: int
    scopes: dict[str, _Scope]
    entities: dict[str, dict[str, Any]]


def _entity_from_wire(name: str, tree: dict[str, Any]) -> Entity:
    trees = msgspec.convert(tree.get("fields"), dict[str, dict[str, Any]])
    fields = {field: {**given, "name": field} for field, given in trees.items()}
    return msgspec.convert({**tree, "name": name, "table": name, "fields": fields}, Entity)
