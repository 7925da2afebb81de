"""The vectors of the client's part: how runs are applied, and the arithmetic of the outbox."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.protocol.test_vectors import vectors
from tidemark_protocol.clock import Clock
from tidemark_protocol.merge import same_value
from tidemark_protocol.messages import Result, Run
from tidemark_protocol.model import Entity, Field, Key, ScopeColumn
from tidemark_protocol.outbox import Pending, RowName, batch, changed, dependents, halved, on_top, restamp, settle, wire
from tidemark_protocol.replica import Apply, Copy, Ignore, Pull, Step, judge

UNSAID: dict[str, Any] = {
    "seq": 1,
    "op": "put",
    "scope": "workspace:7",
    "entity": "tasks",
    "row": "a",
    "at": "000000000000-0000-0000000000000000",
    "fields": {},
    "schema": 1,
    "wall": 0,
}
"""Members of a mutation that a vector leaves out do not matter to it."""


def pending(mutation: dict[str, Any], *, handed: bool = False) -> Pending:
    """A vector's mutation."""
    return Pending(**{**UNSAID, **mutation}, handed=handed)


def outbox(mutations: list[dict[str, Any]]) -> list[Pending]:
    """A vector's mutations, in their order."""
    return [pending(mutation) for mutation in mutations]


# ── applying runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def described(step: Step) -> dict[str, Any]:
    """A step as the vectors have it."""
    match step:
        case Ignore():
            return {"step": "ignore"}
        case Pull():
            return {"step": "pull"}
        case Apply(changes=changes, copy=copy, replace=replace, reset=reset, digest=digest):
            return {
                "step": "apply",
                "versions": [change.version for change in changes],
                "copy": msgspec.to_builtins(copy),
                "replace": replace,
                "reset": reset,
                "digest": digest,
            }


@pytest.mark.parametrize("case", vectors("replica.json"))
def test_replica(case: dict[str, Any]) -> None:
    """A run does this to a replica that stands there, and runs one after the other leave these rows (I34)."""
    match case["kind"]:
        case "step":
            step = judge(Copy(**case["copy"]), msgspec.convert(case["run"], Run), asked=case["asked"])
            assert described(step) == case["expect"]
        case "history":
            copy, rows = Copy(), dict[str, int]()
            for given in case["runs"]:
                step = judge(copy, msgspec.convert(given["run"], Run), asked=given["asked"])
                if isinstance(step, Apply):
                    copy, rows = step.copy, {} if step.replace else rows
                    for change in step.changes:
                        rows.pop(change.row, None)
                        if change.doc is not None:
                            rows[change.row] = change.version
            assert {"rows": rows, "copy": msgspec.to_builtins(copy)} == case["expect"]
        case kind:
            pytest.fail(f"nothing reads vectors of the kind {kind}")


# ── the outbox ───────────────────────────────────────────────────────────────────────────────────────────────────────


def of(kind: str) -> list[Any]:
    """The vectors of the outbox of one kind."""
    return [case for case in vectors("outbox.json") if case.values[0]["kind"] == kind]


def test_every_kind_is_read() -> None:
    """No vector of the outbox is of a kind that no test here reads."""
    kinds = {case.values[0]["kind"] for case in vectors("outbox.json")}
    assert kinds == {"wire", "batch", "halved", "settle", "dependents", "restamp", "on_top", "changed"}


@pytest.mark.parametrize("case", of("wire"))
def test_wire(case: dict[str, Any]) -> None:
    """A mutation travels with these members and no others (SPEC 4)."""
    assert wire(pending(case["mutation"])) == case["expect"]


@pytest.mark.parametrize("case", of("batch"))
def test_batch(case: dict[str, Any]) -> None:
    """Of this outbox these mutations, by `seq`, are the next push (SPEC 4)."""
    assert [mutation.seq for mutation in batch(outbox(case["pending"]), **case.get("limits", {}))] == case["expect"]


@pytest.mark.parametrize("case", of("halved"))
def test_halved(case: dict[str, Any]) -> None:
    """So many are sent after these were refused whole; null: they cannot be divided (SPEC 4)."""
    assert halved(outbox(case["refused"])) == case["expect"]


@pytest.mark.parametrize("case", of("settle"))
def test_settle(case: dict[str, Any]) -> None:
    """Verdicts put each mutation in one place, by `seq`, and what is kept names its remedy (I25, I6)."""
    settled = settle(outbox(case["sent"]), msgspec.convert(case["results"], list[Result]))
    found = {
        "applied": [[mutation.seq, version] for mutation, version in settled.applied],
        "superseded": [mutation.seq for mutation in settled.superseded],
        "rejected": [[mutation.seq, error.code] for mutation, error in settled.rejected],
        "kept": [mutation.seq for mutation in settled.kept],
        "obstacle": settled.obstacle and settled.obstacle.code,
        "remedy": str(settled.remedy),
    }
    assert found == case["expect"]


@pytest.mark.parametrize("case", of("dependents"))
def test_dependents(case: dict[str, Any]) -> None:
    """Each of these falls, by `seq`, with the one it leans on (I26)."""
    refs = {entity: [Field(name, "text", ref=ref) for name, ref in pairs] for entity, pairs in case["refs"].items()}
    standing: set[RowName] = {(scope, entity, row) for scope, entity, row in case["standing"]}
    causes = dependents(
        outbox(case["parked"]),
        outbox(case["pending"]),
        refs=lambda entity: refs[entity],
        stands=lambda name: name in standing,
    )
    assert [list(pair) for pair in sorted(causes.items())] == case["expect"]


@pytest.mark.parametrize("case", of("restamp"))
def test_restamp(case: dict[str, Any]) -> None:
    """A corrected clock gives these readings, to mutations that count as never handed over (I6)."""
    given = [pending(mutation, handed=True) for mutation in case["pending"]]
    stamped = restamp(given, Clock(case["node"], case["latest"]), offset=case["offset"], now=case["now"])
    assert [mutation.at for mutation in stamped] == case["expect"]
    assert [(mutation.seq, mutation.handed) for mutation in stamped] == [(mutation.seq, False) for mutation in given]


@pytest.mark.parametrize("case", of("on_top"))
def test_on_top(case: dict[str, Any]) -> None:
    """A document with these pending edits on top shows so (I35)."""
    key = Key(tuple(case["key"]["columns"]), tuple(case["key"]["types"]))
    entity = Entity("tasks", "tasks", ScopeColumn("workspace", "workspace_id"), {}, key=key)
    assert same_value(on_top(case["doc"], outbox(case["mutations"]), entity), case["expect"])


@pytest.mark.parametrize("case", of("changed"))
def test_changed(case: dict[str, Any]) -> None:
    """This patch turns the one document into the other (SPEC 3)."""
    assert same_value(changed(case["doc"], case["wanted"], frozenset(case["maps"])), case["expect"])
