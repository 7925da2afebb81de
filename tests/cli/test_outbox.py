"""Whatever is answered, and wherever a command is interrupted, a store loses no change (SPEC 4)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import httpx2
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.conftest import Desk, Json, Script, Time, later, page, problem, refused
from tidemark_cli.errors import TideError

KEYS = [f"{n}1111111-1111-4111-8111-111111111111" for n in "abcd"]
CODES = ["forbidden", "unique_violation", "row_unknown"]

verdict = st.one_of(
    st.just({"status": "applied"}),
    st.just({"status": "superseded"}),
    st.sampled_from(CODES).map(refused),
    st.sampled_from(["unavailable", "clock_ahead", "schema_mismatch"]).map(later),
)
write = st.tuples(st.sampled_from(["put", "patch", "delete"]), st.sampled_from(KEYS), st.none() | st.sampled_from(KEYS))
answer = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), verdict).map(lambda said: ("verdicts", said)),
    st.sampled_from([400, 413]).map(lambda status: ("problem", status)),
    st.sampled_from([200, 413, 502]).map(lambda status: ("page", status)),
    st.sampled_from(["lost", "interrupted"]).map(lambda how: ("cut", how)),
)


def as_answer(desk: Desk, kind: str, said: Any) -> Any:
    """An answer drawn above as one that the service gives."""

    def cut(body: Json) -> httpx2.Response:
        desk.service.verdicts()(body)
        raise KeyboardInterrupt if said == "interrupted" else httpx2.ReadError("gone")

    match kind:
        case "verdicts":
            return desk.service.verdicts(**said)
        case "problem":
            return problem(said, "malformed" if said == 400 else "too_large")
        case "page":
            return page(said)
        case _:
            return cut


def attempt(desk: Desk, op: str, row: str, target: str | None) -> None:
    """Write; what makes no sense on the row as it stands is refused, and that is all."""
    writer = desk.writer()
    try:
        match op:
            case "put":
                writer.put(row, {"title": "t", "note_id": target})
            case "patch":
                writer.patch(row, {"count": desk.time.now})
            case _:
                writer.delete(row)
    except TideError:
        return


def everywhere(desk: Desk) -> dict[str, list[int]]:
    """Where each mutation of the store is, by seq."""
    rows = desk.peer.database.sql.execute("SELECT seq, awaits FROM outbox ORDER BY seq").fetchall()
    return {
        "pending": [seq for seq, awaits in rows if awaits is None],
        "awaited": [seq for seq, awaits in rows if awaits is not None],
        "parked": [letter.mutation.seq for letter in desk.peer.outbox.dead_letters()],
    }


@settings(max_examples=60)
@given(st.lists(st.tuples(st.lists(write, max_size=5), st.lists(answer, max_size=4)), max_size=5))
def test_no_answer_and_no_interruption_loses_a_change(rounds: list[tuple[list[Any], list[Any]]]) -> None:
    """Each change is pending, awaited, parked or answered, in one place only, and the order is kept (I25, I26)."""
    with tempfile.TemporaryDirectory() as folder:
        time = Time()
        desk = Desk(Path(folder), time, Script(lambda: time.now))
        answered: set[int] = set()
        for writes, answers in rounds:
            for one in writes:
                attempt(desk, *one)
            desk.service.answers[:] = [as_answer(desk, *one) for one in answers]
            before = everywhere(desk)["pending"]
            try:
                desk.sync.push()
            except (TideError, KeyboardInterrupt):
                desk.service.answers.clear()
            now = everywhere(desk)
            assert set(now["pending"]) <= set(before)
            answered |= {seq for seq in before if seq not in now["pending"]}
            places = [*now["pending"], *now["awaited"], *now["parked"]]
            assert len(places) == len(set(places))
            assert set(before) - set(places) <= answered
            stamps = [mutation.at for mutation in desk.peer.outbox.pending()]
            assert stamps == sorted(set(stamps))
        desk.service.answers.clear()
        desk.sync.push()
        assert everywhere(desk)["pending"] == []
        sent = [m["seq"] for push in desk.service.pushes for m in push["mutations"]]
        parked = set(everywhere(desk)["parked"])
        highest = desk.peer.database.one("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'") or 0
        assert set(range(1, highest + 1)) == set(sent) | parked
        assert json.dumps(desk.notes())
        desk.peer.close()
