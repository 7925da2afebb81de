"""Reading a whole schema file (SPEC 10)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from tidemark_protocol.errors import DeclarationError
from tidemark_protocol.model import USER, Declaration, Entity, Field, Grant

from .changes import read_changes
from .entities import read_entity
from .tree import NAME, Declared, Faults, Reader, below, load, spell

_KNOWN = ("schema", "oldest", "scopes", "entities", "changes")
_MAX_NUMBER = 999_999_999
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")
# What a ref field's type must be, for each type of a single-column key; the joined text of several is text.
_REF_TYPES = {"uuid": ("uuid",), "text": ("text",), "integer": ("integer", "text")}


def parse(text: str) -> Declaration:
    """The declaration that a schema file's text makes; DeclarationError with every fault otherwise."""
    faults = Faults()
    reader = Reader(load(text, faults), "", faults, known=_KNOWN, what="a schema file")
    if not reader.given:
        raise DeclarationError(faults)
    number = reader.integer("schema", 1, _MAX_NUMBER, required=True)
    oldest = reader.integer("oldest", 1, number or _MAX_NUMBER)
    scopes = _scopes(reader)
    given = reader.mapping("entities", "entities")
    if not given and ("entities" not in reader.given or reader.given["entities"] == {}):
        reader.note("entities", "a schema file declares at least one entity")
    declared = Declared((USER, *scopes), tuple(given))
    entities: dict[str, Entity] = {}
    for name, tree in given.items():
        entity = read_entity(name, tree, below("entities", name), declared, faults)
        if entity is not None:
            entities[name] = entity
    _check_tables(given, faults)
    for entity in entities.values():
        for field in entity.refs:
            _check_ref(entity, field, entities.get(field.ref or ""), faults)
    changes = read_changes(reader, number, given, entities)
    if faults or number is None:
        raise DeclarationError(faults)
    return Declaration(number, oldest or number, scopes, entities, changes)


def _scopes(reader: Reader) -> dict[str, dict[str, Grant]]:
    scopes: dict[str, dict[str, Grant]] = {}
    for kind, tree in reader.mapping("scopes", "kinds of scope").items():
        path = below("scopes", kind)
        if kind == USER:
            reader.faults.note(path, "the scope user is built in and not declared")
        elif _KIND.fullmatch(kind) is None:
            reader.faults.note(path, f"{kind!r} is no kind: a lower case letter, then up to 31 of a-z 0-9 _")
        inner = Reader(tree, path, reader.faults, known=("roles",), what="a scope")
        # A scope that is faulty itself is not said to be missing as well.
        scopes[kind] = _roles(inner) if isinstance(tree, dict) else {}
    return scopes


def _roles(inner: Reader) -> dict[str, Grant]:
    given = inner.mapping("roles", "roles and what they grant, like {viewer: read}")
    if not given and ("roles" not in inner.given or inner.given["roles"] == {}):
        inner.note("roles", "a scope needs at least one role, like {editor: write}")
    roles: dict[str, Grant] = {}
    for role, grant in given.items():
        at = below(inner.at("roles"), role)
        if NAME.fullmatch(role) is None:
            inner.faults.note(at, f"{role!r} is no name: a lower case letter, then up to 62 of a-z 0-9 _")
        if grant in get_args(Grant):
            roles[role] = cast(Grant, grant)
        else:
            inner.faults.note(at, f"grants one of {', '.join(get_args(Grant))}, here stands {spell(grant)}")
    return roles


def _check_tables(given: Mapping[str, Any], faults: Faults) -> None:
    """No two entities on one table, in databases that ignore case too."""
    owners: dict[str, str] = {}
    for name, tree in given.items():
        named = tree.get("table") if isinstance(tree, dict) else None
        table = named if isinstance(named, str) and named else name
        owner = owners.setdefault(table.lower(), name)
        if owner != name:
            path = below("entities", name)
            faults.note(below(path, "table") if named else path, f"the table {table} is that of {owner} too")


def _check_ref(entity: Entity, field: Field, target: Entity | None, faults: Faults) -> None:
    if target is None:
        return
    path = f"entities.{entity.name}.fields.{field.name}.ref"
    if target.scope.kind != entity.scope.kind:
        faults.note(path, f"{target.name} lives in {target.scope.kind} scopes, not in {entity.scope.kind} ones")
    types = _REF_TYPES[target.key.types[0]] if len(target.key.types) == 1 else ("text",)
    if field.type not in types:
        faults.note(path, f"the key of {target.name} is held by a field of type {' or '.join(types)}, not {field.type}")
