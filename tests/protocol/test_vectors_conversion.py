"""The vectors of conversion: what older schema numbers send and are sent, for every implementation to read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.protocol.test_vectors import vectors
from tidemark_protocol.conversion import Translation
from tidemark_protocol.merge import same_value
from tidemark_protocol.model import Conversion


@pytest.mark.parametrize("case", vectors("conversion.json"))
def test_conversion(case: dict[str, Any]) -> None:
    """Mutations and documents between two numbers, `changes` being those between them, oldest first (I51, I52)."""
    steps = [
        Conversion(step.get("rename", {}), tuple(step.get("remove", ())), step.get("values", {}))
        for step in case["changes"]
    ]
    match case["kind"]:
        case "upward":
            found = Translation(steps).upward(case["fields"])
            said: dict[str, Any] = {"fields": found.fields} | (
                {"dropped": list(found.dropped)} if found.dropped else {}
            )
            assert same_value({"unknown": found.strange} if found.strange else said, case["expect"])
        case "downward":
            assert same_value(Translation(steps).downward(case["doc"]), case["expect"])
        case kind:
            pytest.fail(f"nothing reads vectors of the kind {kind}")
