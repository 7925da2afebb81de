"""How a replica applies runs, from pull and stream alike (SPEC 5, "Applying runs").

The replica keeps, for each scope, a `Copy`: how far it has got. `judge` says what a run does to it; keeping the rows,
in one transaction with the new `Copy` and with the pending edits put back on top, is the replica's own part.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from .messages import Change, Changes, Run


class Copy(Struct, frozen=True):
    """How far a replica has got in one scope.

    It holds everything up to `to`; `watermark` says so to the server (None: it has never been told one). `highest` is
    the highest head applied since the last reset or revocation.
    """

    to: int = 0
    highest: int = 0
    watermark: str | None = None


class Ignore(Struct, frozen=True):
    """Nothing to do."""


class Pull(Struct, frozen=True):
    """Something between is missing: pull this scope."""


class Apply(Struct, frozen=True):
    """Write `changes` in order and keep `copy`, in one transaction.

    `replace`: first drop the scope's rows (the outbox stays). `reset`: versions awaited from `applied` verdicts lapse.
    `digest`, if given, is what the rows must come to afterwards; if they do not, drop the watermark, pull anew, report.
    """

    changes: Sequence[Change]
    copy: Copy
    replace: bool = False
    reset: bool = False
    digest: str | None = None


Step = Ignore | Pull | Apply


def judge(copy: Copy, run: Run | Changes, *, asked: bool) -> Step:
    """What `run` does to a replica that stands at `copy`.

    `asked`: the run is in the answer to the replica's own latest pull, hello or follow.
    """
    if run.head < copy.highest and not (run.reset and asked):
        return Ignore()
    if run.from_ == 0 and (run.reset or run.to > copy.to):
        highest = run.head if run.reset else max(copy.highest, run.head)
        after = Copy(run.to, highest, run.watermark)
        return Apply(run.changes, after, replace=True, reset=run.reset, digest=_proof(run, after))
    if run.from_ > copy.to:
        return Pull()
    highest = max(copy.highest, run.head)
    after = Copy(run.to, highest, run.watermark) if run.to >= copy.to else Copy(copy.to, highest, copy.watermark)
    return Apply([change for change in run.changes if change.version > copy.to], after, digest=_proof(run, after))


def _proof(run: Run | Changes, after: Copy) -> str | None:
    """The digest to hold the rows against: of the highest head seen, and only when the replica is at it."""
    return run.digest if run.head == run.to == after.to == after.highest else None
