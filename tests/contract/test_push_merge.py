"""What a write does: surviving writes in clock order (SPEC section 3), seen through push and pull."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from tests.contract.client import Device, Json, Service, key, reading, timestamp, wall


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


class Times:
    """Rising readings of the recent past: `times[3]` lies above `times[2]`."""

    def __init__(self) -> None:
        self.base = wall() - 50_000

    def __getitem__(self, index: int) -> str:
        return reading(self.base + index)


@pytest.fixture
def t() -> Times:
    """Readings by number."""
    return Times()


def visible(device: Device, row: str) -> Json:
    """A note that must be there."""
    doc = device.doc("notes", row)
    assert doc is not None
    return doc


def test_a_put_fills_in_defaults(device: Device) -> None:
    """Fields left out of a put take their declared default, a map `{}`, a nullable field null."""
    put = device.put("notes", title="only")
    device.apply(put)
    doc = visible(device, put["row"])
    written = timestamp(put["at"])
    assert doc == {
        "id": put["row"],
        "title": "only",
        "body": "",
        "color": "blue",
        "position": 0,
        "labels": {},
        "extra": None,
        "created_at": written,
        "updated_at": written,
    }


def test_a_later_put_replaces_the_whole_row(device: Device, t: Times) -> None:
    """`put` against `put` is row-level last-write-wins: what the later one leaves out returns to its default."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one", color="red", labels={"a": 1}))
    device.apply(device.put("notes", row, at=t[2], title="two"))
    doc = visible(device, row)
    assert (doc["title"], doc["color"], doc["labels"]) == ("two", "blue", {})


def test_created_at_is_kept_and_updated_at_moves(device: Device, t: Times) -> None:
    """`created_at` is the time of the put that made a row visible, `updated_at` that of the latest surviving write."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one"))
    device.apply(device.put("notes", row, at=t[2], title="two"))
    device.apply(device.patch("notes", row, at=t[4], color="red"))
    device.apply(device.patch("notes", row, at=t[3], position=4))
    doc = visible(device, row)
    assert (doc["created_at"], doc["updated_at"]) == (timestamp(t[1]), timestamp(t[4]))


def test_a_revived_row_is_created_anew(device: Device, t: Times) -> None:
    """A put that brings a deleted row back gives it a new `created_at`."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one"))
    device.apply(device.delete("notes", row, at=t[2]))
    device.apply(device.put("notes", row, at=t[3], title="two"))
    assert visible(device, row)["created_at"] == timestamp(t[3])


def test_patches_of_different_fields_both_survive(device: Device, t: Times) -> None:
    """Concurrent patches of different fields both survive, in whichever order they arrive (I9)."""
    for first, second in ((2, 3), (3, 2)):
        row = key()
        device.apply(device.put("notes", row, at=t[1], title="one"))
        device.apply(device.patch("notes", row, at=t[first], color="red"))
        device.apply(device.patch("notes", row, at=t[second], position=7))
        doc = visible(device, row)
        assert (doc["color"], doc["position"]) == ("red", 7)


def test_the_later_patch_of_a_field_wins(device: Device, t: Times) -> None:
    """Of two patches of one field the later clock wins although it arrived first; the earlier one is superseded."""
    # Invariant (I9).
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one"))
    device.apply(device.patch("notes", row, at=t[3], color="late"))
    (result,) = device.push(device.patch("notes", row, at=t[2], color="early"))
    assert result["status"] == "superseded"
    assert visible(device, row)["color"] == "late"


def test_a_patch_that_loses_some_paths_names_them(device: Device, t: Times) -> None:
    """A patch that takes effect for some of its paths is applied, and `superseded_fields` names the others."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one"))
    device.apply(device.patch("notes", row, at=t[3], color="late", fields={"labels/a": "late"}))
    (result,) = device.push(
        device.patch("notes", row, at=t[2], color="early", position=5, fields={"labels/a": "early", "labels/b": "b"})
    )
    assert result["status"] == "applied"
    assert sorted(result["superseded_fields"]) == ["color", "labels/a"]
    doc = visible(device, row)
    assert (doc["color"], doc["position"], doc["labels"]) == ("late", 5, {"a": "late", "b": "b"})


def test_a_late_put_lets_later_patches_stand(device: Device, t: Times) -> None:
    """A put that arrives after a patch with a later clock takes effect below it."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one"))
    device.apply(device.patch("notes", row, at=t[3], color="late"))
    device.apply(device.put("notes", row, at=t[2], title="two", color="early"))
    doc = visible(device, row)
    assert (doc["title"], doc["color"], doc["updated_at"]) == ("two", "late", timestamp(t[3]))


def test_a_put_below_a_later_put_is_superseded(device: Device, t: Times) -> None:
    """An earlier put that arrives later changes nothing."""
    row = key()
    device.apply(device.put("notes", row, at=t[2], title="late"))
    head = device.pull()["scopes"][0]["head"]
    (result,) = device.push(device.put("notes", row, at=t[1], title="early"))
    assert result["status"] == "superseded"
    assert visible(device, row)["title"] == "late"
    assert device.pull()["scopes"][0]["head"] == head


def test_a_delete_beats_every_earlier_write(device: Device, t: Times) -> None:
    """A delete beats the puts and patches before it, those that arrive later included (I10)."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one"))
    device.apply(device.delete("notes", row, at=t[4]))
    put, patch = device.push(
        device.put("notes", row, at=t[2], title="two"), device.patch("notes", row, at=t[3], color="red")
    )
    assert (put["status"], patch["status"]) == ("superseded", "superseded")
    assert device.doc("notes", row) is None


def test_a_later_patch_does_not_revive(device: Device, t: Times) -> None:
    """A patch of a deleted row, though later, is superseded with the reason `deleted`."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one"), device.delete("notes", row, at=t[2]))
    (result,) = device.push(device.patch("notes", row, at=t[3], color="red"))
    assert (result["status"], result.get("reason")) == ("superseded", "deleted")
    assert device.doc("notes", row) is None


def test_only_a_later_put_revives(device: Device, t: Times) -> None:
    """A put later than the delete brings the row back as that put says."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one", color="red"), device.delete("notes", row, at=t[2]))
    device.apply(device.put("notes", row, at=t[3], title="two"))
    doc = visible(device, row)
    assert (doc["title"], doc["color"]) == ("two", "blue")


def test_a_tombstone_keeps_later_patches(device: Device, t: Times) -> None:
    """A patch later than a delete is invisible until a put between the two arrives, and then stands."""
    row = key()
    device.apply(device.delete("notes", row, at=t[1]))
    (hidden,) = device.push(device.patch("notes", row, at=t[3], color="red", fields={"labels/x": 1}))
    assert (hidden["status"], hidden.get("reason")) == ("superseded", "deleted")
    device.apply(device.put("notes", row, at=t[2], title="back", color="green", labels={"y": 2}))
    doc = visible(device, row)
    assert (doc["title"], doc["color"], doc["labels"]) == ("back", "red", {"x": 1, "y": 2})
    assert doc["updated_at"] == timestamp(t[3])


def test_deleting_what_never_was_leaves_a_tombstone(device: Device, t: Times) -> None:
    """A delete of an unknown row is applied with version 0, and supersedes earlier puts of it."""
    row = key()
    (result,) = device.apply(device.delete("notes", row, at=t[2]))
    assert result["version"] == 0
    (late,) = device.push(device.put("notes", row, at=t[1], title="early"))
    assert late["status"] == "superseded"
    assert device.docs() == {}


def test_a_write_that_changes_nothing_visible_takes_no_version(device: Device, t: Times) -> None:
    """Deleting a deleted row again, later, is applied without a new version (I12)."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one"))
    (gone,) = device.apply(device.delete("notes", row, at=t[2]))
    head = device.pull()["scopes"][0]["head"]
    (again,) = device.apply(device.delete("notes", row, at=t[3]))
    assert again["version"] == gone["version"]
    assert device.pull()["scopes"][0]["head"] == head
    (late,) = device.push(device.put("notes", row, at=reading(t.base + 2, 5), title="between"))
    assert late["status"] == "superseded"


def test_repeating_a_value_moves_updated_at(device: Device, t: Times) -> None:
    """A later write that only repeats a value moves `updated_at`, so it takes a version (I12)."""
    row = key()
    (first,) = device.apply(device.put("notes", row, at=t[1], title="one"))
    (second,) = device.apply(device.patch("notes", row, at=t[2], title="one"))
    assert second["version"] > first["version"]
    assert visible(device, row)["updated_at"] == timestamp(t[2])


def test_map_keys_merge_one_by_one(device: Device, t: Times) -> None:
    """Keys of a map are set and removed one by one, each by its own clock."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one", labels={"a": 1, "b": 2, "c": 3}))
    device.apply(device.patch("notes", row, at=t[4], fields={"labels/a": None, "labels/d": {"deep": [1]}}))
    (late,) = device.push(device.patch("notes", row, at=t[3], fields={"labels/a": "lost", "labels/b": "won"}))
    assert (late["status"], late["superseded_fields"]) == ("applied", ["labels/a"])
    assert visible(device, row)["labels"] == {"b": "won", "c": 3, "d": {"deep": [1]}}


def test_a_whole_map_replaces_earlier_keys_only(device: Device, t: Times) -> None:
    """A patch of a whole map drops the keys written before it and leaves those written after it."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one", labels={"old": 1}))
    device.apply(device.patch("notes", row, at=t[2], fields={"labels/early": 1}))
    device.apply(device.patch("notes", row, at=t[4], fields={"labels/late": 1, "labels/gone": None}))
    device.apply(device.patch("notes", row, at=t[3], labels={"whole": 1, "late": 2, "gone": 3}))
    assert visible(device, row)["labels"] == {"whole": 1, "late": 1}


@pytest.mark.parametrize(("path", "inner"), [("a~1b", "a/b"), ("a~0b", "a~b"), ("~01", "~1"), ("é x", "é x")])
def test_keys_of_a_map_are_escaped_as_in_json_pointer(device: Device, t: Times, path: str, inner: str) -> None:
    """`/` and `~` in a map's key are written `~1` and `~0`."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one", labels={"kept": 1}))
    device.apply(device.patch("notes", row, at=t[2], fields={f"labels/{path}": 5}))
    assert visible(device, row)["labels"] == {"kept": 1, inner: 5}
    device.apply(device.patch("notes", row, at=t[3], fields={f"labels/{path}": None}))
    assert visible(device, row)["labels"] == {"kept": 1}


def test_json_is_one_value(device: Device, t: Times) -> None:
    """A field of type json is replaced whole."""
    row = key()
    device.apply(device.put("notes", row, at=t[1], title="one", extra={"a": 1, "b": {"c": [1, 2, None]}}))
    device.apply(device.patch("notes", row, at=t[2], extra={"z": 1}))
    assert visible(device, row)["extra"] == {"z": 1}


def story(row: str, t: Times) -> list[tuple[str, int, Json]]:
    """Five writes of one row that interfere in every way."""
    return [
        ("put", 1, {"title": "one", "color": "red", "labels": {"a": 1, "b": 1}}),
        ("delete", 2, {}),
        ("put", 3, {"title": "three", "labels": {"b": 3, "c": 3}}),
        ("patch", 4, {"labels": {"d": 4}, "color": "four"}),
        ("patch", 5, {"labels/e": 5, "labels/d": None, "position": 5}),
    ]


@pytest.mark.parametrize("order", list(permutations(range(5)))[::7])
def test_the_order_of_arrival_does_not_matter(device: Device, t: Times, order: tuple[int, ...]) -> None:
    """Writes that are all accepted leave the same document in any order of arrival, sent twice or once (I7)."""
    row = key()
    device.apply(device.delete("notes", row, at=t[0]))
    writes: list[Any] = [
        device.delete("notes", row, at=t[when])
        if kind == "delete"
        else getattr(device, kind)("notes", row, at=t[when], fields=fields)
        for kind, when, fields in story(row, t)
    ]
    for index in order:
        assert device.push(writes[index])[0]["status"] in ("applied", "superseded")
    for index in reversed(order):
        assert device.push(writes[index])[0]["status"] in ("applied", "superseded")
    doc = visible(device, row)
    assert (doc["title"], doc["color"], doc["position"], doc["labels"]) == ("three", "four", 5, {"e": 5})
    assert doc["updated_at"] == timestamp(t[5])


def test_the_version_answered_is_the_rows(device: Device) -> None:
    """The version of an applied mutation is the version under which a pull gives the row."""
    put = device.put("notes", title="one")
    (result,) = device.apply(put)
    run = device.pull()["scopes"][0]
    (change,) = run["changes"]
    assert (change["row"], change["version"]) == (put["row"], result["version"])
    assert run["to"] >= result["version"]
