"""Verdicts of a batch: the order of the checks, first verdicts, groups, clocks and versions (SPEC 2 to 4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from tests.backend.engine_world import DECLARATION, START, World, fates, key, running
from tidemark.store.memory import MemoryTransaction
from tidemark.sync import facts
from tidemark.sync.feed import row_hash
from tidemark_protocol import clock, merge

W = "workspace:7"
DRIFT = 60_000
SKEW = 10 * 60_000


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world with a workspace of ada and bob."""
    async with running(World(max_doc=4_096)) as world:
        await world.grant(W, ada="editor", bob="owner")
        yield world


async def test_a_new_row_that_is_too_large_is_rejected_alone(world: World) -> None:
    """A put of a new row that holds more than a document may is `too_large`, and its neighbours are applied (I22)."""
    ada = world.device()
    results = await ada.push(
        ada.put("notes", key(1)), ada.put("notes", key(2), fields={"body": "x" * 5_000}), ada.put("notes", key(3))
    )
    assert fates(results) == ["applied", "too_large", "applied"]
    assert await ada.rows() == {("notes", key(n)): (await ada.rows())["notes", key(n)] for n in (1, 3)}


async def test_a_patch_may_not_make_a_row_too_large(world: World) -> None:
    """What a patch leaves counts with what was there, and a refused patch takes no version (I16)."""
    ada = world.device()
    await ada.apply(ada.put("notes", key(1), fields={"body": "x" * 3_000}))
    head = (await world.store.states(["user:ada"]))["user:ada"].head
    assert fates(await ada.push(ada.patch("notes", key(1), {"labels/a": "y" * 1_500}))) == ["too_large"]
    assert (await world.store.states(["user:ada"]))["user:ada"].head == head
    await ada.apply(ada.patch("notes", key(1), {"labels/a": "y" * 500}))


async def test_too_large_comes_before_everything_about_the_row(world: World) -> None:
    """A put that no document can hold is `too_large` even where its key is taken or a later write stands (I19)."""
    ada, bob = world.device(), world.device("bob")
    await ada.apply(ada.put("notes", key(1)))
    huge = {"body": "x" * 5_000}
    assert fates(await bob.push(bob.put("notes", key(1), fields=huge))) == ["too_large"]
    assert fates(await ada.push(ada.put("notes", key(1), fields=huge, at=ada.at(-5_000)))) == ["too_large"]


async def test_the_server_s_own_writes_are_never_too_large(world: World) -> None:
    """A delete is not refused because a row that `set_null` touches is as large as a document may be."""
    ada = world.device()
    await ada.apply(ada.put("nodes", key(1), scope=W))
    for size in range(3_800, 4_000):
        hint = ada.put("hints", key(2), scope=W, fields={"node": key(1), "text": "x" * size})
        if fates(await ada.push(hint)) != ["applied"]:
            break
    merger = world.engine._pipeline._merger
    merger._limits = replace(merger._limits, max_doc=100)  # lowered since
    await ada.apply(ada.delete("nodes", key(1), scope=W))
    assert (await ada.rows(W))["hints", key(2)]["node"] is None


# ── first verdicts ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reading_rejected_in_a_batch_is_spent_in_that_batch(world: World) -> None:
    """A mutation rejected, then made possible, then sent again within one request is rejected again (I24)."""
    ada = world.device()
    pin = ada.put("pins", key(2), scope=W, fields={"node": key(1)})
    results = await ada.push(pin, ada.put("nodes", key(1), scope=W), pin)
    assert fates(results) == ["ref_missing", "applied", "ref_missing"]
    (first, again) = [event for event in await ada.events(row=key(2)) if event["outcome"] == "rejected"] * 2
    assert first["error"] == again["error"]
    assert ("pins", key(2)) not in await ada.rows(W)


async def test_a_verdict_given_in_a_batch_stands_in_that_batch(world: World) -> None:
    """A put applied and then overtaken within one batch is not `row_taken` when it comes again (I23)."""
    ada = world.device()
    await world.grant("workspace:8", ada="editor")
    put = ada.put("nodes", key(1), scope=W)
    results = await ada.push(
        put,
        ada.delete("nodes", key(1), scope=W),
        ada.put("nodes", key(1), scope="workspace:8"),
        put,
        ada.put("nodes", key(1), scope=W),
    )
    assert fates(results) == ["applied", "applied", "applied", "applied", "row_taken"]
    assert results[3].version == results[0].version


async def test_a_member_of_a_rejected_group_keeps_its_first_verdict(world: World) -> None:
    """A mutation applied before is `applied` again within a group that is rejected (I23)."""
    ada = world.device()
    old = ada.put("notes", key(1), fields={"title": "one"})
    (first,) = await ada.apply(old)
    bad = ada.put("strict", key(2), group="g")
    results = await ada.push(replace(old, group="g"), bad, ada.put("notes", key(3), group="g"))
    assert fates(results) == ["applied", "missing_field", "group_rejected"]
    assert results[0].version == first.version
    assert fates(await ada.push(old)) == ["applied"]


async def test_a_group_rejected_is_told_the_same_again(world: World) -> None:
    """Every mutation of a rejected group is told its own rejection again, and none is recorded twice (I24)."""
    ada = world.device()
    group = [ada.put("notes", key(n), group="g") for n in (1, 2)]
    group.insert(1, ada.put("strict", key(3), group="g"))
    first = await ada.push(*group)
    assert fates(first) == ["group_rejected", "missing_field", "group_rejected"]
    assert await ada.push(*group) == first
    assert fates(await ada.push(group[0])) == ["group_rejected"]
    assert len(await ada.events(outcome="rejected")) == 3


async def test_a_group_is_told_its_first_verdicts_after_the_right_is_gone(world: World) -> None:
    """All mutations of an applied group are `applied` with their versions after its author was expelled (I23)."""
    ada = world.device()
    group = [ada.put("nodes", key(n), scope=W, group="g") for n in range(1, 6)]
    first = await ada.apply(*group)
    await world.grant(W, ada=None)
    assert await ada.push(*group) == first
    fresh = ada.put("nodes", key(9), scope=W, group="g")
    assert fates(await ada.push(*group, fresh)) == [*["applied"] * 5, "forbidden"]


async def test_first_verdicts_under_a_strange_schema_number_cost_few_questions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole outbox sent again under a number that is not served is answered by its first verdicts, asked for at
    once; the first new mutation is `schema_mismatch` and blocks (I17, I23).
    """
    ada = world.device()
    puts = [ada.put("notes", key(n)) for n in range(200)]
    first = await ada.apply(*puts)
    asked = []
    honest = MemoryTransaction.entries_of

    async def counting(self: MemoryTransaction, scope: str, rows: set[int], since: int, limit: int) -> object:
        asked.append(rows)
        return await honest(self, scope, rows, since, limit)

    monkeypatch.setattr(MemoryTransaction, "entries_of", counting)
    results = await ada.push(*puts, ada.put("notes", key(300)), puts[0], schema=99)
    assert results[:200] == first
    assert fates(results[200:]) == ["schema_mismatch", "unavailable"]
    assert len(asked) == 1
    assert fates(await ada.push(ada.put("notes", key(301)), schema=0)) == ["schema_mismatch"]


async def test_a_first_verdict_is_found_behind_a_long_journal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a row that others wrote a hundred times before, and again since, the verdict of a mutation is told again with
    a bound of five entries: the search begins where the mutation can have arrived, a drift before its reading (I23).
    """
    monkeypatch.setattr(facts, "_ENTRIES", 5)
    ada, bob = world.device(), world.device("bob")
    await ada.apply(ada.put("nodes", key(1), scope=W))
    for _ in range(100):
        await bob.apply(bob.patch("nodes", key(1), {"name": "b"}, scope=W))
    world.time += DRIFT + SKEW + 1
    ahead = ada.patch("nodes", key(1), {"name": "a"}, scope=W, at=ada.at(DRIFT))
    (first,) = await ada.apply(ahead)
    await world.grant(W, ada=None)
    world.time += 5 * SKEW
    for _ in range(100):
        await bob.apply(bob.patch("nodes", key(1), {"labels/x": 1}, scope=W))
    assert await ada.push(ahead) == [first]
    assert fates(await ada.push(replace(ahead, fields={"name": "c"}))) == ["clock_reused"]


async def test_the_search_for_a_first_verdict_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger who names a row and an old reading has no more than a thousand entries read, and takes none from what
    is read for others of the same batch (I23).
    """
    ada, bob, mallory = world.device(), world.device("bob"), world.device("mallory")
    (first,) = await ada.apply(old := ada.put("nodes", key(1), scope=W))
    await world.grant(W, ada=None)
    entry = next(e for e in world.memory.journal.values() if row_hash("nodes", key(1)) in e.rows)
    crowd = replace(entry, arrived=START - 5 * SKEW, events=entry.events.replace("ada", "bob"))
    world.memory.journal |= dict.fromkeys(range(-3_000, 0), crowd)
    read: list[int] = []
    honest = MemoryTransaction.entries_of

    async def counting(self: MemoryTransaction, scope: str, rows: set[int], since: int, limit: int) -> object:
        found = await honest(self, scope, rows, since, limit)
        read.append(len(found))
        return found

    monkeypatch.setattr(MemoryTransaction, "entries_of", counting)
    ancient = mallory.put("nodes", key(1), scope=W, at=clock.reading(0, 0, "0" * 16))
    told = await asyncio.gather(
        bob.push(bob.put("nodes", key(2), scope=W)), mallory.push(ancient), ada.push(old), mallory.push(ancient)
    )
    assert [fates(results) for results in told] == [["applied"], ["forbidden"], ["applied"], ["forbidden"]]
    assert told[2] == [first]
    assert max(read) == 1_000


async def test_a_write_that_is_accepted_asks_the_journal_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an applied nor a superseded mutation reads the entries of its row."""

    async def never(*_: object) -> object:
        raise AssertionError("asked")

    monkeypatch.setattr(MemoryTransaction, "entries_of", never)
    ada = world.device()
    put = ada.put("notes", key(1))
    results = await ada.push(put, put, ada.put("notes", key(1), at=ada.at(-5_000)), ada.delete("notes", key(1)))
    assert fates(results) == ["applied", "applied", "superseded", "applied"]


async def test_a_verdict_outlives_its_entity(world: World) -> None:
    """A mutation applied before its entity left the declaration is `applied` again, a new one is unknown (I23)."""
    ada = world.device()
    put = ada.put("notes", key(1))
    (first,) = await ada.apply(put)
    entities = {name: entity for name, entity in DECLARATION.entities.items() if name != "notes"}
    later = World(world.store, replace(DECLARATION, entities=entities))
    (again, unknown) = await later.device().push(put, later.device().put("notes", key(2)))
    assert (again.status, again.version, fates([unknown])) == ("applied", first.version, ["unknown_entity"])


@pytest.mark.parametrize("scope", ["workspace:\0", "work\0space:1", "workspace:é", "workspace:%00", "w:" + "x" * 9_000])
async def test_malformed_names_are_never_asked_for(world: World, scope: str) -> None:
    """A scope that is none is `invalid_scope`, and is never looked up under its name (I22)."""
    ada = world.device()
    assert fates(await ada.push(ada.put("nodes", key(1), scope=scope), ada.put("notes", key(2)))) == [
        "invalid_scope",
        "applied",
    ]


# ── whose journal ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_of_a_stranger_stands_in_a_scope_s_journal(world: World) -> None:
    """Whatever a stranger's mutations are refused for, the scope they name shows nothing of them (I20, I33)."""
    mallory, bob = world.device("mallory"), world.device("bob")
    before = await bob.events(scope=W)
    forbidden = mallory.put("nodes", key(1), scope=W)
    await mallory.push(
        forbidden,
        replace(forbidden, fields={"name": "other content of a spent reading"}),
        mallory.put("strict", key(2), group="g"),
        mallory.put("nodes", key(3), scope=W, group="g"),
        mallory.put("nodes", "not a key", scope=W),
        mallory.put("nothing", key(4), scope=W),
    )
    assert await bob.events(scope=W) == before
    assert len(await mallory.events(outcome="rejected")) == 6


async def test_a_former_member_writes_nothing_into_the_journal_any_more(world: World) -> None:
    """`clock_reused` of one who may not write the scope any more is that user's own affair (I33)."""
    ada, bob = world.device(), world.device("bob")
    put = ada.put("nodes", key(1), scope=W)
    await ada.apply(put)
    await world.grant(W, ada="viewer")
    before = await bob.events(scope=W)
    assert fates(await ada.push(replace(put, fields={"name": "other"}))) == ["clock_reused"]
    assert await bob.events(scope=W) == before
    assert [event["scope"] for event in await ada.events(outcome="rejected")] == [W]


async def test_no_such_scope_and_no_right_are_one(world: World) -> None:
    """A scope that is not there, one of others and one that may only be read are refused to the letter alike (I20)."""
    await world.grant("workspace:9", bob="owner", mallory="viewer")
    mallory = world.device("mallory")
    results = await mallory.push(
        *(mallory.put("nodes", key(1), scope=scope) for scope in (W, "workspace:404", "workspace:9"))
    )
    assert len({(result.status, result.error) for result in results}) == 1
    assert fates(results)[0] == "forbidden"
    assert set(await world.store.states(["workspace:404"])) == set()


# ── clocks and versions ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_clock_reflects_what_was_written_and_no_more(world: World) -> None:
    """An answer's clock is not below what took effect in its scopes, nor moved by scopes that the caller may not read
    or by what was refused (I5).
    """
    ada, mallory = world.device(), world.device("mallory")
    fast = ada.at(50_000)
    await ada.apply(ada.put("nodes", key(1), scope=W, at=fast))
    world.time += 1
    seen = await ada.engine.push(ada.principal, ada.client, 2, [ada.patch("nodes", key(1), {"name": "x"}, scope=W)])
    assert seen.clock >= fast
    told = await mallory.engine.push(
        mallory.principal,
        mallory.client,
        2,
        [mallory.put("nodes", key(1), scope=W), replace(mallory.put("notes", key(5)), seq=2)],
    )
    assert clock.millis_of(told.clock) == world.time


async def test_a_role_that_is_not_declared_shows_no_clock(world: World) -> None:
    """A member whose role is not declared any more is told nothing of the scope's clock (I5, I33)."""
    ada, ghost = world.device(), world.device("ghost")
    await ada.apply(ada.put("nodes", key(1), scope=W, at=ada.at(50_000)))
    world.memory.roles[W, "ghost"] = "ruler"
    answer = await ghost.engine.push(ghost.principal, ghost.client, 2, [ghost.put("nodes", key(2), scope=W)])
    assert fates(answer.results) == ["forbidden"]
    assert clock.millis_of(answer.clock) == world.time


async def test_a_fast_clock_is_put_off_unless_the_scope_is_ahead(world: World) -> None:
    """`clock_ahead` beyond 60 s, not where the scope's own clock stands above it, and what follows waits (I6, I17)."""
    ada = world.device()
    results = await ada.push(ada.put("notes", key(1), at=ada.at(60_001)), ada.put("notes", key(2)))
    assert fates(results) == ["clock_ahead", "unavailable"]
    await ada.apply(ada.put("notes", key(1), at=ada.at(60_000)))
    world.time -= 30_000
    await ada.apply(ada.put("notes", key(2), at=clock.reading(START + 59_000, 0, "b" * 16)))
    assert await ada.events(outcome="rejected") == []


async def test_what_shows_nothing_takes_no_version(world: World) -> None:
    """Superseded, hidden and repeated writes and deletes of nothing leave the head alone (I12)."""
    ada = world.device()
    put = ada.put("notes", key(1))
    await ada.apply(put, ada.delete("notes", key(1)))
    head = (await world.store.states(["user:ada"]))["user:ada"].head
    assert head == 2
    (hidden, late, nothing, again) = await ada.push(
        ada.patch("notes", key(1), {"title": "hidden"}),
        ada.put("notes", key(1), at=ada.at(-5_000)),
        ada.delete("notes", key(2)),
        put,
    )
    assert (hidden.status, hidden.reason) == ("superseded", "deleted")
    assert (late.status, late.reason) == ("superseded", UNSET)
    assert (nothing.status, nothing.version) == ("applied", 0)
    assert again.status == "superseded"
    assert (await world.store.states(["user:ada"]))["user:ada"].head == head
    (run,) = (await ada.pull(scopes=["user:ada"])).scopes
    assert (run.changes, run.digest) == ([], "0-000000000000")


async def test_an_old_delete_of_nothing_is_superseded_by_nobody(world: World) -> None:
    """A delete before the horizon of a row that is not known is `superseded`, and the journal names no winner."""
    ada = world.device()
    old = clock.reading(START - 91 * 86_400_000, 0, "b" * 16)
    assert fates(await ada.push(ada.delete("notes", key(1), at=old))) == ["superseded"]
    assert [event["won"] for event in await ada.events(scope="user:ada")] == [None]
    older = clock.reading(START - 92 * 86_400_000, 0, "b" * 16)
    assert fates(await ada.push(ada.put("notes", key(1), at=older))) == ["too_old"]


async def test_every_mutation_has_one_event(world: World) -> None:
    """The journal holds each mutation's fate, with what it overwrote, what it carried and what won (I46)."""
    ada = world.device()
    early = ada.at(-5_000)
    await ada.push(
        ada.put("notes", key(1), fields={"title": "one", "labels": {"a": 1}}),
        ada.patch("notes", key(1), {"title": "two", "labels/a": None}),
        ada.patch("notes", key(1), {"title": "late"}, at=early),
        ada.patch("notes", key(1), {"title": 5}),
        ada.delete("notes", key(1)),
    )
    put, patch, late, delete, bad = await ada.events(scope="user:ada")
    assert (put["set"], put["overwrote"]) == (None, None)
    assert (patch["set"], patch["overwrote"]) == (["title", "labels/a"], {"title": "one", "labels/a": 1})
    assert (late["outcome"], late["values"], late["version"]) == ("superseded", {"title": "late"}, None)
    assert late["won"] == {"title": patch["at"]}
    assert (bad["error"]["code"], bad["values"]) == ("invalid_field", {"title": 5})
    assert delete["overwrote"]["title"] == "two"


async def test_an_error_of_ours_puts_off_its_own_mutation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while one unit is settled, the others of the batch are, and nothing of it is left over."""
    ada, bob = world.device(), world.device("bob")
    honest = merge.apply

    def failing(state: merge.RowState | None, write: merge.Write) -> merge.Effect:
        if write.values.get("title") == "poison":
            raise ZeroDivisionError
        return honest(state, write)

    monkeypatch.setattr(merge, "apply", failing)
    results = await ada.push(
        ada.put("notes", key(1)),
        ada.put("notes", key(2), group="g"),
        ada.put("notes", key(3), fields={"title": "poison"}, group="g"),
        ada.put("notes", key(4)),
    )
    assert fates(results) == ["applied", "unavailable", "unavailable", "unavailable"]
    await bob.apply(bob.put("notes", key(5)))
    monkeypatch.undo()
    await ada.apply(ada.put("notes", key(3)))
    await world.proved("user:ada")
