"""Retention: tombstones and clocks are forgotten only as they were found (SPEC 3, 5)."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.conformance.writing import at, delete, put, save, saved, write
from tidemark.store.base import FeedRow, Store

W = "workspace:7"
V = "workspace:8"


async def rows(store: Store, scope: str = W) -> dict[str, FeedRow]:
    """The scope's feed rows by key."""
    return {row.row: row for row in await store.rows_of(scope)}


@pytest.fixture
async def graves(store: Store) -> Store:
    """Four tombstones (versions 5 to 8), one row with a removed map key and one plain row."""
    names = ["a", "b", "c", "d"]
    await write(store, *(put(W, "tags", name) for name in names))
    await write(store, *(delete(W, "tags", name, arrived=1_000 + 10 * n) for n, name in enumerate(names)))
    await write(store, put(W, "tags", "plain"), put(V, "tags", "other"))
    marked = FeedRow(W, "tags", "marked", 10, False, '{"x":1}', at(900), '{"labels/x":"r"}', 1_005, True)
    await save(store, saved(feed=[marked]))
    return store


async def test_residues_are_found_oldest_first(graves: Store) -> None:
    """Those marked, that arrived before a time and whose root is below a reading; a number of them at once."""
    far = at(1 << 40)
    assert [row.row for row in await graves.residues(2_000, far, 100)] == ["a", "marked", "b", "c", "d"]
    assert [row.row for row in await graves.residues(1_020, far, 100)] == ["a", "marked", "b"]
    assert [row.row for row in await graves.residues(2_000, far, 2)] == ["a", "marked"]
    assert [row.row for row in await graves.residues(2_000, at(1_010), 100)] == ["a", "marked"]
    assert (await graves.residues(2_000, far, 1))[0] == (await rows(graves))["a"]


async def test_forgetting_drops_tombstones_and_raises_the_floor(graves: Store) -> None:
    """Floor is the highest version dropped, horizon what was given; head and digest stay."""
    held = await rows(graves)
    before = (await graves.states([W]))[W]
    assert await graves.forget(W, 5_000, [held["c"], held["a"]], []) == 2
    after = (await graves.states([W]))[W]
    assert after == replace(before, floor=7, horizon=5_000)
    assert set(await rows(graves)) == {"b", "d", "marked", "plain"}
    assert await graves.forget(W, 4_000, [held["b"]], []) == 1
    assert (await graves.states([W]))[W] == replace(before, floor=7, horizon=5_000)


async def test_a_tombstone_that_changed_is_kept(graves: Store) -> None:
    """Root, clocks and arrival must be those that were looked at (I11)."""
    held = await rows(graves)
    changed = [
        replace(held["a"], root=at(999_999)),
        replace(held["b"], clocks='{"color":"x"}'),
        replace(held["c"], arrived=1),
    ]
    assert await graves.forget(W, 5_000, [*changed, held["d"]], []) == 1
    assert set(await rows(graves)) == {"a", "b", "c", "marked", "plain"}
    assert (await graves.states([W]))[W].floor == 8


async def test_what_never_showed_leaves_the_floor(store: Store) -> None:
    """A tombstone of version 0 is no reason to reset anyone."""
    await write(store, delete(W, "tags", "x"))
    assert await store.forget(W, 5_000, list(await store.rows_of(W)), []) == 1
    assert ((await store.states([W]))[W].floor, list(await store.rows_of(W))) == (0, [])


async def test_clocks_are_rewritten(graves: Store) -> None:
    """A row keeps version and document and loses clocks and mark."""
    held = await rows(graves)
    rewritten = replace(held["marked"], clocks="", residue=False)
    assert await graves.forget(W, 5_000, [], [rewritten]) == 1
    assert (await rows(graves))["marked"] == rewritten
    assert (await graves.states([W]))[W].floor == 0


async def test_a_row_written_meanwhile_is_not_rewritten(graves: Store) -> None:
    """Version and arrival must be those that were looked at."""
    held = (await rows(graves))["marked"]
    for other in (replace(held, version=11), replace(held, arrived=1_006)):
        assert await graves.forget(W, 5_000, [], [replace(other, clocks="")]) == 0
    assert (await rows(graves))["marked"] == held


async def test_a_scope_is_forgotten_alone(graves: Store) -> None:
    """Rows of one scope are not touched by what happens to those of the same name elsewhere."""
    await write(graves, delete(V, "tags", "a"))
    assert await graves.forget(W, 5_000, [(await rows(graves))["a"]], []) == 1
    assert set(await rows(graves, V)) == {"a", "other"}


async def test_an_unknown_scope_has_nothing_to_forget(store: Store) -> None:
    """Nor is it made."""
    assert await store.forget(W, 5_000, [], []) == 0
    assert await store.states([W]) == {}
