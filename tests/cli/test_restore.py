"""`tide restore`: what was overwritten, deleted or never won comes back as a new write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings

from tests.cli.conftest import SCHEMA, START
from tests.cli.devices import SCOPE, Tide, grant
from tests.properties.histories import arrivals
from tests.servers import TidemarkServer
from tidemark_cli.errors import TideError
from tidemark_cli.restore import Journal, chosen, declared, losses, millis_of
from tidemark_protocol import clock
from tidemark_protocol.merge import RowState, Write, apply, same_value
from tidemark_protocol.schema import parse

KEY = "11111111-1111-4111-8111-111111111111"
Json = dict[str, Any]
ENTITY = parse(
    """
    schema: 1
    entities:
      things:
        scope: user
        fields:
          name: {type: text, default: ""}
          color: {type: text, default: ""}
          labels: {type: map}
          links: {type: map}
    """
).entities["things"]


def event(number: int, op: str = "patch", outcome: str = "applied", **more: Any) -> Json:
    """An event as it travels, arrived a second after the one before."""
    time = clock.instant_of_millis(START + number * 1_000)
    said = {"id": f"{number}.0", "time": time, "op": op, "outcome": outcome, "user": "ann", "client": "c"}
    return said | {"overwrote": None, "values": None, "error": None, "reason": None} | more


def journal(document: Json | None, *events: Json) -> Journal:
    """The journal of a row, its events given oldest first."""
    return Journal(ENTITY, "x", document, events[::-1])


@settings(max_examples=200)
@given(arrivals())
def test_every_state_that_a_row_had_is_known(order: list[Write]) -> None:
    """In whatever order writes came: as each one left it, and before the next one's time, the row is what it was."""
    state: RowState | None = None
    seen: list[Json | None] = []
    events: list[Json] = []
    for number, write in enumerate(order):
        effect = apply(state, write)
        # A put all of whose fields later writes kept looks like one that met no row.
        assume(state is None or state.deleted or write.op != "put" or effect.overwritten or not effect.took_effect)
        state = effect.state
        seen.append(None if state.deleted else dict(state.fields))
        took = effect.took_effect and not effect.hidden
        events.append(event(number, write.op, "applied" if took else "superseded", overwrote=effect.overwritten))
    known = journal(seen[-1], *events)
    for number, shown in enumerate(seen):
        after = START + number * 1_000 + 1
        for tell in (partial(known.as_of, event=f"{number}.0"), partial(known.as_of, time=after)):
            if shown is None:
                with pytest.raises(TideError, match="was not there"):
                    tell()
            else:
                assert same_value(tell(), shown)


def test_the_latest_value_that_is_gone_is_taken() -> None:
    """Of each field by itself, what stands there now passed over; a map by its keys, a key out of its map."""
    known = journal(
        {"name": "c", "color": "blue", "labels": {"x": 1}},
        event(1, overwrote={"name": "a", "color": "red"}),
        event(2, overwrote={"name": "b", "labels/x": 5}),
        event(3, overwrote={"name": "c"}),
        event(4, overwrote={"labels": {"x": 2, "y": 3}}),
    )
    assert known.latest([]) == {"labels": {"x": 2, "y": 3}}
    assert known.latest(["name", "color"]) == {"name": "b", "color": "red"}
    assert known.latest(["labels/y"]) == {"labels/y": 3}
    assert known.of_event("2.0", ["labels"]) == {"labels/x": 5}
    with pytest.raises(TideError, match="another value of links"):
        known.latest(["links"])


def test_what_never_won_is_there_by_its_event() -> None:
    """What a superseded or rejected write carried; of one that won some paths, what it overwrote first."""
    known = journal(
        {"name": "a"},
        event(1, outcome="superseded", values={"name": "s"}),
        event(2, outcome="rejected", values={"name": 5}, error={"code": "invalid_field"}),
        event(3, overwrote={"name": "o"}, values={"color": "lost"}),
        event(4, op="delete", outcome="superseded"),
    )
    assert known.of_event("1.0", []) == {"name": "s"}
    assert known.of_event("3.0", []) == {"name": "o"}
    assert known.of_event("3.0", ["color"]) == {"color": "lost"}
    for id_, said in (("4.0", "took nothing"), ("9.9", "no event 9.9")):
        with pytest.raises(TideError, match=said):
            known.of_event(id_, [])
    found = losses([event(2, outcome="rejected", values={"name": 5}, error={"code": "rule"}), event(1)], own="c")
    assert [(one.event, one.how, one.by) for one in found] == [("2.0", "rejected (rule)", "ann (this device)")]


def test_what_the_journal_does_not_know_is_said() -> None:
    """A row it never heard of, one deleted before it begins, one that is deleted and asked for by fields."""
    with pytest.raises(TideError, match="knows nothing about things x"):
        journal({"name": "a"})
    with pytest.raises(TideError, match="does not know what it held"):
        journal(None, event(1, outcome="rejected", values={"name": 5})).latest([])
    with pytest.raises(TideError, match="comes back as a whole"):
        journal(None, event(1, "delete", overwrote={"name": "a"})).latest(["name"])


def test_what_is_no_longer_declared_is_left_out() -> None:
    """Fields of an older declaration are named apart; where nothing else is left, nothing is written."""
    assert declared(ENTITY, {"name": "a", "number": 1, "tags/x": 1}) == ({"name": "a"}, ["number", "tags"])
    with pytest.raises(TideError, match="no longer declared"):
        declared(ENTITY, {"number": 1})


def test_times_are_read() -> None:
    """With their zone, or as this machine's; another text is refused."""
    assert millis_of("2027-01-15T08:00:00Z") == START
    assert abs(millis_of("2027-01-15") - START) < 86_400_000
    with pytest.raises(TideError, match="is no time"):
        millis_of("yesterday")
    assert chosen({"labels": None}, "labels/x") == {"labels/x": None}


# ── on a real service ────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def device_of_ann(folder: Path, database_url: str) -> Iterator[Tide]:
    """A device of ann's, who may edit a workspace, and its service."""
    file = folder / "schema.yaml"
    file.write_text(SCHEMA)
    with TidemarkServer(file, database_url) as server:
        grant(server, "ann", "editor")
        yield Tide(server, folder / "ann", "ann")


@pytest.fixture
def ann(tmp_path: Path) -> Iterator[Tide]:
    """A device of ann's on SQLite: to a client all databases are alike."""
    with device_of_ann(tmp_path, f"sqlite:///{tmp_path / 'tidemark.db'}") as device:
        yield device


def shown(device: Tide, *wanted: str) -> list[Any]:
    """Fields of the note as the device shows it."""
    row = device.json("get", "notes", KEY)
    return [row[name] for name in wanted]


def test_values_come_back_in_the_ways_one_can_ask(ann: Tide) -> None:
    """The latest, by field, by event, as of an event; each is a write that the service accepts and others get."""
    ann.run("put", "notes", KEY, "title=a", "count=1", "labels/x=1")
    ann.run("patch", "notes", KEY, "title=b", "labels/x:=null")
    ann.run("patch", "notes", KEY, "count=2")
    ann.run("sync")
    listed = ann.json("restore", "notes", KEY, "--list")
    assert [one["values"] for one in listed] == [{"count": 1}, {"title": "a", "labels/x": 1}]
    done = ann.json("restore", "notes", KEY, "--dry-run")
    assert (done["written"], done["changes"]) == (None, {"count": {"from": 2, "to": 1}})
    assert shown(ann, "count") == [2]
    assert ann.json("restore", "notes", KEY)["written"]["op"] == "patch"
    assert shown(ann, "title", "count", "labels") == ["b", 1, {}]
    assert ann.json("restore", "notes", KEY, "labels/x")["changes"] == {"labels/x": {"from": None, "to": 1}}
    assert ann.json("sync")["pushed"]["applied"] == 2
    assert "title" in ann.run("restore", "notes", KEY, "--event", listed[1]["event"])
    assert shown(ann, "title", "count", "labels") == ["a", 1, {"x": 1}]
    ann.run("sync")
    put = ann.json("log", "notes", KEY, "--order", "asc")["events"][0]
    assert ann.json("restore", "notes", KEY, "--at", put["id"])["written"]["op"] == "unchanged"
    ann.run("patch", "notes", KEY, "title=z", "count=9")
    ann.run("sync")
    ann.run("restore", "notes", KEY, "title", "--at", put["id"])
    assert shown(ann, "title", "count") == ["a", 9]
    assert "not there then" in _refused(ann, "--before", put["time"])


def test_a_deleted_row_comes_back_whole(tmp_path: Path, database_url: str) -> None:
    """With every value it had, as a put; a row in a shared scope too, which the journal names."""
    with device_of_ann(tmp_path, database_url) as ann:
        ann.run("put", "notes", KEY, "title=a", "body=long", "count=1", "labels/x=1")
        ann.run("put", "tags", "red", "color=red", "--scope", SCOPE)
        ann.run("sync")
        ann.run("rm", "notes", KEY)
        ann.run("rm", "tags", "red")
        ann.run("sync")
        assert ann.json("restore", "notes", KEY)["written"]["op"] == "put"
        assert shown(ann, "title", "body", "count", "labels") == ["a", "long", 1, {"x": 1}]
        ann.run("restore", "tags", "red")
        assert ann.json("get", "tags", "red")["color"] == "red"
        assert ann.json("sync")["pushed"]["applied"] == 2


def test_an_edit_that_came_too_late_is_made_again(ann: Tide, tmp_path: Path) -> None:
    """A superseded write's value goes in by its event, onto a row that was deleted meanwhile as well; a store that is
    behind the service is brought up first.
    """
    ann.run("put", "notes", KEY, "title=a", "body=kept")
    ann.run("sync")
    other = Tide(ann.service, tmp_path / "other", "ann")
    other.run("sync")
    ann.run("patch", "notes", KEY, "title=early")
    other.run("patch", "notes", KEY, "title=late")
    other.run("sync")
    ann.run("push")
    (lost,) = [one for one in ann.json("restore", "notes", KEY, "--list") if one["values"] == {"title": "early"}]
    assert lost["how"] == "came too late"
    other.run("rm", "notes", KEY)
    other.run("sync")
    done = ann.json("restore", "notes", KEY, "--event", lost["event"])
    assert done["written"]["op"] == "put"
    assert shown(ann, "title", "body") == ["early", "kept"]
    ann.run("sync")
    other.run("sync")
    assert shown(other, "title", "body") == ["early", "kept"]


def test_what_cannot_come_back_changes_nothing(ann: Tide) -> None:
    """Unknown rows, events and fields, a value that would be refused, two choices at once."""
    ann.run("put", "notes", KEY, "title=a")
    ann.run("sync")
    assert "knows nothing" in _refused(ann, row=KEY.replace("1", "2"))
    assert "does not know other values" in _refused(ann)
    assert "no event 1.77" in _refused(ann, "--event", "1.77")
    assert "no field 'titel'" in _refused(ann, "titel")
    assert "Give one of" in _refused(ann, "--event", "1.0", "--at", "1.0", code=2)
    assert ann.json("outbox", "list") == []


def _refused(device: Tide, *words: str, row: str = KEY, code: int = 1) -> str:
    """What is said instead of restoring."""
    return " ".join(device.said("restore", "notes", row, *words, code=code).split())
