"""Groups: neighbours that take effect together or not at all (SPEC section 4)."""

from __future__ import annotations

import pytest

from tests.contract.client import Device, Service, code, fresh, key, reading, wall


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def test_a_group_takes_effect_together(device: Device) -> None:
    """All mutations of a good group are applied."""
    puts = [device.put("notes", title=str(number), group="g") for number in range(5)]
    device.apply(*puts)
    assert device.docs().keys() == {put["row"] for put in puts}


def test_one_rejection_rejects_the_group(device: Device) -> None:
    """One rejection rejects its group, the others with `group_rejected`, and leaves what stands around it alone."""
    # Invariant (I13).
    before, after = device.put("notes", title="before"), device.put("notes", title="after")
    group = [
        device.put("notes", title="first", group="g"),
        device.put("notes", group="g"),
        device.put("notes", title="last", group="g"),
    ]
    results = device.push(before, *group, after)
    assert [result["status"] for result in results] == ["applied", *["rejected"] * 3, "applied"]
    assert [code(result) for result in results[1:4]] == ["group_rejected", "missing_field", "group_rejected"]
    assert device.docs().keys() == {before["row"], after["row"]}


def test_one_retry_puts_off_the_group(device: Device) -> None:
    """One `retry` makes the whole group `retry`, the others and all behind with `unavailable` (I17)."""
    before = device.put("notes", title="before")
    group = [
        device.put("notes", title="first", group="g"),
        device.put("notes", title="ahead", group="g", at=reading(wall() + 3_600_000)),
        device.put("notes", title="last", group="g"),
    ]
    results = device.push(before, *group, device.put("notes", title="after"))
    assert [result["status"] for result in results] == ["applied", *["retry"] * 4]
    assert [code(result) for result in results[1:]] == ["unavailable", "clock_ahead", "unavailable", "unavailable"]
    assert device.docs().keys() == {before["row"]}


def test_the_first_refusal_decides_for_the_group(device: Device) -> None:
    """Of a rejection and a `retry` in one group the first in order decides."""
    ahead = reading(wall() + 3_600_000)
    rejected = device.push(
        device.put("notes", group="g"),
        device.put("notes", title="a", group="g", at=ahead),
        device.put("notes", title="b"),
    )
    assert [result["status"] for result in rejected] == ["rejected", "rejected", "applied"]
    put_off = device.push(
        device.put("notes", title="a", group="g", at=ahead),
        device.put("notes", group="g"),
        device.put("notes", title="b"),
    )
    assert [result["status"] for result in put_off] == ["retry", "retry", "retry"]


def test_a_group_put_off_is_not_spent(device: Device) -> None:
    """After a group was put off, its good mutations are applied when they come again with the same readings."""
    good = device.put("notes", title="good", group="g")
    device.push(good, device.put("notes", title="ahead", group="g", at=reading(wall() + 3_600_000)))
    device.apply(good)


def test_only_neighbours_make_a_group(device: Device) -> None:
    """The same group name on both sides of another mutation names two groups."""
    left = device.put("notes", title="left", group="g")
    middle = device.put("notes", title="middle")
    right = device.put("notes", group="g")
    results = device.push(left, middle, right)
    assert [result["status"] for result in results] == ["applied", "applied", "rejected"]
    assert code(results[2]) == "missing_field"


def test_neighbouring_groups_are_apart(device: Device) -> None:
    """Two groups side by side stand or fall each by itself."""
    results = device.push(
        device.put("notes", title="a", group="one"),
        device.put("notes", title="b", group="one"),
        device.put("notes", group="two"),
        device.put("notes", title="d", group="two"),
    )
    assert [result["status"] for result in results] == ["applied", "applied", "rejected", "rejected"]


def test_a_group_leaves_no_trace_when_rejected(device: Device) -> None:
    """A rejected group undoes its patches and deletes as well as its puts."""
    kept, patched = device.put("notes", title="kept"), device.put("notes", title="before")
    device.apply(kept, patched)
    head = device.pull()["scopes"][0]["head"]
    results = device.push(
        device.delete("notes", kept["row"], group="g"),
        device.patch("notes", patched["row"], title="after", group="g"),
        device.patch("notes", key(), title="nothing", group="g"),
    )
    assert [code(result) for result in results] == ["group_rejected", "group_rejected", "row_unknown"]
    docs = device.docs()
    assert docs.keys() == {kept["row"], patched["row"]}
    assert docs[patched["row"]]["title"] == "before"
    assert device.pull()["scopes"][0]["head"] == head


def test_unique_values_swap_within_a_group(device: Device) -> None:
    """Uniqueness is checked as the group leaves the rows: two rows may swap their values (I21)."""
    first, second = device.put("categories", name="first"), device.put("categories", name="second")
    device.apply(first, second)
    device.apply(
        device.patch("categories", first["row"], name="second", group="g"),
        device.patch("categories", second["row"], name="first", group="g"),
    )
    docs = device.docs("categories")
    assert (docs[first["row"]]["name"], docs[second["row"]]["name"]) == ("second", "first")


def test_a_unique_value_rotates_through_a_group(device: Device) -> None:
    """Three rows pass their unique values round within one group, a delete and a new row included."""
    rows = [device.put("categories", name=name) for name in ("a", "b", "c")]
    device.apply(*rows)
    heir = device.put("categories", name="a", group="g")
    device.apply(
        heir,
        device.patch("categories", rows[1]["row"], name="c", group="g"),
        device.patch("categories", rows[2]["row"], name="b", group="g"),
        device.delete("categories", rows[0]["row"], group="g"),
    )
    names = {row: doc["name"] for row, doc in device.docs("categories").items()}
    assert names == {heir["row"]: "a", rows[1]["row"]: "c", rows[2]["row"]: "b"}


def test_a_swap_without_a_group_is_refused(device: Device) -> None:
    """Without a group each mutation is checked by itself."""
    first, second = device.put("categories", name="first"), device.put("categories", name="second")
    device.apply(first, second)
    results = device.push(
        device.patch("categories", first["row"], name="second"), device.patch("categories", second["row"], name="first")
    )
    assert [(result["status"], code(result)) for result in results] == [("rejected", "unique_violation")] * 2


def test_a_reference_within_a_group_may_come_before_its_row(device: Device) -> None:
    """References are checked as the group leaves the rows: a child may stand before its parent."""
    parent = key()
    device.apply(
        device.put("holders", parent_id=parent, group="g"),
        device.put("parents", parent, name=fresh("p"), group="g"),
    )


def test_a_group_may_delete_a_row_and_what_holds_it(device: Device) -> None:
    """A row in use may go in one group with the rows that use it, in whichever order."""
    parent, holder = device.put("parents"), key()
    device.apply(parent, device.put("holders", holder, parent_id=parent["row"]))
    device.apply(
        device.delete("parents", parent["row"], group="g"),
        device.delete("holders", holder, group="g"),
    )
    assert device.docs() == {}


def test_a_group_spans_scopes(service: Service) -> None:
    """A group with mutations of two scopes takes effect together or not at all."""
    device = service.device()
    scope = service.workspace(editor=device)
    results = device.push(device.put("notes", title="own", group="g"), device.put("tasks", scope=scope, group="g"))
    assert [code(result) for result in results] == ["group_rejected", "missing_field"]
    assert device.docs() == {}
    device.apply(
        device.put("notes", title="own", group="g"), device.put("tasks", title="shared", scope=scope, group="g")
    )
    assert len(device.docs()) == 2


def test_a_superseded_mutation_does_not_reject_its_group(device: Device) -> None:
    """A group with a mutation that later writes have won takes effect for the others."""
    row = device.put("notes", title="one", at=reading(wall() - 5_000))
    device.apply(row, device.patch("notes", row["row"], title="late"))
    results = device.push(
        device.patch("notes", row["row"], title="early", at=reading(wall() - 4_000), group="g"),
        device.put("notes", title="other", group="g"),
    )
    assert [result["status"] for result in results] == ["superseded", "applied"]
