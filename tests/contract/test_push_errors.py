"""Every error code of a mutation, alone and in the order of the checks (SPEC section 4)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import Device, Json, Service, code, fresh, key, reading, wall


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def refusal(device: Device, mutation: Json) -> tuple[str, str | None]:
    """Status and code of a mutation pushed alone."""
    (result,) = device.push(mutation)
    return result["status"], code(result)


def deep(levels: int) -> Any:
    """A value of `levels` arrays within each other."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_the_checks_come_in_their_order(service: Service) -> None:
    """A mutation with every fault is refused for the first in the list; each fault mended brings up the next (I19)."""
    ada, owner = service.device(), service.device()
    other = service.workspace(editor=ada)
    taken = owner.put("tasks", title="taken", scope=service.workspace(owner=owner))
    owner.apply(taken)
    mutation: Json = {
        "op": "put?",
        "entity": "nothing",
        "scope": "no scope",
        "row": "no uuid!",
        "at": "no clock",
        "fields": {
            "id": 1,
            "nothing": 1,
            "status": "odd",
            "labels": {"deep": deep(40)},
            "body": "x" * 300_000,
        },
    }
    steps: list[tuple[str, Json]] = [
        ("invalid_mutation", {"op": "put"}),
        ("unknown_entity", {"entity": "tasks"}),
        ("invalid_scope", {"scope": f"workspace:{fresh('none')}"}),
        ("forbidden", {"scope": other}),
        ("invalid_row", {"row": taken["row"]}),
        ("invalid_clock", {"at": reading(wall() + 3_600_000)}),
        ("clock_ahead", {}),
        ("read_only_field", {"fields": {"id": None}}),
        ("unknown_field", {"fields": {"nothing": None}}),
        ("invalid_field", {"fields": {"status": "done"}}),
        ("missing_field", {"fields": {"title": "t"}}),
        ("too_large", {"fields": {"body": "small"}}),
        ("too_deep", {"fields": {"labels": {}}}),
        ("row_taken", {"row": key()}),
    ]
    for number, (expected, mend) in enumerate(steps):
        status, found = refusal(ada, mutation)
        assert (status, found) == ("retry" if expected == "clock_ahead" else "rejected", expected)
        fields = mutation["fields"] | mend.get("fields", {})
        mutation |= mend | {"fields": {name: value for name, value in fields.items() if value is not None}}
        if number < 5:
            mutation["at"] = f"no clock {number}"
        elif number > 5:
            mutation["at"] = ada.clock.tick()
    assert refusal(ada, mutation) == ("applied", None)


@pytest.mark.parametrize(
    "change",
    [
        {"op": None},
        {"op": "upsert"},
        {"op": 7},
        {"op": "PUT"},
        {"op": "put\n"},
        {"group": ""},
        {"group": "g" * 65},
        {"group": 7},
        {"fields": 7},
        {"fields": []},
        {"fields": "title"},
    ],
)
def test_a_mutation_of_no_known_kind_is_invalid(device: Device, change: Json) -> None:
    """A wrong `op`, `group` or `fields` is `invalid_mutation`."""
    assert refusal(device, device.put("notes", title="t") | change) == ("rejected", "invalid_mutation")


@pytest.mark.parametrize("name", ["op", "entity", "row", "at"])
@pytest.mark.parametrize("value", [..., None, 7, True, [], {}])
def test_a_mutation_with_a_key_missing_or_of_another_type_is_rejected(device: Device, name: str, value: Any) -> None:
    """A mutation without op, entity, row or clock, or with another type for them, is rejected by itself."""
    mutation = device.put("notes", title="t")
    if value is ...:
        del mutation[name]
    else:
        mutation[name] = value
    good = device.put("notes", title="good")
    bad, fine = device.push(mutation, good)
    assert (bad["status"], fine["status"]) == ("rejected", "applied")


@pytest.mark.parametrize("entity", ["nothing", "Notes", "notes ", "notes\n", "", "sync_feed", "notes;--", "x" * 1000])
def test_an_undeclared_entity_is_unknown(device: Device, entity: str) -> None:
    """An entity that the declaration does not name is `unknown_entity`."""
    assert refusal(device, device.put(entity or "notes") | {"entity": entity})[0] == "rejected"


@pytest.mark.parametrize(
    "scope",
    [
        "user",
        "user:",
        ":x",
        "user:a b",
        "user:a\n",
        "User:a",
        "user:a%2f",
        "user:a%2F%",
        "user:%41",
        "user:%00",
        "user:%FF",
        "user:%C3",
        "user:" + "x" * 129,
        "x" * 33 + ":a",
        "user:ä",
        "user:a:b",
        "9user:a",
    ],
)
def test_a_scope_outside_its_pattern_is_invalid(device: Device, scope: str) -> None:
    """A scope that is not written in its one spelling is `invalid_scope` (I1)."""
    assert refusal(device, device.put("notes", title="t", scope=scope)) == ("rejected", "invalid_scope")


def test_a_shared_entity_needs_its_scope_named(device: Device) -> None:
    """A mutation of a workspace's entity without a scope is rejected as `invalid_scope`."""
    assert refusal(device, device.put("tasks", title="t")) == ("rejected", "invalid_scope")


@pytest.mark.parametrize("entity", ["notes", "tasks"])
def test_an_entity_lives_in_its_kind_of_scope_alone(service: Service, entity: str) -> None:
    """A user's entity is not written to a workspace, nor a workspace's to a user's scope."""
    ada = service.device()
    workspace = service.workspace(owner=ada)
    scope = workspace if entity == "notes" else ada.scope
    assert refusal(ada, ada.put(entity, title="t", scope=scope))[0] == "rejected"
    assert ada.docs() == {}


def test_forbidden_tells_nothing(service: Service) -> None:
    """A scope that does not exist and one that the caller may not write are refused in the same words (I20)."""
    ada, bob = service.device(), service.device()
    closed, readable = service.workspace(owner=bob), service.workspace(viewer=ada, owner=bob)
    answers = []
    for scope in (closed, readable, f"workspace:{fresh('none')}"):
        (result,) = ada.push(ada.put("tasks", title="t", scope=scope))
        assert (result["status"], code(result)) == ("rejected", "forbidden")
        answers.append(str(result).replace(scope, "…"))
    assert len(set(answers)) == 1
    (own,) = ada.push(ada.put("notes", title="t", scope=bob.scope))
    (none,) = ada.push(ada.put("notes", title="t", scope=f"user:{fresh('nobody')}"))
    assert code(own) == "forbidden"
    assert own["error"] == none["error"]


@pytest.mark.parametrize("row", ["", "a b", "a/b", "x" * 129, "é", "a\n", "not-a-uuid", "0", "../etc", "a\0b"])
def test_a_key_that_is_no_uuid_is_invalid(device: Device, row: str) -> None:
    """A row key is a UUID unless the entity says otherwise."""
    assert refusal(device, device.put("notes", title="t") | {"row": row}) == ("rejected", "invalid_row")


@pytest.mark.parametrize("row", ["", "a b", "a/b", "x" * 129, "é", "a\n", "a\0b", "a'b", 'a"b', "a\\b"])
def test_a_text_key_outside_its_pattern_is_invalid(device: Device, row: str) -> None:
    """A text key has 1 to 128 characters of `A-Za-z0-9._~:@-`."""
    assert refusal(device, device.put("slugs") | {"row": row}) == ("rejected", "invalid_row")


@pytest.mark.parametrize("row", ["a", "A", "-", "a.b_c~d:e@f-9", "x" * 128, "drop-table", "..."])
def test_a_text_key_within_its_pattern_is_taken(device: Device, row: str) -> None:
    """Text keys within the pattern are taken, and stand in the document under the key's column."""
    row = row if len(row) == 128 else f"{row}{fresh('')}"
    device.apply(device.put("slugs", row[:128]))
    doc = device.doc("slugs", row)
    assert doc is not None
    assert doc["slug"] == row
    assert "id" not in doc


def test_text_keys_compare_byte_by_byte(device: Device) -> None:
    """Keys that differ in case alone are two rows."""
    lower = fresh("abc")
    device.apply(device.put("slugs", lower, title="l"), device.put("slugs", lower.upper(), title="u"))
    docs = device.docs("slugs")
    assert (docs[lower]["title"], docs[lower.upper()]["title"]) == ("l", "u")


@pytest.mark.parametrize(
    "at",
    [
        "",
        "0192f3a4b5c6",
        "0192f3a4b5c6-0001",
        "0192F3A4B5C6-0001-5f1c9a7e3d2b4a68",
        "0192f3a4b5c6-0001-5f1c9a7e3d2b4a6",
        "0192f3a4b5c6-0001-5f1c9a7e3d2b4a68\n",
        " 0192f3a4b5c6-0001-5f1c9a7e3d2b4a68",
        "0192f3a4b5c6-0001-5f1c9a7e3d2b4a6g",
        "0192f3a4b5c6_0001_5f1c9a7e3d2b4a68",
        "2026-11-20T10:00:00Z",
    ],
)
def test_a_clock_outside_its_pattern_is_invalid(device: Device, at: str) -> None:
    """A reading that is not written as section 2 says is `invalid_clock`."""
    assert refusal(device, device.put("notes", title="t") | {"at": at}) == ("rejected", "invalid_clock")


@pytest.mark.parametrize("name", ["id", "user_id", "created_at", "updated_at"])
@pytest.mark.parametrize("kind", ["put", "patch"])
def test_key_scope_and_times_are_read_only(device: Device, name: str, kind: str) -> None:
    """The key, the scope column and the times are not for writing."""
    put = device.put("notes", title="t")
    device.apply(put)
    mutation = getattr(device, kind)("notes", put["row"], title="t", fields={name: put["row"]})
    (result,) = device.push(mutation)
    assert (result["status"], code(result), result["error"]["field"]) == ("rejected", "read_only_field", name)


@pytest.mark.parametrize("name", ["nothing", "Title", "title ", "", "workspace_id", "__proto__", "title\n", "title;--"])
def test_an_undeclared_field_is_unknown(device: Device, name: str) -> None:
    """A field that the entity does not declare is `unknown_field`."""
    assert refusal(device, device.put("notes", title="t", fields={name: 1})) == ("rejected", "unknown_field")


@pytest.mark.parametrize("fields", [{}, {"title": None}, {"color": "red"}])
def test_a_put_needs_its_required_fields(device: Device, fields: Json) -> None:
    """A put without a field that has no default is `missing_field`; null in it is `invalid_field`."""
    expected = "invalid_field" if "title" in fields else "missing_field"
    (result,) = device.push(device.put("notes", fields=fields))
    assert (code(result), result["error"]["field"]) == (expected, "title")


def test_a_patch_needs_no_required_field(device: Device) -> None:
    """A patch sets what it names and asks for nothing else."""
    put = device.put("notes", title="t")
    device.apply(put, device.patch("notes", put["row"], color="red"))


def test_a_document_is_bounded(device: Device) -> None:
    """A document above 256 KiB is `too_large`, by a put or as a patch would leave it; one just below is taken."""
    put = device.put("notes", title="t", body="x" * 261_000)
    device.apply(put)
    assert refusal(device, device.put("notes", title="t", body="x" * 262_144)) == ("rejected", "too_large")
    assert refusal(device, device.patch("notes", put["row"], extra="y" * 2_000)) == ("rejected", "too_large")
    doc = device.doc("notes", put["row"])
    assert doc is not None
    assert doc["extra"] is None


def test_nesting_is_bounded(device: Device) -> None:
    """Fields nested beyond 30 are `too_deep`, and 20 are not."""
    device.apply(device.put("notes", title="t", extra=deep(20)))
    for mutation in (
        device.put("notes", title="t", extra=deep(40)),
        device.put("notes", title="t", labels={"a": deep(40)}),
    ):
        assert refusal(device, mutation) == ("rejected", "too_deep")


def test_a_key_in_use_in_another_scope_is_taken(service: Service) -> None:
    """A key of a live row of another scope is `row_taken`; a tombstone there does not hold it."""
    ada, bob = service.device(), service.device()
    put = ada.put("notes", title="ada's")
    ada.apply(put)
    assert refusal(bob, bob.put("notes", put["row"], title="bob's")) == ("rejected", "row_taken")
    ada.apply(ada.delete("notes", put["row"]))
    bob.apply(bob.put("notes", put["row"], title="bob's"))
    assert refusal(ada, ada.put("notes", put["row"], title="again")) == ("rejected", "row_taken")
    assert ada.docs() == {}
    doc = bob.doc("notes", put["row"])
    assert doc is not None
    assert doc["title"] == "bob's"


def test_keys_are_taken_for_each_entity_alone(device: Device) -> None:
    """One key may name rows of two entities."""
    row = key()
    device.apply(device.put("notes", row, title="n"), device.put("categories", row, name=fresh("c")))


def test_an_entity_per_scope_takes_no_key_from_others(service: Service) -> None:
    """Keys of an entity declared `per_scope` are unique within a scope alone."""
    ada, bob = service.device(), service.device()
    first, second = service.workspace(editor=ada), service.workspace(editor=bob)
    ada.apply(ada.put("tags", "urgent", color="red", scope=first))
    bob.apply(bob.put("tags", "urgent", color="green", scope=second))
    docs = ada.docs("tags", first), bob.docs("tags", second)
    assert [found["urgent"]["color"] for found in docs] == ["red", "green"]
    assert docs[0]["urgent"]["tag"] == "urgent"


def test_a_patch_of_a_row_that_never_was_is_rejected(device: Device) -> None:
    """A patch of a row that never existed is `row_unknown`."""
    assert refusal(device, device.patch("notes", key(), title="t")) == ("rejected", "row_unknown")


def test_patches_do_not_overlap_themselves(device: Device) -> None:
    """A patch with a map and a key of the same map is rejected."""
    put = device.put("notes", title="t")
    device.apply(put)
    mutation = device.patch("notes", put["row"], labels={"a": 1}, fields={"labels/b": 2})
    assert refusal(device, mutation)[0] == "rejected"
