"""Clients of an older schema number, before and after the service rises to a new one (SPEC sections 4 and 10)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contract.client import Device, Json, assert_problem, changes, code, key
from tests.contract.conftest import Launcher, Running
from tests.contract.replica import Replica
from tests.contract.stream import Stream

OLD = 2
NEW = 4
HEAD = "scopes: {workspace: {roles: {viewer: read, editor: write, owner: manage}}}\n"
BEFORE = f"""
schema: {OLD}
{HEAD}
entities:
  tasks:
    scope: workspace
    fields:
      name:        {{type: text, max: 20}}
      status:      {{type: text, default: open}}
      tags:        {{type: map}}
      legacy_flag: {{type: boolean}}
  notes: {{scope: user, fields: {{body: {{type: text, default: ""}}}}}}
"""
AFTER = f"""
schema: {NEW}
oldest: {OLD}
{HEAD}
entities:
  tasks:
    scope: workspace
    fields:
      title:       {{type: text, max: 20}}
      status:      {{type: text, default: todo}}
      labels:      {{type: map}}
      size:        {{type: integer, default: 1}}
  notes: {{scope: user, fields: {{body: {{type: text, default: ""}}}}}}
changes:
  3: {{tasks: {{rename: {{name: label, tags: labels}}, remove: [legacy_flag]}}}}
  4: {{tasks: {{rename: {{label: title}}, values: {{status: {{open: todo, closed: done, shut: done}}}}}}}}
"""
REVISION = """
from alembic import op

revision = "a"
down_revision = None


def upgrade():
    op.execute("ALTER TABLE tasks RENAME COLUMN name TO title")
    op.execute("ALTER TABLE tasks RENAME COLUMN tags TO labels")
    op.execute("ALTER TABLE tasks DROP COLUMN legacy_flag")
    op.execute("ALTER TABLE tasks ADD COLUMN size BIGINT NOT NULL DEFAULT 1")
    op.execute("UPDATE tasks SET status = CASE status WHEN 'open' THEN 'todo' ELSE 'done' END")
"""


class Client(Device):
    """A device whose app was built for one schema number."""

    number = OLD

    def envelope(self, mutations: Any, **rest: Any) -> Json:
        """A push under the app's number."""
        return super().envelope(mutations, **({"schema": self.number} | rest))

    def pull_body(self, watermark: Any = None, **rest: Any) -> Json:
        """A pull under the app's number."""
        return super().pull_body(watermark, **({"schema": self.number} | rest))

    def upgraded(self) -> Client:
        """The same installation, its app upgraded."""
        other = Client(self.service, self.user)
        other.client, other.clock, other.number = self.client, self.clock, NEW
        return other

    def task(self, scope: str, row: str) -> Json:
        """The task as the app sees it, its key and times aside."""
        doc = self.doc("tasks", row, scope)
        assert doc is not None
        return {name: value for name, value in doc.items() if name not in ("id", "created_at", "updated_at")}


@dataclass
class World:
    """A service that has risen from OLD to NEW, and what was there before."""

    server: Running
    client: Client
    scope: str
    row: str
    queue: list[Json]
    """Written offline before the upgrade, in the order of its rows: see `offline`."""
    answered: list[tuple[Json, Json]]
    """Mutations with the verdicts that they had before."""
    marks: dict[str, str]
    """The watermark of a replica that had everything before."""

    def both(self) -> tuple[Client, Client]:
        """Two users' clients of a new workspace, an old and a new one."""
        old, new = Client(self.server.service, key()), Client(self.server.service, key())
        new.number = NEW
        return old, new

    def workspace(self, *members: Client) -> str:
        """A new workspace that all of them write."""
        scope = self.server.service.workspace()
        for member in members:
            self.server.service.admin().grant(scope, member.user, "owner")
        return scope


def put(client: Client, scope: str, **fields: Any) -> Json:
    """A put of a task as an old app writes it."""
    return client.put("tasks", scope=scope, fields={"name": "n", "legacy_flag": True} | fields)


@pytest.fixture(scope="module")
def world(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Start under OLD, write, go offline, and rise to NEW over the same database, migrating."""
    folder = tmp_path_factory.mktemp("schema")
    for number, text in ((OLD, BEFORE), (NEW, AFTER)):
        (folder / str(number)).mkdir()
        (folder / str(number) / "schema.yaml").write_text(text)
    (folder / str(NEW) / "migrations").mkdir()
    (folder / str(NEW) / "migrations" / "0001_names.py").write_text(REVISION)
    running = launch(schema=folder / str(OLD) / "schema.yaml")
    client = Client(running.service, "ada")
    scope = running.service.workspace(owner=client)
    first = put(client, scope, status="closed", tags={"a": 1, "b": 2})
    row = first["row"]
    client.apply(first, client.put("notes", key(), body="n"))
    sent = [
        put(client, scope, status="open"),
        client.patch("tasks", row, scope=scope, fields={"name": "m", "legacy_flag": False}),
        client.patch("tasks", row, scope=scope, fields={"name": 5}),
        client.delete("tasks", key(), scope=scope),
    ]
    answered = list(zip(sent, client.push(*sent), strict=True))
    queue = [
        put(client, scope, name="offline", tags={"x": 1}),
        client.patch("tasks", row, scope=scope, fields={"tags/a": None, "tags/c": 3, "status": "open"}),
        client.patch("tasks", row, scope=scope, fields={"legacy_flag": True}),
        client.patch("tasks", row, scope=scope, fields={"name": "later", "legacy_flag": True}),
        client.delete("tasks", sent[0]["row"], scope=scope),
    ]
    marks = {run["scope"]: run["watermark"] for run in client.pull()["scopes"]}
    running.server.schema = (folder / str(NEW) / "schema.yaml").resolve()
    running.server.restart()
    return World(running, client, scope, row, queue, answered, marks)


def test_the_upgrade_resets_nobody_who_stays(world: World) -> None:
    """A replica of the old number goes on from its watermark; the same is a reset for an upgraded app (I30, I52)."""
    assert world.client.pull(world.marks)["scopes"] == []
    assert {run["reset"] for run in world.client.upgraded().pull(world.marks)["scopes"]} == {True}


def test_the_outbox_of_an_old_client_is_taken_after_the_upgrade(world: World) -> None:
    """What was written offline under the old number is converted: names, paths, texts; removed fields are lost alone
    (I51).
    """
    client, scope = world.client, world.scope
    assert client.upgraded().task(scope, world.row) == {
        "title": "m", "status": "done", "labels": {"a": 1, "b": 2}, "size": 1,
    }  # fmt: skip
    results = client.push(*world.queue)
    assert [result["status"] for result in results] == ["applied", "applied", "superseded", "applied", "applied"]
    assert [result.get("superseded_fields") for result in results] == [
        ["legacy_flag"], None, None, ["legacy_flag"], None,
    ]  # fmt: skip
    assert client.upgraded().task(scope, world.row) == {
        "title": "later", "status": "todo", "labels": {"b": 2, "c": 3}, "size": 1,
    }  # fmt: skip
    assert client.task(scope, world.row) == {
        "name": "later", "status": "open", "tags": {"b": 2, "c": 3}, "size": 1,
    }  # fmt: skip
    assert client.task(scope, world.queue[0]["row"])["name"] == "offline"
    again = client.push(*world.queue)
    assert [told(result) for result in again] == [told(result) for result in results]


def test_verdicts_from_before_the_upgrade_stand(world: World) -> None:
    """A mutation answered before the upgrade is told the same after it, under its old number (I51)."""
    for mutation, before in world.answered:
        (after,) = world.client.push(mutation)
        assert after["status"] in (before["status"], "superseded")
        assert after.get("error") == before.get("error")


def test_verdicts_stand_when_rights_are_gone(world: World) -> None:
    """A mutation about to be refused is known again, sent as before or converted by an upgraded client (I51)."""
    old, _ = world.both()
    scope = world.workspace(old)
    first = put(old, scope, status="shut")
    first["fields"].pop("legacy_flag")
    (before,) = old.apply(first)
    removed = put(old, scope)
    (dropped,) = old.apply(removed)
    world.server.service.admin().expel(scope, old.user)
    converted = first | {"fields": {"title": "n", "status": "done"}}
    for client, mutation in ((old, first), (old.upgraded(), converted)):
        assert client.push(mutation) == [before]
    kept = {name: value for name, value in dropped.items() if name != "superseded_fields"}
    assert old.upgraded().push(removed | {"fields": {"title": "n"}}) == [kept]
    assert code(old.upgraded().push(first | {"fields": {"title": "other"}})[0]) == "clock_reused"


def test_an_upgraded_client_sends_the_same_again(world: World) -> None:
    """Sent under the old number, and again in the new shape with the same reading, a mutation has effect once (I51)."""
    old, _ = world.both()
    scope = world.workspace(old)
    first = put(old, scope, status="open", tags={"a": 1})
    (before,) = old.apply(first)
    (after,) = old.upgraded().push(first | {"fields": {"title": "n", "status": "todo", "labels": {"a": 1}}})
    assert (after["status"], after["version"]) == ("applied", before["version"])
    patch = old.patch("tasks", first["row"], scope=scope, fields={"name": "m"})
    (before,) = old.apply(patch)
    (after,) = old.upgraded().push(patch | {"fields": {"title": "m"}})
    assert (after["status"], after["version"]) == ("applied", before["version"])


def test_two_numbers_on_one_row(world: World) -> None:
    """Clients of two numbers write one row at once, each in its own words; both see all of it in theirs (I51, I52)."""
    old, new = world.both()
    scope = world.workspace(old, new)
    first = put(old, scope)
    row = first["row"]
    old.apply(first)
    with Stream(old, schema=OLD) as of_old, Stream(new, schema=NEW) as of_new:
        of_old.welcome()
        of_new.welcome()
        assert of_old.change(row)["doc"]["name"] == of_new.change(row)["doc"]["title"] == "n"
        early = new.patch("tasks", row, scope=scope, fields={"title": "early", "size": 5})
        old.clock.advance(early["at"])
        old.apply(old.patch("tasks", row, scope=scope, fields={"name": "late", "tags/x": 1}))
        (result,) = new.push(early)
        new.apply(new.patch("tasks", row, scope=scope, fields={"status": "done", "labels/y": 2}))
        seen_old = of_old.until("changes", where=lambda f: f["changes"][-1]["doc"].get("status") == "closed")
        seen_new = of_new.until("changes", where=lambda f: f["changes"][-1]["doc"].get("status") == "done")
    doc_old, doc_new = seen_old["changes"][-1]["doc"], seen_new["changes"][-1]["doc"]
    assert (doc_old["name"], doc_old["tags"]) == ("late", {"x": 1, "y": 2})
    assert (doc_new["title"], doc_new["labels"]) == ("late", {"x": 1, "y": 2})
    assert "legacy_flag" not in doc_old
    assert {name: seen_old[name] for name in ("from", "to", "head", "digest")} == {
        name: seen_new[name] for name in ("from", "to", "head", "digest")
    }
    assert result["superseded_fields"] == ["title"]
    assert (doc_old["size"], doc_new["size"]) == (5, 5)


def test_each_stream_and_pull_has_its_number_s_shape(world: World) -> None:
    """Page, lines, long poll and stream give an old client the same documents, in its shape, proved by digest (I52)."""
    old, new = world.both()
    scope = world.workspace(old, new)
    tasks = [put(old, scope, name=str(n), status="shut") for n in range(5)]
    note = old.put("notes", key(), body="b")
    old.apply(*tasks, note)
    page = old.pull()
    by_page = {change["row"]: change["doc"] for change in changes(page["scopes"])}
    response = old.post("/sync/pull", old.pull_body(), Accept="application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    by_line = {change["row"]: change["doc"] for change in changes(lines[:-1])}
    assert by_page == by_line
    assert {doc["status"] for row, doc in by_page.items() if row != note["row"]} == {"closed"}
    with Stream(old, schema=OLD) as stream:
        stream.welcome()
        by_stream = {item["row"]: item["doc"] for item in stream.until("changes", where=is_of(scope))["changes"]}
        assert by_stream == {row: doc for row, doc in by_page.items() if row != note["row"]}
        new.apply(new.patch("tasks", tasks[0]["row"], scope=scope, title="live"))
        assert stream.change(tasks[0]["row"])["doc"]["name"] == "live"
        new.apply(new.delete("tasks", tasks[1]["row"], scope=scope))
        assert stream.change(tasks[1]["row"])["doc"] is None
    waited = old.pull({run["scope"]: run["watermark"] for run in page["scopes"]}, wait=5)
    assert [change["doc"] and change["doc"]["name"] for change in changes(waited["scopes"])] == ["live", None]
    replica = Replica()
    replica.pull(old)
    assert replica.docs(scope)["tasks", tasks[0]["row"]]["name"] == "live"
    assert old.doc("notes", note["row"]) == old.upgraded().doc("notes", note["row"])


def told(result: Json) -> Json:
    """A verdict without the row's version, which rises with what comes later."""
    return {name: value for name, value in result.items() if name != "version"}


def is_of(scope: str) -> Callable[[Json], bool]:
    """Whether a frame is of a scope."""
    return lambda frame: frame["scope"] == scope


def test_pushes_of_a_stream_bear_their_own_number(world: World) -> None:
    """On one connection a push is converted from the number that it names, whatever the hello's was (I51)."""
    old, _ = world.both()
    scope = world.workspace(old)
    one, two = put(old, scope), old.put("tasks", scope=scope, fields={"title": "t"})
    with Stream(old, schema=OLD) as stream:
        stream.welcome()
        for number, mutation in ((OLD, one), (NEW, two), (OLD, two | {"at": old.clock.tick()})):
            stream.send({"t": "push", "id": number, "schema": number, "mutations": [{"seq": 1} | mutation]})
        answers = [stream.until("result")["results"][0] for _ in range(3)]
        assert [answer["status"] for answer in answers] == ["applied", "applied", "rejected"]
        assert code(answers[2]) == "unknown_field"
        stream.ping()
    docs = {item["row"]: item["doc"] for frame in stream.frames for item in frame.get("changes", ())}
    assert docs[two["row"]]["name"] == "t"


def test_errors_name_fields_as_they_were_sent(world: World) -> None:
    """`field` of an error and `superseded_fields` are in the client's own names (I51)."""
    old, new = world.both()
    scope = world.workspace(old, new)
    first = put(old, scope)
    old.apply(first)
    row = first["row"]
    earlier = old.clock.tick()
    results = old.push(
        old.patch("tasks", row, scope=scope, fields={"name": "x" * 21}),
        old.put("tasks", scope=scope, fields={"legacy_flag": False}),
        old.patch("tasks", row, scope=scope, fields={"title": "t"}),
        old.patch("tasks", row, scope=scope, fields={"tags/": 1}),
        old.patch("tasks", row, scope=scope, fields={"title": "t", "created_at": "now"}),
    )
    assert [(code(result), result["error"]["field"]) for result in results] == [
        ("invalid_field", "name"),
        ("missing_field", "name"),
        ("unknown_field", "title"),
        ("invalid_field", "tags/"),
        ("read_only_field", "created_at"),
    ]
    assert [result["error"]["message"].split(" ")[0] for result in results[:2]] == ["name", "name"]
    new.apply(new.patch("tasks", row, scope=scope, fields={"title": "won"}))
    late = old.patch("tasks", row, at=earlier, scope=scope, fields={"name": "lost", "status": "shut"})
    (result,) = old.push(late)
    assert (result["status"], result["superseded_fields"]) == ("applied", ["name"])
    assert old.task(scope, row)["status"] == "closed"


def test_a_patch_of_removed_fields_alone(world: World) -> None:
    """It is judged like any patch, and superseded where it would have been applied; nothing moves (I51)."""
    old, _ = world.both()
    scope = world.workspace(old)
    first = put(old, scope)
    old.apply(first)
    before = old.pull()
    nothing = old.patch("tasks", first["row"], scope=scope, fields={"legacy_flag": False})
    for _ in range(2):
        assert old.push(nothing) == [{"seq": 1, "status": "superseded"}]
    assert old.pull()["scopes"] == before["scopes"]
    assert code(old.push(old.patch("tasks", key(), scope=scope, fields={"legacy_flag": False}))[0]) == "row_unknown"
    stranger = Client(world.server.service, key())
    assert code(stranger.push(nothing)[0]) == "forbidden"
    old.apply(old.delete("tasks", first["row"], scope=scope))
    late = old.patch("tasks", first["row"], scope=scope, fields={"legacy_flag": False})
    assert old.push(late) == [{"seq": 1, "status": "superseded", "reason": "deleted"}]
    world.server.service.admin().expel(scope, old.user)
    assert old.push(nothing) == [{"seq": 1, "status": "superseded"}]


def test_the_journal_tells_the_number(world: World) -> None:
    """An event says under which number it came, and keeps what was lost as it was sent (I46)."""
    old, new = world.both()
    scope = world.workspace(old, new)
    first = put(old, scope)
    old.apply(first)
    new.apply(new.patch("tasks", first["row"], scope=scope, fields={"title": "t"}))
    old.push(old.patch("tasks", first["row"], scope=scope, fields={"name": 5}))
    events = new.events(scope=scope, entity="tasks", order="asc")
    assert [(event["outcome"], event["schema"]) for event in events] == [
        ("applied", OLD), ("applied", NEW), ("rejected", OLD),
    ]  # fmt: skip
    assert events[0]["values"] == {"legacy_flag": True}
    assert (events[1]["set"], events[1]["overwrote"]) == (["title"], {"title": "n"})
    assert (events[2]["values"], events[2]["error"]["field"]) == ({"name": 5}, "name")


@pytest.mark.parametrize("number", [OLD - 1, NEW + 1])
def test_numbers_beyond_are_not_served(world: World, number: int) -> None:
    """Below `oldest` and above the present number the app must be upgraded, and its outbox is kept."""
    old, _ = world.both()
    (result,) = old.push(old.put("notes", key(), body="b"), schema=number)
    assert (result["status"], code(result)) == ("retry", "schema_mismatch")
    assert_problem(old.post("/sync/pull", old.pull_body(schema=number)), 409, "schema_mismatch")
    with Stream(old, schema=number) as stream:
        assert stream.until("error")["code"] == "schema_mismatch"
        assert stream.close_code() == 4409


@pytest.mark.parametrize("number", [OLD, OLD + 1, NEW])
def test_every_number_between_is_served(world: World, number: int) -> None:
    """A number in the middle has a shape of its own, and a watermark of another number is reset (I30, I52)."""
    old, _ = world.both()
    scope = world.workspace(old)
    first = put(old, scope, status="shut")
    old.apply(first)
    page = old.pull(schema=number)
    (doc,) = [change["doc"] for change in changes(page["scopes"])]
    names = {OLD: ("name", "tags", "closed"), OLD + 1: ("label", "labels", "closed"), NEW: ("title", "labels", "done")}
    name, tags, status = names[number]
    assert (doc[name], doc[tags], doc["status"]) == ("n", {}, status)
    other = NEW if number != NEW else OLD
    marks = {run["scope"]: run["watermark"] for run in page["scopes"]}
    assert {run["reset"] for run in old.pull(marks, schema=other)["scopes"]} == {True}
    assert old.pull(marks, schema=number)["scopes"] == []


def test_the_schema_is_that_of_the_present(world: World) -> None:
    """`GET /sync/schema` is the present number's, whoever asks, and says what is still served."""
    schema = world.client.get("/sync/schema").json()
    assert (schema["schema"], schema["oldest"]) == (NEW, OLD)
    assert "changes" not in schema
