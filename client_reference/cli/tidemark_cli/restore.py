"""What the journal can give back of a row (SPEC 7): values overwritten or deleted, and those that never won."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import UNSET, Struct

from tidemark_protocol.merge import same_value, split
from tidemark_protocol.model import Entity
from tidemark_protocol.undo import before, value_at, with_value

from .errors import TideError
from .history import writer

Event = Mapping[str, Any]
"""An event as it travels; those of a row stand newest first."""
Values = dict[str, Any]


class Lost(Struct, frozen=True):
    """Values (path → value) that an event took away, or that its write carried in vain: `how` says which."""

    event: str
    time: str
    by: str
    how: str
    values: Values


def losses(events: Iterable[Event], *, own: str) -> list[Lost]:
    """Everything that can be put back, newest first; `own` is this device's client id."""
    found: list[Lost] = []
    for event in events:
        for how, values in ((_ended(event), event.get("overwrote")), (_failed(event), event.get("values"))):
            if isinstance(values, dict) and values:
                found.append(Lost(event["id"], event["time"], writer(event, own), how, values))
    return found


def _ended(event: Event) -> str:
    return "deleted" if event["op"] == "delete" else "overwritten"


def _failed(event: Event) -> str:
    if event["outcome"] == "rejected":
        return f"rejected ({(event.get('error') or {}).get('code')})"
    return "came too late"


class Journal:
    """The events of one row, newest first, against what is to be seen of it now (None: nothing)."""

    def __init__(self, entity: Entity, row: str, document: Mapping[str, Any] | None, events: Sequence[Event]) -> None:
        self._name = f"{entity.name} {row}"
        self._shown = None if document is None else {name: document[name] for name in entity.fields if name in document}
        self._events = events
        self._applied = [event for event in events if event["outcome"] == "applied"]
        if not events:
            raise TideError(f"The journal knows nothing about {self._name} (any more). Nothing was changed.")

    def latest(self, wanted: Sequence[str]) -> Values:
        """What was overwritten last and is not there any more: of each path wanted, or by one write; or, of a row that
        is deleted, all that the delete took.
        """
        if self._shown is None:
            if wanted:
                raise TideError(f"{self._name} is deleted, and comes back as a whole: leave the fields out.")
            return self._deleted()
        if not wanted:
            return self._last_overwritten(None)
        return {name: value for path in wanted for name, value in self._last_overwritten(path).items()}

    def of_event(self, id_: str, wanted: Sequence[str]) -> Values:
        """What one event took away; where it took nothing, or not these paths, what its write carried in vain."""
        event = self._event(id_)
        overwrote, carried = event.get("overwrote") or {}, event.get("values") or {}
        if not wanted:
            values = overwrote or carried
            if not values:
                raise TideError(f"Event {id_} took nothing away, and its write carried nothing in vain.")
            return dict(values)
        found: Values = {}
        for path in wanted:
            values = chosen(overwrote, path) or chosen(carried, path)
            if not values:
                raise TideError(f"Event {id_} knows no value of {path}.")
            found |= values
        return found

    def as_of(self, *, time: int | None = None, event: str | None = None, wanted: Sequence[str] = ()) -> Values:
        """The row as it was before a time (ms), or as an event left it; of the paths wanted alone, if any are."""
        if event is not None:
            self._event(event)
            undone = [one for one in self._applied if _place(one["id"]) > _place(event)]
        else:
            since = [n for n, one in enumerate(self._applied) if time is not None and millis_of(one["time"]) >= time]
            undone = self._applied[: since[-1] + 1] if since else []
        fields: Mapping[str, Any] | None = self._shown
        for one in undone:
            fields = before(fields, one["op"], one.get("overwrote"))
        if fields is None:
            raise TideError(f"{self._name} was not there then, as far as the journal knows. Nothing was changed.")
        if not wanted:
            return dict(fields)
        found = {path: value_at(fields, path) for path in wanted}
        missing = [path for path, value in found.items() if value is UNSET]
        if missing:
            raise TideError(f"The journal does not know what {missing[0]} was then. Nothing was changed.")
        return found

    def reaches(self, time: int) -> bool:
        """Whether the journal tells of a write before this time (ms)."""
        return millis_of(self._events[-1]["time"]) < time

    def beneath(self, event: str | None) -> Values:
        """What the values of an event are laid upon, where the row is deleted: all that the delete took."""
        ended = self._last_delete()
        return {} if ended is None or ended["id"] == event else dict(ended["overwrote"])

    def _deleted(self) -> Values:
        ended = self._last_delete()
        if ended is None:
            raise TideError(
                f"{self._name} is not there, and the journal does not know what it held (any more)."
                " Nothing was changed. What else it knows: --list"
            )
        return dict(ended["overwrote"])

    def _last_delete(self) -> Event | None:
        return next((one for one in self._applied if one["op"] == "delete" and one.get("overwrote")), None)

    def _last_overwritten(self, path: str | None) -> Values:
        for event in self._applied:
            overwrote = event.get("overwrote") or {}
            values = dict(overwrote) if path is None else chosen(overwrote, path)
            if any(not _stands(self._shown or {}, name, value) for name, value in values.items()):
                return values
        what = f"another value of {path}" if path else f"other values of {self._name}"
        raise TideError(f"The journal does not know {what} (any more). Nothing was changed.")

    def _event(self, id_: str) -> Event:
        for event in self._events:
            if event["id"] == id_:
                return event
        raise TideError(f"The journal knows no event {id_} of {self._name} (any more). Nothing was changed.")


def chosen(values: Mapping[str, Any], path: str) -> Values:
    """What `values` say of a path: of a map its keys too, of a key what the whole map says."""
    if path in values:
        return {path: values[path]}
    field, key = split(path)
    if key is None:
        return {name: value for name, value in values.items() if name.startswith(f"{field}/")}
    return {path: value_at(values, path)} if field in values else {}


def declared(entity: Entity, values: Mapping[str, Any]) -> tuple[Values, list[str]]:
    """The values of fields that are declared, and the names of the others; the journal names fields as they were."""
    others = sorted({split(path)[0] for path in values} - entity.fields.keys())
    kept = {path: value for path, value in values.items() if split(path)[0] in entity.fields}
    if others and not kept:
        raise TideError(f"{', '.join(others)}: no longer declared. Nothing was changed.")
    return kept, others


def laid(fields: Mapping[str, Any], values: Mapping[str, Any]) -> Values:
    """Fields with values (path → value) on top."""
    for path, value in values.items():
        fields = with_value(fields, path, value)
    return dict(fields)


def millis_of(text: str) -> int:
    """Unix milliseconds of an RFC 3339 time; one without a zone, or a day, is of this machine's."""
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1_000)
    except (ValueError, OverflowError) as fault:
        raise TideError(f"{text!r} is no time: write 2026-11-20 or 2026-11-20T18:30:00Z") from fault


def _stands(fields: Mapping[str, Any], path: str, value: Any) -> bool:
    held = value_at(fields, path)
    return held is not UNSET and same_value(held, value)


def _place(id_: str) -> tuple[int, ...]:
    return tuple(map(int, id_.split(".")))
