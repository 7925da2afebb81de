"""A writer for tests of stores: the smallest engine that keeps versions, digests and tables as the port expects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from tests.conformance.declared import complete
from tidemark.store.base import FeedRow, JournalEntry, RowImage, RowKey, Run, Saved, ScopeState, Store, Transaction
from tidemark_protocol import clock, digest

NODE = "00000000000000aa"
STAMP = "2026-01-02T03:04:05.000006Z"


def uuid(number: int) -> str:
    """A row's key that says which one it is."""
    return f"00000000-0000-4000-8000-{number:012x}"


def at(millis: int, counter: int = 0) -> str:
    """A reading."""
    return clock.reading(millis, counter, NODE)


class Change(Struct, frozen=True):
    """One row as it is to become; no `values` deletes it. `unchecked` values stand in the image as they are."""

    key: RowKey
    values: dict[str, Any] | None
    at: str = at(1_000)
    clocks: str = ""
    arrived: int = 1_000
    residue: bool | None = None


def put(scope: str, entity: str, row: str, arrived: int = 1_000, **given: Any) -> Change:
    """A complete row; what is not given has its default."""
    return Change(RowKey(scope, entity, row), complete(entity, **given), at(arrived), arrived=arrived)


def delete(scope: str, entity: str, row: str, arrived: int = 1_000) -> Change:
    """A tombstone."""
    return Change(RowKey(scope, entity, row), None, at(arrived), arrived=arrived)


def saved(**given: Any) -> Saved:
    """What is to be saved; nothing of what is not given."""
    return Saved(**{"scopes": [], "feed": [], "images": [], "gone": [], "swapped": [], "journal": [], **given})


def entry(scope: str, arrived: int, rows: Sequence[int] = (), spent: int | None = None, text: str = "") -> JournalEntry:
    """A journal entry that names some row hashes."""
    return JournalEntry(scope, arrived, json.dumps([text]), list(rows), spent)


def document(change: Change) -> str:
    """The wire document of a live row."""
    doc = {"id": change.key.row, **(change.values or {}), "created_at": STAMP, "updated_at": STAMP}
    return json.dumps(doc, ensure_ascii=False)


async def apply(
    transaction: Transaction,
    changes: Iterable[Change],
    *,
    swapped: Iterable[RowKey] = (),
    journal: Iterable[JournalEntry] = (),
) -> dict[str, ScopeState]:
    """Lock, load, give versions in order and save; the new states by scope. The scopes must be free."""
    changes = list(changes)
    scopes = {change.key.scope for change in changes}
    states = await transaction.lock(scopes, scopes)
    held = {
        RowKey(row.scope, row.entity, row.row): row
        for row in await transaction.load([change.key for change in changes])
    }
    feed: dict[RowKey, FeedRow] = {}
    images: dict[RowKey, RowImage] = {}
    gone: dict[RowKey, None] = {}
    for change in changes:
        state, before = states[change.key.scope], held.get(change.key)
        feed[change.key] = after = _next(state, before, change)
        held[change.key] = after
        images.pop(change.key, None)
        gone.pop(change.key, None)
        if change.values is not None:
            new = before is None or before.deleted
            images[change.key] = RowImage(change.key, change.values, STAMP, STAMP, new)
        else:
            gone[change.key] = None
    await transaction.save(
        saved(
            scopes=list(states.values()),
            feed=list(feed.values()),
            images=list(images.values()),
            gone=list(gone),
            swapped=list(swapped),
            journal=list(journal),
        )
    )
    return states


async def write(
    store: Store, *changes: Change, swapped: Iterable[RowKey] = (), journal: Iterable[JournalEntry] = ()
) -> dict[str, ScopeState]:
    """`apply` in a transaction of its own."""

    async def body(transaction: Transaction) -> dict[str, ScopeState]:
        return await apply(transaction, changes, swapped=swapped, journal=journal)

    return await store.transact(body)


async def save(store: Store, what: Saved) -> None:
    """Save in a transaction of its own, as it is given."""
    await store.transact(lambda transaction: transaction.save(what))


def _next(state: ScopeState, before: FeedRow | None, change: Change) -> FeedRow:
    """The feed's row after a change; moves the scope's head, clock and digest."""
    key, shown = change.key, before is not None and not before.deleted
    deleted = change.values is None
    version = before.version if before is not None else 0
    if shown and before is not None:
        state.live -= 1
        state.total -= digest.term(key.entity, key.row, before.version)
    if shown or not deleted:
        state.head += 1
        version = state.head
    if not deleted:
        state.live += 1
        state.total += digest.term(key.entity, key.row, version)
    state.total %= digest.MODULUS
    state.clock = max(state.clock, change.at)
    return FeedRow(
        scope=key.scope,
        entity=key.entity,
        row=key.row,
        version=version,
        deleted=deleted,
        doc="{}" if deleted else document(change),
        root=change.at,
        clocks=change.clocks,
        arrived=change.arrived,
        residue=deleted if change.residue is None else change.residue,
    )


class Seen(NamedTuple):
    """One change of a run, read back."""

    entity: str
    row: str
    version: int
    doc: dict[str, Any] | None


def read(run: Run | None) -> list[Seen]:
    """The changes of a run; its count, order and form are checked on the way."""
    assert run is not None
    changes = [Seen(**change) for change in json.loads(b"[" + run.body + b"]")]
    versions = [change.version for change in changes]
    assert len(changes) == run.count
    assert versions == sorted(set(versions))
    assert not versions or versions[-1] <= run.to <= run.state.head
    return changes


async def pages(store: Store, scope: str, after: int, base: int, limit: int, max_bytes: int = 1 << 20) -> list[Seen]:
    """Everything above `after`, page after page."""
    everything: list[Seen] = []
    while True:
        run = await store.run(scope, after, base, limit, max_bytes)
        assert run is not None
        everything += read(run)
        assert run.count <= limit
        if run.to == run.state.head:
            return everything
        assert run.to > after, "a page must lead further"
        after = run.to
