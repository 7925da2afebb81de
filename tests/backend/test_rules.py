"""Application rules, declared and written in Python (SPEC 10), and what becomes of rules that fail (SPEC 4)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from structlog.testing import capture_logs

from tests.backend.engine_world import World, fates, key, running
from tidemark.sync import rules
from tidemark.sync.rules import Deed, rule
from tidemark_protocol.messages import Result, VerdictError


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world without anything."""
    async with running(World()) as world:
        yield world


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    """Rules that a test registers end with it."""
    kept = dict(rules._registered)
    yield
    rules._registered.clear()
    rules._registered.update(kept)


async def test_declared_rules_look_at_the_row_as_it_would_become(world: World) -> None:
    """`put` is a new or revived row, `patch` any change of a live one, `delete` the row as it is."""
    ada = world.device()
    results = await ada.push(
        ada.put("drafts", key(1), fields={"state": "banned"}),
        ada.put("drafts", key(2), fields={"title": "t"}),
        ada.put("drafts", key(2), fields={"title": "t", "state": "banned"}),
        ada.patch("drafts", key(2), {"state": "locked"}),
        ada.patch("drafts", key(2), {"title": ""}),
        ada.put("drafts", key(2), fields={"state": "locked"}),
        ada.delete("drafts", key(2)),
        ada.patch("drafts", key(2), {"state": "open"}),
        ada.delete("drafts", key(2)),
        ada.put("drafts", key(2), fields={"state": "banned"}),
        ada.delete("drafts", key(3)),
    )
    assert fates(results) == [
        "rule", "applied", "applied", "applied", "rule", "rule", "rule", "applied", "applied", "rule", "applied",
    ]  # fmt: skip
    assert results[0] == Result(1, "rejected", error=VerdictError("rule", "no draft starts banned"))


async def test_a_function_sees_the_row_before_and_after(world: World) -> None:
    """A registered function is given what the mutation makes of the row, and refuses with its own words."""
    seen: list[tuple[str, object, object, str]] = []

    @rule("notes", when=("put", "patch", "delete"))
    def judge(deed: Deed) -> str | None:
        seen.append((deed.when, deed.before and deed.before["title"], deed.row["title"], deed.user))
        return "not this one" if deed.row["title"] == "no" else None

    ada = world.device()
    results = await ada.push(
        ada.put("notes", key(1), fields={"title": "one"}),
        ada.patch("notes", key(1), {"title": "no"}),
        ada.patch("notes", key(1), {"title": "two"}),
        ada.delete("notes", key(1)),
    )
    assert fates(results) == ["applied", "rule", "applied", "applied"]
    assert results[1] == Result(2, "rejected", error=VerdictError("rule", "not this one"))
    assert dict.fromkeys(seen) == dict.fromkeys(
        [
            ("put", None, "one", "ada"),
            ("patch", "one", "no", "ada"),
            ("patch", "one", "two", "ada"),
            ("delete", "two", "two", "ada"),
        ]
    )


@pytest.mark.parametrize("fault", ["raises", "gives no text", "writes"])
async def test_a_rule_that_fails_has_not_judged(world: World, fault: str) -> None:
    """A rule that raises, gives something else than a text, or writes into the row puts its mutation off, is logged as
    an error, and harms nobody else in the batch.
    """

    @rule("notes")
    def faulty(deed: Deed) -> str | None:
        if deed.row["title"] == "trap":
            if fault == "raises":
                raise KeyError("bug")
            if fault == "gives no text":
                return 7  # type: ignore[return-value]
            deed.row["title"] = "changed"  # type: ignore[index]
        return None

    ada, bob = world.device(), world.device("bob")
    trap = ada.put("notes", key(2), fields={"title": "trap"})
    with capture_logs() as logs:
        results = await ada.push(ada.put("notes", key(1)), trap, ada.put("notes", key(3)))
        await bob.apply(bob.put("notes", key(4)))
    assert fates(results) == ["applied", "unavailable", "unavailable"]
    assert [result.status for result in results] == ["applied", "retry", "retry"]
    assert [(line["event"], line["log_level"]) for line in logs] == [("mutation_failed", "error")]
    assert (await ada.rows()).keys() == {("notes", key(1))}
    rules._registered.clear()
    await ada.apply(trap, ada.put("notes", key(3)))


async def test_a_failing_rule_puts_off_its_whole_group(world: World) -> None:
    """All mutations of the group are `retry`, and none took effect (I13)."""

    @rule("drafts")
    def faulty(deed: Deed) -> str | None:
        raise RuntimeError(deed.key)

    ada = world.device()
    with capture_logs():
        results = await ada.push(ada.put("notes", key(1), group="g"), ada.put("drafts", key(2), group="g"))
    assert [result.status for result in results] == ["retry", "retry"]
    assert await ada.rows() == {}


async def test_a_function_is_registered_once(world: World) -> None:
    """A module that is imported twice registers nothing twice."""

    def quiet(_deed: Deed) -> None:
        return None

    rule("notes", when=("put",))(quiet)
    rule("notes", when=("put",))(quiet)
    assert rules._registered["notes", "put"] == [quiet]
