"""Text from a command line or a CSV file into values of the declared types, and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tidemark_protocol.merge import split
from tidemark_protocol.model import Entity, Field

from .errors import TideError

_WORDS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def millis_of_time(text: str) -> int:
    """Unix milliseconds of an RFC 3339 time."""
    return int((datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)


def from_text(field: Field, text: str) -> Any:
    """The value that a text says for a field; what cannot be read is given on as text, for the validator to refuse.

    Empty text is null where the field allows it.
    """
    if text == "" and field.nullable:
        return None
    match field.type:
        case "boolean":
            return _WORDS.get(text.strip().lower(), text)
        case "integer":
            return int(text) if _INTEGER.fullmatch(text.strip()) else text
        case "number":
            return float(text) if _NUMBER.fullmatch(text.strip()) else text
        case "map":
            return {} if text == "" else _json(field.name, text)
        case "json":
            return _json(field.name, text)
        case "uuid":
            return text.strip().lower()
        case _:
            return text


def entry_from_text(text: str) -> Any:
    """The value of a map's key: JSON where it reads as JSON, else text."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return text


def _json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as fault:
        raise TideError(f"{name} is not JSON: {fault}") from fault


def assignments(entity: Entity, given: Iterable[str]) -> dict[str, Any]:
    """`field=text`, `field/key=text` (a key of a map) and `field:=JSON` as path → value."""
    values: dict[str, Any] = {}
    for assignment in given:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise TideError(f"{assignment!r} is no assignment: write field=value, field/key=value or field:=JSON")
        raw = name.endswith(":")
        path = name.removesuffix(":")
        field = find_field(entity, split(path)[0])
        if raw:
            values[path] = _json(path, text)
        elif "/" in path:
            values[path] = entry_from_text(text)
        else:
            values[path] = from_text(field, text)
    return values


def find_field(entity: Entity, name: str) -> Field:
    if name not in entity.fields:
        raise TideError(f"{entity.name} has no field {name!r}. {_nearest(name, entity.fields)}")
    return entity.fields[name]


def find_entity(entities: Mapping[str, Entity], name: str) -> Entity:
    if name not in entities:
        raise TideError(f"There is no entity {name!r}. {_nearest(name, entities)}")
    return entities[name]


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."


def whole(values: Mapping[str, Any]) -> dict[str, Any]:
    """Path → value as field → value: for a row that does not exist yet a map's keys make up the map."""
    fields: dict[str, Any] = {}
    for path, value in values.items():
        field, key = split(path)
        if key is None:
            fields[field] = value
        elif value is not None:
            fields[field] = {**(fields.get(field) or {}), key: value}
        else:
            fields.setdefault(field, {})
    return fields


def to_text(value: Any) -> str:
    """A value as a cell of a CSV file, which `from_text` reads back."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
