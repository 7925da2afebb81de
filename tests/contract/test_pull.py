"""Pulling runs page by page (SPEC section 5)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import Device, Service, assert_problem, changes, fresh
from tests.contract.model import digest
from tests.contract.replica import Replica, check_shape


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def fill(device: Device, count: int) -> list[str]:
    """Put so many notes, the keys in order."""
    puts = [device.put("notes", title=f"note {number}") for number in range(count)]
    device.apply(*puts)
    return [put["row"] for put in puts]


def test_an_empty_scope_gives_an_empty_run(device: Device) -> None:
    """A first pull gives a run from 0 even for an empty scope, with the digest of nothing."""
    page = device.pull()
    (run,) = page["scopes"]
    check_shape(run)
    assert (run["scope"], run["from"], run["to"], run["changes"]) == (device.scope, 0, run["head"], [])
    assert run["digest"] == "0-000000000000"
    assert run["reset"] is False
    assert (page["readable"], page["revoked"], page["more"]) == ([device.scope], [], False)


def test_a_replica_that_has_everything_gets_no_run(device: Device) -> None:
    """A pull from the head gives no runs and says what is readable."""
    fill(device, 3)
    replica = Replica()
    replica.pull(device)
    page = device.pull(replica.watermark)
    assert (page["scopes"], page["readable"], page["more"]) == ([], [device.scope], False)


def test_only_what_is_new_comes(device: Device) -> None:
    """A pull from a watermark gives the changes after it, each row once, in its latest state."""
    rows = fill(device, 3)
    replica = Replica()
    replica.pull(device)
    for title in ("a", "b"):
        device.apply(device.patch("notes", rows[1], title=title))
    device.apply(device.delete("notes", rows[2]))
    (run,) = device.pull(replica.watermark)["scopes"]
    assert run["from"] == replica.copy(device.scope).to
    docs = {change["row"]: change["doc"] for change in run["changes"]}
    assert docs.keys() == {rows[1], rows[2]}
    assert (docs[rows[1]]["title"], docs[rows[2]]) == ("b", None)


def test_a_change_has_its_entity_row_version_and_document(device: Device) -> None:
    """A change names its entity, row and version, and holds the document."""
    (row,) = fill(device, 1)
    (change,) = device.pull()["scopes"][0]["changes"]
    assert change.keys() == {"entity", "row", "version", "doc"}
    assert (change["entity"], change["row"], change["doc"]["id"]) == ("notes", row, row)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100, 10_000])
def test_pages_hold_no_more_than_the_limit(device: Device, limit: int) -> None:
    """Pages of any size hold at most `limit` changes and together everything once, with `more` until the last (I29)."""
    rows = fill(device, 20)
    replica = Replica()
    pages = 0
    more = True
    while more:
        page = device.pull(replica.watermark, limit=limit)
        assert len(changes(page["scopes"])) <= limit
        for run in page["scopes"]:
            replica.apply(run, asked=True)
        pages, more = pages + 1, page["more"]
        assert pages <= 25
    assert {row for _, row in replica.versions(device.scope)} == set(rows)
    assert replica.proved


def test_the_limit_covers_all_scopes_together(service: Service) -> None:
    """`limit` bounds the changes of all runs of a page together."""
    device = service.device()
    scopes = [service.workspace(owner=device) for _ in range(3)]
    fill(device, 5)
    device.apply(*(device.put("tasks", title="t", scope=scope) for scope in scopes for _ in range(5)))
    pages = list(device.pages(limit=4))
    assert all(len(changes(page["scopes"])) <= 4 for page in pages)
    assert sum(len(changes(page["scopes"])) for page in pages) == 20


def test_the_default_limit_is_a_thousand(device: Device) -> None:
    """Without a limit a page holds 1,000 changes and says that there is more."""
    fill(device, 1000)
    fill(device, 5)
    page = device.pull()
    assert len(changes(page["scopes"])) == 1000
    assert page["more"] is True
    assert page["scopes"][0].get("digest") is None


@pytest.mark.parametrize(
    ("name", "value"), [("limit", 0), ("limit", -1), ("limit", 10_001), ("wait", -1), ("wait", 26)]
)
def test_limit_and_wait_have_bounds(device: Device, name: str, value: int) -> None:
    """`limit` outside 1 to 10,000 and `wait` outside 0 to 25 are a 400."""
    assert_problem(device.post("/sync/pull", device.pull_body() | {name: value}), 400)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("client", 7),
        ("client", "no uuid"),
        ("schema", "3"),
        ("schema", None),
        ("watermark", []),
        ("watermark", "w"),
        ("watermark", {"user:a": 7}),
        ("watermark", {"user:a": None}),
        ("scopes", "user:a"),
        ("scopes", {}),
        ("scopes", [7]),
        ("limit", "10"),
        ("limit", 1.5),
        ("limit", True),
        ("wait", "1"),
        ("wait", []),
    ],
)
def test_a_wrong_pull_is_malformed(device: Device, name: str, value: Any) -> None:
    """A pull with a key of another type is a 400."""
    assert_problem(device.post("/sync/pull", device.pull_body() | {name: value}), 400)


def test_a_pull_may_name_scopes(service: Service) -> None:
    """`scopes` narrows runs and `readable` to a subset, and leaves out in silence what may not be read."""
    device, other = service.device(), service.device()
    scope, closed = service.workspace(owner=device), service.workspace(owner=other)
    fill(device, 2)
    device.apply(device.put("tasks", title="t", scope=scope))
    page = device.pull(scopes=[scope, closed, other.scope, f"workspace:{fresh('none')}"])
    assert [run["scope"] for run in page["scopes"]] == [scope]
    assert page["readable"] == [scope]
    assert sorted(device.pull()["readable"]) == sorted([device.scope, scope])


def test_a_scope_not_named_in_the_watermark_comes_from_nothing(service: Service) -> None:
    """A covered scope that the watermark leaves out comes as a run from 0 beside others that do not."""
    device = service.device()
    fill(device, 2)
    replica = Replica()
    replica.pull(device)
    scope = service.workspace(owner=device)
    (run,) = device.pull(replica.watermark)["scopes"]
    assert (run["scope"], run["from"], run["changes"], run["reset"]) == (scope, 0, [], False)


def test_scopes_that_may_not_be_read_come_in_revoked(service: Service) -> None:
    """Scopes of the watermark that the caller may not read come in `revoked`, whether they exist or not."""
    device, other = service.device(), service.device()
    scope = service.workspace(owner=other)
    replica = Replica()
    replica.pull(other)
    nowhere = f"workspace:{fresh('none')}"
    page = device.pull(replica.watermark | {nowhere: replica.watermark[scope]})
    assert sorted(page["revoked"]) == sorted([scope, other.scope, nowhere])
    assert page["readable"] == [device.scope]
    assert [run["scope"] for run in page["scopes"]] == [device.scope]


def test_a_run_from_nothing_holds_no_tombstones(device: Device) -> None:
    """A first pull of rows of which some were deleted gives the live ones alone, in pages of any size."""
    rows = fill(device, 12)
    device.apply(*(device.delete("notes", row) for row in rows[::2]))
    for limit in (1, 5, 1000):
        found = [change for page in device.pages(limit=limit) for change in changes(page["scopes"])]
        assert [change["row"] for change in found if change["doc"] is None] == []
        assert {change["row"] for change in found} == set(rows[1::2])


def test_a_delete_between_pages_reaches_the_replica(device: Device) -> None:
    """Rows deleted and changed between the pages of a first pull end as the server has them."""
    rows = fill(device, 30)
    replica = Replica()
    for step in range(30):
        page = device.pull(replica.watermark, limit=3)
        for run in page["scopes"]:
            replica.apply(run, asked=True)
        if step < 5:
            device.apply(device.delete("notes", rows[step]), device.patch("notes", rows[29 - step], title="moved"))
        elif not page["more"]:
            break
    assert {row for _, row in replica.versions(device.scope)} == set(rows[5:])
    assert replica.copy(device.scope).to == replica.copy(device.scope).highest


def test_the_digest_proves_the_head(device: Device) -> None:
    """At the head the digest is the one computed from the live rows; before it there is none (I32)."""
    rows = fill(device, 9)
    device.apply(
        device.delete("notes", rows[0]), device.patch("notes", rows[1], title="x"), device.put("slugs", fresh("s"))
    )
    live = {(change["entity"], change["row"]): change["version"] for change in device.pull()["scopes"][0]["changes"]}
    (page,) = device.pages()
    assert page["scopes"][0]["digest"] == digest(live)
    first = device.pull(limit=2)["scopes"][0]
    assert first["to"] < first["head"]
    assert first.get("digest") is None


def test_versions_rise_with_commits(device: Device) -> None:
    """Later pushes give higher versions within a scope (I12)."""
    versions = [device.apply(device.put("notes", title="n"))[0]["version"] for _ in range(10)]
    assert versions == sorted(set(versions))


def test_scopes_count_their_versions_apart(service: Service) -> None:
    """Writes of one scope do not move another scope's head."""
    device = service.device()
    scope = service.workspace(owner=device)
    fill(device, 3)
    heads = {run["scope"]: run["head"] for run in device.pull()["scopes"]}
    device.apply(device.put("tasks", title="t", scope=scope))
    after = {run["scope"]: run["head"] for run in device.pull()["scopes"]}
    assert after[device.scope] == heads[device.scope]
    assert after[scope] > heads[scope]


def test_a_row_deleted_in_one_scope_may_live_in_another(service: Service) -> None:
    """A row that was deleted in one scope and put in another lives where it was put, for a replica of both (I36)."""
    device = service.device()
    one, two = service.workspace(owner=device), service.workspace(owner=device)
    task = device.put("tasks", title="here", scope=one)
    device.apply(task)
    replica = Replica()
    replica.pull(device)
    device.apply(
        device.delete("tasks", task["row"], scope=one), device.put("tasks", task["row"], title="there", scope=two)
    )
    replica.pull(device)
    assert replica.docs(one) == {}
    assert replica.docs(two)["tasks", task["row"]]["title"] == "there"


def test_large_answers_are_compressed(device: Device) -> None:
    """An answer is sent with gzip to a client that accepts it, and plain to one that does not."""
    device.apply(device.put("notes", title="t", body="long " * 10_000))
    packed = device.post("/sync/pull", device.pull_body(), **{"Accept-Encoding": "gzip"})
    plain = device.post("/sync/pull", device.pull_body(), **{"Accept-Encoding": "identity"})
    assert packed.headers.get("content-encoding") == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json()["scopes"] == plain.json()["scopes"]


@pytest.mark.parametrize("schema", [4, 2, 1, 10**6])
def test_another_schema_number_conflicts(device: Device, schema: int) -> None:
    """A pull under a number above the server's, or below the oldest it serves, is a 409 `schema_mismatch`."""
    assert_problem(device.post("/sync/pull", device.pull_body(schema=schema)), 409, "schema_mismatch")


def test_users_without_rows_cost_nothing_to_others(service: Service) -> None:
    """Pulls are the caller's own affair: two users see their own rows alone."""
    ada, bob = service.device(), service.device()
    mine, yours = fill(ada, 3), fill(bob, 3)
    assert ada.docs().keys() == set(mine)
    assert bob.docs().keys() == set(yours)
