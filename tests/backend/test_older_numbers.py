"""Mutations of older schema numbers in the checks and in the merge (SPEC 4 and 10)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from tests.backend.engine_world import START, World, fates, key, running
from tidemark.store.base import EventQuery
from tidemark.sync.access import Principal
from tidemark.sync.journal import Event, decode
from tidemark.sync.prepare import Prepared, Preparer
from tidemark_protocol import clock
from tidemark_protocol.conversion import Conversions
from tidemark_protocol.messages import Mutation, Result
from tidemark_protocol.schema import parse

FILE = """
schema: 5
oldest: 2
scopes: {workspace: {roles: {editor: write}}}
entities:
  projects: {scope: user, fields: {title: {type: text, default: ""}}}
  tasks:
    scope: user
    fields:
      title: {type: text, max: 10}
      state: {type: enum, values: [todo, done], default: todo}
      project_id: {type: uuid, ref: projects, nullable: true}
      labels: {type: map}
      size: {type: integer, default: 1}
      %s
    unique: [[title]]
changes:
  3: {tasks: {rename: {name: label, status: state}, values: {state: {open: todo}}, remove: [flag]}}
  5: {tasks: {rename: {label: title, project: project_id, tags: labels}, values: {state: {closed: done}}}}
"""
DECLARATION = parse(FILE % "")
STRICT = parse(FILE % "code: {type: text}")
ADA = Principal("ada", "user:ada", False, 0)
AT = "0192f3a4b5c6-0001-5f1c9a7e3d2b4a68"


def prepare(number: int, op: str, fields: dict[str, Any], preparer: Preparer | None = None) -> Prepared:
    """A mutation of a task as clients of a number write it."""
    sent = Mutation(1, op=op, entity="tasks", row=key(1), at=AT, fields=fields)
    return (preparer or Preparer(DECLARATION, 4_096)).prepare(ADA, sent, number)


def fault(prepared: Prepared) -> tuple[str, str | None]:
    """Code and field of what it is refused for."""
    assert prepared.fault is not None
    return prepared.fault.code, prepared.fault.field


def test_a_put_is_read_as_its_number_declares_it() -> None:
    """Names, paths and texts are followed to the present, fields added since take their default (I51)."""
    for number, fields in (
        (2, {"name": "n", "status": "open", "flag": 1, "tags": {"a": 1}}),
        (3, {"label": "n", "state": "todo", "tags": {"a": 1}}),
        (4, {"label": "n", "tags": {"a": 1}}),
        (5, {"title": "n", "labels": {"a": 1}}),
    ):
        write = prepare(number, "put", fields).write
        assert write is not None, number
        assert write.values == {"title": "n", "state": "todo", "project_id": None, "labels": {"a": 1}, "size": 1}


def test_a_required_field_added_since_is_missing() -> None:
    """What an older client cannot give and no default fills is `missing_field`, under the only name it has."""
    assert fault(prepare(2, "put", {"name": "n"}, Preparer(STRICT, 4_096))) == ("missing_field", "code")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("missing_field", "name")),
        ({"name": "x" * 11}, ("invalid_field", "name")),
        ({"name": "n", "status": "done!"}, ("invalid_field", "status")),
        ({"name": "n", "tags": None}, ("invalid_field", "tags")),
        ({"name": "n", "tags/a": 1}, ("unknown_field", "tags/a")),
        ({"name": "n", "title": "t"}, ("unknown_field", "title")),
        ({"name": "n", "label": "t"}, ("unknown_field", "label")),
        ({"name": "n", "title": "t", "id": key(1)}, ("read_only_field", "id")),
        ({"name": "n", "other": 1}, ("unknown_field", "other")),
    ],
)
def test_faults_are_told_in_the_author_s_words(fields: dict[str, Any], expected: tuple[str, str]) -> None:
    """Code by code the field is named as it was sent, in the message too (I51)."""
    prepared = prepare(2, "put", fields)
    assert fault(prepared) == expected
    assert prepared.fault is not None
    assert expected[1] in prepared.fault.message


def test_keys_of_a_renamed_map_are_paths_of_it() -> None:
    """A patch sets and removes keys of a map under its new name, and its faults are of the old one (I51)."""
    write = prepare(4, "patch", {"tags/a~1b": None, "tags/c": 1}).write
    assert write is not None
    assert write.values == {"labels/a~1b": None, "labels/c": 1}
    assert fault(prepare(4, "patch", {"tags/a": 1, "tags": {}})) == ("invalid_field", "tags/a")
    assert fault(prepare(4, "patch", {"label/a": 1})) == ("unknown_field", "label/a")


def test_a_patch_without_fields_is_one_that_was_sent_so() -> None:
    """A patch whose fields are all removed ones sets nothing and is valid; one that was empty is not."""
    prepared = prepare(2, "patch", {"flag": True})
    assert prepared.fault is None
    assert prepared.write is not None
    assert (prepared.write.values, prepared.dropped) == ({}, ("flag",))
    assert fault(prepare(2, "patch", {})) == ("invalid_mutation", None)


def test_the_present_number_is_not_converted() -> None:
    """Nothing is looked for where no number stands between: an old name is unknown, an old text invalid."""
    assert fault(prepare(5, "patch", {"name": "n"})) == ("unknown_field", "name")
    assert fault(prepare(5, "patch", {"state": "open"})) == ("invalid_field", "state")
    assert prepare(5, "patch", {"title": "t"}).translation is None


SPELLINGS: list[tuple[int, dict[str, Any]]] = [
    (2, {"name": "n", "status": "open", "tags": {"a": 1}}),
    (3, {"label": "n", "state": "todo", "tags": {"a": 1}}),
    (4, {"label": "n", "state": "todo", "tags": {"a": 1}}),
    (5, {"title": "n", "state": "todo", "labels": {"a": 1}}),
]
EARLIER = parse(
    """
    schema: 3
    oldest: 2
    entities: {tasks: {scope: user, fields: {label: {type: text}, state: {type: text}, tags: {type: map}}}}
    changes: {3: {tasks: {rename: {name: label, status: state}, values: {state: {open: todo}}, remove: [flag]}}}
    """
)
"""What the service declared while 3 was its number."""


@given(st.sampled_from(SPELLINGS), st.sampled_from(SPELLINGS), st.booleans())
def test_content_is_known_under_every_number(
    first: tuple[int, dict[str, Any]], again: tuple[int, dict[str, Any]], risen: bool
) -> None:
    """The same mutation under another number, or before the service rose, is the same content; another is not (I51)."""
    before = Preparer(EARLIER if risen and first[0] <= 3 else DECLARATION, 4_096)
    recorded = prepare(first[0], "put", first[1], before).content
    number, fields = again
    assert prepare(number, "put", fields).has_content(recorded)
    assert not prepare(number, "put", fields | {"size": 2}).has_content(recorded)
    assert not prepare(number, "patch", fields).has_content(recorded)


async def sent(world: World, *mutations: Mutation, schema: int = 2) -> list[Result]:
    """The verdicts on mutations of a device of ada's."""
    return await world.device().push(*mutations, schema=schema)


def task(world: World, op: str, row: int, **fields: Any) -> Mutation:
    """A mutation of a task, its reading the world's latest."""
    world.time += 1
    return Mutation(1, op=op, entity="tasks", row=key(row), at=world.device().at(), fields=fields)


async def events(world: World) -> list[Event]:
    """All that the journal tells, oldest first."""
    return [event for entry in await world.store.events(EventQuery(None, ascending=True)) for event in decode(entry)]


OLD_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from(["a", "b", "far too long for it"]),
    "status": st.sampled_from(["open", "closed", "todo", "done", "odd"]),
    "flag": st.booleans(),
    "tags": st.dictionaries(st.sampled_from("xy"), st.integers(0, 2), max_size=2),
    "tags/x": st.none() | st.integers(0, 2),
    "flag/x": st.none(),
    "size": st.integers(0, 2),
}
WRITES = st.tuples(
    st.sampled_from(["put", "patch", "patch", "delete"]),
    st.integers(1, 2),
    st.fixed_dictionaries({}, optional=OLD_VALUES),
    st.integers(0, 9),
)


@given(st.lists(WRITES, max_size=8), st.integers(2, 5))
def test_older_writes_have_the_effect_of_their_converted_form(
    writes: list[tuple[str, int, dict[str, Any], int]], reader: int
) -> None:
    """A history written under an old number, and the same converted and written under the present one, get the same
    verdicts and leave the same rows, which readers of every number find in their shape (I51, I52).
    """
    translation = Conversions(DECLARATION).translation("tasks", 2)
    assert translation is not None
    converted = [(op, row, translation.upward(fields).fields, late) for op, row, fields, late in writes]

    async def play(history: list[tuple[str, int, dict[str, Any], int]], number: int) -> tuple[list[Any], Any, Any]:
        async with running(World(declaration=DECLARATION)) as world:
            told: list[Any] = []
            for count, (op, row, fields, late) in enumerate(history):
                at = clock.reading(START + count - 3 * late, count, "00000000000000aa")
                sent = Mutation(1, op=op, entity="tasks", row=key(row), at=at, fields=fields)
                if not translation.upward(writes[count][2]).fields and op == "patch":
                    continue  # what sets nothing cannot be written under the present number
                (result,) = await world.device().push(sent, schema=number)
                told.append((result.status, result.version, result.error and result.error.code))
            present = await world.device().pull(schema=5)
            return told, present.scopes[0].changes, (await world.device().pull(schema=reader)).scopes[0].changes

    old, new = asyncio.run(play(writes, 2)), asyncio.run(play(converted, 5))
    assert old == new
    shape = Conversions(DECLARATION).translation("tasks", reader)
    for now, then in zip(old[1], old[2], strict=True):
        assert then.doc == (now.doc if shape is None or now.doc is None else shape.downward(now.doc))


async def test_what_the_rows_refuse_is_told_in_the_author_s_words() -> None:
    """References and uniqueness name fields as they were sent too, whole groups of them (I51)."""
    async with running(World(declaration=DECLARATION)) as world:
        taken = task(world, "put", 1, name="n")
        assert fates(await sent(world, taken)) == ["applied"]
        results = await sent(world, task(world, "put", 2, name="n"), task(world, "put", 3, name="m", project=key(9)))
        errors = [result.error for result in results if result.error is not UNSET]
        assert [(error.code, error.field) for error in errors] == [
            ("unique_violation", "name"),
            ("ref_missing", "project"),
        ]
        assert [error.message.split(" ")[-1] for error in errors[:1]] == ["name"]
        assert [event.field for event in await events(world)] == [None, "name", "project"]


async def test_what_was_lost_is_told_and_kept_as_it_was_sent() -> None:
    """`superseded_fields`, `values` and `won` are the author's; `set` and `overwrote` are the row's (I46, I51)."""
    async with running(World(declaration=DECLARATION)) as world:
        first = task(world, "put", 1, name="n", flag=True)
        early = task(world, "patch", 1, name="lost", status="closed", flag=1, **{"tags/a": 1})
        winner = task(world, "patch", 1, title="won", size=5)
        assert fates(await sent(world, first)) == ["applied"]
        await sent(world, winner, schema=5)
        (result,) = await sent(world, early)
        assert (result.status, result.superseded_fields) == ("applied", ["name", "flag"])
        put, _, patch = await events(world)
        assert (put.values, put.schema) == ({"flag": True}, 2)
        assert patch.values == {"name": "lost", "flag": 1}
        assert patch.won == {"name": winner.at}
        assert patch.names == ["state", "labels/a"]
        assert patch.overwrote == {"state": "todo", "labels/a": None}


async def test_a_group_of_removed_fields_holds_nobody_back() -> None:
    """A member of a group that sets nothing any more is superseded, and the others take effect."""
    async with running(World(declaration=DECLARATION)) as world:
        await sent(world, task(world, "put", 1, name="n"))
        head = (await world.store.states(["user:ada"]))["user:ada"]
        nothing, other = task(world, "patch", 1, flag=False), task(world, "put", 2, name="m")
        nothing.group = other.group = "g"
        results = await sent(world, nothing, other)
        assert [result.status for result in results] == ["superseded", "applied"]
        assert (await world.store.states(["user:ada"]))["user:ada"].head == head.head + 1


async def test_a_number_below_the_oldest_keeps_its_first_verdict() -> None:
    """A mutation applied before its number went is told so again, though its number is not served (I23, I51)."""
    async with running(World(declaration=DECLARATION)) as world:
        first = task(world, "put", 1, name="n")
        (before,) = await sent(world, first)
        (again,) = await sent(world, first, schema=1)
        assert (again.status, again.version) == ("applied", before.version)
        (other,) = await sent(world, task(world, "put", 2, name="m"), schema=1)
        assert other.status == "retry"
