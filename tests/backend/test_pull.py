"""Pages, streamed lines and long polls: what they hold, how far they reach, and who sees it (SPEC 5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import pytest

from tests.backend.engine_world import DECLARATION, World, key, running
from tidemark.store.base import Run, ScopeState
from tidemark.store.memory import MemoryStore
from tidemark_protocol import clock
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import PullRequest

W, V = "workspace:7", "workspace:8"


class Interrupted(MemoryStore):
    """A store that lets something happen in the middle of a read."""

    def __init__(self) -> None:
        super().__init__(DECLARATION, chance=bytes)
        self.before: list[Callable[[], Awaitable[None]]] = []
        self.runs = self.looks = 0

    async def run(self, scope: str, after: int, base: int, limit: int, max_bytes: int) -> Run | None:
        """What happens first, then the run."""
        self.runs += 1
        if self.before:
            await self.before.pop(0)()
        return await super().run(scope, after, base, limit, max_bytes)

    async def states(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        """Counted."""
        self.looks += 1
        return await super().states(scopes)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world with two workspaces of ada and bob."""
    async with running(World(Interrupted(), pull_buffer=4_096)) as world:
        for scope in (W, V):
            await world.grant(scope, ada="editor", bob="owner")
        yield world


def interrupted(world: World) -> Interrupted:
    """The world's store."""
    assert isinstance(world.store, Interrupted)
    return world.store


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1_000])
async def test_pages_of_any_size_give_everything_once(world: World, limit: int) -> None:
    """Runs continue each other, hold `limit` changes together at most, and the last one is proved (I29, I32)."""
    ada = world.device()
    await ada.apply(
        *(ada.put("notes", key(n)) for n in range(5)), *(ada.put("nodes", key(n), scope=W) for n in range(4))
    )
    marks: dict[str, str] = {}
    reached: dict[str, int] = {}
    rows: list[tuple[str, str]] = []
    more = True
    while more:
        page = await ada.pull(marks, limit=limit)
        assert sum(len(run.changes) for run in page.scopes) <= limit
        assert page.readable == ["user:ada", W, V]
        for run in page.scopes:
            assert run.from_ == reached.get(run.scope, 0)
            assert (run.digest is not None) == (run.to == run.head)
            reached[run.scope], marks[run.scope] = run.to, run.watermark
            rows += [(change.entity, change.row) for change in run.changes]
        more = page.more
    assert sorted(rows) == sorted([("notes", key(n)) for n in range(5)] + [("nodes", key(n)) for n in range(4)])
    assert reached == {"user:ada": 5, W: 4, V: 0}
    assert (await ada.pull(marks)).scopes == []


async def test_a_page_is_bounded_over_all_its_scopes(world: World) -> None:
    """The bytes of a page are bounded together, not for each scope (I40); `more` says that there is more."""
    ada = world.device()
    for place, scope in enumerate((None, W, V)):
        entity, field = ("notes", "body") if scope is None else ("hints", "text")
        await ada.apply(
            *(ada.put(entity, key(n + place * 10), scope=scope, fields={field: "x" * 1_000}) for n in range(4))
        )
    body = await ada.engine.pull(ada.principal, PullRequest(ada.client, 2))
    assert len(body) < 2 * 4_096
    page = await ada.pull()
    assert page.more
    runs, _ = await ada.lines()
    assert sum(len(run.changes) for run in runs) == 12


async def test_a_scope_that_is_named_by_nobody_is_given_empty(world: World) -> None:
    """An empty scope is given from 0 to its head once, and not again (I29)."""
    ada = world.device("nobody")
    page = await ada.pull()
    assert [(run.scope, run.from_, run.to, run.head, run.digest) for run in page.scopes] == [
        ("user:nobody", 0, 0, 0, "0-000000000000")
    ]
    assert (await ada.pull({run.scope: run.watermark for run in page.scopes})).scopes == []


async def test_only_readable_scopes_are_covered(world: World) -> None:
    """`scopes` narrows in silence, `readable` names what is covered, and what may not be read is revoked (I33)."""
    ada = world.device()
    await world.grant(V, ada=None)
    page = await ada.pull({V: "x", "nonsense": "x"}, scopes=[W, V, "workspace:404", "nonsense"])
    assert [run.scope for run in page.scopes] == page.readable == [W]
    assert page.revoked == ["nonsense", V]


async def test_a_watermark_that_says_nothing_resets(world: World) -> None:
    """Text that no server wrote, another number or another epoch begins anew with `reset` (I30)."""
    ada = world.device()
    await ada.apply(ada.put("notes", key(1)))
    (run, *_) = (await ada.pull()).scopes
    epoch, version, base, number = run.watermark.split(".")
    for mark in (
        "",
        f"x{epoch}.1.0.2",
        f"{epoch}.{version}.{base}.1",
        f"{epoch}.9.0.{number}",
        f"{epoch}.0.9.{number}",
    ):
        (again,) = (await ada.pull({"user:ada": mark}, scopes=["user:ada"])).scopes
        assert (again.from_, again.reset, again.digest) == (0, True, run.digest), mark


async def test_a_run_is_one_snapshot_whatever_happens_meanwhile(world: World) -> None:
    """A write between looking at the head and reading the run is in the run, its head and its digest, or in none."""
    ada, bob = world.device(), world.device("bob")
    await ada.apply(ada.put("nodes", key(1), scope=W))

    async def write() -> None:
        await bob.apply(bob.put("nodes", key(2), scope=W))

    interrupted(world).before = [write]
    (run,) = (await ada.pull(scopes=[W])).scopes
    assert (run.to, run.head, len(run.changes)) == (2, 2, 2)
    assert run.digest == await world.proved(W)


async def test_a_floor_that_rises_meanwhile_resets(world: World) -> None:
    """A run that was to continue below a floor raised since begins anew (I30)."""
    ada = world.device()
    await ada.apply(ada.put("notes", key(1)), ada.put("notes", key(2)))
    (run,) = (await ada.pull(scopes=["user:ada"], limit=1)).scopes
    await ada.apply(ada.delete("notes", key(2)), ada.put("notes", key(3)))

    async def forget() -> None:
        world.memory.scopes["user:ada"].floor = 3

    interrupted(world).before = [forget]
    (again,) = (await ada.pull({"user:ada": run.watermark}, scopes=["user:ada"])).scopes
    assert (again.from_, again.reset) == (0, True)


# ── who sees it ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_membership_that_ends_while_a_page_is_read_shows_nothing(world: World) -> None:
    """What was read under a right that is gone by then is thrown away, and the scope is revoked (I39)."""
    ada = world.device()
    await ada.apply(ada.put("nodes", key(1), scope=W))
    marks = {run.scope: run.watermark for run in (await ada.pull()).scopes}
    bob = world.device("bob")
    await bob.apply(bob.patch("nodes", key(1), {"name": "x"}, scope=W, at=bob.at(50_000)))

    async def expel() -> None:
        await world.grant(W, ada=None)

    interrupted(world).before = [expel]
    page = await ada.pull(marks)
    assert (page.scopes, page.revoked, page.readable) == ([], [W], ["user:ada", V])
    assert clock.millis_of(page.clock) == world.time


async def test_a_clock_is_not_told_under_a_right_that_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a scope without news is told only to one who may still read it (I5)."""
    ada, bob = world.device(), world.device("bob")
    await bob.apply(bob.put("nodes", key(1), scope=W, at=bob.at(50_000)))
    marks = {run.scope: run.watermark for run in (await ada.pull()).scopes}
    assert clock.millis_of((await ada.pull(marks)).clock) == world.time + 50_000
    honest = world.engine.access.readable
    asked = []

    async def leaving(principal: Any) -> Any:
        asked.append(principal)
        if len(asked) == 2:
            world.memory.roles.pop((W, "ada"))
        return await honest(principal)

    monkeypatch.setattr(world.engine.access, "readable", leaving)
    page = await ada.pull(marks)
    assert (page.revoked, clock.millis_of(page.clock)) == ([W], world.time)


async def test_the_clock_stands_above_all_that_is_told(world: World) -> None:
    """A page's clock is not below any write that it shows, of whichever scope and process (I4)."""
    ada, bob = world.device(), world.device("bob", engine=world.process())
    at = bob.at(40_000)
    await bob.apply(bob.put("nodes", key(1), scope=W, at=at))
    assert (await ada.pull()).clock >= at
    assert (await ada.lines())[1].clock >= at


async def test_a_number_that_is_not_served_is_a_mismatch(world: World) -> None:
    """Above the service's number or below the oldest, pulls and lines are refused before they begin."""
    ada = world.device()
    for number in (0, 1, 3):
        with pytest.raises(RequestError) as refused:
            await ada.pull(schema=number)
        assert refused.value.code == "schema_mismatch"
        with pytest.raises(RequestError):
            ada.engine.pull_lines(ada.principal, PullRequest(ada.client, number))


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_lines_go_on_until_caught_up(world: World) -> None:
    """Runs of at most `limit` changes, each from where the one before ended, then the trailer."""
    ada = world.device()
    await ada.apply(
        *(ada.put("notes", key(n)) for n in range(10)), *(ada.put("nodes", key(n), scope=W) for n in range(3))
    )
    runs, trailer = await ada.lines(limit=4)
    assert trailer.readable == ["user:ada", W, V]
    assert all(len(run.changes) <= 4 for run in runs)
    for scope, head in (("user:ada", 10), (W, 3), (V, 0)):
        ends = [(run.from_, run.to) for run in runs if run.scope == scope]
        assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]
        assert ends[-1][1] == head


async def test_the_next_page_is_read_while_one_is_sent(world: World) -> None:
    """Before the first line has been taken further, the store is already asked for the second page."""
    ada = world.device()
    await ada.apply(*(ada.put("notes", key(n)) for n in range(6)))
    store = interrupted(world)
    lines = ada.engine.pull_lines(ada.principal, PullRequest(ada.client, 2, scopes=["user:ada"], limit=2))
    await anext(lines)
    for _ in range(5):
        await asyncio.sleep(0)
    assert store.runs == 2
    assert [line async for line in lines][-1].startswith(b'{"readable"')
    assert store.runs == 3


async def test_a_reader_that_stops_leaves_nothing_behind(world: World) -> None:
    """When lines are taken no further, the page being read is given up, and nothing is left running."""
    ada = world.device()
    await ada.apply(*(ada.put("notes", key(n)) for n in range(6)))
    stuck = asyncio.Event()

    async def forever() -> None:
        stuck.set()
        await asyncio.Event().wait()

    async def nothing() -> None:
        """The first page comes."""

    interrupted(world).before = [nothing, forever]
    before = asyncio.all_tasks()
    lines = ada.engine.pull_lines(ada.principal, PullRequest(ada.client, 2, limit=2))
    await anext(lines)
    await stuck.wait()
    await lines.aclose()
    assert asyncio.all_tasks() == before


async def test_a_membership_that_ends_between_lines_is_revoked(world: World) -> None:
    """A scope lost in the middle of a stream of lines gives no more runs, and stands in the trailer (I39)."""
    ada = world.device()
    await ada.apply(*(ada.put("nodes", key(n), scope=W) for n in range(6)))

    async def nothing() -> None:
        """The first page comes."""

    async def expel() -> None:
        await world.grant(W, ada=None)

    interrupted(world).before = [nothing, expel]
    runs, trailer = await ada.lines(scopes=[W], limit=2)
    assert [(run.from_, run.to) for run in runs] == [(0, 2)]
    assert (trailer.readable, trailer.revoked) == ([], [W])


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def held(world: World, ada: Any, **more: Any) -> asyncio.Task[Any]:
    """A pull of one who has everything, which waits."""
    marks = {run.scope: run.watermark for run in (await ada.pull()).scopes}
    task = asyncio.create_task(ada.pull(marks, wait=5, **more))
    await asyncio.sleep(0.05)
    assert not task.done()
    return task


async def test_a_wait_ends_with_new_data(world: World) -> None:
    """A change in a covered scope answers the waiting pull with its run."""
    ada, bob = world.device(), world.device("bob")
    task = await held(world, ada)
    await bob.apply(bob.put("nodes", key(1), scope=W))
    assert [run.scope for run in (await task).scopes] == [W]


@pytest.mark.parametrize("role", [None, "viewer"])
async def test_a_wait_ends_with_membership(world: World, role: str | None) -> None:
    """A scope gained or lost answers the waiting pull."""
    ada = world.device()
    task = await held(world, ada)
    await (world.grant(W, ada=None) if role is None else world.grant("workspace:9", ada=role))
    page = await task
    assert (page.revoked, page.readable) == (
        ([W], ["user:ada", V]) if role is None else ([], ["user:ada", W, V, "workspace:9"])
    )


async def test_a_wait_is_not_disturbed(world: World) -> None:
    """A waiting pull reads again only when something moved in a scope that it covers, and ends empty in time."""
    ada, bob = world.device(), world.device("bob")
    marks = {run.scope: run.watermark for run in (await ada.pull()).scopes}
    task = asyncio.create_task(ada.pull(marks, wait=0.4, scopes=[W]))
    await asyncio.sleep(0.1)
    looked = interrupted(world).looks
    await bob.apply(*(bob.put("nodes", key(n), scope=V) for n in range(3)))
    await asyncio.sleep(0.1)
    assert interrupted(world).looks == looked
    page = await task
    assert (page.scopes, page.readable, page.revoked) == ([], [W], [])
