"""What is kept of each mutation, and how it is known again (SPEC 4 and 7)."""

from __future__ import annotations

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from tests.backend.engine_world import DECLARATION, key
from tidemark.store.base import JournalEntry, JournalRow
from tidemark.sync import journal
from tidemark.sync.access import Principal
from tidemark.sync.batch import Unit
from tidemark.sync.feed import row_hash
from tidemark.sync.journal import Event
from tidemark.sync.prepare import Preparer
from tidemark_protocol.errors import Rejection
from tidemark_protocol.messages import Mutation

ADA = Principal("ada", "user:ada", False, 0)
AT = "0192f3a4b5c6-0001-5f1c9a7e3d2b4a68"
SENT = Mutation(1, op="put", entity="notes", row=key(1), at=AT, fields={"title": "t", "extra": [None, {"a": "é\0"}]})
PREPARED = Preparer(DECLARATION, 4_096).prepare(ADA, SENT, 2)
APPLIED = Event("applied", "put", "notes", key(1), AT, "ada", "c", 7, PREPARED.content)


def row(entry: JournalEntry) -> JournalRow:
    """An entry as a store gives it back."""
    return JournalRow(1, entry.scope, entry.arrived, entry.events)


def test_a_commit_s_entry_tells_its_events_again() -> None:
    """Events come back as they were, in order, found by the rows that they name."""
    events = [APPLIED, replace(APPLIED, row=key(2), names=["labels/a"], overwrote={"labels/a": None}), APPLIED]
    entry = journal.commit_entry("user:ada", 5, events)
    assert journal.decode(row(entry)) == events
    assert entry.rows == sorted({row_hash("notes", key(1)), row_hash("notes", key(2))})
    assert (entry.scope, entry.arrived, entry.spent) == ("user:ada", 5, None)


def test_a_rejection_is_found_by_its_reading() -> None:
    """The entry of a rejection keeps what was sent and why, under the hash of its reading."""
    event = journal.rejection(Unit(ADA, "c", 2, [PREPARED]), PREPARED, Rejection("unique_violation", "taken", "title"))
    entry = journal.rejection_entry("user:ada", 5, event, PREPARED.reading)
    (again,) = journal.decode(row(entry))
    assert again == event
    assert entry.spent == PREPARED.reading == journal.spent_hash(again)
    assert (again.values, again.code, again.field) == (SENT.fields, "unique_violation", "title")
    assert "\0" not in entry.events
    assert journal.is_of(again, "ada", PREPARED)
    told = journal.ToldAgain(again)
    assert (told.code, told.message, told.field) == ("unique_violation", "taken", "title")


def test_what_names_no_row_is_not_indexed() -> None:
    """A rejection without a row or a reading is kept, and found by nothing."""
    nameless = Preparer(DECLARATION, 4_096).prepare(ADA, Mutation(1, op=7, row=["x"], fields=5), 2)
    event = journal.rejection(Unit(ADA, "c", 2, [nameless]), nameless, Rejection("invalid_mutation", "no"))
    entry = journal.rejection_entry("user:ada", 5, event, nameless.reading)
    assert (entry.rows, entry.spent) == ([], None)
    assert (event.op, event.row, event.values) == ("", "", 5)
    assert not journal.may_know(nameless)


def test_what_names_no_reading_is_not_asked_for() -> None:
    """The journal can know a mutation of a row at a reading; whatever else is sent as `at` was never accepted."""
    assert journal.may_know(PREPARED)
    for at in ("", "now", AT.upper(), AT + "0", 5):
        assert not journal.may_know(Preparer(DECLARATION, 4_096).prepare(ADA, replace(SENT, at=at), 2))


@pytest.mark.parametrize("user", ["ada", "a", 'a"d\\a', "\0\x1fä☃", "ad"])
def test_the_events_of_one_user_are_picked_out(user: str) -> None:
    """All of theirs, in order, whatever the name holds, and none of others' of a like name."""
    mine = [replace(APPLIED, user=user, version=version) for version in (7, 8, 9)]
    other = replace(APPLIED, user=user + "m", client=user)
    entries = [[mine[0], other], [other], [other, mine[1], mine[2]]]
    found = [row(journal.commit_entry("user:ada", 5, events)) for events in entries]
    assert list(journal.events_of(user, found)) == mine


def test_entries_that_do_not_name_the_user_are_not_decoded() -> None:
    """Of a row that others write all day, their entries are passed over as they are."""
    assert list(journal.events_of("ada", [JournalRow(1, "user:ada", 5, 'no JSON of "bob"')])) == []


def test_an_event_is_of_one_user_s_mutation_alone() -> None:
    """Another user's, another reading's, a member's and the server's own events are not."""
    assert journal.is_of(APPLIED, "ada", PREPARED)
    for other in (
        replace(APPLIED, user="bob"),
        replace(APPLIED, at=AT[:-1] + "0"),
        replace(APPLIED, row=key(2)),
        replace(APPLIED, entity="drafts"),
        replace(APPLIED, by="cascade"),
        replace(APPLIED, outcome="member"),
    ):
        assert not journal.is_of(other, "ada", PREPARED)


def test_a_recorded_verdict_is_given_again() -> None:
    """With its version or its reason, under the number that it is asked for now."""
    applied = journal.first_verdict(APPLIED, "user:ada", 9)
    assert (applied.seq, applied.status, applied.scope, applied.version) == (9, "applied", "user:ada", 7)
    hidden = journal.first_verdict(replace(APPLIED, outcome="superseded", reason="deleted"), "user:ada", 9)
    assert (hidden.status, hidden.reason, hidden.version) == ("superseded", "deleted", UNSET)
