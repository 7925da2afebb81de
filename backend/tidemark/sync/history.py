"""The journal as it is read: who wrote what, what it overwrote, what won (SPEC 7, `GET /sync/events`)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from msgspec import Struct

from tidemark.store.base import EventQuery, JournalRow, Store
from tidemark_protocol import clock, rows
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import encode

from .access import Access, Principal
from .feed import row_hash
from .journal import Event, decode

_PARAMETERS = frozenset(
    {"scope", "entity", "row", "user", "client", "outcome", "by", "after", "before", "order", "limit"}
)
_OUTCOMES = ("applied", "superseded", "rejected", "member")
_BY = ("sql", "cascade", "set_null")
_CURSOR = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})(?:@(-?[0-9]{1,15}))?")
"""A place, and the time (ms) that was given where the cursor now stands."""
_TIME = re.compile(r"[0-9-]{10}[Tt][0-9:]{8}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CHUNK = 100
"""Journal entries read at once."""
_MAX_EVENTS = 20_000
"""Events that one request may look at in search of what its filters let pass; `next` goes on from there."""


class Place(NamedTuple):
    """A place in the journal: an entry, and the event in it."""

    entry: int
    event: int

    def __str__(self) -> str:
        return f"{self.entry}.{self.event}"


class Filter(Struct, frozen=True):
    """What is asked for. `after` and `before` are places (exclusive), `since` and `until` times in ms."""

    scope: str | None = None
    entity: str | None = None
    row: str | None = None
    user: str | None = None
    client: str | None = None
    outcome: str | None = None
    by: str | None = None
    after: Place | None = None
    before: Place | None = None
    since: int | None = None
    until: int | None = None
    ascending: bool = False
    limit: int = 100

    def covers(self, place: Place) -> bool:
        return (self.after is None or place > self.after) and (self.before is None or place < self.before)

    def passes(self, event: Event) -> bool:
        return (
            (self.entity is None or event.entity == self.entity)
            and (self.row is None or event.row == self.row)
            and (self.user is None or event.user == self.user)
            and (self.client is None or event.client == self.client)
            and (self.outcome is None or event.outcome == self.outcome)
            and (self.by is None or event.by == self.by)
        )


class History:
    """Reads the journal for one caller: the scopes it may read, nothing else."""

    def __init__(self, store: Store, access: Access) -> None:
        self._store = store
        self._access = access

    async def events(self, principal: Principal, parameters: Mapping[str, str]) -> bytes:
        """`{"events": […], "next": …}`; `next` is a cursor to give as `before` (`after` with `order=asc`), or null."""
        wanted = read_filter(parameters)
        readable = list(await self._access.readable(principal))
        if wanted.scope is not None:
            if wanted.scope not in readable:
                raise RequestError("forbidden", "no such scope, or it may not be read")
            readable = [wanted.scope]
        events, following = await self._collect(wanted, readable)
        return encode({"events": events, "next": None if following is None else _cursor(wanted, following)})

    async def _collect(self, wanted: Filter, scopes: list[str]) -> tuple[list[dict[str, Any]], Place | None]:
        """Events that pass, and the place to go on from; None at the end."""
        found: list[dict[str, Any]] = []
        last: Place | None = None
        seen = 0
        async for place, entry, event in self._walk(wanted, scopes):
            if not wanted.covers(place):
                continue
            passes = wanted.passes(event)
            if seen == _MAX_EVENTS or (passes and len(found) == wanted.limit):
                return found, last
            if passes:
                found.append(_wire(entry, place, event))
            last = place
            seen += 1
        return found, None

    async def _walk(self, wanted: Filter, scopes: list[str]) -> AsyncIterator[tuple[Place, JournalRow, Event]]:
        """Every event of the entries that may hold what is wanted, in the order asked for."""
        after, before = _entry_bounds(wanted)
        hashes = None if wanted.entity is None or wanted.row is None else [row_hash(wanted.entity, wanted.row)]
        while True:
            entries = await self._store.events(
                EventQuery(
                    scopes=scopes,
                    rows=hashes,
                    after=after,
                    before=before,
                    since=wanted.since,
                    until=wanted.until,
                    ascending=wanted.ascending,
                    limit=_CHUNK,
                )
            )
            for entry in entries:
                events = [(Place(entry.id, index), entry, event) for index, event in enumerate(decode(entry))]
                for step in events if wanted.ascending else reversed(events):
                    yield step
            if len(entries) < _CHUNK:
                return
            if wanted.ascending:
                after = entries[-1].id
            else:
                before = entries[-1].id


def read_filter(parameters: Mapping[str, str]) -> Filter:
    """The query's parameters; RequestError `malformed` for one that is unknown or makes no sense."""
    unknown = sorted(set(parameters) - _PARAMETERS)
    if unknown:
        raise RequestError("malformed", f"unknown parameter {unknown[0]}; known are {', '.join(sorted(_PARAMETERS))}")
    plain = ("entity", "row", "user", "client")
    values: dict[str, Any] = {name: parameters[name] for name in plain if name in parameters}
    if "scope" in parameters:
        values["scope"] = parameters["scope"]
        try:
            rows.parse_scope(parameters["scope"])
        except ValueError as fault:
            raise RequestError("malformed", f"scope: {fault}") from fault
    if "outcome" in parameters:
        values["outcome"] = _one_of(parameters, "outcome", _OUTCOMES)
    if "by" in parameters:
        values["by"] = _one_of(parameters, "by", _BY)
    if "order" in parameters:
        values["ascending"] = _one_of(parameters, "order", ("desc", "asc")) == "asc"
    if "limit" in parameters:
        values["limit"] = _limit(parameters["limit"])
    for name, moment in (("after", "since"), ("before", "until")):
        if name in parameters:
            values[name], values[moment] = _bound(name, parameters[name])
    return Filter(**values)


def _one_of(parameters: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    if parameters[name] not in choices:
        raise RequestError("malformed", f"{name} is one of {', '.join(choices)}")
    return parameters[name]


def _limit(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) is None or not 1 <= int(text) <= 1_000:
        raise RequestError("malformed", "limit is a number from 1 to 1000")
    return int(text)


def _cursor(wanted: Filter, place: Place) -> str:
    """Where the next page begins. Arrivals need not rise with places, so the time that it replaces goes along."""
    moment = wanted.since if wanted.ascending else wanted.until
    return str(place) if moment is None else f"{place}@{moment}"


def _bound(name: str, text: str) -> tuple[Place | None, int | None]:
    """A cursor and the time it bears, or an RFC 3339 time; in Unix ms."""
    cursor = _CURSOR.fullmatch(text)
    if cursor is not None:
        return Place(int(cursor[1]), int(cursor[2])), None if cursor[3] is None else int(cursor[3])
    if _TIME.fullmatch(text) is not None:
        try:
            # Entries bear whole milliseconds: a bound between two of them begins with the later one.
            return None, -((_EPOCH - datetime.fromisoformat(text.upper())) // timedelta(milliseconds=1))
        except (ValueError, OverflowError) as fault:
            raise RequestError("malformed", f"{name}: {fault}") from fault
    raise RequestError("malformed", f"{name} is an RFC 3339 time or a cursor")


def _entry_bounds(wanted: Filter) -> tuple[int | None, int | None]:
    """Entry ids (exclusive) around the places asked for: the entries of the cursors themselves may hold more."""
    after = None if wanted.after is None else wanted.after.entry - 1
    before = None if wanted.before is None else wanted.before.entry + 1
    return after, before


def _wire(entry: JournalRow, place: Place, event: Event) -> dict[str, Any]:
    """An event as it travels."""
    error = None
    if event.code is not None:
        error = {"code": event.code, "message": event.message, "field": event.field}
    return {
        "id": str(place),
        "time": clock.instant_of_millis(entry.arrived),
        "scope": event.scope if event.scope is not None else entry.scope,
        "outcome": event.outcome,
        "op": event.op,
        "entity": event.entity or None,
        "row": event.row or None,
        "at": event.at or None,
        "user": event.user or None,
        "client": event.client or None,
        "version": event.version if event.outcome == "applied" else None,
        "set": event.names,
        "overwrote": event.overwrote,
        "values": event.values,
        "won": event.won,
        "reason": event.reason,
        "error": error,
        "by": event.by,
        "schema": event.schema,
    }
