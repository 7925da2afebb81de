"""Group commit: order, halves, scopes that others hold, and answers whatever happens (SPEC 4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.backend.engine_world import DECLARATION, Device, World, fates, key, running
from tidemark.store.base import ConstraintFailed, RowTaken, Saved, Transaction, Unavailable
from tidemark.store.memory import MemoryStore, MemoryTransaction
from tidemark.sync.commit import Commit
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import Mutation

T = TypeVar("T")
W, V = "workspace:7", "workspace:8"


class Moody(MemoryStore):
    """A store that refuses some rows, as a database may, and lets others do something before each transaction."""

    def __init__(self) -> None:
        super().__init__(DECLARATION, chance=bytes)
        self.refused: dict[str, Exception] = {}
        self.first: list[Callable[[], Awaitable[None]]] = []
        self.transactions = 0

    async def transact(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Whatever comes first, then the transaction."""
        self.transactions += 1
        if self.first:
            await self.first.pop(0)()
        return await super().transact(body)

    def refuse(self, saved: Saved) -> None:
        """Raise what stands against a row of these."""
        for image in saved.images:
            if image.key.row in self.refused:
                raise self.refused[image.key.row]


@pytest.fixture(autouse=True)
def _refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions ask a moody store."""
    honest = MemoryTransaction._save

    def save(self: MemoryTransaction, saved: Saved) -> None:
        if isinstance(self._store, Moody):
            self._store.refuse(saved)
        honest(self, saved)

    monkeypatch.setattr(MemoryTransaction, "_save", save)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world with two workspaces, over a moody store."""
    async with running(World(Moody())) as world:
        for scope in (W, V):
            await world.grant(scope, ada="editor", bob="editor")
        yield world


def moody(world: World) -> Moody:
    """The world's store."""
    assert isinstance(world.store, Moody)
    return world.store


def hold(world: World, scope: str) -> Callable[[], None]:
    """Lock a scope as another process does; gives what lets it go."""
    holder = MemoryTransaction(world.memory)
    world.memory.locks[scope] = holder

    def release() -> None:
        world.memory.locks.pop(scope, None)

    return release


def hurry(world: World, patience: float) -> None:
    """Let requests wait no longer than so many seconds for others."""
    world.engine._pipeline._patience = patience


async def hanging(world: World) -> tuple[asyncio.Task[Any], asyncio.Event]:
    """A push of ada's whose transaction has begun and does not end until the event."""
    began, goes_on = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        began.set()
        await goes_on.wait()

    ada = world.device()
    moody(world).first = [hang]
    stuck = asyncio.create_task(ada.push(ada.put("notes", key(1))))
    await began.wait()
    return stuck, goes_on


# ── halves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(st.data())
def test_what_the_database_refuses_harms_itself_alone(data: st.DataObject) -> None:
    """Whatever rows a database refuses, each mutation has its own verdict in order, all others are applied in the
    order given, and a group falls with one of its rows (I13, I15, I22).
    """
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
    refused = data.draw(st.sets(st.integers(1, sum(sizes)), max_size=4))
    unique = data.draw(st.booleans())

    async def play() -> None:
        world = World(Moody())
        async with running(world):
            ada, bob = world.device(), world.device("bob")
            moody(world).refused = {key(n): ConstraintFailed("the reason\nsecrets", unique=unique) for n in refused}
            rows = iter(range(1, sum(sizes) + 1))
            units = [[next(rows) for _ in range(size)] for size in sizes]
            mutations = [
                ada.put("notes", key(n), group=f"g{i}" if len(unit) > 1 else None)
                for i, unit in enumerate(units)
                for n in unit
            ]
            results, others = await asyncio.gather(ada.push(*mutations), bob.push(bob.put("notes", key(99))))
            assert fates(others) == ["applied"]
            code = "unique_violation" if unique else "constraint_violation"
            expected = []
            for unit in units:
                falls = bool(refused & set(unit))
                expected += [code, *["group_rejected"] * (len(unit) - 1)] if falls else ["applied"] * len(unit)
            assert fates(results) == expected
            versions = [result.version for result in results if result.status == "applied"]
            assert versions == list(range(1, len(versions) + 1))
            assert not any("secrets" in str(result.error) for result in results)
            moody(world).refused = {}
            assert fates(await ada.push(*mutations)) == expected
            await world.proved("user:ada")

    asyncio.run(play())


async def test_a_retry_in_the_first_half_stops_the_second(world: World) -> None:
    """When a batch is settled in halves, nothing behind the first `retry` of a request is (I17)."""
    ada = world.device()
    moody(world).refused = {key(1): ConstraintFailed("no", unique=False)}
    ahead = ada.put("notes", key(2), at=ada.at(90_000))
    puts = [ada.put("notes", key(n)) for n in range(3, 8)]
    results = await ada.push(ada.put("notes", key(1)), ahead, *puts)
    assert fates(results) == ["constraint_violation", "clock_ahead", *["unavailable"] * 5]
    assert await ada.rows() == {}


async def test_a_scope_locked_between_halves_is_waited_for(world: World) -> None:
    """Units put off in the middle of halves are settled later, in order, with one verdict each (I15)."""
    ada = world.device()
    moody(world).refused = {key(2): ConstraintFailed("no", unique=False)}
    release: list[Callable[[], None]] = []

    async def nothing() -> None:
        """The whole batch, and its first half, find the scope free."""

    async def lock() -> None:
        release.append(hold(world, W))
        asyncio.get_running_loop().call_later(0.05, release[0])

    moody(world).first = [nothing, nothing, lock]
    mutations = [ada.put("nodes", key(n), scope=W) for n in range(1, 9)]
    results = await ada.push(*mutations)
    assert fates(results) == ["applied", "constraint_violation", *["applied"] * 6]
    assert [result.version for result in results if result.status == "applied"] == list(range(1, 8))
    assert release


async def test_a_key_that_changes_hands_is_looked_at_again(world: World) -> None:
    """A row that was taken between load and save makes the batch run again; the verdict is by what is there then."""
    ada = world.device()
    attempts: list[int] = []

    def refuse(saved: Saved) -> None:
        if not attempts and saved.images:
            attempts.append(1)
            raise RowTaken("meanwhile")

    moody(world).refuse = refuse  # type: ignore[method-assign]
    await ada.apply(ada.put("notes", key(1)))
    assert attempts == [1]


async def test_a_key_that_stays_taken_is_rejected_alone(world: World) -> None:
    """A row that the table holds elsewhere, whatever the feed says, is `row_taken`; it blocks nobody (I16, I22)."""
    ada = world.device()
    moody(world).refused = {key(2): RowTaken("by others")}
    assert fates(await ada.push(*(ada.put("notes", key(n)) for n in (1, 2, 3)))) == ["applied", "row_taken", "applied"]


# ── order and company ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_pushes_that_wait_are_committed_together(world: World) -> None:
    """Many requests make few transactions, and each is answered with its own verdicts."""
    devices = [world.device(f"u{n}") for n in range(50)]
    before = moody(world).transactions
    answers = await asyncio.gather(*(d.push(d.put("notes", key(n))) for n, d in enumerate(devices)))
    assert {fates(answer)[0] for answer in answers} == {"applied"}
    assert moody(world).transactions - before <= 3


async def test_a_transaction_that_hangs_holds_up_nobody_else(world: World) -> None:
    """A small push waits for company while a batch is under way, but goes alone when that one does not end."""
    bob = world.device("bob")
    stuck, goes_on = await hanging(world)
    async with asyncio.timeout(5):
        assert fates(await bob.push(bob.put("notes", key(2)))) == ["applied"]
    assert not stuck.done()
    goes_on.set()
    assert fates(await stuck) == ["applied"]


async def test_what_is_worth_a_transaction_waits_for_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large push begins beside the batch under way at once."""
    monkeypatch.setattr("tidemark.sync.pipeline.LINGER", 3600.0)
    monkeypatch.setattr("tidemark.sync.pipeline.WORTH_A_BATCH", 3)
    bob = world.device("bob")
    stuck, goes_on = await hanging(world)
    async with asyncio.timeout(5):
        assert fates(await bob.push(*(bob.put("notes", key(n)) for n in (2, 3, 4)))) == ["applied"] * 3
    goes_on.set()
    assert fates(await stuck) == ["applied"]


async def test_a_batch_is_bounded_but_for_one_request(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests beyond the bound wait for the next transaction, in order; a single larger one is taken whole."""
    monkeypatch.setattr("tidemark.sync.pipeline.MAX_BATCH", 3)
    devices = [world.device(f"u{n}") for n in range(4)]
    answers = await asyncio.gather(
        *(d.push(*(d.put("notes", key(10 * n + i)) for i in range(n + 2))) for n, d in enumerate(devices))
    )
    assert [len(answer) for answer in answers] == [2, 3, 4, 5]


async def test_commits_are_told_in_order(world: World) -> None:
    """The listener hears of each commit of a scope in version order, before the answer."""
    told: list[Commit] = []
    world.engine._pipeline._committed = told.append
    devices = [world.device(), world.device("bob")]
    for n in range(10):
        await asyncio.gather(*(d.push(d.put("nodes", key(20 * n + i), scope=W)) for i, d in enumerate(devices)))
    mine = [commit for commit in told if commit.state.scope == W]
    assert [commit.after for commit in mine] == [0, *(commit.state.head for commit in mine[:-1])]
    assert mine[-1].state.head == 20
    assert sum(commit.count for commit in mine) == 20


async def test_what_a_commit_tells_is_what_the_feed_holds(world: World) -> None:
    """The bytes of a commit are those of the run from before it to its head."""
    told: list[Commit] = []
    world.engine._pipeline._committed = told.append
    ada = world.device()
    await ada.push(
        ada.put("notes", key(1), fields={"title": "é"}),
        ada.put("notes", key(2)),
        ada.delete("notes", key(1)),
        ada.patch("notes", key(2), {"extra": {"a": [1]}}),
    )
    (commit,) = told
    run = await world.store.run("user:ada", 0, 0, 100, 1 << 20)
    assert run is not None
    assert (commit.after, commit.count, commit.changes, commit.state) == (0, run.count, run.body, run.state)


# ── scopes that others hold ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_scope_held_elsewhere_stalls_nobody_else(world: World) -> None:
    """Pushes into a scope that another process has locked wait; all others go on; then they are applied in order."""
    ada, bob = world.device(), world.device("bob")
    release = hold(world, W)
    first = asyncio.create_task(ada.push(ada.put("nodes", key(1), scope=W), ada.put("nodes", key(2), scope=V)))
    await asyncio.sleep(0)
    second = asyncio.create_task(bob.push(bob.put("nodes", key(3), scope=W)))
    await bob.apply(bob.put("nodes", key(4), scope=V), bob.put("notes", key(5)))
    assert not first.done()
    assert not second.done()
    release()
    one, two = await first, await second
    assert fates(one) == ["applied", "applied"]
    assert one[0].version < two[0].version  # type: ignore[operator]


async def test_at_its_deadline_a_push_is_put_off(world: World) -> None:
    """A scope that stays locked makes the push `retry` / `unavailable`, nothing took effect, and it may come again."""
    hurry(world, 0.02)
    ada = world.device()
    release = hold(world, W)
    mutations = [ada.put("notes", key(1)), ada.put("nodes", key(2), scope=W)]
    results = await ada.push(*mutations)
    assert [(result.status, fates([result])[0]) for result in results] == [("retry", "unavailable")] * 2
    assert await ada.rows() == {}
    release()
    await ada.apply(*mutations)


async def test_a_stranger_waits_for_no_lock(world: World) -> None:
    """A push into a scope that its caller may not write is refused at once, whoever holds it (I20)."""
    mallory = world.device("mallory")
    hold(world, W)
    async with asyncio.timeout(1):
        assert fates(await mallory.push(mallory.put("nodes", key(1), scope=W))) == ["forbidden"]


async def test_a_member_of_a_scope_that_has_no_state_yet_is_not_stuck(world: World) -> None:
    """A role given in SQL alone makes its scope with the first write."""
    world.memory.roles["workspace:new", "ada"] = "editor"
    ada = world.device()
    await ada.apply(ada.put("nodes", key(1), scope="workspace:new"))


async def test_a_membership_that_ends_before_the_commit_writes_nothing(world: World) -> None:
    """A push that finds its author expelled under the lock is `forbidden`, though it came before (I39)."""
    ada = world.device()
    release = hold(world, W)
    push = asyncio.create_task(ada.push(ada.put("nodes", key(1), scope=W)))
    await asyncio.sleep(0.01)
    del world.memory.roles[W, "ada"]
    release()
    assert fates(await push) == ["forbidden"]


# ── whatever happens ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_caller_that_goes_away_changes_nothing(world: World) -> None:
    """A push whose caller was cancelled is settled all the same, and its neighbours are answered."""
    ada, bob = world.device(), world.device("bob")
    release = hold(world, W)
    gone = asyncio.create_task(ada.push(ada.put("nodes", key(1), scope=W)))
    stays = asyncio.create_task(bob.push(bob.put("nodes", key(2), scope=W)))
    await asyncio.sleep(0.01)
    gone.cancel()
    release()
    assert fates(await stays) == ["applied"]
    with pytest.raises(asyncio.CancelledError):
        await gone
    await world.engine._pipeline.finish()
    assert (await bob.rows(W)).keys() == {("nodes", key(1)), ("nodes", key(2))}


@pytest.mark.parametrize("error", [Unavailable("away"), ZeroDivisionError("bug")])
async def test_a_database_that_is_away_answers_nothing(world: World, error: Exception) -> None:
    """All pushes of a batch fail as a whole when the database is away or something of ours breaks, and the next ones
    are settled.
    """

    async def fail() -> None:
        raise error

    ada, bob = world.device(), world.device("bob")
    moody(world).first = [fail]
    put = ada.put("notes", key(1))
    with pytest.raises(RequestError if isinstance(error, Unavailable) else ZeroDivisionError) as failed:
        await ada.push(put)
    if isinstance(failed.value, RequestError):
        assert (failed.value.code, failed.value.retry_after) == ("unavailable", 1.0)
    await ada.apply(put)
    await bob.apply(bob.put("notes", key(2)))


async def test_a_transaction_that_is_cancelled_leaves_nobody_waiting(world: World) -> None:
    """When a batch's task is cancelled, its callers are told that nothing was answered."""

    async def forever() -> None:
        await asyncio.Event().wait()

    ada = world.device()
    moody(world).first = [forever]
    push = asyncio.create_task(ada.push(ada.put("notes", key(1))))
    await asyncio.sleep(0.01)
    for task in world.engine._pipeline._running:
        task.cancel()
    with pytest.raises(RequestError, match="nothing was answered"):
        await push
    await ada.apply(ada.put("notes", key(1)))


async def test_stopping_answers_what_was_taken_in(world: World) -> None:
    """Finishing waits for pushes under way and for those put off."""
    ada = world.device()
    release = hold(world, W)
    push = asyncio.create_task(ada.push(ada.put("nodes", key(1), scope=W)))
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_later(0.02, release)
    await world.engine._pipeline.finish()
    assert fates(await push) == ["applied"]


async def test_nothing_sent_is_nothing_answered(world: World) -> None:
    """An empty push is answered, with a clock."""
    assert await world.device().push() == []


def grouped(device: Device, groups: list[str | None]) -> list[Mutation]:
    """Puts of new rows with these groups."""
    return [device.put("notes", key(n), group=group) for n, group in enumerate(groups)]


async def test_only_neighbours_make_a_group(world: World) -> None:
    """The same name further on is another group, and no name is no group (I13)."""
    ada = world.device()
    puts: list[Any] = grouped(ada, ["a", "a", None, None, "a", "b", "b"])
    puts[1] = replace(puts[1], fields={"title": 1})
    puts[3] = replace(puts[3], fields={"title": 1})
    assert fates(await ada.push(*puts)) == [
        "group_rejected", "invalid_field", "applied", "invalid_field", "applied", "applied", "applied",
    ]  # fmt: skip
