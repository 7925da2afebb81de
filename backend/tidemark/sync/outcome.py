"""What a settled batch comes to: all that is written, and what is told to those who follow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import Struct

from tidemark.store.base import FeedRow, RowImage, RowKey, Saved, ScopeState
from tidemark_protocol import digest, merge
from tidemark_protocol.messages import Result

from . import feed, journal
from .commit import Commit

if TYPE_CHECKING:
    from .settle import Settlement


class Outcome(Struct):
    """What a batch comes to: a list of results for each request, what to write, what to tell; `failures` are errors of
    ours or of application rules, whose units were put off.
    """

    results: list[list[Result]]
    saved: Saved
    commits: list[Commit]
    clocks: dict[str, str]
    failures: list[Exception]


def outcome_of(settlement: Settlement, results: list[list[Result]]) -> Outcome:
    """Everything to write and to tell, once all units are settled and nothing is missing."""
    scopes, known = settlement.scopes, settlement.facts.scopes
    rows: list[FeedRow] = []
    images: list[RowImage] = []
    gone: list[RowKey] = []
    swapped = settlement.integrity.swapped()
    for key, cell in settlement.cells.items():
        state, held = cell.state, cell.held
        if state is None:
            continue
        was_live = held is not None and not held.deleted
        moved = held is None or held.version != cell.version
        doc = cell.doc if moved else (held.doc if held is not None and state.visible else None)
        row = feed.to_feed(key, state, cell.version, doc, settlement.now)
        rows.append(row)
        _count(scopes[key.scope], held, row)
        if cell.entity.capture:
            there = settlement.differences.in_table(key)
            if state.visible and (there is None or key in swapped or not merge.same_value(there, state.fields)):
                images.append(feed.image(key, state, new=there is None or key in swapped))
            elif there and not state.visible:
                # A row that the feed cannot hold is another program's alone: it stays.
                gone.append(key)
        elif state.visible and (moved or key in swapped):
            images.append(feed.image(key, state, new=not was_live or key in swapped))
        elif was_live and not state.visible:
            gone.append(key)
    # Parents are written before those that refer to them and removed after, for a table may have foreign keys.
    ranks = settlement.declaration.ranks
    images.sort(key=lambda image: ranks[image.key.entity])
    gone.sort(key=lambda key: -ranks[key.entity])
    entries = [journal.commit_entry(scope, settlement.now, events) for scope, events in settlement.events.items()]
    moved_scopes = [state for name, state in scopes.items() if state != known[name]]
    entries += settlement.rejections
    saved = Saved(moved_scopes, rows, images, gone, sorted(swapped), entries, settlement.differences.drained)
    clocks = {name: state.clock for name, state in scopes.items()}
    return Outcome(results, saved, list(_commits(rows, moved_scopes, known)), clocks, settlement.failures)


def _count(state: ScopeState, held: FeedRow | None, row: FeedRow) -> None:
    """Move the scope's digest by what this row changes (SPEC 5)."""
    if held is not None and not held.deleted:
        state.live -= 1
        state.total -= digest.term(row.entity, row.row, held.version)
    if not row.deleted:
        state.live += 1
        state.total += digest.term(row.entity, row.row, row.version)
    state.total %= digest.MODULUS


def _commits(rows: list[FeedRow], moved: list[ScopeState], before: dict[str, ScopeState]) -> Iterator[Commit]:
    by_scope: dict[str, list[FeedRow]] = {}
    for row in rows:
        by_scope.setdefault(row.scope, []).append(row)
    for state in moved:
        after = before[state.scope].head
        shown = sorted((r for r in by_scope.get(state.scope, ()) if r.version > after), key=lambda r: r.version)
        yield Commit(after, state, len(shown), ",".join(map(feed.change, shown)).encode())
