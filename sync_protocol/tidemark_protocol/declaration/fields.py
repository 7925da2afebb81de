"""Reading one field of an entity (SPEC 10)."""

from __future__ import annotations

from typing import Any, Final, cast, get_args

import msgspec

from tidemark_protocol.checks import MAX_INTEGER, Invalid, TooDeep, canonical
from tidemark_protocol.model import Field, FieldType, OnDelete
from tidemark_protocol.patterns import compile_pattern

from .tree import Declared, Faults, Reader, below, spell, suggest

TYPES: Final = get_args(FieldType)
OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "text": ("min", "max", "pattern", "ref", "on_delete"),
    "integer": ("min", "max", "ref", "on_delete"),
    "number": ("min", "max"),
    "decimal": ("precision", "scale"),
    "uuid": ("ref", "on_delete"),
    "enum": ("values",),
}
"""What a field may say beside `type`, `nullable` and `default`."""

_COMMON = ("type", "nullable", "default")
_KNOWN = (*_COMMON, *dict.fromkeys(option for options in OPTIONS.values() for option in options))
_MAX_TEXT = 10_485_760  # the longest VARCHAR of PostgreSQL
_MAX_PRECISION = 65  # of a decimal of MySQL, and
_MAX_SCALE = 30
_MAX_ENUM_VALUE = 255


def read_field(name: str, tree: Any, path: str, declared: Declared, faults: Faults) -> Field | None:
    """The field, or None after noting why there is none."""
    before = len(faults)
    reader = Reader(tree, path, faults, known=_KNOWN, what="a field")
    kind = reader.choice("type", TYPES, required=True) if isinstance(tree, dict) else None
    if kind is None:
        return None
    _refuse_foreign_options(reader, kind)
    field = Field(
        name,
        cast(FieldType, kind),
        nullable=reader.boolean("nullable"),
        **_options(reader, kind, declared),
    )
    if len(faults) > before:
        return None
    field = _with_default(field, reader)
    return field if len(faults) == before else None


def _refuse_foreign_options(reader: Reader, kind: str) -> None:
    for option in reader.given:
        if option not in _COMMON and option not in OPTIONS.get(kind, ()):
            owners = ", ".join(owner for owner, options in OPTIONS.items() if option in options)
            reader.note(option, f"does not belong to the type {kind}, only to {owners}")
    if kind == "map" and "nullable" in reader.given:
        reader.note("nullable", "a map is never null, it starts as {}")


def _options(reader: Reader, kind: str, declared: Declared) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if kind == "text":
        options = {
            "min": reader.integer("min", 0, _MAX_TEXT),
            "max": reader.integer("max", 1, _MAX_TEXT),
            "pattern": _pattern(reader),
        }
    elif kind == "integer":
        options = {bound: reader.integer(bound, -MAX_INTEGER, MAX_INTEGER) for bound in ("min", "max")}
    elif kind == "number":
        options = {bound: _bound(reader, bound) for bound in ("min", "max")}
    elif kind == "decimal":
        options = _digits(reader)
    elif kind == "enum":
        options = {"values": _values(reader)}
    low, high = options.get("min"), options.get("max")
    if low is not None and high is not None and low > high:
        reader.note("min", f"is above max ({spell(low)} > {spell(high)})")
    if "ref" in OPTIONS.get(kind, ()):
        options |= _reference(reader, declared)
    return {option: value for option, value in options.items() if value is not None}


def _pattern(reader: Reader) -> str | None:
    pattern = reader.text("pattern")
    if pattern is not None:
        try:
            compile_pattern(pattern)
        except ValueError as error:
            reader.note("pattern", str(error))
    return pattern


def _bound(reader: Reader, key: str) -> int | float | None:
    value = reader.given.get(key)
    if value is None and key not in reader.given:
        return None
    try:
        return cast("int | float", canonical(Field(key, "number"), value))
    except Invalid as invalid:
        reader.note(key, f"{invalid}, here stands {spell(value)}")
        return None


def _digits(reader: Reader) -> dict[str, Any]:
    precision = reader.integer("precision", 1, _MAX_PRECISION, required=True)
    scale = reader.integer("scale", 0, _MAX_SCALE)
    if precision is not None and scale is not None and scale > precision:
        reader.note("scale", f"is above precision ({scale} > {precision})")
    return {"precision": precision, "scale": scale or 0}


def _values(reader: Reader) -> tuple[str, ...]:
    values = reader.items("values", "texts")
    if reader.given.get("values", []) == []:
        reader.note("values", "an enum needs at least one value")
    seen: list[str] = []
    for i, value in enumerate(values):
        at = below(reader.at("values"), i)
        if not isinstance(value, str):
            reader.faults.note(at, f"must be a text, here stands {spell(value)}: put it in quotes")
        elif not 1 <= len(value) <= _MAX_ENUM_VALUE or "\0" in value:
            reader.faults.note(at, f"must be 1 to {_MAX_ENUM_VALUE} characters long, without NUL")
        elif value in seen:
            reader.faults.note(at, f"{value!r} stands here twice")
        else:
            seen.append(value)
    return tuple(seen)


def _reference(reader: Reader, declared: Declared) -> dict[str, Any]:
    ref = reader.text("ref")
    if ref is not None and ref not in declared.entities:
        reader.note("ref", f"there is no entity {ref}{suggest(ref, declared.entities)}")
    on_delete = cast("OnDelete | None", reader.choice("on_delete", get_args(OnDelete)))
    if on_delete is not None and "ref" not in reader.given:
        reader.note("on_delete", "needs a ref")
    if on_delete == "set_null" and reader.given.get("nullable") is not True:
        reader.note("on_delete", "set_null needs nullable: true")
    return {"ref": ref, "on_delete": on_delete}


def _with_default(field: Field, reader: Reader) -> Field:
    """The field with its default checked against the field itself; null is no default."""
    if "default" not in reader.given:
        return field
    given = reader.given["default"]
    if field.type == "map":
        if given != {}:
            reader.note("default", "a map always starts as {}")
        return field
    try:
        value = canonical(field, given)
    except (Invalid, TooDeep) as error:
        reader.note("default", f"{error}, here stands {spell(given)}")
        return field
    return field if value is None else msgspec.structs.replace(field, default=value)
