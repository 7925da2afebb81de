"""First verdicts stand: what a mutation sent again is answered (SPEC section 4)."""

from __future__ import annotations

import pytest

from tests.contract.client import Device, Json, Service, code, key, reading, wall


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def test_an_applied_mutation_is_applied_again_without_effect(device: Device) -> None:
    """A mutation sent again is `applied` with the same version and changes nothing."""
    put = device.put("notes", title="one")
    (first,) = device.apply(put)
    before = device.pull()["scopes"][0]
    (again,) = device.apply(put)
    after = device.pull()["scopes"][0]
    assert again["version"] == first["version"]
    assert (before["head"], before["changes"]) == (after["head"], after["changes"])


def test_a_mutation_twice_in_one_push_has_one_effect(device: Device) -> None:
    """The same mutation twice in one request is applied twice with one version."""
    put = device.put("notes", title="one")
    first, second = device.apply(put, put)
    assert first["version"] == second["version"]
    assert len(device.pull()["scopes"][0]["changes"]) == 1


def test_an_overwritten_mutation_is_superseded_when_it_comes_again(device: Device) -> None:
    """A replay of a write overwritten since is `superseded` and changes nothing."""
    put = device.put("notes", title="one", at=reading(wall() - 9_000))
    device.apply(put)
    device.apply(device.put("notes", put["row"], title="two"))
    (again,) = device.push(put)
    assert again["status"] == "superseded"
    doc = device.doc("notes", put["row"])
    assert doc is not None
    assert doc["title"] == "two"


def test_a_delete_sent_again_deletes_nothing_new(device: Device) -> None:
    """A delete replayed after the row was revived leaves it alone."""
    put = device.put("notes", title="one")
    delete = device.delete("notes", put["row"])
    revival = device.put("notes", put["row"], title="two")
    device.apply(put, delete, revival)
    (again,) = device.push(delete)
    assert again["status"] == "superseded"
    assert device.docs().keys() == {put["row"]}


def test_a_spent_reading_stays_rejected(device: Device) -> None:
    """A mutation once rejected is rejected again, even when it would pass by now (I24)."""
    parent = key()
    holder = device.put("holders", parent_id=parent)
    (first,) = device.push(holder)
    device.apply(device.put("parents", parent))
    (again,) = device.push(holder)
    assert (again["status"], code(again)) == ("rejected", code(first))
    device.apply(holder | {"at": device.clock.tick()})


def test_a_spent_unknown_row_stays_rejected(device: Device) -> None:
    """A patch rejected as `row_unknown` stays so after its row has come; stamped anew it is applied."""
    row = key()
    patch = device.patch("notes", row, title="patched")
    assert code(device.push(patch)[0]) == "row_unknown"
    device.apply(device.put("notes", row, title="put", at=reading(wall() - 9_000)))
    assert device.push(patch)[0]["status"] == "rejected"
    doc = device.doc("notes", row)
    assert doc is not None
    assert doc["title"] == "put"
    device.apply(device.patch("notes", row, title="patched"))


def test_a_spent_unique_violation_stays_rejected(device: Device) -> None:
    """A unique violation stays rejected after the other row is gone."""
    one, two = device.put("categories", name="same"), device.put("categories", name="same")
    device.push(one, two)
    device.apply(device.delete("categories", one["row"]))
    assert device.push(two)[0]["status"] == "rejected"
    device.apply(two | {"at": device.clock.tick()})


def test_a_mutation_rejected_with_its_group_is_spent(device: Device) -> None:
    """A mutation answered `group_rejected` is rejected again when it comes alone (I24)."""
    good = device.put("notes", title="good", group="g")
    results = device.push(good, device.put("notes", group="g"))
    assert [result["status"] for result in results] == ["rejected", "rejected"]
    alone = {name: value for name, value in good.items() if name != "group"}
    assert device.push(alone)[0]["status"] == "rejected"
    assert device.docs() == {}


def test_a_reading_used_for_another_value_is_reused(device: Device) -> None:
    """The same reading with another value at the same path is `clock_reused`."""
    put = device.put("notes", title="one")
    device.apply(put)
    (result,) = device.push(put | {"fields": {"title": "other"}})
    assert (result["status"], code(result)) == ("rejected", "clock_reused")
    patch = device.patch("notes", put["row"], color="red")
    device.apply(patch)
    (result,) = device.push(patch | {"fields": {"color": "green"}})
    assert (result["status"], code(result)) == ("rejected", "clock_reused")
    doc = device.doc("notes", put["row"])
    assert doc is not None
    assert (doc["title"], doc["color"]) == ("one", "red")


def shared(service: Service) -> tuple[Device, Device, str]:
    """An editor, an owner, and their workspace."""
    editor, owner = service.device(), service.device()
    return editor, owner, service.workspace(editor=editor, owner=owner)


def test_a_verdict_outlives_the_right_to_write(service: Service) -> None:
    """A mutation applied before its author lost the right to write is `applied` again with its version (I23)."""
    editor, owner, scope = shared(service)
    put = editor.put("tasks", title="t", scope=scope)
    (first,) = editor.apply(put)
    owner.expel(scope, editor.user)
    new = editor.put("tasks", title="new", scope=scope)
    again, refused = editor.push(put, new)
    assert (again["status"], again["version"]) == ("applied", first["version"])
    assert code(refused) == "forbidden"


def test_a_superseded_verdict_outlives_the_right_to_write(service: Service) -> None:
    """A mutation superseded before its author lost the right to write is `superseded` again."""
    editor, owner, scope = shared(service)
    put = owner.put("tasks", title="t", scope=scope, at=reading(wall() - 9_000))
    owner.apply(put, owner.patch("tasks", put["row"], title="late", scope=scope))
    late = editor.patch("tasks", put["row"], title="early", scope=scope, at=reading(wall() - 8_000))
    assert editor.push(late)[0]["status"] == "superseded"
    owner.grant(scope, editor.user, "viewer")
    assert editor.push(late)[0]["status"] == "superseded"


def test_a_verdict_outlives_the_row_being_taken(service: Service) -> None:
    """A put applied once is not `row_taken` when it comes again after the key has moved to another scope."""
    ada, bob = service.device(), service.device()
    put = ada.put("notes", title="ada's")
    ada.apply(put, ada.delete("notes", put["row"]))
    bob.apply(bob.put("notes", put["row"], title="bob's"))
    assert ada.push(put)[0]["status"] in ("applied", "superseded")
    assert ada.docs() == {}


def test_a_verdict_outlives_the_schema_number(device: Device) -> None:
    """A mutation applied once is `applied` again under a number that the service does not serve (I23)."""
    put = device.put("notes", title="t")
    (first,) = device.apply(put)
    (again,) = device.push(put, schema=4)
    assert (again["status"], again.get("version")) == ("applied", first["version"])


def test_verdicts_are_by_content(service: Service) -> None:
    """A mutation about to be refused whose reading was used with other content is `clock_reused`."""
    editor, owner, scope = shared(service)
    put = editor.put("tasks", title="t", scope=scope)
    editor.apply(put)
    owner.expel(scope, editor.user)
    (result,) = editor.push(put | {"fields": {"title": "other"}})
    assert (result["status"], code(result)) == ("rejected", "clock_reused")


def test_a_verdict_belongs_to_its_author(service: Service) -> None:
    """Another user who sends the very mutation of somebody is answered by their own rights."""
    editor, _, scope = shared(service)
    put = editor.put("tasks", title="t", scope=scope)
    editor.apply(put)
    (result,) = service.device().push(put)
    assert (result["status"], code(result)) == ("rejected", "forbidden")


def test_any_interleaving_has_the_effect_of_one_sending(device: Device) -> None:
    """Mutations sent again and again in any order leave what sending each once leaves (I8)."""
    writes: list[Json] = [device.put("notes", title="one", labels={"a": 1})]
    row = writes[0]["row"]
    writes.append(device.patch("notes", row, title="two", fields={"labels/b": 2}))
    writes.append(device.patch("notes", row, fields={"labels/a": None}))
    writes.append(device.patch("notes", row, color="red"))
    device.apply(*writes)
    before = device.pull()["scopes"][0]
    for batch in (writes[::-1], writes[1:3], writes * 3, [writes[3], writes[0]]):
        assert {result["status"] for result in device.push(*batch)} <= {"applied", "superseded"}
    after = device.pull()["scopes"][0]
    assert (before["head"], before["changes"], before["digest"]) == (after["head"], after["changes"], after["digest"])
