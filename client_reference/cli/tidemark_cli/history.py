"""A row's story, put together from the journal's events (SPEC 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from tidemark_protocol import clock
from tidemark_protocol.merge import split

from .peer import Document
from .values import to_text


class Story(Struct, frozen=True):
    """One write: when it was made and by whom, what it did and what became of it.

    `overwrote` maps each path it took to the text of what was there, `lost` each path that it did not get to who holds
    it.
    """

    written: str
    by: str
    did: str
    outcome: str
    because: str
    overwrote: dict[str, str]
    lost: dict[str, str]


def tell(
    events: Sequence[Mapping[str, Any]], documents: Mapping[tuple[str, str], Document], *, own: str
) -> list[Story]:
    """Stories in the order of the writes' clocks; `own` is this device's client id."""
    ordered = sorted((event for event in events if event.get("at")), key=lambda event: (event["at"], event["id"]))
    writers = {event["at"]: writer(event, own) for event in ordered}
    return [_story(event, ordered[place + 1 :], documents, writers, own) for place, event in enumerate(ordered)]


def writer(event: Mapping[str, Any], own: str) -> str:
    """Who made an event's write, and on which device; `own` is this one's client id."""
    client = event.get("client") or ""
    device = "this device" if client == own else f"device {client[:8]}" if client else "in SQL"
    return f"{event['user'] or 'somebody'} ({device})"


def _story(
    event: Mapping[str, Any],
    later: Sequence[Mapping[str, Any]],
    documents: Mapping[tuple[str, str], Document],
    writers: Mapping[str, str],
    own: str,
) -> Story:
    document = next((doc for (scope, _), doc in documents.items() if scope == event["scope"]), None)
    error = event.get("error") or {}
    won = event.get("won") or {}
    return Story(
        written=clock.instant(event["at"]),
        by=writer(event, own),
        did=_did(event, later, document),
        outcome=event["outcome"],
        because=error.get("message") or ("the row was deleted" if event.get("reason") == "deleted" else ""),
        overwrote={
            path: to_text(value) for path, value in (event.get("overwrote") or {}).items() if value not in (None, {})
        },
        lost={path or "the row": writers.get(at, "a later write") for path, at in won.items()},
    )


def _did(event: Mapping[str, Any], later: Sequence[Mapping[str, Any]], document: Document | None) -> str:
    """What a write set: told by itself if it lost, else what a later write overwrote, else the row's present value."""
    if event["op"] == "delete":
        return "deleted it" if event.get("by") != "cascade" else "deleted what it belonged to, and it with that"
    values = event.get("values")
    if isinstance(values, dict):
        return "wanted " + ", ".join(f"{path} = {_shown(value)}" for path, value in values.items())
    names = event.get("set")
    if event["op"] == "put" or not names:
        return "put the whole row"
    return "set " + ", ".join(path + _value(path, later, document) for path in names)


def _value(path: str, later: Sequence[Mapping[str, Any]], document: Document | None) -> str:
    """` = value`, or nothing where it cannot be told: an edit of a deleted row shows nowhere."""
    for event in later:
        overwrote = event.get("overwrote") or {}
        if path in overwrote:
            return f" = {_shown(overwrote[path])}"
    if document is None:
        return " (the row was deleted all the same)"
    field, key = split(path)
    held = document.get(field)
    return f" = {_shown(held if key is None else (held or {}).get(key))}"


def _shown(value: Any) -> str:
    return "nothing" if value is None else to_text(value)
