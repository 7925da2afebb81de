"""Column types of MySQL and MariaDB, and how much of a text their indexes take.

Texts are compared byte by byte, trailing blanks included: the plain `_bin` collations of utf8mb4 take `a` and `a ` for
one. An index holds at most 3072 bytes of a row, each character of utf8mb4 counting four.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from sqlalchemy.dialects import mysql

from tidemark_protocol.model import Declaration, Entity, Field

BINARY: Final = {"mysql": "utf8mb4_0900_bin", "mariadb": "utf8mb4_nopad_bin"}
"""By dialect, the collation that compares texts as they are."""
INNODB: Final[dict[str, Any]] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
"""Options of a table: the engine with transactions, whatever the server's default."""
ID_MAX: Final = 128
"""Characters of a decoded scope id, a user or a key column (SPEC 1)."""
SHORT_MAX: Final = 255
"""Texts up to here are VARCHAR: longer ones would soon fill the 65,535 bytes that a row's VARCHARs may take."""

_INDEX_BYTES: Final = 3072
_PREFIX: Final = 190
_UTF8: Final = 4
_BYTES: Final[Mapping[str, int]] = {"uuid": 36, "decimal": 32}
_OTHER_BYTES: Final = 8


def ascii_text(length: int) -> Any:
    """Text of ASCII names without blanks."""
    return mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")


def varied(base: Any, length: int | None) -> Any:
    """`base` with variants for both: VARCHAR of a length, LONGTEXT without one."""
    for dialect, collation in BINARY.items():
        options = {"charset": "utf8mb4", "collation": collation}
        variant = mysql.LONGTEXT(**options) if length is None else mysql.VARCHAR(length, **options)
        base = base.with_variant(variant, dialect)
    return base


def unique_rooms(entity: Entity) -> dict[str, int]:
    """By text field that is in a unique index, the most characters that the narrowest of these indexes takes.

    Those without `max` share what the others leave.
    """
    rooms: dict[str, int] = {}
    for names in entity.unique:
        fields = [entity.fields[name] for name in names]
        texts = {field.name: _declared(field) for field in fields if field.type == "text"}
        left = _left(entity, [field for field in fields if field.type != "text"])
        left -= sum(length for length in texts.values() if length is not None)
        unbounded = sum(length is None for length in texts.values())
        for name, length in texts.items():
            room = left // unbounded if length is None else length + min(left, 0)
            rooms[name] = min(room, rooms.get(name, room))
    return rooms


def too_wide(declaration: Declaration) -> list[str]:
    """Which unique indexes cannot be, each in a sentence."""
    return [
        f"the texts of unique {', '.join(names)} of {entity.name} take more than the {_INDEX_BYTES} bytes of an index "
        "of MySQL and MariaDB, four for each character: lower their max"
        for entity in declaration.entities.values()
        if not entity.adopted
        for rooms in [unique_rooms(entity)]
        for names in entity.unique
        if any(rooms.get(name, 1) < (_declared(entity.fields[name]) or 1) for name in names)
    ]


def prefixes(entity: Entity, columns: Collection[str], rooms: Mapping[str, int]) -> dict[str, int]:
    """By text column of an index that is not unique, how many characters of it the index holds where not all."""
    fields = [entity.fields[name] for name in columns if name in entity.fields]
    texts = [field for field in fields if field.type == "text"]
    share = _left(entity, [field for field in fields if field.type != "text"]) // max(len(texts), 1)
    lengths = {field.name: text_length(field, rooms.get(field.name)) for field in texts}
    return {name: min(share, _PREFIX) for name, length in lengths.items() if length is None or length > share}


def text_length(field: Field, room: int | None) -> int | None:
    """The length of a text field's VARCHAR, None for a LONGTEXT; `room` is what unique indexes leave it."""
    length = _declared(field)
    if room is not None:
        return room if length is None else length
    return length if length is not None and length <= SHORT_MAX else None


def _declared(field: Field) -> int | None:
    return field.max if isinstance(field.max, int) else None


def _left(entity: Entity, others: Iterable[Field]) -> int:
    """Characters left in an index behind the scope column and these fields."""
    taken = _BYTES.get(entity.scope.type, _OTHER_BYTES) if entity.scope.type != "text" else ID_MAX * _UTF8
    for field in others:
        taken += max(map(len, field.values)) * _UTF8 if field.type == "enum" else _BYTES.get(field.type, _OTHER_BYTES)
    return max(_INDEX_BYTES - taken, 0) // _UTF8
