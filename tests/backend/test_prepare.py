"""The checks that need the declaration alone, in the protocol's order (SPEC 4)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backend.engine_world import DECLARATION, key
from tidemark.sync.access import Principal
from tidemark.sync.prepare import RANK, Prepared, Preparer
from tidemark_protocol.errors import Rejection
from tidemark_protocol.messages import Mutation

ADA = Principal("ada", "user:ada", False, 0)
PREPARER = Preparer(DECLARATION, 4_096)
AT = "0192f3a4b5c6-0001-5f1c9a7e3d2b4a68"
GOOD: dict[str, Any] = {"op": "put", "entity": "notes", "row": key(1), "at": AT, "fields": {"title": "t"}}


def prepare(**members: Any) -> Prepared:
    """A good mutation with some members replaced."""
    return PREPARER.prepare(ADA, Mutation(1, **(GOOD | members)), 2)


def code(prepared: Prepared) -> str | None:
    """What it is refused with, if it is; it has a write if it is not."""
    assert (prepared.fault is None) == (prepared.write is not None)
    return None if prepared.fault is None else prepared.fault.code


def deep(levels: int) -> Any:
    """Lists within each other."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


FAULTS: dict[str, dict[str, Any]] = {
    "invalid_mutation": {"group": ""},
    "unknown_entity": {"entity": "nothing"},
    "invalid_scope": {"scope": "workspace:7"},
    "invalid_row": {"row": "not a uuid"},
    "invalid_clock": {"at": "yesterday"},
    "read_only_field": {"id": key(1)},
    "unknown_field": {"color": "red"},
    "invalid_field": {"title": 5},
    "too_large": {"body": "x" * 5_000},
    "too_deep": {"extra": deep(31)},
}
IN_FIELDS = {"read_only_field", "unknown_field", "invalid_field", "too_large", "too_deep"}


@given(st.sets(st.sampled_from(sorted(FAULTS))))
def test_the_first_of_several_faults_is_told(faults: set[str]) -> None:
    """Of any set of faults the one that comes first in the order of the checks is told (I19)."""
    members: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for fault in faults:
        (fields if fault in IN_FIELDS else members).update(FAULTS[fault])
    assert code(prepare(**members, fields=fields)) == min(faults, key=RANK.__getitem__, default=None)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"op": "upsert"}, "invalid_mutation"),
        ({"op": ["put"]}, "invalid_mutation"),
        ({"op": None}, "invalid_mutation"),
        ({"group": 5}, "invalid_mutation"),
        ({"group": "g" * 65}, "invalid_mutation"),
        ({"group": "g" * 64}, None),
        ({"fields": None}, "invalid_mutation"),
        ({"fields": []}, "invalid_mutation"),
        ({"op": "patch", "fields": {}}, "invalid_mutation"),
        ({"op": "delete", "fields": "anything"}, None),
        ({"entity": 5}, "unknown_entity"),
        ({"entity": "strict", "fields": {}}, "missing_field"),
        ({"scope": "user:bob"}, None),
        ({"scope": ""}, "invalid_scope"),
        ({"scope": 5}, "invalid_scope"),
        ({"scope": "user:" + "a" * 5_000}, "invalid_scope"),
        ({"scope": "user:%61"}, "invalid_scope"),
        ({"scope": "user:a\n"}, "invalid_scope"),
        ({"entity": "nodes", "fields": {}}, "invalid_scope"),
        ({"row": 7}, "invalid_row"),
        ({"row": key(1) + "\n"}, "invalid_row"),
        ({"at": AT.upper()}, "invalid_clock"),
        ({"at": "ffffffffffff-0000-0000000000000000"}, "invalid_clock"),
        ({"op": "patch", "fields": {"labels/a": 1, "labels": {}}}, "invalid_field"),
    ],
)
def test_each_check(members: dict[str, Any], expected: str | None) -> None:
    """What a mutation is refused for by itself."""
    assert code(prepare(**members)) == expected


def test_no_scope_is_the_caller_s_own() -> None:
    """`scope` may be left out for what lives in the caller's own scope; elsewhere one is asked for."""
    assert prepare().scope == "user:ada"
    fault = prepare(entity="nodes", fields={}).fault
    assert isinstance(fault, Rejection)
    assert fault.message.endswith("name one")


def test_too_large_comes_before_too_deep() -> None:
    """What no document can hold is `too_large` even if it is nested too deep as well (I19)."""
    assert code(prepare(fields={"extra": deep(31)})) == "too_deep"
    assert code(prepare(fields={"extra": deep(31), "body": "x" * 5_000})) == "too_large"
    assert code(prepare(op="patch", fields={"extra": [deep(31), "x" * 5_000]})) == "too_large"
    assert code(prepare(op="patch", fields={"labels/a": deep(31), "labels/b": "x" * 4_000})) == "too_deep"


def test_a_patch_of_many_small_values_is_not_judged_by_its_spelling() -> None:
    """What paths cost in the request is not the document's: only the merge can tell its size."""
    assert code(prepare(op="patch", fields={f"labels/{n}": None for n in range(1_000)})) is None


@given(st.permutations(["title", "body", "count", "extra"]))
def test_content_does_not_depend_on_the_order_of_keys(order: list[str]) -> None:
    """The same op and fields are the same content, in whatever order they are spelled; another op is not."""
    values = {"title": "t", "body": "b", "count": 1, "extra": {"b": [{"y": 1, "x": 2}], "a": 2}}
    other = {"title": "t", "body": "b", "count": 1, "extra": {"a": 2, "b": [{"x": 2, "y": 1}]}}
    one, two = prepare(fields={name: values[name] for name in order}), prepare(fields=other)
    assert one.content == two.content
    assert prepare(op="patch", fields=other).content != one.content
    assert prepare(fields=other | {"count": True}).content != one.content


def test_the_content_of_a_delete_is_its_op() -> None:
    """`fields` of a delete are not looked at."""
    assert prepare(op="delete", fields={"a": 1}).content == prepare(op="delete", fields=None).content


def test_a_reading_is_the_user_s_row_s_and_scope_s() -> None:
    """Readings of others, of other rows, entities and scopes are others; without a name there is none."""
    bob = PREPARER.prepare(Principal("bob", "user:bob", False, 0), Mutation(1, **GOOD, scope="user:ada"), 2)
    readings = {
        bob.reading,
        *(
            prepare(**members).reading
            for members in ({}, {"row": key(2)}, {"entity": "x"}, {"scope": "user:b"}, {"at": AT[:-1] + "0"})
        ),
    }
    assert len(readings) == 6
    assert prepare().reading == prepare(fields={}).reading
    assert all(prepare(**{name: None}).reading is None for name in ("entity", "row", "at"))


@pytest.mark.parametrize("digits", [20, 300])
def test_large_integers_are_judged_like_any_value(digits: int) -> None:
    """An integer of many digits is no accident: it is told apart, kept or refused."""
    assert code(prepare(fields={"count": 10**digits})) == "invalid_field"
    assert code(prepare(fields={"extra": 10**digits})) is None
