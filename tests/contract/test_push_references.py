"""References, uniqueness and rules, within the row's scope (SPEC sections 4 and 10)."""

from __future__ import annotations

import secrets

import pytest

from tests.contract.client import Device, Json, Service, code, key, reading, wall
from tests.contract.conftest import Launcher


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


@pytest.fixture
def parent(device: Device) -> Json:
    """A row for others to refer to."""
    put = device.put("parents", name="parent")
    device.apply(put)
    return put


def refusal(device: Device, mutation: Json) -> tuple[str, str | None]:
    """Status and code of a mutation pushed alone."""
    (result,) = device.push(mutation)
    return result["status"], code(result)


def test_a_reference_names_a_visible_row(device: Device, parent: Json) -> None:
    """A put or patch that sets a reference to a row that is not there, or deleted, is `ref_missing`."""
    assert refusal(device, device.put("holders", parent_id=key())) == ("rejected", "ref_missing")
    holder = device.put("holders", parent_id=parent["row"])
    device.apply(holder)
    assert refusal(device, device.patch("holders", holder["row"], parent_id=key())) == ("rejected", "ref_missing")
    gone = device.put("parents")
    device.apply(gone, device.delete("parents", gone["row"]))
    assert refusal(device, device.put("traces", parent_id=gone["row"])) == ("rejected", "ref_missing")


def test_a_reference_stays_within_its_scope(service: Service, device: Device, parent: Json) -> None:
    """A row of another scope is not there for a reference, not even one that the caller may read (I21)."""
    other = service.device()
    assert refusal(other, other.put("holders", parent_id=parent["row"])) == ("rejected", "ref_missing")
    first, second = service.workspace(owner=device), service.workspace(owner=device)
    task = device.put("tasks", title="t", scope=first)
    device.apply(task)
    board = device.put("boards", name="b", lead_id=task["row"], scope=second)
    assert refusal(device, board) == ("rejected", "ref_missing")


def test_a_row_in_use_stays(device: Device, parent: Json) -> None:
    """The delete of a row that a `restrict` reference names is `ref_in_use`, until the reference is gone."""
    holder = device.put("holders", parent_id=parent["row"])
    device.apply(holder)
    assert refusal(device, device.delete("parents", parent["row"])) == ("rejected", "ref_in_use")
    device.apply(device.delete("holders", holder["row"]), device.delete("parents", parent["row"]))


def test_a_cascade_takes_what_refers(device: Device, parent: Json) -> None:
    """The delete of a row takes the rows that refer to it by `cascade`, and what refers to these."""
    part, other = device.put("parts", parent_id=parent["row"]), device.put("parents")
    bits = [device.put("bits", part_id=part["row"]) for _ in range(3)]
    safe = device.put("parts", parent_id=other["row"])
    device.apply(other, part, safe, *bits)
    device.apply(device.delete("parents", parent["row"]))
    assert device.docs().keys() == {other["row"], safe["row"]}


def test_a_cascade_is_a_write_above_every_clock_of_the_row(device: Device, parent: Json) -> None:
    """A row taken by a cascade stays gone for earlier writes, and comes back by a later put."""
    ahead = reading(wall() + 30_000)
    part = device.put("parts", parent_id=parent["row"], at=ahead)
    delete = device.delete("parents", parent["row"])
    device.apply(part)
    device.apply(delete)
    assert device.docs() == {}
    (late,) = device.push(device.patch("parts", part["row"], name="early", at=reading(wall() + 20_000)))
    assert late["status"] == "superseded"
    new_parent = device.put("parents")
    device.pull()
    device.apply(new_parent, device.put("parts", part["row"], parent_id=new_parent["row"]))
    assert device.docs().keys() == {new_parent["row"], part["row"]}


def test_set_null_lets_go(device: Device, parent: Json) -> None:
    """The delete of a row sets references by `set_null` to null, as a write with a version of its own."""
    hint = device.put("hints", parent_id=parent["row"])
    (before,) = device.apply(hint)
    device.apply(device.delete("parents", parent["row"]))
    (change,) = [change for change in device.pull()["scopes"][0]["changes"] if change["row"] == hint["row"]]
    assert change["doc"]["parent_id"] is None
    assert change["version"] > before["version"]


def test_keep_keeps(device: Device, parent: Json) -> None:
    """The delete of a row leaves references by `keep` as they are, and their rows open to other patches."""
    trace = device.put("traces", parent_id=parent["row"])
    device.apply(trace, device.delete("parents", parent["row"]))
    device.apply(device.patch("traces", trace["row"], name="renamed"))
    doc = device.doc("traces", trace["row"])
    assert doc is not None
    assert (doc["parent_id"], doc["name"]) == (parent["row"], "renamed")


def test_a_restricted_row_stops_the_whole_cascade(device: Device, parent: Json) -> None:
    """A delete refused by one reference takes nothing by its others."""
    part, holder = device.put("parts", parent_id=parent["row"]), device.put("holders", parent_id=parent["row"])
    device.apply(part, holder)
    assert refusal(device, device.delete("parents", parent["row"])) == ("rejected", "ref_in_use")
    assert device.docs().keys() == {parent["row"], part["row"], holder["row"]}


def test_a_cascade_past_its_limit_is_rejected(launch: Launcher) -> None:
    """A cascade of more rows than the limit is a rejection, never a `retry`, and takes nothing (I22)."""
    device = launch(env={"TIDEMARK_CASCADE_LIMIT": "10"}).service.device()
    parent, small = device.put("parents"), device.put("parents")
    parts = [device.put("parts", parent_id=parent["row"]) for _ in range(30)]
    device.apply(parent, small, *parts, *(device.put("parts", parent_id=small["row"]) for _ in range(5)))
    refused, good = device.push(device.delete("parents", parent["row"]), device.delete("parents", small["row"]))
    assert (refused["status"], good["status"]) == ("rejected", "applied")
    assert device.docs().keys() == {parent["row"], *(part["row"] for part in parts)}


def test_unique_values_are_unique(device: Device) -> None:
    """A put or patch that takes a unique value of another visible row is `unique_violation`."""
    one, two = device.put("categories", name="one"), device.put("categories", name="two")
    device.apply(one, two)
    assert refusal(device, device.put("categories", name="one")) == ("rejected", "unique_violation")
    assert refusal(device, device.patch("categories", two["row"], name="one")) == ("rejected", "unique_violation")
    device.apply(device.patch("categories", one["row"], name="one", color="red"))


def test_unique_values_are_free_again_after_a_delete(device: Device) -> None:
    """A deleted row holds no unique value."""
    one = device.put("categories", name="one")
    device.apply(one, device.delete("categories", one["row"]), device.put("categories", name="one"))


@pytest.mark.parametrize("twin", ["work", "Work ", " Work", "Wörk", "Wo\u0301rk", "WORK"])
def test_unique_values_compare_byte_by_byte(device: Device, twin: str) -> None:
    """Values that differ in case, in accents or by a space are different values."""
    device.apply(device.put("categories", name="Work"), device.put("categories", name=twin))


def test_uniqueness_stays_within_its_scope(service: Service) -> None:
    """Two scopes may hold the same unique value (I21)."""
    ada, bob = service.device(), service.device()
    ada.apply(ada.put("categories", name="same"))
    bob.apply(bob.put("categories", name="same"))
    scopes = [service.workspace(owner=ada) for _ in range(2)]
    ada.apply(*(ada.put("boards", name="same", scope=scope) for scope in scopes))


def test_a_unique_violation_leaves_its_neighbours_alone(device: Device) -> None:
    """Of a push of many, only the mutations that collide are rejected."""
    names = [f"n{number // 2}" for number in range(100)]
    results = device.push(*(device.put("categories", name=name) for name in names))
    assert [result["status"] for result in results] == ["applied", "rejected"] * 50
    assert {code(result) for result in results[1::2]} == {"unique_violation"}
    assert len(device.docs("categories")) == 50


def test_what_a_database_cannot_index_is_no_retry(device: Device) -> None:
    """A value that a database may refuse to index is applied or rejected, and its neighbours are applied (I22)."""
    big = secrets.token_urlsafe(20_000)
    before, odd, after = device.push(
        device.put("texts", value="before"), device.put("texts", value=big), device.put("texts", value="after")
    )
    assert (before["status"], after["status"]) == ("applied", "applied")
    assert odd["status"] in ("applied", "rejected")
    if odd["status"] == "rejected":
        assert code(odd) == "constraint_violation"
    assert len(device.docs("texts")) == (3 if odd["status"] == "applied" else 2)


def test_a_rule_refuses_a_delete(device: Device) -> None:
    """A rule for deletes looks at the row as it is, and its message is the error's."""
    calendar = device.put("calendars", name="mine", kind="default")
    device.apply(calendar)
    (result,) = device.push(device.delete("calendars", calendar["row"]))
    assert (result["status"], code(result)) == ("rejected", "rule")
    assert result["error"]["message"] == "the default calendar cannot be deleted"
    device.apply(device.patch("calendars", calendar["row"], kind="user"), device.delete("calendars", calendar["row"]))


def test_a_rule_refuses_a_put(device: Device) -> None:
    """A rule for puts looks at a new or revived row as it would become."""
    assert refusal(device, device.put("calendars", name="c", kind="banned")) == ("rejected", "rule")
    row = device.put("calendars", name="c")
    device.apply(row, device.delete("calendars", row["row"]))
    assert refusal(device, device.put("calendars", row["row"], name="c", kind="banned")) == ("rejected", "rule")


def test_a_rule_refuses_a_patch(device: Device) -> None:
    """A rule for patches looks at the row as it would become, all of its values together."""
    row = device.put("calendars", name="c", locked=True)
    device.apply(row)
    assert refusal(device, device.patch("calendars", row["row"], kind="archive")) == ("rejected", "rule")
    device.apply(device.patch("calendars", row["row"], kind="archive", locked=False))
    assert refusal(device, device.patch("calendars", row["row"], locked=True)) == ("rejected", "rule")


def test_references_uniqueness_and_rules_come_in_their_order(service: Service, device: Device) -> None:
    """`ref_missing` comes before `unique_violation`."""
    scope = service.workspace(owner=device)
    device.apply(device.put("boards", name="taken", scope=scope))
    both = device.put("boards", name="taken", lead_id=key(), scope=scope)
    assert refusal(device, both) == ("rejected", "ref_missing")


def test_a_superseded_write_is_not_checked_any_further(device: Device, parent: Json) -> None:
    """A write that later ones have won is `superseded`, whatever it refers to and whatever rule it breaks."""
    holder = device.put("holders", parent_id=parent["row"])
    calendar = device.put("calendars", name="c")
    device.apply(holder, calendar)
    early = reading(wall() - 30_000)
    late = device.push(
        device.put("holders", holder["row"], parent_id=key(), at=early),
        device.put("calendars", calendar["row"], name="c", kind="banned", at=early),
    )
    assert [result["status"] for result in late] == ["superseded", "superseded"]
