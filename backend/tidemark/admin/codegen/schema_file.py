"""`schema.ts`: the types of each entity's rows, and the declaration with its Dexie stores as a constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from tidemark_protocol.model import STAMPS, USER, Declaration, Entity, Field
from tidemark_protocol.schema import to_wire
from tidemark_protocol.typescript import assigned, doc, literal, value_lines

from .names import Names

_PLAIN: Final = {
    "text": "string",
    "integer": "number",
    "number": "number",
    "decimal": "string",
    "boolean": "boolean",
    "date": "string",
    "time": "string",
    "datetime": "string",
    "uuid": "string",
    "json": "Json",
    "map": "Record<string, Json>",
}
_FORMS: Final = {
    "integer": "integer",
    "date": "date, like 2026-11-30",
    "time": "time, like 09:30:00",
    "datetime": "moment in UTC, like 2026-11-30T09:30:00.000000Z",
    "uuid": "UUID",
    "json": "one value, replaced as a whole",
    "map": "keys merge one by one",
}
_KEEPS: Final = "Kept by the server."
_WORDS: Final = frozenset({
    "await", "break", "case", "catch", "class", "const", "continue", "debugger", "default", "delete", "do", "else",
    "enum", "export", "extends", "finally", "for", "if", "implements", "import", "in", "instanceof", "interface",
    "let", "new", "package", "private", "protected", "public", "return", "static", "super", "switch", "throw", "try",
    "var", "while", "with", "yield",
})  # fmt: skip
"""Words of the language, which cannot label the parts of a key."""


def schema_lines(declaration: Declaration, names: Mapping[str, Names]) -> Iterator[str]:
    """The file below its header."""
    fields = [field for entity in declaration.entities.values() for field in entity.fields.values()]
    imported = "Json, Schema" if any(field.type in ("json", "map") for field in fields) else "Schema"
    yield f'import type {{ {imported} }} from "@tidemark/client";'
    for entity in declaration.entities.values():
        yield from _row(entity, names[entity.name])
        yield from _insert(entity, names[entity.name])
        yield from _update(entity, names[entity.name])
    yield from _tables(declaration, names)
    yield from _constant(declaration)


# ── types ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _row(entity: Entity, names: Names) -> Iterator[str]:
    yield from ("", *doc(_about(entity)), f"export interface {names.row} {{")
    for column, kind in zip(entity.key.columns, entity.key.types, strict=True):
        yield from _member(column, ["string"], _key_remark(kind))
    yield from _member(entity.scope.column, ["string"], _scope_remark(entity))
    for field in entity.fields.values():
        yield from _member(field.name, types(field), _sentence(_remarks(field)))
    for stamp in STAMPS:
        yield from _member(stamp, ["string"], f"{_sentence([_FORMS['datetime']])} {_KEEPS}")
    yield "}"


def _insert(entity: Entity, names: Names) -> Iterator[str]:
    yield from ("", *doc(f"What makes a row of `{entity.name}`."), f"export interface {names.insert} {{")
    drawn = entity.key.types == ("uuid",)
    for column in entity.key.columns:
        yield from _member(column, ["string"], "Drawn by the client when left out." if drawn else None, optional=drawn)
    own = entity.scope.kind == USER
    yield from _member(entity.scope.column, ["string"], "The user's own when left out." if own else None, optional=own)
    for field in entity.fields.values():
        initial = None if field.required else f"{literal(field.initial)} when left out."
        yield from _member(field.name, types(field), initial, optional=not field.required)
    for stamp in STAMPS:
        yield from _member(stamp, ["string"], _KEEPS, optional=True)
    yield "}"


def _update(entity: Entity, names: Names) -> Iterator[str]:
    about = f"What changes a row of `{entity.name}`: what is left out stays as it is."
    yield from ("", *doc(about), f"export interface {names.update} {{")
    for field in entity.fields.values():
        yield from _member(field.name, types(field), None, optional=True)
        if field.type == "map":
            about = f"One key of `{field.name}`; no dot in it; undefined takes it out."
            yield from _member(f"[path: `{field.name}.${{string}}`]", ["Json", "undefined"], about)
    yield "}"


def _tables(declaration: Declaration, names: Mapping[str, Names]) -> Iterator[str]:
    yield from ("", *doc("The types of each table."), "export interface Tables {")
    for entity in declaration.entities.values():
        of = names[entity.name]
        yield f"  {entity.name}: {{"
        yield from (f"    row: {of.row};", f"    insert: {of.insert};", f"    update: {of.update};")
        yield f"    key: {key_type(entity)};"
        yield "  };"
    yield "}"


def types(field: Field) -> list[str]:
    """The members of the union that a field's value is of."""
    found = [literal(value) for value in field.values] if field.type == "enum" else [_PLAIN[field.type]]
    # Json holds null already.
    return [*found, "null"] if field.nullable and field.type != "json" else found


def primary(entity: Entity) -> tuple[str, ...]:
    """The columns of a row's key on a client (SPEC 10)."""
    return (*((entity.scope.column,) if entity.key.per_scope else ()), *entity.key.columns)


def key_type(entity: Entity) -> str:
    """The type of a row's primary key."""
    columns = primary(entity)
    if len(columns) == 1:
        return "string"
    labels = [""] * len(columns) if _WORDS & set(columns) else [f"{column}: " for column in columns]
    return f"[{', '.join(f'{label}string' for label in labels)}]"


def _member(name: str, union: list[str], about: str | None, *, optional: bool = False) -> Iterator[str]:
    yield from doc(about, "  ")
    yield from assigned(f"  {name}{'?' if optional else ''}:", union)


# ── remarks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _about(entity: Entity) -> str:
    rows = [f"A row of `{entity.name}`, in {_article(entity.scope.kind)} scope."]
    rows += [f"Unique within its scope: {', '.join(columns)}." for columns in entity.unique]
    rows += [f"Refused on {rule.when}: {' '.join(rule.message.split())}" for rule in entity.rules]
    return "\n".join(rows)


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeio' else 'a'} `{kind}`"


def _key_remark(kind: str) -> str:
    return {"uuid": "Key: UUID.", "integer": "Key: integer, as text.", "text": "Key."}[kind]


def _scope_remark(entity: Entity) -> str:
    if entity.scope.kind == USER:
        return "The user whose row it is."
    return f"The id of the {entity.scope.kind} that the row lives in."


def _remarks(field: Field) -> Iterator[str]:
    form = _FORMS.get(field.type)
    bounds = _bounds(field)
    match field.type:
        case "decimal":
            yield f"decimal as text, at most {field.precision} digits, {field.scale} of them after the point"
        case "text":
            if bounds:
                yield f"{bounds} characters"
            if field.pattern is not None:
                yield f"matches {' '.join(field.pattern.split())}"
        case "json" if not field.nullable:
            yield f"{form}; not null"
        case "integer" | "number" if bounds:
            yield f"{form or 'number'}, {bounds}"
        case _ if form:
            yield form
    if field.ref is not None:
        text = ", which has it as text" if field.type == "integer" else ""
        yield f"key of a row of `{field.ref}`{text}; when that is deleted: {field.on_delete}"


def _bounds(field: Field) -> str:
    low, high = field.min, field.max
    if low is not None and high is not None:
        return f"{low} to {high}"
    if high is not None:
        return f"at most {high}"
    return f"at least {low}" if low is not None else ""


def _sentence(parts: Iterator[str] | list[str]) -> str | None:
    words = "; ".join(parts)
    return f"{words[0].upper()}{words[1:]}." if words else None


# ── the constant ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _constant(declaration: Declaration) -> Iterator[str]:
    wire = to_wire(declaration)
    entities = wire.pop("entities")
    yield from ("", *doc("The declaration, as clients know it, and the stores of the local database."))
    yield from ("export const schema: Schema<Tables> = {", "  declaration: {")
    for name, value in wire.items():
        yield from value_lines(f"    {name}: ", value)
    yield "    entities: {"
    for name, entity in entities.items():
        yield f"      {name}: {{"
        for part, value in entity.items():
            yield from value_lines(f"        {part}: ", value)
        yield "      },"
    yield from ("    },", "  },", "  stores: {")
    for found in declaration.entities.values():
        definition, left_out = store(found)
        for columns in left_out:
            yield f"    // No index of {', '.join(columns)}: IndexedDB takes no booleans for keys."
        yield f"    {found.name}: {literal(definition)},"
    yield from ("  },", "};")


def store(entity: Entity) -> tuple[str, list[tuple[str, ...]]]:
    """Dexie's definition of an entity's store, and the declared indexes that IndexedDB cannot have.

    Uniqueness is judged by the server alone: a replica must be able to hold what it is given.
    """
    wanted = [(entity.scope.column,), *entity.index, *entity.unique, *((field.name,) for field in entity.refs)]
    booleans = {field.name for field in entity.fields.values() if field.type == "boolean"}
    indexes = [columns for columns in dict.fromkeys(wanted) if not booleans & set(columns)]
    left_out = [columns for columns in dict.fromkeys(wanted) if booleans & set(columns)]
    return ", ".join(map(_index, [primary(entity), *indexes])), left_out


def _index(columns: tuple[str, ...]) -> str:
    return columns[0] if len(columns) == 1 else f"[{'+'.join(columns)}]"
