"""A row's story: from the journal and the feed, and as `tidemark why` tells it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.backend.engine_world import START, Device, World, fates, key, running
from tidemark.cli import main
from tidemark.plugin import make_store
from tidemark.settings import Settings, variable
from tidemark.store.base import Saved, Transaction
from tidemark.store.schema.migrate import migrate
from tidemark.sync import journal
from tidemark.sync.journal import Event
from tidemark.sync.story import Chapter, Story, stories
from tidemark_protocol import clock
from tidemark_protocol.messages import Mutation
from tidemark_protocol.schema import parse

W = "workspace:7"
OWN = "user:ada"
DAY = 86_400_000


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world with a workspace of ada and bob."""
    async with running(World()) as world:
        await world.grant(W, ada="editor", bob="editor", eve="viewer")
        yield world


async def told(world: World, entity: str, row: str, scope: str | None = None, limit: int = 100) -> list[Story]:
    """The stories of a row."""
    return await stories(world.store, world.engine.declaration.entities[entity], row, scope, limit)


async def one(world: World, entity: str, row: str, **more: Any) -> Story:
    """The only story of a row."""
    (story,) = await told(world, entity, row, **more)
    return story


def ends(story: Story) -> list[str]:
    """What became of each write."""
    return [write.outcome for write in story.writes]


async def test_each_write_is_told_with_what_it_did(world: World) -> None:
    """Who, when it came and when it was written, what it set and what it overwrote."""
    ada = world.device()
    await ada.apply(ada.put("notes", key(1), fields={"title": "a"}, at=ada.at(-5_000)))
    world.time += 60_000
    await ada.apply(ada.patch("notes", key(1), {"title": "b", "labels/x": 1}))
    await ada.apply(ada.delete("notes", key(1)))
    story = await one(world, "notes", key(1))
    put, patch, delete = story.writes
    assert (story.scope, story.state, story.version, story.cut) == (OWN, "deleted", 3, False)
    assert (put.user, put.client, put.op, put.version, put.by) == ("ada", ada.client, "put", 1, None)
    assert (put.arrived, put.written) == (clock.instant_of_millis(START), clock.instant_of_millis(START - 5_000))
    assert put.set == {"title": "a", "body": "", "count": 0, "labels": {}, "extra": None}
    assert (put.overwrote, put.unknown) == ({}, [])
    assert (patch.set, patch.overwrote) == ({"title": "b", "labels/x": 1}, {"title": "a", "labels/x": None})
    assert (delete.set, delete.overwrote["title"]) == ({}, "b")
    assert story.root is not None
    assert story.root.event == delete.id


async def test_who_won_and_why_is_told(world: World) -> None:
    """A superseded write names the later reading that won each of its paths, and whose that is."""
    ada, bob = world.device(), world.device("bob")
    await ada.apply(ada.put("hints", key(1), scope=W))
    late = bob.patch("hints", key(1), {"text": "late"}, at=bob.at(-1_000), scope=W)
    await ada.apply(ada.patch("hints", key(1), {"text": "won"}, scope=W))
    assert fates(await bob.push(late)) == ["superseded"]
    await ada.apply(ada.delete("hints", key(1), scope=W))
    world.time += 1
    assert fates(await bob.push(bob.patch("hints", key(1), {"text": "too late"}, scope=W))) == ["superseded"]
    story = await one(world, "hints", key(1))
    put, won, lost, delete, hidden = story.writes
    # The put stands above all that is earlier, the patch above it.
    assert lost.wanted == {"text": "late"}
    assert (lost.lost["text"].user, lost.lost["text"].event, lost.lost["text"].at) == ("ada", won.id, won.at)
    assert (put.set["text"], won.set["text"]) == ("", "won")
    assert (hidden.outcome, hidden.reason, hidden.wanted) == ("superseded", "deleted", {"text": "too late"})
    assert [(held.path, held.value, held.author.user) for held in story.fields] == [("text", "too late", "bob")]
    assert delete.overwrote["text"] == "won"


async def test_rejected_attempts_are_told_with_their_reason(world: World) -> None:
    """Those for their content, and those that stand in their author's own journal because they were not allowed."""
    ada, eve = world.device(), world.device("eve")
    await ada.apply(ada.put("hints", key(1), scope=W))
    await ada.push(ada.patch("hints", key(1), {"text": 5}, scope=W))
    await eve.push(eve.patch("hints", key(1), {"text": "mine"}, scope=W))
    story = await one(world, "hints", key(1))
    assert [(w.user, w.error and w.error["code"], w.wanted) for w in story.writes[1:]] == [
        ("ada", "invalid_field", {"text": 5}),
        ("eve", "forbidden", {"text": "mine"}),
    ]


async def test_what_the_service_did_is_told_as_its_own(world: World) -> None:
    """A row that went or lost its reference with another one names the user whose delete it was."""
    ada = world.device()
    await ada.apply(ada.put("nodes", key(1), scope=W), ada.put("nodes", key(2), scope=W, fields={"parent": key(1)}))
    await ada.apply(ada.put("hints", key(3), scope=W, fields={"node": key(1)}))
    await ada.apply(ada.delete("nodes", key(1), scope=W))
    gone, hint = await one(world, "nodes", key(2)), await one(world, "hints", key(3))
    assert [(w.op, w.by, w.user) for w in gone.writes] == [("put", None, "ada"), ("delete", "cascade", "ada")]
    assert (hint.writes[1].by, hint.writes[1].set) == ("set_null", {"node": None})
    assert [held.author.by for held in hint.fields if held.path == "node"] == ["set_null"]


async def test_outside_writes_are_told_by_the_databases_user(world: World) -> None:
    """A write of another program bears `sql`, the database's user, and no device."""
    at = clock.reading(START, 1, "0" * 16)
    write = Event("applied", "patch", "notes", key(1), at, "cron", "", 2, 0, ["title"], {"title": "a"}, by="sql")

    async def save(tx: Transaction) -> None:
        await tx.save(Saved([], [], [], [], [], [journal.commit_entry(OWN, START, [write])]))

    ada = world.device()
    await ada.apply(ada.put("notes", key(1), fields={"title": "b"}))
    await world.store.transact(save)
    written = (await one(world, "notes", key(1))).writes[1]
    assert (written.by, written.user, written.client) == ("sql", "cron", None)
    assert (written.set, written.overwrote) == ({"title": "b"}, {"title": "a"})


async def test_each_value_that_stands_names_its_author(world: World) -> None:
    """By its own clock, or by that of the put beneath; of a map key by key."""
    ada, bob = world.device(), world.device("bob")
    fields = {"name": "n", "labels": {"x": 1, "y": 2}}
    await ada.apply(ada.put("nodes", key(1), scope=W, fields=fields))
    world.time += 1
    await bob.apply(bob.patch("nodes", key(1), {"name": "m", "labels/y": 3}, scope=W))
    world.time += 1
    await ada.apply(ada.patch("nodes", key(1), {"labels/x": None}, scope=W))
    story = await one(world, "nodes", key(1))
    stands = {held.path: (held.value, held.author.user, held.author.event) for held in story.fields}
    put, bobs, adas = (write.id for write in story.writes)
    assert stands == {
        "parent": (None, "ada", put),
        "name": ("m", "bob", bobs),
        "labels/x": (None, "ada", adas),
        "labels/y": (3, "bob", bobs),
    }


async def test_what_is_older_than_the_journal_is_said_to_be(world: World) -> None:
    """Where the journal's retention ended the value stands still, its author unknown; what came after is told."""
    ada = world.device()
    await ada.apply(ada.put("notes", key(1), fields={"title": "a"}))
    world.time += DAY
    await world.store.forget_journal(world.time, 100)
    story = await one(world, "notes", key(1))
    assert (story.writes, story.state) == ([], "live")
    assert {(held.author.user, held.author.event) for held in story.fields} == {(None, None)}
    assert story.root is not None
    assert story.root.written == clock.instant_of_millis(START)
    await ada.apply(ada.patch("notes", key(1), {"title": "b"}))
    after = await one(world, "notes", key(1))
    assert after.writes[0].overwrote == {"title": "a"}
    assert [held.author.user for held in after.fields if held.path in {"title", "body"}] == ["ada", None]


async def test_only_the_latest_writes_are_told_of_a_row_written_all_day(world: World) -> None:
    """The rest is said to be left out, and what the latest ones set is known all the same."""
    ada = world.device()
    await ada.apply(ada.put("notes", key(1)))
    for number in range(9):
        await ada.apply(ada.patch("notes", key(1), {"count": number}))
    story = await one(world, "notes", key(1), limit=3)
    assert [write.set for write in story.writes] == [{"count": 6}, {"count": 7}, {"count": 8}]
    assert story.cut
    assert not (await one(world, "notes", key(1), limit=10)).cut


async def test_a_row_that_moved_has_a_story_in_each_scope(world: World) -> None:
    """Deleted in the one, put in the other; `scope` asks for one alone."""
    await world.grant("workspace:8", ada="editor")
    ada = world.device()
    await ada.apply(ada.put("hints", key(1), scope=W), ada.delete("hints", key(1), scope=W))
    await ada.apply(ada.put("hints", key(1), scope="workspace:8"))
    assert [(s.scope, s.state) for s in await told(world, "hints", key(1))] == [(W, "deleted"), ("workspace:8", "live")]
    assert [s.scope for s in await told(world, "hints", key(1), scope=W)] == [W]
    assert await told(world, "hints", key(2)) == []


TITLES = st.sampled_from(["a", "b", "c"])
WRITES = st.lists(
    st.tuples(
        st.sampled_from(["put", "patch", "delete"]),
        st.integers(0, 30),
        st.dictionaries(st.sampled_from(["title", "body"]), TITLES, min_size=1),
    ),
    min_size=1,
    max_size=9,
    unique_by=lambda drawn: drawn[1],
)


@settings(max_examples=150)
@example(
    [
        ("put", 0, {"title": "a"}),
        ("patch", 3, {"body": "b"}),
        ("delete", 1, {"title": "a"}),
        ("put", 2, {"title": "a"}),
    ]
)
@given(WRITES)
async def test_what_a_write_is_said_to_have_set_is_what_it_sent(drawn: list[tuple[str, int, dict[str, str]]]) -> None:
    """In whatever order writes arrive: what the story says each one set, or wanted, is what it carried, nothing is
    unknown while the journal is whole, and each value that stands is its author's.
    """
    world = World()
    ada = world.device()
    sent: dict[str, Mutation] = {}
    for op, offset, values in drawn:
        mutation = Mutation(1, op=op, entity="notes", row=key(1), at=ada.at(offset - 100), fields=values)
        sent[str(mutation.at)] = mutation
        await ada.push(mutation)
    found = await told(world, "notes", key(1))
    writes = [write for story in found for write in story.writes]
    assert len(writes) == len(drawn)
    for write in writes:
        _check(write, sent[str(write.at)])
    for held in (held for story in found for held in story.fields if held.path in {"title", "body"}):
        carried: Any = sent[held.author.at].fields
        assert held.value == carried.get(held.path, "")


def _check(write: Chapter, sent: Mutation) -> None:
    fields: Any = sent.fields
    assert write.unknown == []
    if write.outcome == "applied":
        assert write.set == {path: fields.get(path, _default(path)) for path in write.set}
        assert set(write.set) | set(write.wanted or {}) >= (
            set() if sent.op == "delete" else set(fields) - _kept(write)
        )
    else:
        assert write.wanted == fields


def _default(path: str) -> Any:
    return {"count": 0, "labels": {}, "extra": None}.get(path, "")


def _kept(write: Chapter) -> set[str]:
    """A put does not set what later writes keep."""
    return {"title", "body"} - set(write.set) if write.op == "put" else set()


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────

SCHEMA = """
schema: 2
scopes:
  workspace:
    roles: {editor: write}
entities:
  notes:
    scope: user
    fields:
      title: {type: text, default: ""}
  tags:
    scope: workspace
    key: {column: tag, type: text, per_scope: true}
    fields:
      color: {type: text, default: grey}
"""


class Shell:
    """Runs `tidemark why` on a database that a service has written to."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.file = folder / "schema.yaml"
        self.file.write_text(SCHEMA)
        migrate(url, parse(SCHEMA))

    async def written(
        self, *writes: tuple[str, str, str, str, dict[str, Any]], beside: Callable[[], None] | None = None
    ) -> None:
        """Push writes (op, entity, row, scope, fields) of ada's, each by itself; then do what is done beside."""
        declaration = parse(SCHEMA)
        store = make_store(Settings(database_url=self.url), declaration, chance=secrets.token_bytes)
        async with running(World(store, declaration)) as world:
            await world.grant("workspace:7", ada="editor")
            await world.grant("workspace:8", ada="editor")
            ada: Device = world.device()
            for op, entity, row, scope, fields in writes:
                world.time += 1_000
                await ada.push(Mutation(1, op=op, entity=entity, row=row, scope=scope, at=ada.at(), fields=fields))
            if beside is not None:
                await asyncio.to_thread(beside)

    def run(self, *words: str) -> Result:
        """The command line in this process."""
        environ = {variable("schema"): str(self.file), variable("database_url"): self.url}
        return CliRunner().invoke(main, ["why", *words], env=environ)


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    """A database with the tables."""
    return Shell(tmp_path, database_url)


def test_people_are_told_in_tables(shell: Shell) -> None:
    """Each write in a line of its own, and the row as it stands, with whom it comes from."""
    asyncio.run(
        shell.written(
            ("put", "notes", key(1), OWN, {"title": "a"}),
            ("patch", "notes", key(1), OWN, {"title": "b"}),
            ("patch", "notes", key(1), OWN, {"title": 5}),
        )
    )
    done = shell.run("notes", key(1))
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert lines[0] == f"notes {key(1)} in {OWN}: live, version 2"
    for said in ('put the row: title = "a"', 'set: title = "b"', 'over title = "a"', "wanted to set: title = 5"):
        assert any(line.endswith(said) for line in lines), (said, lines)
    assert any("rejected (invalid_field): title" in line for line in lines)
    assert any(line.startswith('title "b" 2027-01-15 08:00:02.000 ada (device 00000000)') for line in lines)


def test_scripts_are_told_in_json(shell: Shell) -> None:
    """With a story for each scope that a guessable key is used in, deleted or not."""
    asyncio.run(
        shell.written(
            ("put", "tags", "red", "workspace:7", {"color": "red"}),
            ("put", "tags", "red", "workspace:8", {}),
            ("delete", "tags", "red", "workspace:8", {}),
        )
    )
    found = json.loads(shell.run("tags", "red", "--json").output)
    assert [(story["scope"], story["state"], len(story["writes"])) for story in found] == [
        ("workspace:7", "live", 1),
        ("workspace:8", "deleted", 2),
    ]
    (field,) = found[0]["fields"]
    assert (field["path"], field["value"], field["author"]["user"]) == ("color", "red", "ada")
    assert found[0]["writes"][0].keys() == set(Chapter.__struct_fields__)
    (alone,) = json.loads(shell.run("tags", "red", "--json", "--scope", "workspace:8").output)
    assert alone["scope"] == "workspace:8"


def test_it_is_told_while_a_service_has_the_database(shell: Shell) -> None:
    """Also on SQLite, where one process alone serves."""

    def look() -> None:
        done = shell.run("notes", key(1), "--json")
        assert [write["op"] for story in json.loads(done.output) for write in story["writes"]] == ["put"]

    asyncio.run(shell.written(("put", "notes", key(1), OWN, {}), beside=look))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nots", "x"), "there are notes, tags"),
        (("notes", "x"), "is no key of notes"),
        (("notes", key(9)), "knows"),
        (("tags", "red", "--scope", "7"), "is no scope"),
        (("tags", "red", "--scope", "user:ada"), "of kind workspace"),
    ],
)
def test_what_cannot_be_told_is_said(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """In one line, with exit code 1."""
    done = Shell(tmp_path, f"sqlite:///{tmp_path / 'tidemark.db'}").run(*words)
    assert done.exit_code == 1
    assert said in done.output
    assert len(done.output.splitlines()) == 1
