"""Reading one entity (SPEC 10), as far as it can be judged alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from tidemark_protocol.checks import Invalid, TooDeep, canonical
from tidemark_protocol.model import STAMPS, ColumnType, Entity, Field, Key, Rule, ScopeColumn, When

from .fields import read_field
from .tree import NAME, Declared, Faults, Reader, below, spell, suggest

COLUMN_TYPES: Final = get_args(ColumnType)

_KNOWN = ("table", "scope", "key", "capture", "fields", "index", "unique", "rules", "display")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_NAME_RULE = "is no name: a lower case letter, then up to 62 of a-z 0-9 _"
_IDENTIFIER_RULE = "is no SQL name: a letter, then up to 62 letters, digits and _"
# Names that a database keeps for itself, in at least one of those served.
_RESERVED_TABLES = ("sync_", "sqlite_", "alembic_")
_SYSTEM_COLUMNS = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
_MAX_KEY_COLUMNS = 8


def read_entity(name: str, tree: Any, path: str, declared: Declared, faults: Faults) -> Entity | None:
    """The entity, without what is faulty about it; None where there is no mapping to read."""
    _check_name(name, path, faults)
    reader = Reader(tree, path, faults, known=_KNOWN, what="an entity")
    if not isinstance(tree, dict):
        return None
    table = reader.text("table")
    if table is not None:
        _check_identifier(table, reader.at("table"), faults, reserved=_RESERVED_TABLES)
    scope = _scope(reader, declared.kinds)
    key = _key(reader)
    fields = _fields(reader, key, scope, declared)
    types = _types(reader.given.get("fields"))
    return Entity(
        name,
        table or name,
        scope,
        fields,
        adopted=table is not None,
        key=key,
        capture=reader.boolean("capture"),
        index=_column_lists(reader, "index", types),
        unique=_column_lists(reader, "unique", types),
        rules=_rules(reader, fields, types),
        display=_display(reader, (*types, *key.columns, scope.column, *STAMPS)),
    )


def _check_name(name: str, path: str, faults: Faults) -> None:
    if NAME.fullmatch(name) is None:
        faults.note(path, f"{name!r} {_NAME_RULE}")
    elif name.startswith(_RESERVED_TABLES):
        faults.note(path, f"names that begin with {', '.join(_RESERVED_TABLES)} are reserved")


def _check_identifier(name: str, path: str, faults: Faults, *, reserved: tuple[str, ...] = ()) -> None:
    if _IDENTIFIER.fullmatch(name) is None:
        faults.note(path, f"{name!r} {_IDENTIFIER_RULE}")
    elif reserved and name.lower().startswith(reserved):
        faults.note(path, f"names that begin with {', '.join(reserved)} are reserved")


def _scope(reader: Reader, kinds: tuple[str, ...]) -> ScopeColumn:
    tree = reader.given.get("scope")
    if not isinstance(tree, dict):
        kind = reader.choice("scope", kinds, required=True) or ""
        return ScopeColumn(kind, f"{kind}_id")
    inner = Reader(tree, reader.at("scope"), reader.faults, known=("kind", "column", "type"), what="a scope")
    kind = inner.choice("kind", kinds, required=True) or ""
    column = inner.text("column") or f"{kind}_id"
    _check_column(column, inner.at("column"), reader.faults)
    return ScopeColumn(kind, column, cast(ColumnType, inner.choice("type", COLUMN_TYPES) or "text"))


def _check_column(column: str, path: str, faults: Faults) -> None:
    """Judge the name of a key or scope column."""
    _check_identifier(column, path, faults)
    if column.lower() in STAMPS or column.lower() in _SYSTEM_COLUMNS:
        faults.note(path, f"the name {column} is reserved")


def _key(reader: Reader) -> Key:
    if "key" not in reader.given:
        return Key()
    known = ("column", "columns", "type", "per_scope")
    inner = Reader(reader.given["key"], reader.at("key"), reader.faults, known=known, what="a key")
    columns = _key_columns(inner)
    for column in columns:
        _check_column(column, inner.at("columns" if "columns" in inner.given else "column"), reader.faults)
    if len({column.lower() for column in columns}) < len(columns):
        inner.note("columns", "a column stands here twice")
    return Key(columns, _key_types(inner, len(columns)), inner.boolean("per_scope"))


def _key_columns(inner: Reader) -> tuple[str, ...]:
    if "columns" not in inner.given:
        return (inner.text("column") or "id",)
    if "column" in inner.given:
        inner.note("column", "give either column or columns")
    columns = inner.items("columns", "column names")
    if not 1 <= len(columns) <= _MAX_KEY_COLUMNS:
        inner.note("columns", f"a key has 1 to {_MAX_KEY_COLUMNS} columns")
    for i, column in enumerate(columns):
        if not isinstance(column, str):
            inner.note(f"columns[{i}]", f"must be a column's name, here stands {spell(column)}")
    return tuple(column for column in columns if isinstance(column, str))


def _key_types(inner: Reader, count: int) -> tuple[ColumnType, ...]:
    """One type for each column: `type` is one for all or a list; left out, a single key is a UUID, parts are text."""
    given = inner.given.get("type")
    if not isinstance(given, list):
        fallback = "text" if "columns" in inner.given else "uuid"
        return (cast(ColumnType, inner.choice("type", COLUMN_TYPES) or fallback),) * count
    for i, kind in enumerate(given):
        if kind not in COLUMN_TYPES:
            inner.note(f"type[{i}]", f"must be one of {', '.join(COLUMN_TYPES)}, here stands {spell(kind)}")
    if len(given) != count:
        inner.note("type", f"has {len(given)} types for {count} columns")
    return tuple(cast(ColumnType, kind) for kind in given)


def _fields(reader: Reader, key: Key, scope: ScopeColumn, declared: Declared) -> dict[str, Field]:
    if scope.column.lower() in {column.lower() for column in key.columns}:
        reader.note("scope", f"the scope column {scope.column} is part of the key")
    given = reader.mapping("fields", "fields")
    if reader.given.get("fields", {}) == {}:
        reader.note("fields", "an entity needs at least one field")
    fields: dict[str, Field] = {}
    owners = {column.lower(): "the key" for column in key.columns}
    owners |= {scope.column.lower(): "the scope column"}
    owners |= dict.fromkeys(STAMPS, "a time that the server keeps") | dict.fromkeys(_SYSTEM_COLUMNS, "a system column")
    for name, tree in given.items():
        path = below(reader.at("fields"), name)
        if NAME.fullmatch(name) is None:
            reader.faults.note(path, f"{name!r} {_NAME_RULE}")
        elif name in owners:
            reader.faults.note(path, f"{name} is the name of {owners[name]}")
        elif name.startswith("sync_"):
            reader.faults.note(path, "names that begin with sync_ are reserved")
        field = read_field(name, tree, path, declared, reader.faults)
        if field is not None:
            fields[name] = field
    return fields


def _types(trees: Any) -> dict[str, Any]:
    """Name → type of all that is declared as a field, sound or not."""
    if not isinstance(trees, dict):
        return {}
    return {name: tree.get("type") if isinstance(tree, dict) else None for name, tree in trees.items()}


def _column_lists(reader: Reader, option: str, types: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """`index` or `unique`: lists of fields' names."""
    lists: list[tuple[str, ...]] = []
    for i, columns in enumerate(reader.items(option, "lists of fields, like [[name]]")):
        path = below(reader.at(option), i)
        if not isinstance(columns, list) or not columns:
            reader.faults.note(path, f"must be a list of fields like [name], here stands {spell(columns)}")
            continue
        for j, column in enumerate(columns):
            _check_indexed(column, below(path, j), types, reader.faults)
        listed = tuple(str(column) for column in columns)
        if len(set(listed)) < len(listed):
            reader.faults.note(path, "a field stands here twice")
        if listed in lists:
            reader.faults.note(path, f"{', '.join(listed)} stands here twice")
        lists.append(listed)
    return tuple(lists)


def _check_indexed(column: Any, path: str, types: Mapping[str, Any], faults: Faults) -> None:
    if not isinstance(column, str) or column not in types:
        near = suggest(column, types) if isinstance(column, str) else ""
        faults.note(path, f"{spell(column)} is no field of this entity{near}")
    elif types[column] in ("json", "map"):
        faults.note(path, f"{column} is a {types[column]}, which cannot be indexed")


def _rules(reader: Reader, fields: Mapping[str, Field], types: Mapping[str, Any]) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for i, tree in enumerate(reader.items("rules", "rules")):
        path = below(reader.at("rules"), i)
        inner = Reader(tree, path, reader.faults, known=("when", "refuse_if", "message"), what="a rule")
        if not isinstance(tree, dict):
            continue
        when = inner.choice("when", get_args(When), required=True)
        message = inner.text("message", required=True)
        if "refuse_if" not in inner.given:
            inner.note("refuse_if", "is missing ({} refuses every row)")
        refuse_if = {
            name: _rule_value(name, value, below(inner.at("refuse_if"), name), fields, types, reader.faults)
            for name, value in inner.mapping("refuse_if", "field values").items()
        }
        rules.append(Rule(cast(When, when or "put"), refuse_if, message or ""))
    return tuple(rules)


def _rule_value(
    name: str, value: Any, path: str, fields: Mapping[str, Field], types: Mapping[str, Any], faults: Faults
) -> Any:
    if name not in types:
        faults.note(path, f"{name} is no field of this entity{suggest(name, types)}")
    elif name in fields:
        try:
            return canonical(fields[name], value)
        except (Invalid, TooDeep) as error:
            faults.note(path, f"{error}, here stands {spell(value)}")
    return value


def _display(reader: Reader, names: tuple[str, ...]) -> dict[str, Any]:
    if "display" not in reader.given:
        return {}
    inner = Reader(
        reader.given["display"], reader.at("display"), reader.faults, known=("icon", "label", "columns"), what="display"
    )
    display: dict[str, Any] = {key: text for key in ("icon", "label") if (text := inner.text(key)) is not None}
    columns = inner.items("columns", "fields")
    for i, column in enumerate(columns):
        if column not in names:
            near = suggest(column, names) if isinstance(column, str) else ""
            inner.note(f"columns[{i}]", f"{spell(column)} is no field of this entity{near}")
    if columns:
        display["columns"] = columns
    return display
