"""Which schema numbers are in use, and when an old one can go: the count, and as `tidemark clients` tells it."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from tests.backend.engine_world import DECLARATION, START, World, key, running
from tidemark.cli import main
from tidemark.plugin import make_store
from tidemark.settings import Settings, variable
from tidemark.store.base import EventQuery
from tidemark.store.schema.migrate import migrate
from tidemark.sync import numbers
from tidemark.sync.journal import decode
from tidemark.sync.numbers import Number, Usage, usage
from tidemark_protocol.messages import Mutation
from tidemark_protocol.schema import parse

HOUR = 3_600_000
SERVED = replace(DECLARATION, number=9, oldest=3)


async def test_clients_are_counted_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number's clients, users and mutations, when the last came and how long one had waited, page after page."""
    monkeypatch.setattr(numbers, "_CHUNK", 2)
    async with running(World(declaration=SERVED)) as world:
        ada, other, bob = world.device(), world.device(), world.device("bob")
        await ada.push(ada.put("notes", key(1), at=ada.at(-5 * HOUR)), ada.put("notes", key(2)), schema=3)
        await other.push(other.put("notes", key(3), fields={"title": 5}), schema=3)
        world.time += HOUR
        await bob.push(bob.put("notes", key(4)), schema=9)
        await bob.push(bob.delete("notes", key(4)), schema=9)
        await bob.push(bob.put("notes", key(5)), schema=10)
        found = await usage(world.store)
        assert found == Usage(START, [Number(3, 2, 1, 3, START, 5 * HOUR), Number(9, 1, 1, 2, START + HOUR, 0)], 0)
        later = await usage(world.store, START + 1)
        assert later == Usage(START + HOUR, [Number(9, 1, 1, 2, START + HOUR, 0)], 0)


async def test_what_clients_did_not_write_is_not_counted() -> None:
    """Changes of members and what the service wrote because of a delete are nobody's writes."""
    async with running(World()) as world:
        ada = world.device()
        await world.grant("workspace:7", ada="editor")
        node = ada.put("nodes", key(1), scope="workspace:7")
        child = ada.put("nodes", key(2), scope="workspace:7", fields={"parent": key(1)})
        await ada.apply(node, child, ada.delete("nodes", key(1), scope="workspace:7"))
        entries = await world.store.events(EventQuery(None))
        recorded = [event for entry in entries for event in decode(entry)]
        assert {event.by for event in recorded} == {None, "cascade"}
        (number,) = (await usage(world.store)).numbers
        assert (number.number, number.mutations) == (2, 3)


async def test_writes_recorded_before_numbers_were() -> None:
    """Mutations without a number are said to be so, under none."""
    async with running(World()) as world:
        ada = world.device()
        await ada.apply(ada.put("notes", key(1)))
        for entry in world.memory.journal.values():
            entry.events = json.dumps([event[:-1] for event in json.loads(entry.events)])
        assert await usage(world.store) == Usage(START, [], 1)


@pytest.mark.parametrize(
    ("used", "unused"),
    [
        ([], [(3, 9)]),
        ([3, 4, 5, 6, 7, 8, 9], []),
        ([3, 9], [(4, 8)]),
        ([5, 9], [(3, 4), (6, 8)]),
        ([2, 4, 9, 12], [(3, 3), (5, 8)]),
    ],
)
def test_unused_numbers_are_ranges(used: list[int], unused: list[tuple[int, int]]) -> None:
    """Of the numbers served those that nobody wrote under, however many they are."""
    found = Usage(START, [Number(n, 1, 1, 1, START, 0) for n in used], 0)
    assert found.unused(SERVED) == unused


SCHEMA = """
schema: 5
oldest: 2
entities:
  notes: {scope: user, fields: {title: {type: text, default: ""}}}
changes:
  4: {notes: {rename: {name: title}}}
"""


class Shell:
    """Runs `tidemark clients` on a database that a service has written to."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.file = folder / "schema.yaml"
        self.file.write_text(SCHEMA)
        migrate(url, parse(SCHEMA))

    async def written(self, *schemas: int) -> None:
        """Push a write under each of these numbers, from a device of its own, an hour after the one before."""
        declaration = parse(SCHEMA)
        store = make_store(Settings(database_url=self.url), declaration, chance=secrets.token_bytes)
        async with running(World(store, declaration)) as world:
            for number, schema in enumerate(schemas):
                world.time += HOUR
                device = world.device()
                await device.push(
                    Mutation(1, op="put", entity="notes", row=key(number), at=device.at(), fields={}), schema=schema
                )

    def run(self, *words: str) -> Result:
        """The command line in this process."""
        environ = {variable("schema"): str(self.file), variable("database_url"): self.url}
        return CliRunner().invoke(main, ["clients", *words], env=environ)


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    """A database with the tables."""
    return Shell(tmp_path, database_url)


def test_people_are_told_what_can_go(shell: Shell) -> None:
    """A line for each number in use, and in words which are not, and how far `oldest` may rise."""
    asyncio.run(shell.written(3, 3, 5))
    done = shell.run()
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert lines[1] == "3 2 1 2 2027-01-15 10:00 0 seconds"
    assert "Served, but no longer written under: 2, 4." in lines
    assert "`oldest` is 2 and may rise to 3." in lines


def test_programs_are_told_in_json(shell: Shell) -> None:
    """The same as JSON, and only of the time asked for."""
    asyncio.run(shell.written(2, 5))
    told = json.loads(shell.run("--json").output)
    assert (told["schema"], told["oldest"], told["unused"]) == (5, 2, [[3, 4]])
    assert [number["number"] for number in told["numbers"]] == [2, 5]
    assert told["numbers"][0] == {
        "number": 2, "clients": 1, "users": 1, "mutations": 1, "last": told["since"], "waited": 0,
    }  # fmt: skip
    assert "still in use" in shell.run().output


def test_an_empty_journal_says_nothing(shell: Shell) -> None:
    """Without writes no number is called unused; a duration that is none is refused."""
    done = shell.run()
    assert (done.exit_code, "nothing can be said" in done.output) == (0, True)
    assert json.loads(shell.run("--json").output)["numbers"] == []
    refused = shell.run("--since", "yesterday")
    assert (refused.exit_code, "--since" in refused.output) == (1, True)
