"""The journal: first verdicts found again, events read in pages, old entries forgotten (SPEC 4, 7)."""

from __future__ import annotations

import pytest

from tests.conformance.writing import entry, save, saved
from tidemark.store.base import EventQuery, JournalRow, Store, Transaction

W = "workspace:7"
V = "workspace:8"
HIGH = (1 << 63) - 1


@pytest.fixture
async def journal(store: Store) -> Store:
    """A store with six entries of two scopes, in three commits."""
    await save(store, saved(journal=[entry(W, 100, [1, 2], text="a"), entry(V, 100, [1], text="b")]))
    await save(store, saved(journal=[entry(W, 200, [2, HIGH], text="c"), entry(W, 200, [2], 77, text="d")]))
    await save(store, saved(journal=[entry(V, 300, [], HIGH, text="e"), entry(W, 300, [3], text="f")]))
    return store


def texts(rows: list[JournalRow]) -> str:
    """The entries by their letters."""
    return "".join(row.events[2] for row in rows)


async def test_rejected_readings_are_found_by_hash(journal: Store) -> None:
    """Each by its own, whatever the scope; commits are never among them."""

    async def body(transaction: Transaction) -> list[str]:
        asked: list[set[int]] = [{77}, {HIGH}, {77, HIGH, 5}, {1, 2, 3}]
        return ["".join(sorted(texts(await transaction.spent(hashes)))) for hashes in asked]

    assert await journal.transact(body) == ["d", "e", "de", ""]


async def test_a_reading_may_be_spent_twice(store: Store) -> None:
    """Two processes may reject the same: both entries come."""
    await save(store, saved(journal=[entry(W, 1, [], 5, text="a"), entry(V, 2, [], 5, text="b")]))

    async def body(transaction: Transaction) -> list[JournalRow]:
        return await transaction.spent([5])

    assert sorted(texts(await store.transact(body))) == ["a", "b"]


async def test_commits_are_found_by_the_rows_they_name(journal: Store) -> None:
    """Oldest first, of one scope, each once, rejections left out."""

    async def body(transaction: Transaction) -> list[str]:
        asked = [(W, {2}), (W, {1, 2, HIGH}), (V, {1, 2}), (W, {9}), (W, {3, 1})]
        return [texts(await transaction.entries_of(scope, rows, 0, 10)) for scope, rows in asked]

    assert await journal.transact(body) == ["ac", "ac", "b", "", "af"]


async def test_commits_are_found_from_a_time_up_to_a_number(journal: Store) -> None:
    """None that arrived before `since`, and of the others the oldest, in the order of ids; entries of other scopes,
    other rows and rejections do not count.
    """
    asked = [(100, 10), (101, 10), (200, 1), (201, 10), (301, 10), (-1, 2), (-1, 1), (1 << 48, 10)]

    async def body(transaction: Transaction) -> list[str]:
        return [texts(await transaction.entries_of(W, {1, 2, 3}, since, limit)) for since, limit in asked]

    assert await journal.transact(body) == ["acf", "cf", "c", "f", "", "ac", "a", ""]


async def test_a_transaction_reads_entries_whole(journal: Store) -> None:
    """Scope, time and events come back as saved, and the id that events are paged by."""

    async def body(transaction: Transaction) -> list[JournalRow]:
        return await transaction.entries_of(W, {3}, 0, 10)

    found = await journal.transact(body)
    assert [row[1:] for row in found] == [(W, 300, '["f"]')]
    assert found == await journal.events(EventQuery([W], rows=[3]))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (EventQuery([W]), "fdca"),
        (EventQuery([W, V], ascending=True), "abcdef"),
        (EventQuery([V]), "eb"),
        (EventQuery(["workspace:9"]), ""),
        (EventQuery(None), "fedcba"),
        (EventQuery(None, rows=[1, HIGH]), "cba"),
        (EventQuery([W], rows=[2]), "dca"),
        (EventQuery([W, V], rows=[1, HIGH]), "cba"),
        (EventQuery([W], rows=[]), ""),
        (EventQuery([W, V], since=200), "fedc"),
        (EventQuery([W, V], until=200), "ba"),
        (EventQuery([W, V], since=101, until=300), "dc"),
        (EventQuery([W, V], limit=2), "fe"),
        (EventQuery([W, V], limit=2, ascending=True), "ab"),
        (EventQuery([W], rows=[2], since=200, limit=1, ascending=True), "c"),
    ],
)
async def test_events_are_selected(journal: Store, query: EventQuery, expected: str) -> None:
    """By scope, by the rows they name, by time from `since` up to before `until`, newest first or oldest first."""
    assert texts(await journal.events(query)) == expected


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 4, 10])
async def test_events_are_read_in_pages(journal: Store, ascending: bool, limit: int) -> None:
    """`after` and `before` exclude the entry they name, so that pages neither overlap nor leave one out."""
    seen: list[JournalRow] = []
    while True:
        edge = seen[-1].id if seen else None
        query = (
            EventQuery([W, V], after=edge, ascending=True, limit=limit)
            if ascending
            else EventQuery([W, V], before=edge, limit=limit)
        )
        page = await journal.events(query)
        if not page:
            break
        seen += page
    assert texts(seen) == ("abcdef" if ascending else "fedcba")


async def test_ids_rise_with_each_commit(journal: Store) -> None:
    """A later commit's entries stand above an earlier one's, within a scope and over several."""
    found = await journal.events(EventQuery([W, V], ascending=True))
    numbers = [row.id for row in found]
    assert numbers == sorted(set(numbers))
    first, last = numbers[0], numbers[-1]
    assert texts(await journal.events(EventQuery([W, V], after=first, before=last))) == "edcb"


async def test_old_entries_are_forgotten_in_portions(journal: Store) -> None:
    """Those that arrived before a time, a number of them at once; the rest stays, and ids are not given again."""
    assert await journal.forget_journal(100, 10) == 0
    highest = (await journal.events(EventQuery([W, V])))[0].id
    assert await journal.forget_journal(300, 3) == 3
    assert await journal.forget_journal(300, 3) == 1
    assert await journal.forget_journal(300, 3) == 0
    assert texts(await journal.events(EventQuery([W, V]))) == "fe"
    assert await journal.forget_journal(1_000, 10) == 2
    await save(journal, saved(journal=[entry(W, 400, text="g")]))
    assert (await journal.events(EventQuery([W])))[0].id > highest


async def test_what_was_forgotten_is_not_found(journal: Store) -> None:
    """Neither by row nor by hash."""
    await journal.forget_journal(1_000, 10)

    async def body(transaction: Transaction) -> list[list[JournalRow]]:
        return [await transaction.spent([77, HIGH]), await transaction.entries_of(W, [1, 2, 3], 0, 10)]

    assert await journal.transact(body) == [[], []]
