"""Back in time: a row's fields before a write, from those after it and what the journal says it overwrote (SPEC 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from .merge import split


def before(fields: Mapping[str, Any] | None, op: str, overwrote: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The visible fields before an applied write; None: no row was to be seen.

    `fields` are those after it: None or, where known, the values in the tombstone, while the row is deleted. A put or
    delete that overwrote nothing met no visible row (or, a put, one all of whose fields later writes kept).
    """
    if op != "patch":
        return {**(fields or {}), **overwrote} if overwrote else None
    held = dict(fields or {})
    for path, value in (overwrote or {}).items():
        held = with_value(held, path, value)
    return held


def with_value(fields: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The fields with `value` at `path`; None takes a key out of its map."""
    field, key = split(path)
    if key is None:
        return {**fields, field: value}
    entries = {name: entry for name, entry in (fields.get(field) or {}).items() if name != key}
    return {**fields, field: entries if value is None else {**entries, key: value}}


def value_at(fields: Mapping[str, Any], path: str) -> Any:
    """The value at `path`: None for a key that its map does not hold, UNSET for a field that `fields` do not name."""
    field, key = split(path)
    if field not in fields:
        return UNSET
    held = fields[field]
    return held if key is None else held.get(key) if isinstance(held, dict) else None
