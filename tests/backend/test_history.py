"""The journal as it is read: filters, places, pages and who sees what (SPEC 7)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.engine_world import Device, Json, World, key, running
from tidemark.store.base import EventQuery, JournalEntry, JournalRow, Saved, Transaction
from tidemark.store.memory import MemoryStore
from tidemark.sync import history, journal
from tidemark.sync.access import Access
from tidemark.sync.history import History, Place, read_filter
from tidemark.sync.journal import Event
from tidemark_protocol.errors import RequestError

W = "workspace:7"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world with a workspace of ada and bob."""
    async with running(World()) as world:
        await world.grant(W, ada="editor", bob="viewer")
        yield world


async def pages(device: Device, **parameters: str) -> list[Json]:
    """All events, page after page."""
    ascending = parameters.get("order") == "asc"
    found: list[Json] = []
    for _ in range(1_000):
        answer: Json = json.loads(await device.engine.events(device.principal, parameters))
        assert len(answer["events"]) <= int(parameters.get("limit", 100))
        found += answer["events"]
        if answer["next"] is None:
            return found
        parameters["after" if ascending else "before"] = answer["next"]
    raise AssertionError("it never ends")


async def test_who_sees_what(world: World) -> None:
    """Members see a scope's events, an author the own ones, nobody those of another user's own scope (I33)."""
    ada, bob = world.device(), world.device("bob")
    await ada.push(ada.put("notes", key(1), fields={"title": 5}), ada.put("nodes", key(2), scope=W))
    await ada.push(ada.put("nodes", key(3), scope=W, fields={"name": 5}))
    await ada.push(ada.put("nodes", key(4), scope="workspace:404"))
    mine = [(e["row"], e["outcome"]) for e in await ada.events() if e["row"]]
    assert mine == [(key(2), "applied"), (key(1), "rejected"), (key(3), "rejected"), (key(4), "rejected")]
    his = [(e["row"], e["outcome"]) for e in await bob.events() if e["row"]]
    assert his == [(key(2), "applied"), (key(3), "rejected")]
    for device in (world.device("mallory"), world.device("root", admin=True)):
        assert await device.events() == []
        for scope in (W, "user:ada", "workspace:404"):
            with pytest.raises(RequestError) as refused:
                await device.events(scope=scope)
            assert refused.value.code == "forbidden"


async def test_every_member_of_an_event_is_there(world: World) -> None:
    """What there is nothing to say of is null, the error and a version that is none included."""
    ada = world.device()
    await ada.push(ada.put("notes", key(1)), ada.put("notes", key(2), fields={"title": 5}))
    applied, rejected = await ada.events(scope="user:ada")
    members = {
        "id", "time", "scope", "outcome", "op", "entity", "row", "at", "user", "client", "version", "set", "overwrote",
        "values", "won", "reason", "error", "by",
    }  # fmt: skip
    assert applied.keys() == rejected.keys() == members
    assert (applied["version"], applied["error"]) == (1, None)
    assert (rejected["version"], rejected["error"]["code"]) == (None, "invalid_field")


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", ["1", "3", "100"])
async def test_pages_of_any_size_give_every_event_once(world: World, order: str, limit: str) -> None:
    """Cursors stand between any two events, also of one commit."""
    ada = world.device()
    for start in range(0, 12, 4):
        await ada.push(*(ada.put("notes", key(start + n), fields={"title": 5} if n == 2 else {}) for n in range(4)))
    found = await pages(ada, order=order, limit=limit, scope="user:ada")
    assert len(found) == len({event["id"] for event in found}) == 12
    places = [Place(*map(int, event["id"].split("."))) for event in found]
    assert places == sorted(places, reverse=order == "desc")


def event(number: int, row: str, user: str, outcome: Any) -> Event:
    """An event of a row."""
    return Event(outcome, "put", "notes", row, "", user, "c", number, number)


@settings(max_examples=60, deadline=None)
@given(st.data())
async def test_filters_pages_and_bounds_lose_nothing(data: st.DataObject) -> None:
    """Whatever the sizes of entries, chunks, limits and the bound of events looked at, the pages together are what a
    plain filter of the whole gives.
    """
    drawn = data.draw(
        st.lists(
            st.lists(
                st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from(["applied", "rejected"])),
                min_size=1,
                max_size=5,
            ),
            max_size=8,
        )
    )
    parameters = data.draw(
        st.fixed_dictionaries(
            {"limit": st.sampled_from(["1", "2", "7"])},
            optional={
                "row": st.sampled_from("ab"),
                "user": st.sampled_from("xy"),
                "outcome": st.sampled_from(["applied", "rejected"]),
                "entity": st.just("notes"),
                "order": st.sampled_from(["asc", "desc"]),
            },
        )
    )
    world = World()
    entries = [
        journal.commit_entry("user:ada", 1_000 + n, [event(i, *one) for i, one in enumerate(events)])
        for n, events in enumerate(drawn)
    ]

    async def write(tx: Transaction) -> None:
        await tx.save(Saved([], [], [], [], [], entries))

    await world.store.transact(write)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(history, "_CHUNK", data.draw(st.integers(1, 4)))
        patched.setattr(history, "_MAX_EVENTS", data.draw(st.integers(1, 9)))
        found = await pages(world.device(), **parameters)
    expected = [
        (n, i)
        for n, events in enumerate(drawn)
        for i, (row, user, outcome) in enumerate(events)
        if parameters.get("row", row) == row
        and parameters.get("user", user) == user
        and parameters.get("outcome", outcome) == outcome
    ]
    if parameters.get("order") != "asc":
        expected.reverse()
    first = min(world.memory.journal, default=0)
    assert [event["id"] for event in found] == [f"{first + n}.{i}" for n, i in expected]


async def test_a_search_in_vain_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request looks at a bounded number of events, however many pass no filter, and says where to go on."""
    looked: list[int] = []

    class Huge(MemoryStore):
        """A journal without end."""

        async def events(self, query: EventQuery) -> list[JournalRow]:
            """Entries of 500 events each."""
            looked.append(query.limit)
            start = 10**9 if query.before is None else query.before - 1
            return [JournalRow(start - n, "user:ada", 1, ENTRY.events) for n in range(query.limit)]

    world = World(Huge(World().engine.declaration, chance=bytes))
    device = world.device()
    answer = json.loads(
        await History(world.store, Access(world.store, world.engine.declaration)).events(
            device.principal, {"user": "nobody"}
        )
    )
    assert answer["events"] == []
    assert answer["next"] is not None
    assert sum(looked) * 500 <= 2 * history._MAX_EVENTS + 500 * history._CHUNK


ENTRY: JournalEntry = journal.commit_entry("user:ada", 1, [event(n, "a", "x", "applied") for n in range(500)])


async def test_times_bound_to_the_millisecond_and_below(world: World) -> None:
    """`after` is from a time on, `before` up to and without it, also between two milliseconds."""
    ada = world.device()
    for _ in range(3):
        await ada.apply(ada.put("notes", key(world.time % 97)))
        world.time += 1
    times = [event["time"] for event in await ada.events(scope="user:ada")]
    assert [time[-8:] for time in times] == [".000000Z", ".001000Z", ".002000Z"]
    own = {"scope": "user:ada"}
    assert len(await ada.events(after=times[1], **own)) == 2
    assert len(await ada.events(before=times[1], **own)) == 1
    between = times[1].replace("1000Z", "1500Z")
    assert [e["time"] for e in await ada.events(after=between, **own)] == times[2:]
    assert [e["time"] for e in await ada.events(before=between, **own)] == times[:2]
    assert len(await ada.events(after=times[1].replace("Z", "+00:00"), **own)) == 2


@pytest.mark.parametrize(
    "parameters",
    [
        {"colour": "red"},
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "-1"},
        {"limit": "\u0661"},
        {"order": "up"},
        {"outcome": "retry"},
        {"scope": "workspace"},
        {"scope": "workspace:\0"},
        {"after": "yesterday"},
        {"after": "2027-02-30T00:00:00Z"},
        {"after": "2027-01-01T00:00:00"},
        {"before": "1.2.3"},
        {"before": "9" * 40 + ".0"},
    ],
)
def test_what_makes_no_sense_is_malformed(parameters: dict[str, str]) -> None:
    """An unknown parameter, or one out of its range, is a 400."""
    with pytest.raises(RequestError) as refused:
        read_filter(parameters)
    assert refused.value.code == "malformed"


def test_times_at_the_edge_of_the_calendar_are_times() -> None:
    """A zone may move a time before the year 1 of UTC."""
    assert read_filter({"after": "0001-01-01T00:00:00+23:59"}).since is not None
