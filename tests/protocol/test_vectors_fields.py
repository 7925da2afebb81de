"""The validation vectors, which every implementation reads (SPEC 4, SPEC 10)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tidemark_protocol.errors import Rejection
from tidemark_protocol.fields import compile_entity
from tidemark_protocol.schema import FieldType, from_wire

VECTORS = Path(__file__).parents[2] / "sync_protocol" / "vectors" / "fields.json"
CASES: list[dict[str, Any]] = json.loads(VECTORS.read_text(encoding="utf-8"))


def described(case: dict[str, Any]) -> str:
    """The case as its faults show it."""
    shown = json.dumps([case["declared"], case["fields"]])
    return f"{case['op']}: {case['claim']}: {shown if len(shown) < 120 else shown[:120]}"


@pytest.mark.parametrize("case", CASES, ids=described)
def test_every_vector_holds(case: dict[str, Any]) -> None:
    """Each vector's fields become its canonical values, or are refused with its code and field (I49)."""
    wire = {
        "schema": 1,
        "oldest": 1,
        "scopes": {},
        "entities": {"things": {"scope": {"kind": "user", "column": "user_id"}, "fields": case["declared"]}},
    }
    validator = compile_entity(from_wire(wire).entities["things"])
    validate = validator.put if case["op"] == "put" else validator.patch
    try:
        outcome: dict[str, Any] = {"value": validate(case["fields"])}
    except Rejection as rejection:
        outcome = {"code": rejection.code, "field": rejection.field}
    # Compared as JSON text: `true` is not `1`, and the order of a row's fields counts.
    assert json.dumps(outcome) == json.dumps(case["expect"])


def test_the_vectors_cover_every_type() -> None:
    """No field type is without a vector that is taken and one that is refused."""
    seen = {
        (field["type"], "value" in case["expect"])
        for case in CASES
        for name, field in case["declared"].items()
        if name == "x"
    }
    assert seen == {(kind, taken) for kind in get_args(FieldType) for taken in (True, False)}
