"""References, uniqueness and what a delete draws with it, as each unit leaves its rows (SPEC 4 and 10)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.backend.engine_world import World, fates, key, running
from tidemark.store.memory import MemoryTransaction

W = "workspace:7"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world with a workspace of ada."""
    async with running(World()) as world:
        await world.grant(W, ada="editor")
        yield world


async def test_only_the_references_that_a_write_sets_are_looked_at(world: World) -> None:
    """A put is not refused for a reference that a later patch had set and whose row is gone since."""
    ada = world.device()
    early = ada.at(-5_000)
    await ada.apply(
        ada.put("nodes", key(1), scope=W),
        ada.put("traces", key(2), scope=W, at=ada.at(-9_000)),
        ada.patch("traces", key(2), {"node": key(1)}, scope=W),
        ada.delete("nodes", key(1), scope=W),
    )
    await ada.apply(ada.put("traces", key(2), scope=W, at=early))
    assert (await ada.rows(W))["traces", key(2)]["node"] == key(1)


async def test_a_reference_lost_to_a_later_write_is_not_looked_at(world: World) -> None:
    """A reference that a later write of the field has won over may name nothing."""
    ada = world.device()
    early = ada.at(-5_000)
    await ada.apply(
        ada.put("traces", key(2), scope=W, at=ada.at(-9_000)), ada.patch("traces", key(2), {"node": None}, scope=W)
    )
    (result,) = await ada.push(ada.patch("traces", key(2), {"node": key(404)}, scope=W, at=early))
    assert result.status == "superseded"


async def test_a_reference_may_come_before_its_row_within_a_group(world: World) -> None:
    """References are checked as the group leaves its rows; alone, the order counts (I21)."""
    ada = world.device()
    assert fates(
        await ada.push(ada.put("pins", key(2), scope=W, fields={"node": key(1)}), ada.put("nodes", key(1), scope=W))
    ) == ["ref_missing", "applied"]
    await ada.apply(
        ada.put("pins", key(2), scope=W, group="g", fields={"node": key(3)}),
        ada.put("nodes", key(3), scope=W, group="g"),
    )


async def test_references_never_look_beyond_the_scope(world: World) -> None:
    """A row of another scope is no target (I21)."""
    ada = world.device()
    await world.grant("workspace:8", ada="editor")
    await ada.apply(ada.put("nodes", key(1), scope="workspace:8"))
    assert fates(await ada.push(ada.put("pins", key(2), scope=W, fields={"node": key(1)}))) == ["ref_missing"]


@pytest.mark.parametrize("together", [False, True])
async def test_integer_references_follow_their_rows(world: World, together: bool) -> None:
    """A reference that is a number finds the row that its text names, and goes with it, in one batch or several."""
    ada = world.device()
    steps = [
        ada.put("numbers", "7", scope=W),
        ada.put("links", key(1), scope=W, fields={"number": 7}),
        ada.put("links", key(2), scope=W, fields={"number": None}),
        ada.delete("numbers", "7", scope=W),
    ]
    for batch in [steps] if together else [[step] for step in steps]:
        await ada.apply(*batch)
    assert (await ada.rows(W)).keys() == {("links", key(2))}
    assert fates(await ada.push(ada.put("links", key(3), scope=W, fields={"number": 7}))) == ["ref_missing"]


@pytest.mark.parametrize("together", [False, True])
async def test_what_refers_to_a_deleted_row_follows_its_declaration(world: World, together: bool) -> None:
    """`cascade` deletes, `set_null` empties, `keep` leaves, each once and in the journal as the server's write."""
    ada = world.device()
    tree = [
        ada.put("nodes", key(1), scope=W),
        ada.put("nodes", key(2), scope=W, fields={"parent": key(1)}),
        ada.put("nodes", key(3), scope=W, fields={"parent": key(2)}),
        ada.put("hints", key(4), scope=W, fields={"node": key(3), "text": "kept"}),
        ada.put("traces", key(5), scope=W, fields={"node": key(3)}),
    ]
    delete = ada.delete("nodes", key(1), scope=W)
    for batch in [[*tree, delete]] if together else [tree, [delete]]:
        await ada.apply(*batch)
    rows = await ada.rows(W)
    assert rows.keys() == {("hints", key(4)), ("traces", key(5))}
    assert rows["hints", key(4)]["node"] is None
    assert rows["traces", key(5)]["node"] == key(3)
    done = [(e["by"], e["row"], e["op"]) for e in await ada.events(scope=W) if e["by"]]
    assert sorted(done) == [
        ("cascade", key(2), "delete"),
        ("cascade", key(3), "delete"),
        ("set_null", key(4), "patch"),
    ]
    await world.proved(W)


async def test_the_server_s_writes_stand_above_every_clock_of_their_rows(world: World) -> None:
    """A row written with a later reading than the delete that draws it goes all the same, and stays so."""
    ada = world.device()
    late = ada.put("nodes", key(2), scope=W, fields={"parent": key(1)}, at=ada.at(50_000))
    await ada.apply(ada.put("nodes", key(1), scope=W), late, ada.delete("nodes", key(1), scope=W))
    assert await ada.rows(W) == {}
    (again,) = await ada.push(late)
    assert again.status == "superseded"


async def test_a_row_that_is_restricted_stays_until_the_others_are_gone(world: World) -> None:
    """`ref_in_use` for the delete alone; with the row that refers to it in the group, it goes (I21)."""
    ada = world.device()
    await ada.apply(ada.put("nodes", key(1), scope=W), ada.put("pins", key(2), scope=W, fields={"node": key(1)}))
    results = await ada.push(
        ada.patch("nodes", key(1), {"name": "x"}, scope=W, group="g"), ada.delete("nodes", key(1), scope=W, group="g")
    )
    assert fates(results) == ["group_rejected", "ref_in_use"]
    await ada.apply(ada.delete("nodes", key(1), scope=W, group="h"), ada.delete("pins", key(2), scope=W, group="h"))


async def test_what_goes_in_the_same_cascade_restricts_nothing(world: World) -> None:
    """A row that refers by `restrict` to one part of a cascade, and goes with another part, does not hinder it."""
    ada = world.device()
    await ada.apply(
        ada.put("nodes", key(1), scope=W),
        ada.put("nodes", key(2), scope=W, fields={"parent": key(1)}),
        ada.put("nodes", key(3), scope=W, fields={"parent": key(2)}),
        ada.put("pins", key(4), scope=W, fields={"node": key(2), "owner": key(3)}),
    )
    await ada.apply(ada.delete("nodes", key(1), scope=W))
    assert await ada.rows(W) == {}


async def test_a_restriction_deep_in_a_cascade_refuses_all_of_it(world: World) -> None:
    """A visible row that refers by `restrict` to any row of a cascade is `ref_in_use`, and nothing went."""
    ada = world.device()
    await ada.apply(
        ada.put("nodes", key(1), scope=W),
        ada.put("nodes", key(2), scope=W, fields={"parent": key(1)}),
        ada.put("hints", key(3), scope=W, fields={"node": key(1)}),
        ada.put("pins", key(4), scope=W, fields={"node": key(2)}),
    )
    before = await ada.rows(W)
    assert fates(await ada.push(ada.delete("nodes", key(1), scope=W))) == ["ref_in_use"]
    assert await ada.rows(W) == before
    await world.proved(W)


async def test_a_long_chain_goes_as_a_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cascade may be as deep as it is long; the batch is merged once for it, not once for each step."""
    ada = world.device()
    await ada.apply(
        *(ada.put("nodes", key(n), scope=W, fields={"parent": key(n - 1) if n > 1 else None}) for n in range(1, 301))
    )
    await ada.apply(ada.delete("nodes", key(1), scope=W))
    assert await ada.rows(W) == {}


async def test_a_cascade_past_its_limit_is_a_rejection() -> None:
    """A delete that reaches more rows than a cascade may is `constraint_violation`, and nothing went (I22)."""
    async with running(World(cascade_limit=3)) as world:
        ada = world.device()
        await world.grant(W, ada="editor")
        await ada.apply(ada.put("nodes", key(1), scope=W))
        for n in range(2, 5):
            await ada.apply(ada.put("nodes", key(n), scope=W, fields={"parent": key(1)}))
        await ada.apply(ada.put("hints", key(9), scope=W, fields={"node": key(4)}))
        results = await ada.push(ada.delete("nodes", key(1), scope=W), ada.put("nodes", key(7), scope=W))
        assert fates(results) == ["constraint_violation", "applied"]
        await ada.apply(ada.patch("hints", key(9), {"node": None}, scope=W), ada.delete("nodes", key(1), scope=W))


# ── uniqueness ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_unique_values_pass_from_row_to_row(world: World) -> None:
    """A value that its row lets go may be taken, in one batch, in a group that swaps, and through a cascade (I21)."""
    ada = world.device()
    await ada.apply(
        ada.put("nodes", key(1), scope=W, fields={"name": "a"}),
        ada.put("nodes", key(2), scope=W, fields={"name": "b"}),
        ada.put("nodes", key(3), scope=W, fields={"name": "c", "parent": key(2)}),
    )
    await ada.apply(
        ada.patch("nodes", key(1), {"name": "b"}, scope=W, group="swap"),
        ada.patch("nodes", key(2), {"name": "a"}, scope=W, group="swap"),
    )
    await ada.apply(
        ada.put("nodes", key(4), scope=W, fields={"name": "c"}, group="freed"),
        ada.delete("nodes", key(2), scope=W, group="freed"),
    )
    names = {row: doc["name"] for (_, row), doc in (await ada.rows(W)).items()}
    assert names == {key(1): "b", key(4): "c"}
    table = {row.identity.text: row.values["name"] for row in world.memory.table.values()}
    assert table == names


async def test_a_unique_value_is_held_by_one_row_alone(world: World) -> None:
    """The later of two rows that take one value is `unique_violation`, whoever was in the batch or the table before."""
    ada = world.device()
    assert fates(
        await ada.push(
            ada.put("nodes", key(1), scope=W, fields={"name": "a"}),
            ada.put("nodes", key(2), scope=W, fields={"name": "a"}),
            ada.put("nodes", key(2), scope=W, fields={"name": None}),
            ada.patch("nodes", key(2), {"name": "a"}, scope=W),
            ada.put("nodes", key(3), scope=W, fields={"name": None}),
        )
    ) == ["applied", "unique_violation", "applied", "unique_violation", "applied"]
    await ada.apply(ada.delete("nodes", key(1), scope=W), ada.patch("nodes", key(2), {"name": "a"}, scope=W))
    assert fates(await ada.push(ada.put("nodes", key(1), scope=W, fields={"name": "a"}))) == ["unique_violation"]
    await world.grant("workspace:8", ada="editor")
    await ada.apply(ada.put("nodes", key(8), scope="workspace:8", fields={"name": "a"}))


async def test_what_a_batch_says_itself_is_loaded_before_the_merge(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holders of the unique values that puts set, and what refers to rows that are deleted, are asked for once."""
    ada = world.device()
    await ada.apply(ada.put("nodes", key(1), scope=W, fields={"name": "a"}))
    asked: list[str] = []
    for name in ("load", "holders", "referring"):
        honest = getattr(MemoryTransaction, name)

        async def counting(
            self: MemoryTransaction, *given: object, _name: str = name, _honest: object = honest
        ) -> object:
            asked.append(_name)
            return await _honest(self, *given)  # type: ignore[operator]

        monkeypatch.setattr(MemoryTransaction, name, counting)
    await ada.apply(*(ada.put("nodes", key(n), scope=W, fields={"name": str(n)}) for n in range(2, 30)))
    assert asked == ["load", "holders"]
    asked.clear()
    await ada.apply(ada.delete("nodes", key(1), scope=W))
    assert asked == ["load", *["referring"] * 4]
