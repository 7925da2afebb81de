"""Canonical values from what drivers give for columns (SPEC 10).

What has no canonical form is handed on for a validator to refuse: as the text that the database gives, or as bytes
where there is no text, or none that could be told from a value of JSON. Nothing is rounded, but for what is beyond the
15 digits that a decimal keeps in a binary fraction, as SQLite stores it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from tidemark_protocol.checks import MAX_INTEGER
from tidemark_protocol.model import Field

_CLOCK: Final = r"[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6}0*)?)?"
_TIME: Final = re.compile(_CLOCK)
_MOMENT: Final = re.compile(rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[Tt ]{_CLOCK}(?:[Zz]|[+-][0-9]{{2}}(?::?[0-9]{{2}})?)?")
"""Digits beyond microseconds are zeros; what has no zone is in UTC, as SQLite's and MySQL's own functions write it."""
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_DAY: Final = timedelta(days=1)


def from_column(field: Field, value: Any) -> Any:
    """The canonical value of a field from what a driver gave for its column, or what a validator refuses."""
    if value is None or isinstance(value, bytes):
        return value
    try:
        return _FORMS[field.type](field, value)
    except (ValueError, ArithmeticError):
        return str(value)


def _text(_: Field, value: Any) -> Any:
    return str(value)


def _integer(_: Field, value: Any) -> Any:
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float | Decimal) and value == int(value) else str(value)


def _number(_: Field, value: Any) -> Any:
    if isinstance(value, int) and abs(value) <= MAX_INTEGER:
        return value
    number = float(value) if isinstance(value, int | Decimal) else value
    return number if isinstance(number, float) and math.isfinite(number) else str(value)


def _decimal(field: Field, value: Any) -> Any:
    if isinstance(value, str) and _DECIMAL.fullmatch(value) is None:
        return value
    # Arithmetic in SQL leaves 0.30000000000000004, which SQLite itself shows as 0.3.
    text = f"{Decimal(f'{value:.15g}' if isinstance(value, float) else str(value)):f}"
    whole, _, fraction = text.partition(".")
    fraction, scale = fraction.rstrip("0"), field.scale or 0
    if len(fraction) > scale:
        return text
    if not whole.strip("-0") and not fraction:
        whole = "0"
    return f"{whole}.{fraction.ljust(scale, '0')}" if scale else whole


def _boolean(_: Field, value: Any) -> Any:
    return bool(value) if isinstance(value, int) and value in {0, 1} else str(value)


def _date(_: Field, value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) and not isinstance(value, datetime) else str(value)


def _time(_: Field, value: Any) -> Any:
    if isinstance(value, timedelta) and timedelta() <= value < _DAY:
        value = (datetime.min.replace(tzinfo=UTC) + value).time()
    if isinstance(value, str) and _TIME.fullmatch(value):
        value = time.fromisoformat(value)
    return value.isoformat() if isinstance(value, time) else str(value)


def _datetime(_: Field, value: Any) -> Any:
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        value = datetime.fromisoformat(value.upper())
    if not isinstance(value, datetime):
        return str(value)
    moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _json(_: Field, value: Any) -> Any:
    if not isinstance(value, str):  # a column of SQLite's NUMERIC affinity keeps a number as such
        return value if isinstance(value, int | float) and math.isfinite(value) else repr(value).encode()
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return value.encode(errors="replace")


_FORMS: Final[dict[str, Callable[[Field, Any], Any]]] = {
    "text": _text,
    "enum": _text,
    "uuid": _text,
    "integer": _integer,
    "number": _number,
    "decimal": _decimal,
    "boolean": _boolean,
    "date": _date,
    "time": _time,
    "datetime": _datetime,
    "json": _json,
    "map": _json,
}
