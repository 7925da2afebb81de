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
from tidemark_protocol import clock
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
        "values", "won", "reason", "error", "by", "schema",
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


def event(number: int, row: str, user: str, outcome: Any, **more: Any) -> Event:
    """An event of a row."""
    return Event(outcome, "put", more.pop("entity", "notes"), row, "", user, more.pop("client", "c"), 1, number, **more)


SCOPES = ("user:ada", W, "workspace:8")
"""The last of them ada may not read."""
EVENTS = st.builds(
    event,
    st.integers(0, 9),
    row=st.sampled_from("ab"),
    user=st.sampled_from("xy"),
    outcome=st.sampled_from(["applied", "superseded", "rejected"]),
    entity=st.sampled_from(["notes", "nodes"]),
    client=st.sampled_from(["", "c", "d"]),
    by=st.sampled_from([None, "sql", "cascade"]),
)
ENTRIES = st.lists(
    st.tuples(st.sampled_from(SCOPES), st.integers(1_000, 1_009), st.lists(EVENTS, min_size=1, max_size=4)), max_size=6
)
"""Scope, arrival (ms) and events of journal entries."""
FILTERS = st.fixed_dictionaries(
    {"limit": st.sampled_from(["1", "2", "7"]), "order": st.sampled_from(["asc", "desc"])},
    optional={
        "scope": st.sampled_from(SCOPES[:2]),
        "entity": st.sampled_from(["notes", "nodes"]),
        "row": st.sampled_from("ab"),
        "user": st.sampled_from("xy"),
        "client": st.sampled_from(["c", "d"]),
        "outcome": st.sampled_from(["applied", "superseded", "rejected"]),
        "by": st.sampled_from(["sql", "cascade"]),
    },
)
TIMES = st.tuples(st.none() | st.integers(1_000, 1_010), st.none() | st.integers(1_000, 1_010))


def matching(store: MemoryStore, asked: Json, since: int, until: int) -> list[str]:
    """A plain filter over all that the journal holds, oldest first: the ids of what ada is to see."""
    return [
        f"{number}.{index}"
        for number, entry in sorted(store.journal.items())
        for index, event in enumerate(journal.decode(JournalRow(number, entry.scope, entry.arrived, entry.events)))
        if entry.scope in ([asked["scope"]] if "scope" in asked else SCOPES[:2])
        and since <= entry.arrived < until
        and all(
            getattr(event, name) == value for name, value in asked.items() if hasattr(event, name) and name != "scope"
        )
    ]


@settings(max_examples=150)
@given(st.data())
async def test_filters_pages_and_bounds_lose_nothing(data: st.DataObject) -> None:
    """Whatever the filters, the sizes of entries, chunks and limits, the bound of events looked at, and what is
    recorded between two pages: the pages together hold each event that a plain filter of the whole gives, once.
    """
    world = World()
    await world.grant(W, ada="viewer")
    asked = data.draw(FILTERS)
    since, until = data.draw(TIMES)
    bounds = {"after": since, "before": until}
    times = {name: clock.instant_of_millis(time) for name, time in bounds.items() if time is not None}
    forward = asked["order"] == "asc"

    async def record() -> None:
        entries = [journal.commit_entry(scope, time, events) for scope, time, events in data.draw(ENTRIES)]

        async def write(tx: Transaction) -> None:
            await tx.save(Saved([], [], [], [], [], entries))

        await world.store.transact(write)

    def expected() -> list[str]:
        return matching(world.memory, asked, since or 0, until or 10**15)

    await record()
    before = expected()
    found: list[str] = []
    ada = world.device()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(history, "_CHUNK", data.draw(st.integers(1, 4)))
        patched.setattr(history, "_MAX_EVENTS", data.draw(st.integers(1, 9)))
        parameters = asked | times
        while True:
            answer = json.loads(await ada.engine.events(ada.principal, parameters))
            assert len(answer["events"]) <= int(asked["limit"])
            found += [event["id"] for event in answer["events"]]
            if answer["next"] is None:
                break
            parameters = parameters | {"after" if forward else "before": answer["next"]}
            if data.draw(st.booleans()):
                await record()
    # What is recorded meanwhile lies ahead of who reads oldest first, and behind the others.
    assert found == (expected() if forward else before[::-1])


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
        {"by": "hand"},
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
