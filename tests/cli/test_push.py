"""Push: what each answer does to the outbox (SPEC 2 and 4)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from tests.cli.conftest import Desk, Json, Time, later, page, problem, refused, run
from tidemark_cli.errors import LoginNeeded, Temporary, TideError, Upgrade
from tidemark_protocol import clock, digest

A, B, C = (f"{n}1111111-1111-4111-8111-111111111111" for n in "abc")
DRIFT = 60_000


def letters(desk: Desk) -> list[tuple[int, str, int | None]]:
    """The dead letters: seq, code, cause."""
    return [(one.mutation.seq, one.error.code, one.cause) for one in desk.peer.outbox.dead_letters()]


def applied(row: str, version: int, **fields: Any) -> Json:
    """A pulled change of a note."""
    stamp = "2027-01-15T08:00:00.000000Z"
    doc = {"id": row, "title": "t", **fields, "created_at": stamp, "updated_at": stamp}
    return {"entity": "notes", "row": row, "version": version, "doc": doc}


def test_what_was_applied_stays_on_top_until_the_pull_brings_it(desk: Desk) -> None:
    """After `applied` the outbox is empty, the row still shows; the pull of its version takes over (I35)."""
    desk.put(A, title="mine")
    assert desk.sync.push().applied == 1
    assert desk.pending() == []
    assert desk.peer.outbox.awaited() == 1
    assert desk.notes()[A]["title"] == "mine"
    desk.service.pulls.append([run("user:ann", 0, 1, [applied(A, 1, title="mine")]), desk.service.trailer()])
    desk.sync.pull()
    assert desk.peer.outbox.awaited() == 0
    assert desk.notes()[A]["title"] == "mine"


def test_what_a_pull_below_the_version_brings_does_not_show_through(desk: Desk) -> None:
    """A run that ends before an applied version leaves its effect on top (I35)."""
    desk.put(A, title="mine")
    desk.service.version = 6
    desk.sync.push()
    desk.service.pulls.append([run("user:ann", 0, 5, [applied(A, 5, title="older")]), desk.service.trailer()])
    desk.sync.pull()
    assert desk.notes()[A]["title"] == "mine"


def test_a_verdict_below_the_replica_awaits_nothing(desk: Desk) -> None:
    """If the replica is beyond the version already, the effect is in its rows."""
    desk.service.pulls.append([run("user:ann", 0, 9, [applied(A, 9)]), desk.service.trailer()])
    desk.sync.pull()
    desk.writer().patch(A, {"title": "mine"})
    desk.service.version = 8
    desk.sync.push()
    assert desk.peer.outbox.awaited() == 0


def test_a_superseded_change_is_dropped(desk: Desk) -> None:
    """What lost goes from the outbox and from the row."""
    desk.put(A)
    desk.service.answers.append(desk.service.verdicts(**{A: {"status": "superseded"}}))
    assert desk.sync.push().superseded == 1
    assert desk.pending() == []
    assert desk.notes() == {}


def test_a_rejected_row_is_rolled_back_and_parked_with_what_depends_on_it(desk: Desk) -> None:
    """A rejected put goes to the dead letters with its reason, and takes later edits and references along (I26)."""
    desk.put(A, title="made")
    rejection = {"seq": 1} | refused("unique_violation", "the title is in use")
    desk.service.answers.append(
        lambda _: httpx2.Response(200, json={"results": [rejection], "clock": desk.service.reading()})
    )
    desk.put(B, note_id=A)
    desk.put(C)
    desk.writer().patch(A, {"title": "changed"})
    assert desk.sync.push().rejected == 3
    assert letters(desk) == [(1, "unique_violation", None), (2, "depends", 1), (4, "depends", 1)]
    assert list(desk.notes()) == [C]


def test_what_is_rejected_itself_builds_on_a_change_rejected_before_it(desk: Desk) -> None:
    """Rejected in one answer, what needs a rejected row keeps its own reason and names that row's put (I26)."""
    desk.put(A, title="taken")
    desk.put(B, note_id=A)
    desk.writer().patch(A, {"title": "changed"})
    desk.put(C)
    codes = ["unique_violation", "ref_missing", "row_unknown", "rule"]

    def answer(body: Json) -> httpx2.Response:
        sent = zip(body["mutations"], codes, strict=True)
        results = [{"seq": mutation["seq"]} | refused(code, f"it is {code}") for mutation, code in sent]
        return httpx2.Response(200, json={"results": results, "clock": desk.service.reading()})

    desk.service.answers.append(answer)
    assert desk.sync.push().rejected == 4
    assert letters(desk) == [
        (1, "unique_violation", None),
        (2, "ref_missing", 1),
        (3, "row_unknown", 1),
        (4, "rule", None),
    ]
    assert [one.error.message for one in desk.peer.outbox.dead_letters()] == [f"it is {code}" for code in codes]
    assert desk.notes() == {}


def test_a_rejected_edit_leaves_what_others_and_later_edits_made(desk: Desk) -> None:
    """Rolling back an edit gives the row as it is without it (I26)."""
    desk.service.pulls.append([run("user:ann", 0, 1, [applied(A, 1, title="base", body="b")]), desk.service.trailer()])
    desk.sync.pull()
    desk.writer().patch(A, {"title": "bad"})
    desk.writer().patch(A, {"body": "good"})

    def answer(body: Json) -> httpx2.Response:
        first, second = body["mutations"]
        results = [{"seq": first["seq"]} | refused("rule"), {"seq": second["seq"], "status": "applied", "version": 2}]
        return httpx2.Response(200, json={"results": results, "clock": desk.service.reading()})

    desk.service.answers.append(answer)
    desk.sync.push()
    assert (desk.notes()[A]["title"], desk.notes()[A]["body"]) == ("base", "good")
    assert letters(desk) == [(1, "rule", None)]


def test_retry_keeps_everything_behind_it_in_order(desk: Desk) -> None:
    """A `retry` that does not end is given up for now; nothing has left the outbox but what came before it."""
    for row in (A, B, C):
        desk.put(row)
    desk.service.answers += [desk.service.verdicts(**{B: later("unavailable")})] * 10
    with pytest.raises(Temporary, match="try later"):
        desk.sync.push()
    assert desk.pending() == [2, 3]
    assert [mutation["seq"] for mutation in desk.service.pushes[-1]["mutations"]] == [2, 3]
    assert desk.slept == sorted(desk.slept)


@pytest.mark.parametrize("answer", [page(502), page(200), page(404), page(302), problem(503, "unavailable")])
def test_only_the_services_own_verdict_is_final(desk: Desk, answer: Any) -> None:
    """Proxies' pages, whatever their status, and a service that is away leave the outbox as it was (I25)."""
    desk.put(A)
    desk.service.answers.append(answer)
    with pytest.raises(Temporary):
        desk.sync.push()
    assert desk.pending() == [1]
    assert desk.sync.push().applied == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(401, "token_expired"), LoginNeeded),
        (problem(403, "forbidden"), TideError),
        (problem(409, "schema_mismatch"), Upgrade),
        (problem(429, "rate_limited", **{"Retry-After": "3600"}), Temporary),
    ],
)
def test_a_request_that_is_refused_keeps_the_outbox(desk: Desk, answer: Any, error: type[TideError]) -> None:
    """Each refusal has its exit code, none costs a change (I25)."""
    desk.put(A)
    desk.service.answers.append(answer)
    with pytest.raises(error) as caught:
        desk.sync.push()
    assert type(caught.value) is error
    assert desk.pending() == [1]
    assert letters(desk) == []


def test_a_short_retry_after_is_waited_for(desk: Desk) -> None:
    """Within one command a named time to wait is kept, a few times."""
    desk.put(A)
    desk.service.answers += [problem(429, "rate_limited", **{"Retry-After": "2"})] * 2
    assert desk.sync.push().applied == 1
    assert desk.slept == [2.0, 2.0]


def test_a_lost_answer_is_asked_for_again_with_the_same_readings(desk: Desk, time: Time) -> None:
    """What was handed over keeps its reading, whatever the clocks say by then: replay is safe (I8, I25)."""
    desk.put(A)

    def lost(_: Json) -> httpx2.Response:
        raise httpx2.ReadTimeout("gone")

    desk.service.answers.append(lost)
    with pytest.raises(Temporary):
        desk.sync.push()
    time.now += 40_000
    desk.service.time = lambda: time.now - 100_000
    desk.sync.push()
    first, second = (push["mutations"] for push in desk.service.pushes)
    assert first == second


def test_a_push_refused_whole_is_halved_down_to_the_culprit(desk: Desk) -> None:
    """413 for a batch halves it; the mutation that gets one alone is a dead letter, the others arrive (I18)."""
    rows = [desk.put().row for _ in range(9)]

    def too_much(body: Json) -> httpx2.Response:
        if rows[5] in [mutation["row"] for mutation in body["mutations"]]:
            return problem(413, "too_large")(body)
        return desk.service.verdicts()(body)

    desk.service.answers += [too_much] * 20
    pushed = desk.sync.push()
    assert (pushed.applied, pushed.rejected) == (8, 1)
    assert letters(desk) == [(6, "too_large", None)]


def test_a_stranger_that_refuses_a_lone_mutation_makes_no_dead_letter(desk: Desk) -> None:
    """A proxy's 413 shrinks the batch, but is no verdict."""
    desk.put(A)
    desk.put(B)
    desk.service.answers += [page(413)] * 5
    with pytest.raises(Temporary):
        desk.sync.push()
    assert [len(push["mutations"]) for push in desk.service.pushes] == [2, 1]
    assert desk.pending() == [1, 2]


def test_a_group_is_sent_and_parked_as_one(desk: Desk) -> None:
    """Halving never divides a group."""
    writer = desk.writer(group="g")
    for row in (A, B, C):
        writer.put(row, {"title": "t"})
    desk.service.answers += [problem(413, "too_large")]
    assert desk.sync.push().rejected == 3
    assert len(desk.service.pushes) == 1


def test_changes_of_different_schema_numbers_go_out_apart(desk: Desk) -> None:
    """Each mutation is sent under the number it was written for."""
    desk.put(A)
    desk.peer.database.sql.execute("UPDATE outbox SET schema = 2")
    desk.put(B)
    desk.sync.push()
    assert [(push["schema"], len(push["mutations"])) for push in desk.service.pushes] == [(2, 1), (3, 1)]


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_changes_made_by_a_wrong_clock_are_corrected_before_they_are_sent(desk: Desk, time: Time) -> None:
    """What was queued before the offset was known is stamped by it before its first sending, order kept (I6)."""
    real = time.now
    time.now += 86_400_000
    for row in (A, B, C):
        desk.put(row)
    desk.service.time = lambda: time.now - 86_400_000
    desk.sync.push()
    readings = [mutation["at"] for mutation in desk.service.pushes[0]["mutations"]]
    assert all(a < b for a, b in pairwise(readings))
    assert all(0 <= clock.millis_of(at) - real < 1_000 for at in readings)
    assert abs(desk.peer.corrected() - desk.service.time()) < 10


def test_a_reading_too_far_ahead_is_corrected_and_sent_again(desk: Desk, time: Time) -> None:
    """`clock_ahead` measures the offset, stamps anew from there on, and sends; nothing is dropped (I6)."""
    desk.put(A)
    desk.peer.database.sql.execute("UPDATE outbox SET handed = 1")
    desk.put(B)
    desk.service.time = lambda: time.now - 10 * DRIFT

    def ahead(body: Json) -> httpx2.Response:
        limit = clock.floor_reading(desk.service.time() + DRIFT)
        first = next((m["row"] for m in body["mutations"] if m["at"] > limit), "none")
        return desk.service.verdicts(**{first: later("clock_ahead")})(body)

    desk.service.answers += [ahead] * 5
    assert desk.sync.push().applied == 2
    assert len(desk.service.pushes) == 2
    readings = [mutation["at"] for mutation in desk.service.pushes[1]["mutations"]]
    assert readings == sorted(readings)
    assert desk.pending() == []


def test_a_clock_held_up_by_what_it_received_waits(desk: Desk, time: Time) -> None:
    """Readings never go below one that was received, so the change is kept for later (I3, I6)."""
    with desk.peer.database.transaction():
        desk.peer.outbox.observe(clock.reading(time.now + 10 * DRIFT, 0, "f" * 16))
    desk.put(A)
    desk.service.answers += [desk.service.verdicts(**{A: later("clock_ahead")})] * 10
    with pytest.raises(Temporary):
        desk.sync.push()
    (mutation,) = desk.peer.outbox.pending()
    assert clock.millis_of(mutation.at) >= time.now + 9 * DRIFT


def test_an_outdated_number_keeps_everything(desk: Desk) -> None:
    """A verdict `schema_mismatch` asks for an upgrade and keeps the outbox (I25)."""
    desk.put(A)
    desk.service.answers.append(desk.service.verdicts(**{A: later("schema_mismatch")}))
    with pytest.raises(Upgrade):
        desk.sync.push()
    assert desk.pending() == [1]


def test_a_number_that_is_no_longer_converted_holds_nothing_up(desk: Desk) -> None:
    """What was written under it becomes a dead letter, and what was written since goes out (I25, I26)."""
    desk.put(A)
    declaration = desk.peer.declaration
    vars(desk.peer)["declaration"] = replace(declaration, number=declaration.number + 1)
    desk.put(B)
    desk.service.answers.append(desk.service.verdicts(**{A: later("schema_mismatch")}))
    pushed = desk.sync.push()
    assert (pushed.rejected, pushed.applied) == (1, 1)
    assert desk.pending() == []
    (letter,) = desk.peer.outbox.dead_letters()
    assert letter.error.code == "schema_mismatch"


def test_the_digest_that_a_pull_brings_is_held_against_the_rows(desk: Desk) -> None:
    """A right digest is kept; the store can be verified by it later (I32)."""
    proof = digest.of_rows([("notes", A, 1)])
    desk.service.pulls.append([run("user:ann", 0, 1, [applied(A, 1)], digest=proof), desk.service.trailer()])
    desk.sync.pull()
    (standing,) = desk.peer.replica.standings()
    assert standing.digest == proof == desk.peer.replica.computed("user:ann")
