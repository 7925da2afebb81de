"""Transactions at the same time, where a store runs them so (`Database.overlapping`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from tests.conformance.test_transactions import V, W, everything
from tests.conformance.writing import Change, apply, put, uuid, write
from tidemark.store.base import RowTaken, ScopeState, Store, Transaction


class Held:
    """A transaction that has done its work and ends when told to."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.end = asyncio.Event()
        self.fail = False


class RollBack(Exception):
    """Ends a held transaction without effect."""


@asynccontextmanager
async def holding(
    store: Store,
    *changes: Change,
    scopes: Iterable[str] = (),
    work: Callable[[Transaction], Awaitable[Any]] | None = None,
) -> AsyncIterator[Held]:
    """A transaction that has locked and saved but not ended, while the block runs; it ends with the block.

    `work` is what else it does before.
    """
    held = Held()

    async def body(transaction: Transaction) -> None:
        await transaction.lock(list(scopes), list(scopes))
        if changes:
            await apply(transaction, changes)
        if work is not None:
            await work(transaction)
        held.ready.set()
        await held.end.wait()
        if held.fail:
            raise RollBack

    task = asyncio.ensure_future(store.transact(body))
    ready = asyncio.ensure_future(held.ready.wait())
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    try:
        yield held
    finally:
        held.end.set()
        await asyncio.gather(task, return_exceptions=held.fail)


async def lock(store: Store, *scopes: str, create: bool = True) -> dict[str, ScopeState]:
    """What another transaction can lock right now."""

    async def body(transaction: Transaction) -> dict[str, ScopeState]:
        return await transaction.lock(scopes, scopes if create else ())

    return await store.transact(body)


async def test_nothing_is_seen_before_the_end(overlapping: Store) -> None:
    """Reads see a transaction whole or not at all."""
    await write(overlapping, put(W, "names", uuid(1), name="one"))
    before = await everything(overlapping, W)
    async with holding(overlapping, put(W, "names", uuid(2), name="two")):
        assert await everything(overlapping, W) == before
    assert (await overlapping.states([W]))[W].head == 2


async def test_locks_are_passed_over_not_waited_for(overlapping: Store) -> None:
    """`lock` gives at once what is free, and the rest when its holder has ended."""
    await lock(overlapping, W, V)
    async with holding(overlapping, scopes=[W]):
        assert set(await lock(overlapping, W, V)) == {V}
    assert set(await lock(overlapping, W, V)) == {W, V}


async def test_a_lock_is_held_to_the_end(overlapping: Store) -> None:
    """A scope stays locked after it was saved, and what its next holder reads includes what was saved (I27)."""
    await lock(overlapping, W)
    async with holding(overlapping, put(W, "names", uuid(1))):
        assert await lock(overlapping, W) == {}
    assert (await lock(overlapping, W))[W].head == 1


async def test_a_scope_in_the_making_is_locked(overlapping: Store) -> None:
    """Two transactions that make one scope do not wait for each other either; the second finds it locked."""
    async with holding(overlapping, scopes=[W]):
        assert set(await lock(overlapping, W, V)) == {V}
    assert set(await lock(overlapping, W)) == {W}


async def test_locks_go_with_a_transaction_that_failed(overlapping: Store) -> None:
    """What ends in nothing leaves no lock."""
    await lock(overlapping, W)
    async with holding(overlapping, put(W, "names", uuid(1))) as held:
        held.fail = True
    assert (await lock(overlapping, W, create=False))[W].head == 0


async def test_different_scopes_do_not_wait_for_each_other(overlapping: Store) -> None:
    """A commit in one scope is durable and seen while another scope's transaction is still under way."""
    await lock(overlapping, W, V)
    async with holding(overlapping, put(W, "names", uuid(1), name="one")):
        await write(overlapping, put(V, "names", uuid(2), name="one"))
        assert {scope: state.head for scope, state in (await overlapping.states([W, V])).items()} == {W: 0, V: 1}
    assert {scope: state.head for scope, state in (await overlapping.states([W, V])).items()} == {W: 1, V: 1}


async def test_one_of_two_scopes_gets_a_new_key(overlapping: Store) -> None:
    """Both found the key free and hold different locks: one has the row, the other `RowTaken`, whoever is first."""
    await lock(overlapping, W, V)
    saving: asyncio.Queue[str] = asyncio.Queue()
    both_saving = asyncio.Event()

    async def writer(scope: str) -> None:
        async def body(transaction: Transaction) -> None:
            await transaction.lock([scope], [])
            await saving.put(scope)
            await both_saving.wait()
            await apply(transaction, [put(scope, "names", uuid(1), name=scope)])

        await overlapping.transact(body)

    writers = [asyncio.ensure_future(writer(scope)) for scope in (W, V)]
    first, second = await saving.get(), await saving.get()
    both_saving.set()
    outcomes = await asyncio.gather(*writers, return_exceptions=True)
    assert {first, second} == {W, V}
    assert sorted(map(type, outcomes), key=repr) == sorted([type(None), RowTaken], key=repr)
    states = await overlapping.states([W, V])
    assert states[W].head + states[V].head == 1


async def test_a_run_is_one_snapshot(overlapping: Store) -> None:
    """While commits go on, each page's head is one that its changes belong to: none is missing or too new (I28)."""
    await lock(overlapping, W)
    done = asyncio.Event()

    async def writer() -> None:
        for number in range(100):
            await write(overlapping, put(W, "names", uuid(number), name=str(number)), put(W, "states", uuid(number)))
        done.set()

    task = asyncio.ensure_future(writer())
    while not done.is_set():
        run = await overlapping.run(W, 0, 0, 1_000, 1 << 20)
        assert run is not None
        assert (run.count, run.to) == (run.state.head, run.state.head)
        assert run.state.head % 2 == 0
        await asyncio.sleep(0)
    await task
