"""The four rules for applying runs (SPEC 5)."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol.messages import Change, Run
from tidemark_protocol.replica import Apply, Copy, Ignore, Pull, judge


def run(from_: int, to: int, head: int | None = None, *, reset: bool = False, versions: list[int] | None = None) -> Run:
    """A run of some deletions."""
    head = to if head is None else head
    versions = list(range(from_ + 1, to + 1)) if versions is None else versions
    changes = [Change("notes", f"r{version}", version, None) for version in versions]
    return Run("a:1", from_, to, head, f"at {to}", changes, f"digest {head}" if to == head else None, reset)


def applied(copy: Copy, given_: Run, *, asked: bool = False) -> Apply:
    """The step, which must be to apply."""
    step = judge(copy, given_, asked=asked)
    assert isinstance(step, Apply), step
    return step


def test_rule_1_an_older_run_is_ignored() -> None:
    """A run with a head below the highest applied is ignored, even from 0."""
    copy = Copy(10, 10, "at 10")
    assert judge(copy, run(10, 9, 9), asked=True) == Ignore()
    assert judge(copy, run(0, 9), asked=True) == Ignore()


def test_rule_1_a_reset_that_was_asked_for_counts() -> None:
    """A reset with a lower head replaces when it answers the latest question, and only then."""
    copy = Copy(10, 10, "at 10")
    assert judge(copy, run(0, 3, reset=True), asked=False) == Ignore()
    step = applied(copy, run(0, 3, reset=True), asked=True)
    assert step.replace and step.reset
    assert step.copy == Copy(3, 3, "at 3")


def test_rule_2_a_run_from_0_replaces() -> None:
    """A run from 0 that goes further than the replica drops its rows first."""
    step = applied(Copy(4, 4, "at 4"), run(0, 9))
    assert step.replace and not step.reset
    assert [change.version for change in step.changes] == list(range(1, 10))
    assert step.copy == Copy(9, 9, "at 9")
    assert step.digest == "digest 9"


def test_rule_2_a_late_run_from_0_does_not() -> None:
    """A run from 0 that brings nothing new replaces nothing."""
    step = applied(Copy(9, 9, "at 9"), run(0, 5, 9))
    assert not step.replace
    assert not step.changes
    assert step.copy == Copy(9, 9, "at 9")


def test_rule_3_a_gap_is_pulled() -> None:
    """A run that begins above what the replica has is not applied."""
    assert judge(Copy(4, 4, "at 4"), run(5, 9), asked=False) == Pull()
    assert judge(Copy(), run(5, 9), asked=False) == Pull()


def test_rule_4_only_what_is_new_is_applied() -> None:
    """Of a run that overlaps, the changes above the watermark are applied."""
    step = applied(Copy(6, 6, "at 6"), run(4, 9))
    assert [change.version for change in step.changes] == [7, 8, 9]
    assert step.copy == Copy(9, 9, "at 9")


def test_an_empty_scope_gives_a_watermark() -> None:
    """The run of an empty scope leaves the replica with a watermark and no rows."""
    assert applied(Copy(), run(0, 0)).copy == Copy(0, 0, "at 0")


def test_a_page_proves_nothing() -> None:
    """A digest is held against the rows at the highest head alone."""
    first = applied(Copy(), run(0, 5, 9))
    assert first.digest is None
    assert applied(first.copy, run(5, 9)).digest == "digest 9"


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[int, tuple[str, Any]], list[Run]]:
    """Versions of a scope, and runs of its feed at several heads in any order and number."""
    head = draw(st.integers(1, 12))
    names = st.sampled_from("abc")
    log = {
        version: (draw(names), draw(st.one_of(st.none(), st.just({"at": version})))) for version in range(1, head + 1)
    }

    def at(after: int, upto: int) -> Run:
        latest: dict[str, int] = {}
        for version in range(1, upto + 1):
            latest[log[version][0]] = version
        changes = [
            Change("notes", log[version][0], version, log[version][1])
            for version in sorted(latest.values())
            if version > after and (after or log[version][1] is not None)
        ]
        return Run("a:1", after, upto, upto, f"at {upto}", changes, None, False)

    pairs = st.tuples(st.integers(0, head), st.integers(0, head)).map(sorted)
    runs = [at(after, upto) for after, upto in draw(st.lists(pairs, max_size=20))]
    return log, runs


def rows_at(log: dict[int, tuple[str, Any]], head: int) -> dict[str, Any]:
    """The live rows at a version."""
    rows: dict[str, Any] = {}
    for version in range(1, head + 1):
        name, doc = log[version]
        rows[name] = doc
    return {name: doc for name, doc in rows.items() if doc is not None}


@given(histories())
def test_any_runs_in_any_order_give_the_state_at_the_watermark(
    history: tuple[dict[int, tuple[str, Any]], list[Run]],
) -> None:
    """Whatever runs come, late, doubled or out of order, the rows are those of the version named (I34)."""
    # Invariant (I34).
    log, runs = history
    copy, rows = Copy(), dict[str, Any]()
    for given_ in runs:
        before = copy.to
        match judge(copy, given_, asked=False):
            case Ignore() | Pull():
                continue
            case Apply(changes=changes, copy=after, replace=replace):
                copy = after
                rows = {} if replace else rows
                for change in changes:
                    rows.pop(change.row, None)
                    if change.doc is not None:
                        rows[change.row] = change.doc
        assert copy.to >= before
        assert rows == rows_at(log, copy.to)
