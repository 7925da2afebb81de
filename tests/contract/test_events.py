"""The journal: every mutation's fate, for those who may know it (SPEC section 7)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.contract.client import Device, Json, Service, assert_problem, fresh, reading, wall


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def fates(events: list[Json]) -> list[str]:
    """Outcomes in the order given."""
    return [event["outcome"] for event in events]


def test_every_fate_is_told(device: Device) -> None:
    """What was applied, superseded and rejected of a row stands in the journal, oldest first if asked (I46)."""
    put = device.put("notes", title="one", at=reading(wall() - 9_000))
    for mutation in (
        put,
        device.patch("notes", put["row"], title="two"),
        device.patch("notes", put["row"], title="late", at=reading(wall() - 8_000)),
        device.patch("notes", put["row"], position="high"),
        device.delete("notes", put["row"]),
    ):
        device.push(mutation)
    events = device.events(row=put["row"], order="asc")
    assert fates(events) == ["applied", "applied", "superseded", "rejected", "applied"]
    assert fates(device.events(row=put["row"])) == fates(events)[::-1]


def test_an_event_says_who_and_where(device: Device) -> None:
    """An event names scope, entity, row, user and client, as its filters do."""
    put = device.put("notes", title="one")
    device.apply(put)
    (event,) = device.events(row=put["row"])
    named = {name: event[name] for name in ("scope", "entity", "row", "user", "client", "outcome")}
    assert named == {
        "scope": device.scope,
        "entity": "notes",
        "row": put["row"],
        "user": device.user,
        "client": device.client,
        "outcome": "applied",
    }
    assert put["at"] in json.dumps(event)


@pytest.mark.parametrize("loss", ["patch", "put", "delete", "map key", "superseded", "rejected"])
def test_nothing_is_silently_lost(device: Device, loss: str) -> None:
    """A value overwritten, superseded or rejected is found in the journal (I46)."""
    precious = fresh("precious")
    put = device.put("notes", title="t", at=reading(wall() - 20_000))
    row = put["row"]
    device.apply(put)
    early, late = reading(wall() - 19_000), reading(wall() - 18_000)
    writes = {
        "patch": [device.patch("notes", row, at=early, body=precious), device.patch("notes", row, at=late, body="")],
        "put": [device.patch("notes", row, at=early, body=precious), device.put("notes", row, at=late, title="t")],
        "delete": [device.patch("notes", row, at=early, body=precious), device.delete("notes", row, at=late)],
        "map key": [
            device.patch("notes", row, at=early, fields={"labels/a": precious}),
            device.patch("notes", row, at=late, fields={"labels/a": None}),
        ],
        "superseded": [
            device.patch("notes", row, at=late, body=""),
            device.patch("notes", row, at=early, body=precious),
        ],
        "rejected": [device.patch("notes", row, at=early, body=precious, position="high")],
    }[loss]
    device.push(*writes)
    doc = device.doc("notes", row)
    assert precious not in json.dumps(doc)
    assert precious in json.dumps(device.events(row=row))


def test_a_retry_is_never_recorded(device: Device) -> None:
    """A mutation that was put off is not in the journal."""
    put = device.put("notes", title="ahead", at=reading(wall() + 3_600_000))
    device.push(put)
    assert device.events(row=put["row"]) == []


def pages(device: Device, order: str, **params: Any) -> Iterator[list[Json]]:
    """Pages of the journal until there is no next."""
    cursor: dict[str, str] = {}
    for _ in range(50):
        response = device.get("/sync/events", order=order, **params, **cursor)
        assert response.status_code == 200, response.text
        answer = response.json()
        yield answer["events"]
        if answer["next"] is None:
            return
        cursor = {"after" if order == "asc" else "before": answer["next"]}
    raise AssertionError("the journal never ends")


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_journal_comes_in_pages(device: Device, order: str, limit: int) -> None:
    """Pages of any size give every event once, in order."""
    puts = [device.put("notes", title="n") for _ in range(7)]
    for put in puts[:4]:
        device.apply(put)
    device.apply(*puts[4:])
    found = list(pages(device, order, limit=limit))
    assert all(len(page) <= limit for page in found)
    rows = [event["row"] for page in found for event in page]
    assert rows == [put["row"] for put in (puts if order == "asc" else puts[::-1])]


def test_the_journal_is_filtered(service: Service, device: Device) -> None:
    """Events are narrowed by scope, entity, row, user, client and outcome, alone and together."""
    scope = service.workspace(owner=device)
    other = device.again()
    note, slug, task = (
        device.put("notes", title="n"),
        device.put("slugs", fresh("s")),
        device.put("tasks", title="t", scope=scope),
    )
    device.apply(note, slug, task)
    other.apply(other.patch("notes", note["row"], title="m"))
    other.push(other.put("notes", fields={}))
    cases: list[tuple[Json, int]] = [
        ({"entity": "slugs"}, 1),
        ({"entity": "notes"}, 3),
        ({"entity": "notes", "row": note["row"]}, 2),
        ({"scope": scope, "entity": "tasks"}, 1),
        ({"client": other.client}, 2),
        ({"client": other.client, "outcome": "rejected"}, 1),
        ({"user": device.user, "entity": "notes", "outcome": "applied"}, 2),
        ({"user": fresh("nobody")}, 0),
        ({"entity": "nothing"}, 0),
    ]
    for params, count in cases:
        assert len(device.events(**params)) == count, params


def test_the_journal_is_narrowed_by_time(device: Device) -> None:
    """`after` and `before` take times."""
    device.apply(device.put("notes", title="n"))
    now = datetime.now(UTC)
    past, future = (f"{now.year + years}-01-01T00:00:00Z" for years in (-1, 1))
    assert len(device.events(after=past, before=future)) == 1
    assert device.events(after=future) == []
    assert device.events(before=past) == []


@pytest.mark.parametrize("params", [{"limit": "many"}, {"limit": "0"}, {"order": "sideways"}, {"after": "no time"}])
def test_a_wrong_question_is_malformed(device: Device, params: Json) -> None:
    """A limit, order or time that is none is a 400."""
    assert_problem(device.get("/sync/events", **params), 400)


def test_members_see_their_scopes_journal(service: Service) -> None:
    """Members see what was applied, superseded, or rejected for its content in their scope; others see nothing."""
    editor, viewer, stranger = service.device(), service.device(), service.device()
    scope = service.workspace(editor=editor, viewer=viewer)
    put = editor.put("tasks", title="t", scope=scope)
    editor.push(put)
    editor.push(editor.patch("tasks", put["row"], status="odd", scope=scope))
    for member in (editor, viewer):
        assert fates(member.events(scope=scope, entity="tasks", order="asc")) == ["applied", "rejected"]
        assert fates(member.events(row=put["row"], order="asc")) == ["applied", "rejected"]
    for params in ({"scope": scope}, {"row": put["row"]}, {"user": editor.user}, {"client": editor.client}, {}):
        response = stranger.get("/sync/events", **params)
        assert response.status_code != 200 or response.json()["events"] == []
        assert put["row"] not in response.text.replace(str(response.url), "")


def test_what_was_forbidden_is_its_authors_affair(service: Service) -> None:
    """A forbidden mutation stands in its author's own scope's journal, and the scope's members do not see it."""
    intruder, owner = service.device(), service.device()
    scope = service.workspace(owner=owner, viewer=intruder)
    put = intruder.put("tasks", title=fresh("graffiti"), scope=scope)
    intruder.push(put)
    assert owner.events(scope=scope, entity="tasks") == []
    assert put["fields"]["title"] not in json.dumps(owner.events())
    assert fates(intruder.events(scope=intruder.scope)) == ["rejected"]


def test_who_loses_a_scope_loses_its_journal(service: Service) -> None:
    """After a membership has ended its former holder sees nothing of the scope's journal."""
    owner, member = service.device(), service.device()
    scope = service.workspace(owner=owner, viewer=member)
    put = owner.put("tasks", title="t", scope=scope)
    owner.apply(put)
    assert len(member.events(row=put["row"])) == 1
    owner.expel(scope, member.user)
    assert put["row"] not in member.get("/sync/events").text
    assert member.events(row=put["row"]) == []
