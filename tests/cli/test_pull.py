"""Pull: what runs do to a store (SPEC 5)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.conftest import Desk, Json, refused, run
from tidemark_cli.errors import Mismatch, Temporary
from tidemark_protocol import clock, digest

A, B, C = (f"{n}1111111-1111-4111-8111-111111111111" for n in "abc")
OWN, TEAM = "user:ann", "workspace:1"
STAMP = "2027-01-15T08:00:00.000000Z"


def change(row: str, version: int, entity: str = "notes", **fields: Any) -> Json:
    """A row as it travels."""
    times = {"created_at": STAMP, "updated_at": STAMP}
    return {"entity": entity, "row": row, "version": version, "doc": {"id": row, "title": "t", **fields, **times}}


def gone(row: str, version: int, entity: str = "notes") -> Json:
    """A deletion as it travels."""
    return {"entity": entity, "row": row, "version": version, "doc": None}


def pull(desk: Desk, *lines: Json, revoked: tuple[str, ...] = ()) -> None:
    """Pull these runs."""
    desk.service.pulls.append([*lines, desk.service.trailer(*revoked)])
    desk.sync.pull()


def titles(desk: Desk) -> dict[str, str]:
    """The notes' titles by row."""
    return {row: doc["title"] for row, doc in desk.notes().items()}


def test_pages_add_up_and_the_watermark_goes_back(desk: Desk) -> None:
    """Each line is kept with its watermark; the next request gives the last one back."""
    pull(desk, run(OWN, 0, 2, [change(A, 1), change(B, 2)], head=4), run(OWN, 2, 4, [gone(A, 3), change(C, 4)]))
    assert sorted(titles(desk)) == [B, C]
    assert desk.peer.replica.watermark() == {OWN: "epoch.4.0.3"}


def test_an_answer_cut_off_keeps_the_lines_that_came(desk: Desk) -> None:
    """Without its last line an answer is not whole: that is temporary, and what came stands."""
    desk.service.pulls.append([run(OWN, 0, 2, [change(A, 2)], head=4)])
    with pytest.raises(Temporary, match="cut off"):
        desk.sync.pull()
    assert desk.peer.replica.watermark() == {OWN: "epoch.2.0.3"}
    assert list(titles(desk)) == [A]


def test_line_separators_within_text_do_not_end_a_line(desk: Desk) -> None:
    """JSON text may hold characters that some take for the end of a line."""
    text = "a\u2028b\x85c\u2029d"
    desk.service.pulls.append([run(OWN, 0, 1, [change(A, 1, title=text)]), desk.service.trailer()])
    desk.sync.pull()
    assert titles(desk) == {A: text}


def test_pending_edits_stay_on_top_of_what_a_pull_brings(desk: Desk) -> None:
    """Edits not sent yet show over new rows from the server, field by field (I35)."""
    pull(desk, run(OWN, 0, 1, [change(A, 1, title="one", body="x")]))
    desk.writer().patch(A, {"title": "mine"})
    pull(desk, run(OWN, 1, 2, [change(A, 2, title="two", body="y")]))
    assert desk.notes()[A]["title"] == "mine"
    assert desk.notes()[A]["body"] == "y"


def test_a_reset_replaces_the_rows_and_what_was_awaited_lapses(desk: Desk) -> None:
    """After a restore versions mean something else: rows are replaced, unsent edits stay (I30)."""
    pull(desk, run(OWN, 0, 8, [change(A, 8, title="old")]))
    desk.put(B, title="sent")
    desk.service.version = 8
    desk.sync.push()
    desk.put(C, title="unsent")
    pull(desk, run(OWN, 0, 3, [change(A, 3, title="restored")], reset=True))
    assert titles(desk) == {A: "restored", C: "unsent"}
    assert desk.peer.outbox.awaited() == 0


def test_a_run_older_than_what_is_held_changes_nothing(desk: Desk) -> None:
    """A late answer with a lower head is ignored (I34)."""
    pull(desk, run(OWN, 0, 8, [change(A, 8, title="new")]))
    pull(desk, run(OWN, 0, 5, [change(A, 5, title="old")]))
    assert titles(desk) == {A: "new"}
    assert desk.peer.replica.watermark() == {OWN: "epoch.8.0.3"}


def test_a_wrong_digest_is_pulled_anew_and_reported(desk: Desk) -> None:
    """The watermark of a scope whose digest differs is dropped, and its rows come again (I32)."""
    proof = digest.of_rows([("notes", A, 1), ("notes", B, 2)])
    desk.service.pulls.append([run(OWN, 0, 2, [change(A, 1)], digest=proof), desk.service.trailer()])
    desk.service.pulls.append([run(OWN, 0, 2, [change(A, 1), change(B, 2)], digest=proof), desk.service.trailer()])
    assert desk.sync.pull().healed == [OWN]
    assert b'"watermark":{}' in desk.service.requests[-1].content
    assert desk.peer.replica.computed(OWN) == proof


def test_a_digest_that_stays_wrong_is_said(desk: Desk) -> None:
    """A second wrong digest is the end of it."""
    for _ in range(2):
        desk.service.pulls.append([run(OWN, 0, 1, [change(A, 1)], digest="9-000000000000"), desk.service.trailer()])
    with pytest.raises(Mismatch):
        desk.sync.pull()


def test_a_revoked_scope_goes_with_its_rows_and_its_changes_are_parked(desk: Desk) -> None:
    """Rows of a scope that may not be read any more go; unsent changes for it become dead letters (I26, I36)."""
    pull(desk, run(OWN, 0, 1, [change(A, 1)]), run(TEAM, 0, 1, [change(B, 1, "tasks")]))
    desk.writer("tasks", TEAM).patch(B, {"title": "unsent"})
    desk.put(C)
    pull(desk, revoked=(TEAM,))
    assert desk.peer.visible(desk.peer.entity("tasks")) == {}
    assert sorted(titles(desk)) == [A, C]
    (letter,) = desk.peer.outbox.dead_letters()
    assert (letter.mutation.row, letter.error.code) == (B, "revoked")
    assert desk.peer.replica.watermark() == {OWN: "epoch.1.0.3"}


def test_a_deletion_in_one_scope_leaves_the_row_that_came_from_another(desk: Desk) -> None:
    """A row that moved may arrive in its new scope first (I36)."""
    pull(desk, run("workspace:2", 0, 1, [change(A, 1, "tasks", title="moved")]))
    pull(desk, run(TEAM, 0, 4, [gone(A, 4, "tasks")]))
    ((name, doc),) = desk.peer.visible(desk.peer.entity("tasks")).items()
    assert (name, doc["title"]) == (("workspace:2", A), "moved")


def test_what_was_applied_in_a_scope_that_was_never_readable_here_does_not_stay(desk: Desk) -> None:
    """A verdict whose version no pull will ever bring lapses with the right to read the scope (I35)."""
    desk.writer("tasks", "workspace:9").put(B, {"title": "x"})
    desk.sync.push()
    assert len(desk.peer.visible(desk.peer.entity("tasks"))) == 1
    pull(desk)
    assert desk.peer.visible(desk.peer.entity("tasks")) == {}


def test_the_clock_advances_to_what_the_server_says(desk: Desk) -> None:
    """After a pull, readings are above the answer's clock (I3, I4)."""
    seen = clock.reading(desk.time.now + 5_000, 7, "e" * 16)
    desk.service.pulls.append([desk.service.trailer() | {"clock": seen}])
    desk.sync.pull()
    desk.put(A)
    assert next(desk.peer.outbox.pending()).at > seen


def test_a_retried_dead_letter_is_made_again_under_a_new_reading(desk: Desk) -> None:
    """A reading once rejected is spent: the change goes out again as a new one (I24)."""
    desk.put(A)
    desk.service.answers.append(desk.service.verdicts(**{A: refused("rule")}))
    desk.sync.push()
    (letter,) = desk.peer.outbox.dead_letters()
    desk.put(A)
    (mutation,) = desk.peer.outbox.pending()
    assert mutation.seq > letter.mutation.seq
    assert mutation.at > letter.mutation.at
