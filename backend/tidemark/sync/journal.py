"""The journal: every mutation's fate, kept so that it can be told and told again (SPEC 4, 7 and 9.7).

One entry for each scope and commit; a rejection has an entry of its own, found by its spent reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tidemark.store.base import JournalEntry, JournalRow, RowKey
from tidemark_protocol import clock, rows
from tidemark_protocol.errors import Rejection
from tidemark_protocol.merge import Effect
from tidemark_protocol.messages import Result, VerdictError

from .feed import row_hash
from .prepare import Prepared, reading_hash

if TYPE_CHECKING:
    from .batch import Unit

Outcome = Literal["applied", "superseded", "rejected", "member"]


class Event(Struct, array_like=True, gc=False):
    """One mutation's fate as the journal keeps it; new members go to the end, with defaults.

    `names` is what it set (None: the whole row), `overwrote` path → the visible value that it replaced, `values` what
    a superseded or rejected write carried, `won` path → the later clock that won over it. `by` is `cascade` or
    `set_null` where the server wrote because of this user's delete, `sql` where another program wrote (`user` is the
    database's). What a client sent (`values`, `won`, `field`) is named as it was under `schema`, the number of its push
    (None: no push); what was done to the row (`names`, `overwrote`) as the declaration named it then.
    """

    outcome: Outcome
    op: str
    entity: str
    row: str
    at: str
    user: str
    client: str
    version: int
    content: int
    names: list[str] | None = None
    overwrote: dict[str, Any] | None = None
    values: Any = None
    won: dict[str, str] | None = None
    code: str | None = None
    message: str | None = None
    field: str | None = None
    scope: str | None = None
    reason: str | None = None
    by: str | None = None
    schema: int | None = None


_encoder: Final = msgspec.json.Encoder()
_events: Final = msgspec.json.Decoder(list[Event])


def spent_hash(event: Event) -> int:
    """What finds a recorded rejection by its reading."""
    return reading_hash(event.user, event.scope, event.entity, event.row, event.at)


def decode(row: JournalRow) -> list[Event]:
    return _events.decode(row.events)


def events_of(user: str, found: Iterable[JournalRow]) -> Iterator[Event]:
    """The events of one user; entries that do not name the user are not decoded, for that costs most."""
    named = _encoder.encode(user).decode()
    for row in found:
        if named in row.events:
            yield from (event for event in decode(row) if event.user == user)


def commit_entry(scope: str, arrived: int, events: list[Event]) -> JournalEntry:
    hashes = {row_hash(event.entity, event.row) for event in events}
    return JournalEntry(scope, arrived, _encoder.encode(events).decode(), sorted(hashes))


def own_write(
    unit: Unit, key: RowKey, op: str, values: Mapping[str, Any], at: str, version: int, effect: Effect, by: str
) -> Event:
    """What is kept of a write that the server made: for a delete's sake (`cascade`, `set_null`), or of what SQL did."""
    return Event(
        outcome="applied",
        op=op,
        entity=key.entity,
        row=key.row,
        at=at,
        user=unit.principal.user,
        client=unit.client,
        version=version,
        content=0,
        names=list(values) if op == "patch" else None,
        overwrote=effect.overwritten or None,
        by=by,
    )


def rejection(unit: Unit, prepared: Prepared, why: Rejection) -> Event:
    """What is kept of a rejected mutation."""
    sent = prepared.sent
    return Event(
        outcome="rejected",
        op=sent.op if isinstance(sent.op, str) else "",
        entity=prepared.entity,
        row=prepared.row,
        at=prepared.at,
        user=unit.principal.user,
        client=unit.client,
        version=0,
        content=prepared.content,
        values=sent.fields,
        code=why.code,
        message=why.message,
        field=why.field,
        scope=prepared.scope,
        schema=unit.schema,
    )


def rejection_entry(scope: str, arrived: int, event: Event, reading: int | None) -> JournalEntry:
    """The entry of one rejection in the journal of `scope`; found by its reading when it names one."""
    hashes = [] if reading is None else [row_hash(event.entity, event.row)]
    return JournalEntry(scope, arrived, _encoder.encode([event]).decode(), hashes, reading)


def may_know(prepared: Prepared) -> bool:
    """Whether a verdict but a rejection can have been recorded: it names a row of a scope that there could be, and a
    reading.
    """
    named = prepared.reading is not None and rows.SCOPE.fullmatch(prepared.scope) is not None
    return named and clock.is_reading(prepared.at)


def is_of(event: Event, user: str, prepared: Prepared) -> bool:
    """Whether an event tells of this user's mutation of this row at this reading."""
    return (
        event.at == prepared.at
        and event.row == prepared.row
        and event.entity == prepared.entity
        and event.user == user
        and event.by is None
        and event.outcome != "member"
    )


def first_verdict(event: Event, scope: str, seq: int) -> Result:
    """The recorded verdict, told again."""
    if event.outcome == "applied":
        return Result(seq, "applied", scope=scope, version=event.version)
    reason: str | UnsetType = UNSET if event.reason is None else event.reason
    return Result(seq, "superseded", reason=reason)


def rejected(seq: int, why: Rejection) -> Result:
    return Result(seq, "rejected", error=VerdictError(why.code, why.message, why.field))


class ToldAgain(Rejection):
    """The rejection that `event` recorded, given again."""

    def __init__(self, event: Event) -> None:
        super().__init__(event.code or "rule", event.message or "", event.field)
