"""Validation of fields: laws, and what JSON vectors cannot say (SPEC 4, SPEC 10)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol.errors import MUTATION_CODES, Rejection
from tidemark_protocol.fields import Invalid, TooDeep, canonical, compile_entity
from tidemark_protocol.model import Entity, Field, ScopeColumn

FIELDS = [
    Field("text", "text", max=20, min=1, pattern="[^!]*"),
    Field("integer", "integer", min=-5, max=500),
    Field("number", "number", nullable=True),
    Field("decimal", "decimal", precision=6, scale=3),
    Field("boolean", "boolean", default=True),
    Field("date", "date", nullable=True),
    Field("time", "time", nullable=True),
    Field("datetime", "datetime", nullable=True),
    Field("uuid", "uuid", nullable=True),
    Field("enum", "enum", values=("todo", "done"), default="todo"),
    Field("json", "json", nullable=True),
    Field("map", "map"),
]
ENTITY = Entity("things", "things", ScopeColumn("user", "user_id"), {field.name: field for field in FIELDS})
VALIDATOR = compile_entity(ENTITY)
NAMES = [
    *ENTITY.fields,
    "id",
    "user_id",
    "created_at",
    "updated_at",
    "zzz",
    "map/a",
    "map/~",
    "map/a/b",
    "text/a",
    "map/",
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
likely = st.sampled_from(
    [
        "a",
        "todo",
        "1.50",
        "-0.0",
        7,
        1.5,
        True,
        None,
        {},
        {"a": [1]},
        "2024-02-29",
        "12:30:00.5",
        "2024-02-29T12:00:00+02:00",
        "6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
    ]
)
mutations = st.dictionaries(st.sampled_from(NAMES), likely | json_values, max_size=8)


def outcome(validate: Any, fields: object) -> dict[str, Any]:
    """The canonical values, or the refusal's code."""
    try:
        values: dict[str, Any] = validate(fields)
    except Rejection as rejection:
        return {"refused": rejection.code}
    return values


@given(mutations)
def test_a_canonical_row_is_canonical(fields: dict[str, Any]) -> None:
    """Validating what a put gave changes nothing, and it holds every field in the order of the declaration (I37)."""
    row = outcome(VALIDATOR.put, fields)
    if "refused" not in row:
        assert list(row) == list(ENTITY.fields)
        assert json.dumps(VALIDATOR.put(row)) == json.dumps(row)


@given(mutations)
def test_canonical_paths_are_canonical(fields: dict[str, Any]) -> None:
    """Validating what a patch gave changes nothing, and it sets exactly the paths that were given."""
    values = outcome(VALIDATOR.patch, fields)
    if "refused" not in values:
        assert list(values) == list(fields)
        assert json.dumps(VALIDATOR.patch(values)) == json.dumps(values)


@given(mutations)
def test_the_order_of_fields_decides_no_code(fields: dict[str, Any]) -> None:
    """The code of a refusal is the same whatever the order in which the fields stand."""
    turned = dict(reversed(fields.items()))
    for validate in (VALIDATOR.put, VALIDATOR.patch):
        assert outcome(validate, fields).get("refused") == outcome(validate, turned).get("refused")


@given(mutations, mutations)
def test_the_first_code_in_the_order_of_the_checks_decides(some: dict[str, Any], more: dict[str, Any]) -> None:
    """Adding fields to a refused patch never gives a code that comes later in SPEC 4 (I19)."""
    order = list(MUTATION_CODES)
    both = {**more, **some}
    alone, together = outcome(VALIDATOR.patch, some), outcome(VALIDATOR.patch, both)
    if some and "refused" in alone:
        assert order.index(together["refused"]) <= order.index(alone["refused"])


@given(json_values)
def test_any_value_is_taken_or_refused(value: Any) -> None:
    """No value makes a check fail in any other way than by refusing (I49)."""
    for field in FIELDS:
        try:
            taken = canonical(field, value)
        except (Invalid, TooDeep):
            continue
        msgspec.json.encode(taken)


@given(mutations)
def test_what_is_given_stays_as_it_is(fields: dict[str, Any]) -> None:
    """Validation changes nothing in place."""
    before = repr(fields)
    outcome(VALIDATOR.put, fields)
    outcome(VALIDATOR.patch, fields)
    assert repr(fields) == before


@pytest.mark.parametrize("value", [1.0, -0.0, 1e15])
def test_an_integer_with_a_point_is_refused(value: float) -> None:
    """`1.0` is no integer, though it is a whole number."""
    with pytest.raises(Invalid):
        canonical(Field("n", "integer"), value)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 10**400, -(10**400)])
def test_what_no_double_holds_is_refused(value: float) -> None:
    """Infinities, NaN and integers beyond a double's range are neither numbers nor JSON that could be kept."""
    for field in (Field("x", "number"), Field("x", "json")):
        with pytest.raises(Invalid):
            canonical(field, value)
    with pytest.raises(Invalid):
        canonical(Field("x", "map"), {"a": [value]})


def test_a_number_keeps_its_kind_up_to_the_precision_of_doubles() -> None:
    """An int stays an int where a double holds it exactly; beyond that the double is the value."""
    number = Field("n", "number")
    assert type(canonical(number, 3)) is int
    assert type(canonical(number, 3.0)) is float
    beyond = canonical(number, 2**53 + 1)
    assert type(beyond) is float
    assert beyond == float(2**53)


@pytest.mark.parametrize("value", [{1: 2}, [object()], {"a": (1,)}, {"a": {None: 1}}, b"x"])
def test_what_is_no_json_is_refused(value: object) -> None:
    """Python values that JSON does not know are invalid."""
    with pytest.raises(Invalid):
        canonical(Field("x", "json"), value)


def test_absurd_nesting_is_too_deep_not_a_crash() -> None:
    """A value nested a hundred thousand deep is refused without recursion."""
    value: Any = 0
    for _ in range(100_000):
        value = [value]
    with pytest.raises(TooDeep):
        canonical(Field("x", "json"), value)


def test_paths_that_are_no_text_are_unknown() -> None:
    """A key that is no text names no field."""
    for validate in (VALIDATOR.put, VALIDATOR.patch):
        assert outcome(validate, {1: 2}) == {"refused": "unknown_field"}


def test_a_refusal_names_its_field_and_reason() -> None:
    """The message begins with the path and says what the value must be."""
    with pytest.raises(Rejection, match=r"^integer must be from -5 to 500$") as caught:
        VALIDATOR.patch({"integer": 501})
    assert (caught.value.code, caught.value.field) == ("invalid_field", "integer")
