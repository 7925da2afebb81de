"""Transactions: all or nothing, locks that do not queue, what can be refused (`store/base.py`)."""

from __future__ import annotations

import asyncio
from typing import Never

import pytest

from tests.conformance.declared import complete
from tests.conformance.writing import STAMP, apply, at, delete, entry, put, read, save, saved, uuid, write
from tidemark.store.base import (
    ConstraintFailed,
    EventQuery,
    FeedRow,
    RowImage,
    RowKey,
    RowTaken,
    ScopeState,
    Store,
    Transaction,
)

W = "workspace:7"
V = "workspace:8"


class Stop(Exception):
    """What a body raises to end its transaction."""


async def everything(store: Store, scope: str) -> tuple[object, ...]:
    """All that the port shows of a scope with names and notes, comparable."""

    async def tables(transaction: Transaction) -> object:
        return sorted(await transaction.holders(scope, "names", ("name",), {("one",), ("two",), ("three",)}))

    run = await store.run(scope, 0, 0, 1_000, 1 << 20)
    return (
        await store.states([scope]),
        run,
        sorted((row.entity, row.row, row.version, row.doc, row.root) for row in await store.rows_of(scope)),
        await store.events(EventQuery([scope])),
        await store.members(scope),
        await store.transact(tables),
    )


async def test_transact_gives_back_what_the_body_gives(store: Store) -> None:
    """The value of the body is the value of `transact`."""

    async def body(transaction: Transaction) -> str:
        await transaction.lock([W], [W])
        return "value"

    assert await store.transact(body) == "value"


async def test_what_was_saved_is_there_afterwards(store: Store) -> None:
    """Scope, feed, table and journal hold it when `transact` has returned (I14)."""
    await write(store, put(W, "names", uuid(1), name="one"), journal=[entry(W, 5, [7], text="x")])
    run = await store.run(W, 0, 0, 10, 1 << 20)
    assert [(change.row, change.version, (change.doc or {})["name"]) for change in read(run)] == [(uuid(1), 1, "one")]
    assert [row.events for row in await store.events(EventQuery([W]))] == ['["x"]']
    assert [(row.row, row.version, row.deleted) for row in await store.rows_of(W)] == [(uuid(1), 1, False)]


async def test_nothing_happens_when_the_body_raises(store: Store) -> None:
    """A body that raises leaves no trace in any table, and its exception comes out."""
    await write(store, put(W, "names", uuid(1), name="one"))
    before = await everything(store, W)

    async def body(transaction: Transaction) -> Never:
        await apply(
            transaction,
            [delete(W, "names", uuid(1)), put(W, "names", uuid(2), name="two")],
            journal=[entry(W, 1, [1]), entry(W, 1, spent=3)],
        )
        await transaction.set_role(W, "ada", "owner")
        raise Stop

    with pytest.raises(Stop):
        await store.transact(body)
    assert await everything(store, W) == before
    assert await store.memberships(["ada"]) == {}


async def test_a_scope_made_by_a_transaction_that_raised_does_not_exist(store: Store) -> None:
    """`create` is part of the transaction."""

    async def body(transaction: Transaction) -> Never:
        await transaction.lock([W], [W])
        raise Stop

    with pytest.raises(Stop):
        await store.transact(body)
    assert await store.states([W]) == {}


async def test_a_state_changed_but_not_saved_is_not_kept(store: Store) -> None:
    """What `lock` gives is the caller's own."""

    async def body(transaction: Transaction) -> None:
        state = (await transaction.lock([W], [W]))[W]
        state.head = 99

    await store.transact(body)
    assert (await store.states([W]))[W].head == 0


async def test_a_store_works_on_after_a_failure(store: Store) -> None:
    """A transaction that failed holds nothing: neither locks nor a connection."""
    for number in range(30):
        with pytest.raises(ConstraintFailed):
            await write(store, put(W, "states", uuid(number), state="nonsense"))
    assert (await write(store, put(W, "states", uuid(1), state="done")))[W].head == 1


async def test_lock_gives_the_states_of_scopes_that_exist(store: Store) -> None:
    """Those not there and not to be made are left out; those to be made are new."""
    kept = ScopeState(W, head=5, floor=2, clock=at(9), live=3, total=(1 << 48) - 1, members=4, horizon=1 << 41)
    await store.transact(lambda transaction: transaction.lock([W], [W]))
    await save(store, saved(scopes=[kept]))

    async def body(transaction: Transaction) -> dict[str, ScopeState]:
        return await transaction.lock([W, V, "workspace:9"], [V])

    assert await store.transact(body) == {W: kept, V: ScopeState(V)}
    assert await store.states([W, V, "workspace:9"]) == {W: kept, V: ScopeState(V)}


async def test_scopes_and_rows_are_told_apart_byte_by_byte(store: Store) -> None:
    """Case, and everything else about a name, matters."""
    scopes = ["workspace:a", "workspace:A", "workspace:a.", "workspace:a%C3%A4"]
    for scope in scopes:
        await write(store, put(scope, "tags", "x"), put(scope, "tags", "X"), put(scope, "tags", "x."))
    assert {scope: state.head for scope, state in (await store.states(scopes)).items()} == dict.fromkeys(scopes, 3)

    async def body(transaction: Transaction) -> list[FeedRow]:
        return await transaction.load([RowKey("workspace:a", "tags", "X")])

    assert [(row.scope, row.row) for row in await store.transact(body)] == [("workspace:a", "X")]


async def test_load_gives_the_rows_asked_for(store: Store) -> None:
    """Every member of a feed row comes back as it was saved."""
    await write(store, put(W, "names", uuid(1)), put(W, "names", uuid(2), name="two"))
    row = FeedRow(W, "names", uuid(1), 7, True, '{"name":"ä☃😀"}', at(3), '{"name":"x"}', 1 << 41, True)
    await save(store, saved(feed=[row]))

    async def body(transaction: Transaction) -> list[FeedRow]:
        return await transaction.load([RowKey(W, "names", uuid(1)), RowKey(W, "names", uuid(3))])

    assert await store.transact(body) == [row]


async def test_load_of_nothing_is_nothing(store: Store) -> None:
    """Empty sets are sets."""

    async def body(transaction: Transaction) -> list[object]:
        return [
            await transaction.lock([], []),
            await transaction.load([]),
            await transaction.roles([]),
            await transaction.spent([]),
            await transaction.entries_of(W, [], 0, 10),
            await transaction.referring(W, "names", "name", []),
            await transaction.holders(W, "names", ("name",), []),
        ]

    assert await store.transact(body) == [{}, [], {}, [], [], [], []]
    await save(store, saved())
    assert await store.states([]) == {}
    assert await store.events(EventQuery([])) == []


async def test_load_shows_where_a_key_is_in_use(store: Store) -> None:
    """Rows of other scopes come too, tombstones included, where keys are unique over all scopes."""
    await write(store, put(W, "names", uuid(1)), delete(V, "names", uuid(1)), put(W, "tags", "t"), put(V, "tags", "t"))

    async def body(transaction: Transaction) -> list[FeedRow]:
        return await transaction.load([RowKey("workspace:9", "names", uuid(1)), RowKey(W, "tags", "t")])

    found = sorted((row.scope, row.entity, row.deleted) for row in await store.transact(body))
    assert found == [(W, "names", False), (W, "tags", False), (V, "names", True)]


async def test_a_key_in_use_in_another_scope_is_taken(store: Store) -> None:
    """A table's row never passes to another scope by being written there: nothing happened."""
    await write(store, put(W, "names", uuid(1), name="one"))
    before = await everything(store, W)
    for new in (True, False):
        image = RowImage(RowKey(V, "names", uuid(1)), complete("names", name="two"), STAMP, STAMP, new)
        with pytest.raises(RowTaken):
            await save(store, saved(images=[image], journal=[entry(V, 1)]))
    assert await everything(store, W) == before
    assert await store.events(EventQuery([V])) == []


async def test_a_key_of_a_row_that_is_gone_is_free(store: Store) -> None:
    """A tombstone elsewhere does not hold the key."""
    await write(store, put(W, "names", uuid(1)))
    await write(store, delete(W, "names", uuid(1)))
    await write(store, put(V, "names", uuid(1), name="one"))
    with pytest.raises(RowTaken):
        await write(store, put(W, "names", uuid(1)))


async def test_a_row_may_move_within_one_save(store: Store) -> None:
    """What goes makes room for what comes."""
    await write(store, put(W, "names", uuid(1), name="one"))
    await write(store, delete(W, "names", uuid(1)), put(V, "names", uuid(1), name="one"))

    async def body(transaction: Transaction) -> list[object]:
        return [await transaction.holders(scope, "names", ("name",), [("one",)]) for scope in (W, V)]

    assert await store.transact(body) == [[], [(("one",), uuid(1))]]


async def test_one_save_may_not_put_a_key_into_two_scopes(store: Store) -> None:
    """Whichever is written first, the other finds the key taken, and nothing happened."""
    with pytest.raises(RowTaken):
        await write(store, put(W, "names", uuid(1)), put(V, "names", uuid(1)))
    assert await store.states([W, V]) == {}


async def test_keys_per_scope_are_free_in_every_scope(store: Store) -> None:
    """Such rows neither collide nor change each other."""
    await write(store, put(W, "tags", "t", color="red"), put(V, "tags", "t", color="blue"))
    await write(store, delete(W, "tags", "t"))

    async def body(transaction: Transaction) -> list[object]:
        fields = ("color",)
        return [await transaction.holders(scope, "tags", fields, [("red",), ("blue",)]) for scope in (W, V)]

    assert await store.transact(body) == [[], [(("blue",), "t")]]


async def test_uniqueness_holds_within_a_scope(store: Store) -> None:
    """A second holder of unique values is refused as such, and nothing happened; another scope may hold them."""
    await write(store, put(W, "names", uuid(1), name="one", shelf=uuid(9), place=1))
    await write(store, put(V, "names", uuid(2), name="one", shelf=uuid(9), place=1))
    before = await everything(store, W)
    for values in ({"name": "one"}, {"name": "two", "shelf": uuid(9), "place": 1}):
        with pytest.raises(ConstraintFailed) as refused:
            await write(store, put(W, "names", uuid(3), **values), journal=[entry(W, 1)])
        assert refused.value.unique
        assert refused.value.__cause__ is not None or type(store).__module__ == "tidemark.store.memory"
    assert await everything(store, W) == before


async def test_null_is_never_held_twice(store: Store) -> None:
    """Unique values with a null among them do not collide."""
    await write(
        store,
        put(W, "names", uuid(1), name="one", shelf=uuid(9)),
        put(W, "names", uuid(2), name="two", shelf=uuid(9)),
        put(W, "names", uuid(3), name="three"),
    )
    assert (await store.states([W]))[W].head == 3


async def test_unique_values_pass_on_within_one_save(store: Store) -> None:
    """From a row that goes, and in a circle among rows named as swapped."""
    await write(store, *(put(W, "names", uuid(n), name=name) for n, name in enumerate(("one", "two", "three"), 1)))
    await write(store, delete(W, "names", uuid(1)), put(W, "names", uuid(4), name="one"))
    circle = {2: "three", 3: "one", 4: "two"}
    await write(
        store,
        *(put(W, "names", uuid(n), name=name) for n, name in circle.items()),
        swapped=[RowKey(W, "names", uuid(n)) for n in circle],
    )

    async def body(transaction: Transaction) -> object:
        return dict(await transaction.holders(W, "names", ("name",), {("one",), ("two",), ("three",)}))

    assert await store.transact(body) == {(name,): uuid(n) for n, name in circle.items()}


async def test_other_constraints_are_told_from_uniqueness(store: Store) -> None:
    """A value that the table refuses is a failed constraint that is not `unique`, and nothing happened (I22)."""
    before = await everything(store, W)
    with pytest.raises(ConstraintFailed) as refused:
        await write(store, put(W, "states", uuid(1), state="nonsense"), journal=[entry(W, 1)])
    assert not refused.value.unique
    assert await everything(store, W) == before
    with pytest.raises(ConstraintFailed) as refused:
        await write(store, put(W, "states", uuid(1), state=None))
    assert not refused.value.unique


async def test_a_body_may_find_out_that_it_was_refused(store: Store) -> None:
    """`save` itself raises, so that whoever saved can say what it was doing."""

    async def body(transaction: Transaction) -> Never:
        with pytest.raises(ConstraintFailed):
            await apply(transaction, [put(W, "states", uuid(1), state="nonsense")])
        raise Stop

    with pytest.raises(Stop):
        await store.transact(body)


async def test_rows_are_written_again(store: Store) -> None:
    """A row put, changed, deleted and put anew is in the table as it was last put."""
    await write(store, put(W, "names", uuid(1), name="one"))
    await write(store, put(W, "names", uuid(1), name="two"))
    await write(store, delete(W, "names", uuid(1)))
    await write(store, put(W, "names", uuid(1), name="three"))

    async def body(transaction: Transaction) -> object:
        return await transaction.holders(W, "names", ("name",), {("one",), ("two",), ("three",)})

    assert await store.transact(body) == [(("three",), uuid(1))]


async def test_a_large_set_is_one_save(store: Store) -> None:
    """Thousands of rows of several scopes in one transaction."""
    changes = [put(f"workspace:{number % 5}", "names", uuid(number), name=str(number)) for number in range(4_000)]
    states = await write(store, *changes, journal=[entry(W, 1, range(4_000))])
    assert {state.head for state in states.values()} == {800}

    async def body(transaction: Transaction) -> int:
        keys = [change.key for change in changes]
        holders = await transaction.holders("workspace:0", "names", ("name",), {(str(n),) for n in range(4_000)})
        return len(await transaction.load(keys)) + len(holders)

    assert await store.transact(body) == 4_800


async def test_no_commit_is_lost_to_another(store: Store) -> None:
    """Writers at the same scope, each trying until it has the lock, all count."""

    async def writer(number: int) -> None:
        async def body(transaction: Transaction) -> bool:
            if W not in await transaction.lock([W], [W]):
                return False
            await apply(transaction, [put(W, "names", uuid(number), name=str(number))])
            return True

        while not await store.transact(body):
            pass

    await asyncio.gather(*(writer(number) for number in range(20)))
    state = (await store.states([W]))[W]
    assert (state.head, state.live) == (20, 20)
