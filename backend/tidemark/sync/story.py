"""A row's story, put together from the journal and the feed: who wrote what, what it overwrote, what won and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import UNSET, Struct

from tidemark.store.base import EventQuery, FeedRow, RowKey, Store, Transaction
from tidemark_protocol import clock
from tidemark_protocol.merge import RowState, escape, split
from tidemark_protocol.model import Entity
from tidemark_protocol.undo import before, value_at

from .feed import from_feed, row_hash
from .history import Place
from .journal import Event, decode

_CHUNK = 200
"""Journal entries, or rows, read at once."""


class Author(Struct, frozen=True):
    """Whose reading `at` is, `written` its time; `event` None: the journal does not know (any more)."""

    at: str
    written: str
    event: str | None = None
    user: str | None = None
    client: str | None = None
    by: str | None = None


class Chapter(Struct, frozen=True):
    """One write as the journal tells it.

    `arrived` is the service's time, `written` the time of the writer's clock (None where the write bore no reading).
    `set` maps each path it took to the value, `unknown` are those whose value nothing tells any more; `wanted` is what
    a superseded or rejected write carried, named as under the number `schema`; `lost` says for each path ("" the row)
    which later write won.
    """

    id: str
    arrived: str
    written: str | None
    user: str | None
    client: str | None
    by: str | None
    op: str
    outcome: str
    at: str | None
    version: int | None
    set: Mapping[str, Any]
    unknown: Sequence[str]
    overwrote: Mapping[str, Any]
    wanted: Any
    lost: Mapping[str, Author]
    reason: str | None
    schema: int | None
    error: Mapping[str, str | None] | None


class Held(Struct, frozen=True):
    """A value that stands, and the write that it comes from."""

    path: str
    value: Any
    author: Author


class Story(Struct, frozen=True):
    """One row in one scope. `state` is `live`, `deleted`, or `unknown` where the feed does not name it (any more);
    `root` is the latest put or delete. `writes` stand in the order of their arrival; `cut`: there are earlier ones.
    """

    scope: str
    entity: str
    row: str
    state: str
    version: int
    root: Author | None
    fields: Sequence[Held]
    writes: Sequence[Chapter]
    cut: bool


class Recorded(NamedTuple):
    """An event of the row, and where and when it was recorded (ms)."""

    place: Place
    arrived: int
    event: Event


async def stories(store: Store, entity: Entity, row: str, scope: str | None, limit: int) -> list[Story]:
    """The stories of a row in every scope that knows it, or in `scope` alone, from its `limit` latest events."""
    recorded, cut = await _recorded(store, entity.name, row, scope, limit)
    held = {feed.scope: feed for feed in await _held(store, entity, row, scope, recorded)}
    names = sorted(recorded.keys() | held.keys())
    return [tell(entity, row, name, recorded.get(name, []), held.get(name), cut=cut) for name in names]


async def _recorded(
    store: Store, entity: str, row: str, scope: str | None, limit: int
) -> tuple[dict[str, list[Recorded]], bool]:
    """Scope → the row's events, oldest first; and whether there are earlier ones beyond `limit`.

    What its author might not write stands in the author's own journal: so those of all scopes are read.
    """
    found: list[tuple[str, Recorded]] = []
    edge: int | None = None
    while True:
        query = EventQuery(scopes=None, rows=[row_hash(entity, row)], before=edge, limit=_CHUNK)
        entries = await store.events(query)
        for entry in entries:
            for index, event in reversed(list(enumerate(decode(entry)))):
                named = event.scope if event.scope is not None else entry.scope
                if (event.entity, event.row) == (entity, row) and scope in (None, named):
                    found.append((named, Recorded(Place(entry.id, index), entry.arrived, event)))
        if len(entries) < _CHUNK or len(found) > limit:
            break
        edge = entries[-1].id
    by_scope: dict[str, list[Recorded]] = defaultdict(list)
    for named, one in reversed(found[:limit]):
        by_scope[named].append(one)
    return by_scope, len(found) > limit


async def _held(
    store: Store, entity: Entity, row: str, scope: str | None, recorded: Mapping[str, object]
) -> list[FeedRow]:
    """What the feed holds of the row: tombstones too, in the scopes that are known to have had it."""
    scopes = {*recorded, *([] if scope is None else [scope])}
    after = (row, "")
    while entity.key.per_scope and scope is None:
        live = [feed for feed in await store.live(entity.name, after, _CHUNK) if feed.row == row]
        scopes.update(feed.scope for feed in live)
        if len(live) < _CHUNK:
            break
        after = (row, live[-1].scope)

    async def load(transaction: Transaction) -> list[FeedRow]:
        return await transaction.load([RowKey(name, entity.name, row) for name in scopes or {""}])

    return [feed for feed in await store.transact(load) if scope in (None, feed.scope)]


def tell(
    entity: Entity, row: str, scope: str, recorded: Sequence[Recorded], held: FeedRow | None, *, cut: bool
) -> Story:
    """The story of a row in a scope, from its events, oldest first, and what the feed holds of it."""
    state = None if held is None else from_feed(entity, held)
    authors = {one.event.at: _author(one) for one in recorded if one.event.at and one.event.outcome != "rejected"}
    chapters: list[Chapter] = []
    fields = {} if state is None else state.fields
    for place, one in reversed(list(enumerate(recorded))):
        event = one.event
        took = {path: value_at(fields, path) for path in _took(event, fields, recorded[:place])}
        chapters.append(_chapter(one, took, authors))
        if event.outcome == "applied":
            fields = before(fields, event.op, event.overwrote) or {}
    return Story(
        scope,
        entity.name,
        row,
        state="unknown" if state is None else "deleted" if state.deleted else "live",
        version=0 if held is None else held.version,
        root=None if state is None else _known(authors, state.root),
        fields=[] if state is None else _stands(state, authors),
        writes=chapters[::-1],
        cut=cut,
    )


def _took(event: Event, after: Mapping[str, Any], earlier: Sequence[Recorded]) -> list[str]:
    """The paths that a write set; `after` are the fields after it, `earlier` the events before it."""
    if event.outcome != "applied" or event.op == "delete":
        return []
    if event.op == "patch":
        return event.names or []
    if event.overwrote:
        # Fields that writes with a later clock had set were kept.
        return list(event.overwrote)
    # It met a tombstone, which holds what later patches set, before the row went or after.
    survived = (one.event for one in earlier if one.event.outcome == "applied" or one.event.reason == "deleted")
    kept = {path for one in survived if one.op == "patch" and one.at > event.at for path in one.names or ()}
    return [path for path in after if path not in kept]


def _author(one: Recorded) -> Author:
    event = one.event
    return Author(event.at, clock.instant(event.at), str(one.place), event.user or None, event.client or None, event.by)


def _known(authors: Mapping[str, Author], at: str) -> Author:
    return authors.get(at) or Author(at, clock.instant(at))


def _chapter(one: Recorded, values: Mapping[str, Any], authors: Mapping[str, Author]) -> Chapter:
    event = one.event
    return Chapter(
        id=str(one.place),
        arrived=clock.instant_of_millis(one.arrived),
        written=clock.instant(event.at) if clock.is_reading(event.at) else None,
        user=event.user or None,
        client=event.client or None,
        by=event.by,
        op=event.op,
        outcome=event.outcome,
        at=event.at or None,
        version=event.version if event.outcome == "applied" else None,
        set={path: value for path, value in values.items() if value is not UNSET},
        unknown=[path for path, value in values.items() if value is UNSET],
        overwrote=event.overwrote or {},
        wanted=event.values,
        lost={path: _known(authors, at) for path, at in (event.won or {}).items()},
        reason=event.reason,
        schema=event.schema,
        error=None if event.code is None else {"code": event.code, "message": event.message, "field": event.field},
    )


def _stands(state: RowState, authors: Mapping[str, Author]) -> list[Held]:
    """Each value with its author: those of paths with a clock of their own, the rest from the root."""
    found: list[Held] = []
    for path, at in state.clocks.items():
        if "/" in path:
            found.append(Held(path, value_at(state.fields, path), _known(authors, at)))
    for field, value in state.fields.items():
        at = state.clocks.get(field, state.root)
        if not isinstance(value, dict) or not any(path.startswith(f"{field}/") for path in state.clocks):
            found.append(Held(field, value, _known(authors, at)))
            continue
        rest = {key: entry for key, entry in value.items() if f"{field}/{escape(key)}" not in state.clocks}
        if rest:
            found.append(Held(field, rest, _known(authors, at)))
    order = {field: place for place, field in enumerate(state.fields)}
    return sorted(found, key=lambda held: (order.get(split(held.path)[0], len(order)), held.path))
