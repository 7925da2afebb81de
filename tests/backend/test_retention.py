"""Housekeeping: what is forgotten, when, and what stays true afterwards (SPEC 3, 5 and 7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from tests.backend.engine_world import DECLARATION, World, fates, key, running
from tidemark.store.base import Unavailable
from tidemark.sync import retention
from tidemark.sync.retention import Housekeeping, Swept, without_forgotten
from tidemark_protocol import clock
from tidemark_protocol.merge import RowState

DAY = 86_400_000
W = "workspace:7"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world that keeps tombstones for ten days and the journal for two, with a workspace."""
    async with running(World(retention=10 * DAY, journal_retention=2 * DAY)) as world:
        await world.grant(W, ada="editor", bob="editor")
        yield world


async def sweep(world: World) -> Swept:
    """One round of the world's housekeeping."""
    return await world.engine._housekeeping.sweep()


async def test_a_tombstone_is_forgotten_and_its_replicas_are_reset(world: World) -> None:
    """Once it lies before the horizon: a watermark below it cannot be continued, one above can (I11, I30, I31)."""
    ada, world_time = world.device(), world.time
    await ada.apply(ada.put("notes", key(1)), ada.put("notes", key(2)))
    (early,) = (await ada.pull(scopes=["user:ada"])).scopes
    await ada.apply(ada.delete("notes", key(1)))
    (late,) = (await ada.pull(scopes=["user:ada"])).scopes
    world.time = world_time + 10 * DAY
    assert (await sweep(world)).rows == 0
    world.time += 1
    assert (await sweep(world)).rows == 1
    assert (await sweep(world)).rows == 0
    (again,) = (await ada.pull({"user:ada": early.watermark}, scopes=["user:ada"])).scopes
    assert (again.reset, again.from_, [change.row for change in again.changes]) == (True, 0, [key(2)])
    assert again.digest == await world.proved("user:ada")
    assert (await ada.pull({"user:ada": late.watermark}, scopes=["user:ada"])).scopes == []


async def test_a_write_that_can_no_longer_be_judged_is_refused(world: World) -> None:
    """After forgetting, a write before the horizon to the row is `too_old` (a delete: `superseded`), one after it is
    taken, even by a process that keeps rows for longer (I11).
    """
    ada = world.device()
    start = world.time
    old = ada.put("notes", key(1), at=ada.at(-1_000))
    await ada.apply(ada.put("notes", key(1), at=ada.at(-2_000)), ada.delete("notes", key(1)))
    world.time += 11 * DAY
    await sweep(world)
    patient = world.process(retention=100 * DAY)
    for engine in (world.engine, patient):
        device = world.device(engine=engine)
        assert fates(await device.push(replace(old, at=f"{old.at[:17]}-{device.at()[18:]}"))) == ["too_old"]
    at = clock.reading(start - 500, 3, "c" * 16)
    assert fates(await ada.push(ada.delete("notes", key(1), at=at))) == ["superseded"]
    assert fates(await ada.push(ada.patch("notes", key(1), {"title": "x"}, at=at[:-1] + "d"))) == ["row_unknown"]
    await ada.apply(ada.put("notes", key(1)))


async def test_the_clock_of_a_removed_key_is_forgotten(world: World) -> None:
    """An older write of the key is `too_old` then, unless a later clock stands above it; the row's document and
    version stay as they are.
    """
    ada = world.device()
    await ada.apply(
        ada.put("notes", key(1), fields={"labels": {"a": 1, "b": 2}}, at=ada.at(-9_000)),
        ada.patch("notes", key(1), {"labels/a": None, "title": "t"}, at=ada.at(-5_000)),
        ada.put("notes", key(2), fields={"labels": {"a": 1}}, at=ada.at(-9_000)),
        ada.patch("notes", key(2), {"labels/a": None}, at=ada.at(-8_000)),
        ada.patch("notes", key(2), {"labels": {}}, at=ada.at(-4_000)),
    )
    before = [replace(row) for row in await world.store.rows_of("user:ada")]
    world.time += 11 * DAY
    assert (await sweep(world)).rows == 1
    after = list(await world.store.rows_of("user:ada"))
    assert [(row.version, row.doc, row.root) for row in after] == [(row.version, row.doc, row.root) for row in before]
    assert "labels/a" not in after[0].clocks
    assert "title" in after[0].clocks
    late = clock.reading(world.time - 11 * DAY - 6_000, 9, "c" * 16)
    assert fates(
        await ada.push(
            ada.patch("notes", key(1), {"labels/a": 5}, at=late),
            ada.patch("notes", key(2), {"labels/a": 5}, at=late),
            ada.patch("notes", key(1), {"labels/b": 5}, at=clock.reading(world.time - 11 * DAY - 6_000, 8, "c" * 16)),
            ada.patch("notes", key(1), {"labels/a": 6}),
        )
    ) == ["too_old", "superseded", "too_old", "applied"]
    await world.proved("user:ada")


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (RowState("1", True, {}), None),
        (RowState("9", True, {}), RowState("9", True, {})),
        (RowState("1", True, {"t": 1}, {"t": "9"}), RowState("1", True, {"t": 1}, {"t": "9"})),
        (
            RowState("1", False, {"m": {"b": 1}}, {"m/a": "2", "m/b": "2", "m/c": "9", "t": "2"}),
            RowState("1", False, {"m": {"b": 1}}, {"m/b": "2", "m/c": "9", "t": "2"}),
        ),
    ],
)
def test_what_is_forgotten_of_a_row(state: RowState, kept: RowState | None) -> None:
    """A tombstone whose every clock lies before the horizon; of a live row, such clocks of removed map keys alone."""
    assert without_forgotten(state, "5") == kept


async def test_rows_of_entities_that_are_gone_stop_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tombstones of an entity that is not declared any more are forgotten, and never keep others from it."""
    monkeypatch.setattr(retention, "_CHUNK", 3)
    ada = world.device()
    await ada.apply(*(ada.put("drafts", key(n)) for n in range(9)), *(ada.delete("drafts", key(n)) for n in range(9)))
    await ada.apply(ada.put("notes", key(1)), ada.delete("notes", key(1)))
    world.time += 11 * DAY
    entities = {name: entity for name, entity in DECLARATION.entities.items() if name != "drafts"}
    later = World(world.store, replace(DECLARATION, entities=entities), retention=10 * DAY)
    later.time = world.time
    assert (await sweep(later)).rows == 10
    assert list(await world.store.rows_of("user:ada")) == []


async def test_the_journal_is_forgotten_after_its_own_time(world: World) -> None:
    """Entries go by their arrival; a first verdict is told as long as they are there."""
    ada = world.device()
    put = ada.put("nodes", key(1), scope=W)
    bad = ada.put("notes", key(2), fields={"title": 5})
    await ada.push(put)
    await ada.push(bad)
    await world.grant(W, ada="viewer")
    world.time += 2 * DAY
    assert (await sweep(world)).entries == 0
    assert fates(await ada.push(put, bad)) == ["applied", "invalid_field"]
    world.time += 1
    assert (await sweep(world)).entries > 0
    assert fates(await ada.push(put)) == ["forbidden"]


async def test_a_scope_that_is_written_meanwhile_is_left_for_the_next_round(world: World) -> None:
    """A row that came back since it was found is not dropped."""
    ada = world.device()
    await ada.apply(ada.put("notes", key(1)), ada.delete("notes", key(1)))
    world.time += 11 * DAY
    found = await world.store.residues(world.time, clock.reading(world.time, 0, "f" * 16), 10)
    await ada.apply(ada.put("notes", key(1)))
    assert await world.engine._housekeeping._forget(found, world.time - 10 * DAY) == 0
    assert (await ada.rows()).keys() == {("notes", key(1))}


async def test_one_process_at_a_time_keeps_house(world: World) -> None:
    """The loop sweeps while it has the lease, and lives through a database that is away and errors of ours."""
    ada = world.device()
    await ada.apply(ada.put("notes", key(1)), ada.delete("notes", key(1)))
    world.time += 11 * DAY
    steps: list[Exception | bool] = [Unavailable("away"), ZeroDivisionError(), False, True]
    swept = asyncio.Event()

    class Leased(Housekeeping):
        """Says when it has swept."""

        async def sweep(self) -> Swept:
            """The round, told."""
            done = await super().sweep()
            swept.set()
            return done

    async def lease(name: str, owner: str, now: int, until: int) -> bool:
        assert (name, owner, until - now) == ("housekeeping", "me", 3)
        step = steps.pop(0) if steps else False
        if isinstance(step, Exception):
            raise step
        return step

    world.memory.lease = lease  # type: ignore[method-assign]
    house = Leased(
        store=world.store, now=lambda: world.time, owner="me", interval=1, retention=DAY, journal_retention=DAY
    )
    with capture_logs() as logs:
        task = asyncio.create_task(house.run())
        await swept.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [line["event"] for line in logs] == ["housekeeping_unavailable", "housekeeping_failed", "swept"]
