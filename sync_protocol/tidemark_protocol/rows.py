"""Names that travel: entities, rows and scopes, each with one spelling (SPEC 1)."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote_from_bytes

from .model import USER, ColumnType, Entity

ENTITY: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
ROW: Final = re.compile(r"[A-Za-z0-9._~:@-]{1,128}")
SCOPE: Final = re.compile(r"([a-z][a-z0-9_]{0,31}):((?:[A-Za-z0-9._~-]|%[0-9A-F]{2}){1,128})")
UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")
_PART = re.compile(r"[A-Za-z0-9._~@-]{1,128}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_UNIT = re.compile(r"%([0-9A-F]{2})")
_UNITS_MAX = 128
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-")
_INT64 = 1 << 63


def row_problem(entity: Entity, row: object) -> str | None:
    """Why `row` cannot be a key of `entity` (`invalid_row`), or None."""
    if type(row) is not str or ROW.fullmatch(row) is None:
        return "a row is named by 1 to 128 of A-Z a-z 0-9 . _ ~ : @ -"
    types = entity.key.types
    if len(types) == 1:
        return id_problem(types[0], row)
    parts = row.split(":")
    if len(parts) != len(types):
        return f"the key has {len(types)} parts joined with ':' ({', '.join(entity.key.columns)})"
    for column, kind, part in zip(entity.key.columns, types, parts, strict=True):
        problem = id_problem(kind, part) if _PART.fullmatch(part) else "must not be empty"
        if problem is not None:
            return f"{column}: {problem}"
    return None


def id_problem(kind: ColumnType, text: str) -> str | None:
    """Why `text` is not the canonical spelling of a key or scope column's value, or None."""
    if kind == "uuid":
        return None if UUID.fullmatch(text) else "must be a UUID in lower case with hyphens"
    if kind == "integer" and (_INTEGER.fullmatch(text) is None or not -_INT64 <= int(text) < _INT64):
        return "must be a 64-bit integer in decimal, without leading zeros"
    return None


def key_values(entity: Entity, row: str) -> tuple[str | int, ...]:
    """The values of the key's columns for a `row` without problem."""
    parts = zip(entity.key.types, key_texts(entity, row), strict=True)
    return tuple(int(part) if kind == "integer" else part for kind, part in parts)


def key_texts(entity: Entity, row: str) -> list[str]:
    """The same as a document holds them: texts, whatever the columns' types (SPEC 5)."""
    return [row] if len(entity.key.types) == 1 else row.split(":")


def user_scope(sub: str) -> str:
    """The own scope of the user that a token's `sub` names; ValueError if it does not fit (`subject_unsupported`)."""
    return format_scope(USER, sub)


def format_scope(kind: str, decoded: str) -> str:
    """The one spelling of a scope, from its kind and decoded id; ValueError if there is none."""
    if _KIND.fullmatch(kind) is None:
        raise ValueError("a scope's kind is a lower case name of at most 32 characters")
    if "\0" in decoded:
        raise ValueError("a scope's id holds no NUL")
    try:
        data = decoded.encode()
    except UnicodeEncodeError:
        raise ValueError("a scope's id holds no lone surrogate") from None
    encoded = quote_from_bytes(data, safe="")
    # Every escape is three characters and one unit.
    if not 1 <= len(encoded) - 2 * encoded.count("%") <= _UNITS_MAX:
        raise ValueError(f"a scope's id has 1 to {_UNITS_MAX} units")
    return f"{kind}:{encoded}"


def parse_scope(text: str) -> tuple[str, str]:
    """A scope's kind and decoded id; ValueError unless `text` is the scope's one spelling (`invalid_scope`)."""
    match = SCOPE.fullmatch(text)
    if match is None:
        raise ValueError("a scope is written kind:id, the id 1 to 128 of A-Z a-z 0-9 . _ ~ - or %XX")
    kind, encoded = match[1], match[2]
    if "%" not in encoded:
        return kind, encoded
    if any(int(unit, 16) in _UNRESERVED for unit in _UNIT.findall(encoded)):
        raise ValueError("a scope's id escapes only what must be escaped")
    data = _UNIT.sub(lambda unit: chr(int(unit[1], 16)), encoded).encode("latin-1")
    try:
        decoded = data.decode()
    except UnicodeDecodeError:
        raise ValueError("a scope's id decodes to UTF-8") from None
    if "\0" in decoded:
        raise ValueError("a scope's id holds no NUL")
    return kind, decoded


def scope_id(scope: str) -> str:
    """The decoded id of a canonical `scope`, as the scope column holds it."""
    return parse_scope(scope)[1]
