"""The check of one value of each declared type (SPEC 10): refused or canonical, never mended."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, Final

from .model import Field
from .patterns import compile_pattern
from .rows import UUID

MAX_INTEGER: Final = (1 << 53) - 1
MAX_NESTING: Final = 30
"""Containers within each other in one `json` or `map` value, the outermost counted."""
MAX_MAP_KEY: Final = 128

Check = Callable[[Any], Any]
"""Gives the canonical value; raises Invalid or TooDeep."""

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
_TIME = re.compile(_CLOCK)
_DATETIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]" + _CLOCK + r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])")
_MAX_DOUBLE = 1.7976931348623157e308


class Invalid(ValueError):
    """A value breaks its field; the text says what it must be."""


class TooDeep(Exception):
    """A value nests more than `MAX_NESTING` containers."""


def compile_field(field: Field) -> Check:
    """The check of one field's whole value, null included."""
    check = _CHECKS[field.type](field)
    if not field.nullable:
        return check
    return lambda value: None if value is None else check(value)


def canonical(field: Field, value: Any) -> Any:
    """The canonical form of one value of `field`; Invalid or TooDeep if it has none."""
    return compile_field(field)(value)


def check_map_key(key: object) -> None:
    if type(key) is not str or not 1 <= len(key) <= MAX_MAP_KEY:
        raise Invalid(f"has a key that is not 1 to {MAX_MAP_KEY} characters long")
    _check_characters(key)


def _check_characters(text: str) -> None:
    if "\0" in text:
        raise Invalid("must not contain NUL")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Invalid("must not contain lone surrogates") from None


def _text(field: Field) -> Check:
    low = field.min or 0
    high = field.max
    matches = compile_pattern(field.pattern).fullmatch if field.pattern is not None else None
    limit = f"from {low} to {high}" if high is not None else f"at least {low}"

    def check(value: Any) -> Any:
        if type(value) is not str:
            raise Invalid("must be text")
        if "\0" in value or not value.isascii():
            _check_characters(value)
        if len(value) < low or (high is not None and len(value) > high):
            raise Invalid(f"must be {limit} characters long")
        if matches is not None and matches(value) is None:
            raise Invalid(f"must match {field.pattern}")
        return value

    return check


def _integer(field: Field) -> Check:
    low = -MAX_INTEGER if field.min is None else field.min
    high = MAX_INTEGER if field.max is None else field.max

    def check(value: Any) -> Any:
        if type(value) is not int:
            raise Invalid("must be an integer")
        if not low <= value <= high:
            raise Invalid(f"must be from {low} to {high}")
        return value

    return check


def _number(field: Field) -> Check:
    low = float("-inf") if field.min is None else field.min
    high = float("inf") if field.max is None else field.max

    def check(value: Any) -> Any:
        if type(value) is int:
            if not -MAX_INTEGER <= value <= MAX_INTEGER:
                # Replicas and columns hold doubles: beyond 2^53 - 1 the nearest one is the value.
                try:
                    value = float(value)
                except OverflowError:
                    raise Invalid("must be within the range of a double") from None
        elif type(value) is not float:
            raise Invalid("must be a number")
        elif value - value != 0:
            raise Invalid("must be finite")
        if not low <= value <= high:
            raise Invalid(f"must be from {low} to {high}")
        return value

    return check


def _decimal(field: Field) -> Check:
    precision, scale = field.precision or 0, field.scale or 0
    whole = precision - scale
    integer = "0" if whole == 0 else f"(?:0|[1-9][0-9]{{0,{whole - 1}}})"
    fraction = f"(?:\\.([0-9]{{1,{scale}}}))?" if scale else "()"
    matches = re.compile(f"-?{integer}{fraction}").fullmatch
    zeros = "0" * scale

    def check(value: Any) -> Any:
        match = matches(value) if type(value) is str else None
        if match is None:
            raise Invalid(
                f"must be a decimal written as text, at most {whole} digits before and {scale} after the point"
            )
        given = match[1]
        if scale and given is None:
            value = f"{value}.{zeros}"
        elif given is not None and len(given) < scale:
            value += zeros[len(given) :]
        if value[0] == "-" and not value.strip("-0."):
            return value[1:]
        return value

    return check


def _boolean(_: Field) -> Check:
    def check(value: Any) -> Any:
        if value is True or value is False:
            return value
        raise Invalid("must be true or false")

    return check


def _date(_: Field) -> Check:
    def check(value: Any) -> Any:
        if type(value) is str and _DATE.fullmatch(value):
            try:
                date.fromisoformat(value)
            except ValueError:
                raise Invalid("must be a day that exists") from None
            return value
        raise Invalid("must be a date written YYYY-MM-DD")

    return check


def _time(_: Field) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not str or _TIME.fullmatch(value) is None:
            raise Invalid("must be a time written HH:MM:SS, with up to six digits of fraction and no zone")
        if len(value) == 8:
            return value
        fraction = value[9:].ljust(6, "0")
        return value[:8] if fraction == "000000" else f"{value[:8]}.{fraction}"

    return check


def _datetime(_: Field) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not str or _DATETIME.fullmatch(value) is None:
            raise Invalid("must be an RFC 3339 datetime with a zone and up to six digits of fraction")
        try:
            moment = datetime.fromisoformat(value.upper())
            if value[-1] not in "Zz":
                moment = moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise Invalid("must be a moment that exists, in the years 0001 to 9999 of UTC") from None
        return f"{moment.isoformat(timespec='microseconds')[:26]}Z"

    return check


def _uuid(_: Field) -> Check:
    matches = UUID.fullmatch

    def check(value: Any) -> Any:
        if type(value) is str and matches(value):
            return value
        raise Invalid("must be a UUID in lower case with hyphens")

    return check


def _enum(field: Field) -> Check:
    values = frozenset(field.values)

    def check(value: Any) -> Any:
        if type(value) is str and value in values:
            return value
        raise Invalid(f"must be one of {', '.join(field.values)}")

    return check


def _json(_: Field) -> Check:
    def check(value: Any) -> Any:
        if value is None:
            raise Invalid("must not be null")
        return check_json(value, MAX_NESTING)

    return check


def _map(_: Field) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not dict:
            raise Invalid("must be an object")
        for key, entry in value.items():
            check_map_key(key)
            if entry is None:
                raise Invalid("must not hold null: leave the key out")
        return check_json(value, MAX_NESTING)

    return check


def check_json(value: Any, room: int) -> Any:
    """`value` if it is JSON that can be kept, with at most `room` containers within each other.

    Level by level, so that a faulty text below the limit is still the first thing said.
    """
    level = [value] if _is_container(value) else []
    depth = 0
    while level:
        depth += 1
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                for key in container:
                    if type(key) is not str:
                        raise Invalid("must be JSON: its keys are text")
                    _check_characters(key)
                entries = container.values()
            else:
                entries = container
            below.extend([entry for entry in entries if _is_container(entry)])
        level = below
    if depth > room:
        raise TooDeep(f"nests more than {MAX_NESTING} deep")
    return value


def _is_container(value: Any) -> bool:
    """Whether an element of JSON holds others; Invalid if it is none that can be kept."""
    kind = type(value)
    if kind is str:
        if "\0" in value or not value.isascii():
            _check_characters(value)
        return False
    if kind is int or kind is float:
        # Replicas hold doubles: what overflows one (Infinity, NaN too) would not come back the same.
        if not -_MAX_DOUBLE <= value <= _MAX_DOUBLE:
            raise Invalid("must not hold a number beyond the range of a double")
        return False
    if kind is dict or kind is list:
        return True
    if value is None or kind is bool:
        return False
    raise Invalid("must be JSON")


_CHECKS: Final[dict[str, Callable[[Field], Check]]] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "decimal": _decimal,
    "boolean": _boolean,
    "date": _date,
    "time": _time,
    "datetime": _datetime,
    "uuid": _uuid,
    "enum": _enum,
    "json": _json,
    "map": _map,
}
