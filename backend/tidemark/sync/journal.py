"""The journal: every mutation's fate, kept so that it can be told and told again (SPEC 4, 7 and 9.7).

One entry for each scope and commit; a rejection has an entry of its own, found by its spent reading.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tidemark.store.base import JournalEntry, JournalRow
from tidemark_protocol.errors import Rejection
from tidemark_protocol.messages import Result, VerdictError

from .feed import hash63, row_hash
from .prepare import Prepared

Outcome = Literal["applied", "superseded", "rejected", "member"]

_OWN_AFFAIR: Final = frozenset(
    {"invalid_mutation", "unknown_entity", "invalid_scope", "forbidden", "invalid_row", "invalid_clock"}
)
"""Codes of what was forbidden or malformed: such a rejection belongs to its author's own scope (SPEC 7)."""


class Event(Struct, array_like=True, gc=False):
    """One mutation's fate as the journal keeps it; new members go to the end, with defaults.

    `names` is what it set (None: the whole row), `overwrote` path → the visible value that it replaced, `values` what
    a superseded or rejected write carried, `won` path → the later clock that won over it. `by` names the mutation's
    author where the server wrote on its behalf (`cascade`, `set_null`).
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


_encoder: Final = msgspec.json.Encoder()
_sorted: Final = msgspec.json.Encoder(order="sorted")
_events: Final = msgspec.json.Decoder(list[Event])


def content_hash(prepared: Prepared) -> int:
    """The 63 bits that tell one content of a reading from another: op and fields as they were sent."""
    sent = prepared.sent
    return hash63(_sorted.encode([sent.op, None if sent.op == "delete" else sent.fields]))


def reading_hash(user: str, prepared: Prepared) -> int:
    """The key of a spent reading: user, scope, entity, row and clock."""
    return hash63(_encoder.encode((user, prepared.scope, prepared.entity, prepared.row, prepared.at)))


def spent_hash(event: Event) -> int:
    """The same key, of a recorded rejection."""
    return hash63(_encoder.encode((event.user, event.scope, event.entity, event.row, event.at)))


def decode(row: JournalRow) -> list[Event]:
    return _events.decode(row.events)


def commit_entry(scope: str, arrived: int, events: list[Event]) -> JournalEntry:
    hashes = {row_hash(event.entity, event.row) for event in events}
    return JournalEntry(scope, arrived, _encoder.encode(events).decode(), sorted(hashes))


def rejection_entry(own: str, user: str, client: str, arrived: int, prepared: Prepared, why: Rejection) -> JournalEntry:
    """The entry of one rejected mutation; indexed by its reading when it names one."""
    sent = prepared.sent
    scope = own if why.code in _OWN_AFFAIR else prepared.scope
    event = Event(
        outcome="rejected",
        op=sent.op if isinstance(sent.op, str) else "",
        entity=prepared.entity,
        row=prepared.row,
        at=prepared.at,
        user=user,
        client=client,
        version=0,
        content=content_hash(prepared),
        values=sent.fields,
        code=why.code,
        message=why.message,
        field=why.field,
        scope=prepared.scope,
    )
    spent = reading_hash(user, prepared) if prepared.addressed else None
    hashes = [row_hash(prepared.entity, prepared.row)] if prepared.addressed else []
    return JournalEntry(scope, arrived, _encoder.encode([event]).decode(), hashes, spent)


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


def told_again(event: Event) -> Rejection:
    return Rejection(event.code or "rule", event.message or "", event.field)
