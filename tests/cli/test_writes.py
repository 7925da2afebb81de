"""Local writes: what goes into the outbox, and under which reading (SPEC 2 and 3)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.cli.conftest import Desk, Time, run, token
from tidemark_cli.errors import TideError
from tidemark_cli.writes import Item

KEY = "11111111-1111-4111-8111-111111111111"


def fields_of(desk: Desk) -> list[Any]:
    """What each pending mutation does."""
    return [(mutation.op, mutation.fields) for mutation in desk.peer.outbox.pending()]


def test_a_new_row_is_put_whole_with_its_defaults(desk: Desk) -> None:
    """A row that is not visible goes out as a put that leaves nothing open."""
    written = desk.put(title="Milk")
    (mutation,) = desk.peer.outbox.pending()
    assert (written.op, mutation.op, mutation.scope, mutation.schema) == ("put", "put", "user:ann", 3)
    assert mutation.fields is not None
    assert mutation.fields["title"] == "Milk"
    assert mutation.fields["done"] is False
    assert mutation.fields["labels"] == {}
    assert desk.notes()[written.row]["title"] == "Milk"


def test_a_put_over_a_visible_row_is_a_patch_of_what_it_changes(desk: Desk) -> None:
    """The whole of a visible row is set field by field, maps key by key, so that others' edits survive."""
    desk.put(KEY, title="Milk", body="two", labels={"a": 1, "b": 2})
    desk.put(KEY, title="Milk", body="three", labels={"b": 2, "c": 3})
    assert fields_of(desk)[1] == ("patch", {"body": "three", "labels/a": None, "labels/c": 3})


def test_a_write_that_changes_nothing_does_not_go_out(desk: Desk) -> None:
    """Putting or patching what is there already leaves the outbox alone."""
    desk.put(KEY, title="Milk", labels={"a": 1})
    assert desk.put(KEY, title="Milk", labels={"a": 1}).op == "unchanged"
    assert desk.writer().patch(KEY, {"title": "Milk", "labels/a": 1, "labels/z": None}).op == "unchanged"
    assert len(desk.pending()) == 1


def test_a_patch_sets_fields_and_keys_of_maps(desk: Desk) -> None:
    """Paths with a slash set one key of a map, null removes it."""
    desk.put(KEY, labels={"a": 1, "x/y": 2})
    desk.writer().patch(KEY, {"labels/a": 5, "labels/x~1y": None, "count": 3})
    assert desk.notes()[KEY]["labels"] == {"a": 5}
    assert desk.notes()[KEY]["count"] == 3


def test_a_deleted_row_is_put_again_by_a_put(desk: Desk) -> None:
    """After a delete the row is gone here, and a put revives it."""
    desk.put(KEY)
    desk.writer().delete(KEY)
    assert desk.notes() == {}
    with pytest.raises(TideError, match="There is no notes"):
        desk.writer().patch(KEY, {"title": "x"})
    assert desk.put(KEY, title="back").op == "put"
    assert desk.notes()[KEY]["title"] == "back"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"title": "x" * 21}, "from 0 to 20 characters"),
        ({"title": "x", "nope": 1}, "no field"),
        ({"title": "x", "price": "1.234"}, "decimal"),
        ({"title": "x", "labels": {"a": None}}, "null"),
        ({"title": "x", "created_at": "2020-01-01T00:00:00Z"}, "not set by mutations"),
        ({"title": "x", "body": "y" * 300_000}, "256 KiB"),
    ],
)
def test_what_the_declaration_forbids_never_reaches_the_outbox(desk: Desk, fields: Any, message: str) -> None:
    """Values are checked before they are written, and a refused write leaves nothing behind."""
    with pytest.raises(TideError, match=message):
        desk.put(KEY, **fields)
    assert desk.pending() == []
    assert desk.notes() == {}


def test_a_key_in_use_in_another_scope_is_refused_unless_counted_within_scopes(desk: Desk) -> None:
    """Keys are unique over all scopes; those of `per_scope` entities within their own."""
    desk.writer("tasks", "workspace:1").put(KEY, {"title": "x"})
    with pytest.raises(TideError, match="in workspace:1 already"):
        desk.writer("tasks", "workspace:2").put(KEY, {"title": "x"})
    desk.writer("tags", "workspace:1").put("red", {})
    assert desk.writer("tags", "workspace:2").put("red", {}).op == "put"


def test_row_and_outbox_are_one_transaction(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is interrupted before its end has neither changed the row nor queued anything (I25)."""

    def fails(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(desk.peer.outbox, "add", fails)
    with pytest.raises(KeyboardInterrupt):
        desk.put(KEY)
    monkeypatch.undo()
    assert desk.pending() == []
    assert desk.notes() == {}
    assert desk.put(KEY).op == "put"


def test_an_import_is_taken_in_as_a_whole_or_not_at_all(desk: Desk) -> None:
    """One bad row refuses the file; taking in the same file twice changes nothing the second time."""
    items = [Item(KEY, {"title": "a"}), Item(None, {"title": "b"})]
    with pytest.raises(TideError, match="title is required"):
        desk.writer().take_in([*items, Item(None, {"body": "no title"})])
    assert desk.pending() == []
    assert [one.op for one in desk.writer().take_in(items[:1])] == ["put"]
    assert [one.op for one in desk.writer().take_in(items[:1])] == ["unchanged"]
    assert [one.op for one in desk.writer().take_in([Item(KEY, {"count": 4}), Item(KEY, {"count": 5})])] == [
        "patch"
    ] * 2
    assert fields_of(desk)[1:] == [("patch", {"count": 4}), ("patch", {"count": 5})]


# ── readings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_readings_rise_whatever_the_devices_clock_does(desk: Desk, time: Time) -> None:
    """A clock set back, and a store opened again under another node, never issue a lower reading (I3)."""
    for step in (0, -5_000_000, 3, -1, 60_000, -90_000):
        time.now += step
        desk.peer.close()
        desk.peer = desk.open()
        desk.put()
    readings = [mutation.at for mutation in desk.peer.outbox.pending()]
    assert all(a < b for a, b in pairwise(readings))
    assert len({reading[-16:] for reading in readings}) == len(readings)


def test_a_write_after_seeing_another_is_later_than_it(desk: Desk, time: Time) -> None:
    """What is written after a pull, even one that was cut off, is later than the rows it brought (I4)."""
    ahead = time.now + 30_000
    stamp = "2027-01-15T08:00:30.000000Z"
    doc = {"id": KEY, "title": "theirs", "created_at": stamp, "updated_at": stamp}
    change = {"entity": "notes", "row": KEY, "version": 1, "doc": doc}
    desk.service.pulls.append([run("user:ann", 0, 1, [change])])
    with pytest.raises(TideError, match="cut off"):
        desk.sync.pull()
    desk.writer().patch(KEY, {"title": "mine"})
    (mutation,) = desk.peer.outbox.pending()
    assert int(mutation.at[:12], 16) > ahead


def test_a_write_begun_as_one_user_is_not_finished_as_another(desk: Desk) -> None:
    """A login that comes between is noticed in the write's own transaction."""
    writer = desk.writer()
    desk.open().login(token("bob"))
    with pytest.raises(TideError, match="Somebody else"):
        writer.put(KEY, {"title": "x"})
    assert desk.pending() == []


def test_two_processes_write_to_one_store_at_once(desk: Desk) -> None:
    """A second opening of the store sees the first one's writes, and neither loses any."""
    other = desk.open()
    desk.put(KEY, title="first")
    other.database.sql.execute("PRAGMA busy_timeout=50")
    with desk.peer.database.transaction(), pytest.raises(TideError, match="busy"), other.database.transaction():
        raise AssertionError("two transactions at once")
    assert [mutation.seq for mutation in other.outbox.pending()] == [1]
    other.close()
