"""The vectors of clock, merge, digest and watermark: inputs and outcomes that every implementation reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tidemark_protocol import clock, digest, watermark
from tidemark_protocol.clock import Clock
from tidemark_protocol.merge import Effect, RowState, Write, apply, same_value

FOLDER = Path(__file__).parents[2] / "sync_protocol" / "vectors"


def vectors(file: str) -> list[Any]:
    """A file's vectors, each named by its claim."""
    cases: list[dict[str, Any]] = json.loads((FOLDER / file).read_text(encoding="utf-8"))
    return [pytest.param(case, id=case["claim"]) for case in cases]


def test_every_file_is_read() -> None:
    """A file of vectors that no test here names proves nothing."""
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_vectors*.py"))
    assert [path.name for path in FOLDER.iterdir() if f'"{path.name}"' not in sources] == []


@pytest.mark.parametrize("case", vectors("clock.json"))
def test_clock(case: dict[str, Any]) -> None:
    """Readings are written, recognised, ordered and issued as SPEC 2 has it (I3)."""
    expect = case["expect"]
    match case["kind"]:
        case "format":
            at = clock.reading(case["millis"], case["counter"], case["node"])
            assert {"at": at, "instant": clock.instant(at)} == expect
        case "valid":
            assert clock.is_reading(case["value"]) is expect
        case "order":
            one, two = case["pair"]
            assert (one > two) - (one < two) == expect
        case "issue":
            own, issued = Clock(case["node"], case["latest"]), []
            for step in case["steps"]:
                if "issue" in step:
                    issued.append(own.issue(step["issue"]))
                else:
                    own.observe(step["observe"])
            assert issued == expect
        case kind:
            pytest.fail(f"nothing reads vectors of the kind {kind}")


@pytest.mark.parametrize("case", vectors("merge.json"))
def test_merge(case: dict[str, Any]) -> None:
    """Writes in the order they arrive give these verdicts and leave this row (SPEC 3) (I7, I8)."""
    state: RowState | None = None
    verdicts = []
    for write in case["writes"]:
        effect = apply(state, Write(write["op"], write["at"], write["values"]))
        verdicts.append(_verdict(effect))
        state = effect.state
    assert state is not None
    outcome = {
        "verdicts": verdicts,
        "doc": state.fields if state.visible else None,
        "kept": {} if state.visible else state.fields,
        "root": state.root,
        "clocks": state.clocks,
        "created_at": state.created_at or None,
        "updated_at": clock.instant(state.latest),
    }
    assert outcome == case["expect"]
    assert same_value(outcome, case["expect"])


def _verdict(effect: Effect) -> dict[str, Any]:
    """`hidden`: nothing shows, since the row is deleted."""
    verdict: dict[str, Any] = {"verdict": effect.verdict}
    if effect.superseded_paths:
        verdict["superseded_fields"] = list(effect.superseded_paths)
    if effect.hidden:
        verdict["hidden"] = True
    return verdict


@pytest.mark.parametrize("case", vectors("digest.json"))
def test_digest(case: dict[str, Any]) -> None:
    """The live rows, as (entity, row, version), have this digest (SPEC 5) (I32)."""
    assert digest.of_rows((entity, row, version) for entity, row, version in case["rows"]) == case["expect"]


@pytest.mark.parametrize("case", vectors("watermark.json"))
def test_watermark(case: dict[str, Any]) -> None:
    """Watermarks are written so, and a run for one starts there (SPEC 5) (I30, I31)."""
    match case["kind"]:
        case "write":
            mark = watermark.Watermark(case["epoch"], case["version"], case["base"], case["schema"])
            assert str(mark) == case["expect"]
        case "start":
            begun = watermark.start(
                case["watermark"], epoch=case["epoch"], head=case["head"], floor=case["floor"], schema=case["schema"]
            )
            assert begun._asdict() == case["expect"]
        case kind:
            pytest.fail(f"nothing reads vectors of the kind {kind}")
