"""First verdicts stand (SPEC 4): what was decided of a mutation before is told again, not decided anew."""

from __future__ import annotations

from collections.abc import Mapping

from tidemark_protocol.errors import Postponed, Rejection
from tidemark_protocol.messages import Result

from . import journal
from .batch import Unit
from .facts import Facts, Needs, Recorded
from .journal import Event, ToldAgain
from .prepare import Prepared


class FirstVerdicts:
    """What the journal recorded, and what this batch has decided so far: `events` by scope, and rejections."""

    def __init__(self, facts: Facts, needs: Needs, events: Mapping[str, list[Event]]) -> None:
        self._facts = facts
        self._needs = needs
        self._events = events
        self._spent_here: dict[int, list[Event]] = {}

    def spend(self, reading: int | None, event: Event) -> None:
        """A mutation was rejected: its reading is spent."""
        if reading is not None:
            self._spent_here.setdefault(reading, []).append(event)

    def told_again(self, user: str, prepared: Prepared) -> ToldAgain | None:
        """The rejection that this very mutation had before."""
        same = (event for event in self._spent(user, prepared) if prepared.has_content(event.content))
        return next(map(ToldAgain, same), None)

    def check_spent(self, user: str, prepared: Prepared) -> None:
        """A reading once rejected is spent: the same content is told the same again, another is `clock_reused`."""
        spent = self._spent(user, prepared)
        if not spent:
            return
        again = self.told_again(user, prepared)
        if again is not None:
            raise again
        if any(event.code != "clock_reused" for event in spent):
            raise reused()

    def verdict(self, unit: Unit, prepared: Prepared, fault: Rejection | Postponed) -> Result | Rejection | Postponed:
        """What a mutation about to be refused for `fault` is answered: the verdict that the journal recorded for it,
        `clock_reused` where that was for another content, else the fault.

        Until the journal has been asked, for the whole unit at once, the best is assumed.
        """
        if isinstance(fault, ToldAgain) or not journal.may_know(prepared):
            return fault
        user = unit.principal.user
        known = self._facts.recorded.get(_asked(user, prepared))
        if known is None:
            asked = {_asked(user, p) for p in unit.mutations if journal.may_know(p)}
            self._needs.recorded |= asked - self._facts.recorded.keys()
            return Result(prepared.sent.seq, "applied")
        recorded = [
            event
            for event in (*known, *self._events.get(prepared.scope, ()))
            if event.outcome in ("applied", "superseded") and journal.is_of(event, user, prepared)
        ]
        if not recorded:
            return fault
        same = [event for event in recorded if prepared.has_content(event.content)]
        return journal.first_verdict(same[0], prepared.scope, prepared.sent.seq) if same else reused()

    def _spent(self, user: str, prepared: Prepared) -> list[Event]:
        """Rejections of this very reading, recorded before or in this batch."""
        if prepared.reading is None or not (self._facts.spent or self._spent_here):
            return []
        found = self._facts.spent.get(prepared.reading, []) + self._spent_here.get(prepared.reading, [])
        return [e for e in found if journal.is_of(e, user, prepared) and e.scope == prepared.scope]


def _asked(user: str, prepared: Prepared) -> Recorded:
    return prepared.scope, user, prepared.entity, prepared.row, prepared.at


def reused() -> Rejection:
    return Rejection("clock_reused", "this reading was used for another write")
