"""Values of columns as the protocol spells them, whatever a database holds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark.store.values import from_column
from tidemark_protocol.checks import Invalid, TooDeep, canonical
from tidemark_protocol.model import Field

FIELDS: Mapping[str, Field] = {
    **{
        kind: Field(kind, kind, nullable=True)
        for kind in ("text", "integer", "number", "boolean", "date", "time", "datetime", "uuid", "json", "map")
    },
    "decimal": Field("decimal", "decimal", nullable=True, precision=15, scale=2),
    "enum": Field("enum", "enum", nullable=True, values=("todo", "done")),
}
EAST = timezone(timedelta(hours=5, minutes=30))


@pytest.mark.parametrize(
    ("kind", "held", "expected"),
    [
        ("text", 7, "7"),
        ("integer", 7.0, 7),
        ("integer", Decimal("7.00"), 7),
        ("number", Decimal("0.1"), 0.1),
        ("number", 3, 3),
        ("decimal", Decimal("12.5"), "12.50"),
        ("decimal", Decimal("1E+2"), "100.00"),
        ("decimal", Decimal("-0.00"), "0.00"),
        ("decimal", 12.1, "12.10"),
        ("decimal", 0.1 + 0.2, "0.30"),
        ("decimal", 9_999_999_999_999.99, "9999999999999.99"),
        ("decimal", 12, "12.00"),
        ("decimal", "12.5", "12.50"),
        ("boolean", 0, False),
        ("boolean", 1, True),
        ("boolean", True, True),
        ("date", date(1, 1, 1), "0001-01-01"),
        ("date", "2026-11-21", "2026-11-21"),
        ("time", time(12, 30), "12:30:00"),
        ("time", "12:30", "12:30:00"),
        ("time", "12:30:00.1", "12:30:00.100000"),
        ("time", timedelta(hours=12, microseconds=1), "12:00:00.000001"),
        ("datetime", datetime(2026, 11, 21, 12, tzinfo=EAST), "2026-11-21T06:30:00.000000Z"),
        ("datetime", datetime(2026, 11, 21, 12, tzinfo=UTC).replace(tzinfo=None), "2026-11-21T12:00:00.000000Z"),
        ("datetime", "2026-11-21 12:00:00", "2026-11-21T12:00:00.000000Z"),
        ("datetime", "2026-11-21 12:00", "2026-11-21T12:00:00.000000Z"),
        ("datetime", "2026-11-21T12:00:00.5Z", "2026-11-21T12:00:00.500000Z"),
        ("datetime", "2026-11-21 12:00:00.123456000", "2026-11-21T12:00:00.123456Z"),
        ("datetime", "2026-11-21 12:00:00+05:30", "2026-11-21T06:30:00.000000Z"),
        ("datetime", "2026-11-21 12:00:00.25+00", "2026-11-21T12:00:00.250000Z"),
        ("json", '{"a": [1, null]}', {"a": [1, None]}),
        ("json", 12, 12),
        ("map", '{"a": 1}', {"a": 1}),
    ],
)
def test_what_a_driver_gives_has_one_spelling(kind: str, held: object, expected: object) -> None:
    """A value that the type can hold comes out canonical, in whatever form a database keeps it."""
    found = from_column(FIELDS[kind], held)
    assert (type(found), found) == (type(expected), expected)
    assert canonical(FIELDS[kind], found) == expected


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        ("text", b"\xff"),
        ("integer", 7.5),
        ("integer", "7"),
        ("integer", Decimal("NaN")),
        ("integer", float("inf")),
        ("integer", 2**53),
        ("number", float("nan")),
        ("number", Decimal("-Infinity")),
        ("number", Decimal("1e400")),
        ("number", "1"),
        ("decimal", Decimal("12.505")),
        ("decimal", 0.125),
        ("decimal", "012.5"),
        ("decimal", "1e2"),
        ("decimal", Decimal("NaN")),
        ("decimal", "infinity"),
        ("boolean", 2),
        ("boolean", "true"),
        ("date", "0044-03-15 BC"),
        ("date", "infinity"),
        ("date", "10000-01-01"),
        ("date", datetime(2026, 11, 21, tzinfo=UTC)),
        ("date", "2026-02-30"),
        ("time", "24:00:00"),
        ("time", timedelta(hours=-1)),
        ("time", timedelta(days=1)),
        ("time", time(12, tzinfo=UTC)),
        ("datetime", "infinity"),
        ("datetime", "0044-03-15 12:00:00+00 BC"),
        ("datetime", "12026-11-21 12:00:00"),
        ("datetime", "2026-11-21"),
        ("datetime", "2026-02-30 12:00:00"),
        ("datetime", "0001-01-01 00:00:00+05:30"),
        ("datetime", "2026-11-21 12:00:00.1234567"),
        ("datetime", 1_790_000_000),
        ("uuid", "ABCDEF00-0000-4000-8000-000000000000"),
        ("enum", "other"),
        ("json", "no json"),
        ("json", '"\\ud800"'),
        ("json", "[" * 100_000),
        ("json", "[" * 40 + "]" * 40),
        ("json", float("nan")),
        ("json", b"{}"),
        ("map", "[]"),
        ("map", ""),
    ],
)
def test_what_the_type_cannot_hold_is_handed_on_and_refused(kind: str, held: object) -> None:
    """Nothing is rounded or mended: a validator finds it and says so."""
    with pytest.raises((Invalid, TooDeep)):
        canonical(FIELDS[kind], from_column(FIELDS[kind], held))


anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=30)
    | st.decimals()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]12:[0-9]{2}(:[0-9]{2})?(\.[0-9]{1,9})?(Z|[+-]0[0-9]:?[0-9]{2})?")
)


@given(st.sampled_from(sorted(FIELDS)), anything)
def test_whatever_a_column_holds_is_read(kind: str, held: Any) -> None:
    """Reading never fails, and what a validator accepts is canonical already."""
    found = from_column(FIELDS[kind], held)
    try:
        accepted = canonical(FIELDS[kind], found)
    except (Invalid, TooDeep):
        return
    assert accepted == found


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**10), max_value=10**10))
def test_decimals_keep_every_digit(number: Decimal) -> None:
    """Of any number of digits up to the scale, none is lost."""
    field = Field("amount", "decimal", precision=40, scale=30)
    assert Decimal(from_column(field, number)) == number
