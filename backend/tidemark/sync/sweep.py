"""Whether tables and feed say the same, page by page while both go on (SPEC 10).

A first look compares without any lock. What seems to differ is judged under the locks of its scopes, where neither our
own writes nor the drain move the feed: the table is read first, then the inbox, then the feed, so that a row which
another program changed meanwhile is either found waiting in the inbox or found the same.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from typing import Final, Literal

from msgspec import Struct

from tidemark.store.base import FeedRow, Identity, RowKey, Saved, Store, TableRow, Transaction
from tidemark_protocol.model import Declaration, Entity
from tidemark_protocol.rows import row_problem

from . import feed
from .capture import Image, Reader, UnfitRow, anywhere, changed, identity_of, row_of

PAGE: Final = 1_000
_ROUNDS: Final = 40
_PAUSE: Final = 0.05
"""Seconds between two tries to lock scopes: they are busy for two seconds at most before a row is left undecided."""

What = Literal["missing", "surplus", "values"]
"""The feed lacks the table's row, holds one that the table has not, or holds other values of it."""


class Difference(Struct, frozen=True):
    """A row of which table and feed say different things; `fields` are those with other values."""

    identity: Identity
    what: What
    fields: tuple[str, ...] = ()


class Page(Struct):
    """What one page showed: how many `rows` were looked at, which of them the feed cannot hold, which differ, how many
    wait in the inbox, and how many stayed undecided since their scopes were never free.
    """

    rows: int = 0
    unfit: list[UnfitRow] = []
    different: list[Difference] = []
    waiting: int = 0
    undecided: int = 0

    def add(self, other: Page) -> None:
        self.rows += other.rows
        self.unfit += other.unfit
        self.different += other.different
        self.waiting += other.waiting
        self.undecided += other.undecided


class _Side(Struct):
    """What table, inbox and feed say of one row; `read` is None where the table has none."""

    identity: Identity
    read: Image | UnfitRow | None
    held: list[FeedRow]
    waits: bool

    @property
    def scopes(self) -> set[str]:
        """The scopes that it is in, by either side."""
        found = {row.scope for row in self.held}
        match self.read:
            case Image(key):
                found.add(key.scope)
            case UnfitRow(scope=str(scope)):
                found.add(scope)
        return found


Work = Callable[[Transaction, list[_Side]], Awaitable[None]]


class Sweep:
    """Compares declared tables with the feed. `max_doc` bounds a document, in bytes."""

    def __init__(self, store: Store, declaration: Declaration, max_doc: int) -> None:
        self._store = store
        self._reader = Reader(declaration, max_doc)

    async def pages(self, entity: Entity) -> AsyncGenerator[Page]:
        """Every row of the table, then every live row of the feed that the table lacks."""
        behind: Identity | None = None
        while rows := await self._store.sweep(entity.name, behind, PAGE):
            behind = rows[-1].identity
            yield await self._page(entity, rows)
        after: tuple[str, str] | None = None
        while live := await self._store.live(entity.name, after, PAGE):
            after = (live[-1].row, live[-1].scope)
            yield await self._lacking(entity, live)

    async def among(self, entity: Entity, identities: Collection[Identity]) -> Page:
        """The same of these rows alone."""
        page = Page(len(identities))
        await self._judge(entity, identities, page)
        return page

    async def restore(self, entity: Entity, identities: Collection[Identity]) -> None:
        """Write rows of a table of ours anew from the feed; those that no key of the feed could name stay."""

        async def write(tx: Transaction, ready: list[_Side]) -> None:
            there = [key for side in ready if (key := self._place(entity, side)) is not None]
            live = [(RowKey(row.scope, row.entity, row.row), row) for side in ready for row in side.held]
            # Out first, all of them: a unique value may have to pass from one to another.
            images = [feed.image(key, feed.from_feed(entity, row), new=True) for key, row in live]
            await tx.save(Saved([], [], images, there, [], []))

        wanted = list(identities)
        for start in range(0, len(wanted), PAGE):
            await self._locked(entity, wanted[start : start + PAGE], write)

    async def _page(self, entity: Entity, rows: list[TableRow]) -> Page:
        read = {row.identity: self._reader.read(row) for row in rows}
        page = Page(len(rows), [image for image in read.values() if isinstance(image, UnfitRow)])
        held = await self._store.transact(lambda tx: self._held(tx, entity, read))
        await self._judge(entity, [i for i, image in read.items() if _compare(entity, image, held[i])], page)
        return page

    async def _lacking(self, entity: Entity, live: list[FeedRow]) -> Page:
        named = {identity_of(entity, RowKey(row.scope, row.entity, row.row)) for row in live}

        async def there(tx: Transaction) -> set[Identity]:
            rows, _ = await tx.table_rows(named, ())
            return {row.identity for row in rows}

        page = Page()
        await self._judge(entity, named - await self._store.transact(there), page)
        return page

    async def _judge(self, entity: Entity, identities: Collection[Identity], page: Page) -> None:
        """Decide on rows under the locks of their scopes."""

        async def decide(_tx: Transaction, ready: list[_Side]) -> None:
            for side in ready:
                found = _compare(entity, side.read, side.held)
                if side.waits:
                    page.waiting += 1
                elif found is not None:
                    page.different.append(Difference(side.identity, *found))

        page.undecided += await self._locked(entity, identities, decide)

    async def _locked(self, entity: Entity, identities: Collection[Identity], work: Work) -> int:
        """Do `work` on rows while their scopes are locked, in several transactions if need be; how many were left."""
        left = set(identities)
        for _ in range(_ROUNDS):
            left -= await self._try(entity, left, work)
            if not left:
                break
            await asyncio.sleep(_PAUSE)
        return len(left)

    async def _try(self, entity: Entity, identities: Collection[Identity], work: Work) -> set[Identity]:
        """Do it for those whose scopes are free."""
        if not identities:
            return set()
        seen = await self._store.transact(lambda tx: self._sides(tx, entity, identities))
        scopes = {scope for side in seen for scope in side.scopes}
        there = (await self._store.states(scopes)).keys()

        async def body(tx: Transaction) -> set[Identity]:
            reach = (scopes - there) | (await tx.lock(there, ())).keys()
            ready = [side for side in await self._sides(tx, entity, identities) if side.scopes <= reach]
            await work(tx, ready)
            return {side.identity for side in ready}

        return await self._store.transact(body)

    def _place(self, entity: Entity, side: _Side) -> RowKey | None:
        """Where the table holds a row, if a key can say so."""
        match side.read:
            case Image(key):
                return key
            case UnfitRow(identity, str(scope)) if row_problem(entity, row_of(entity, identity)) is None:
                return RowKey(scope, entity.name, row_of(entity, identity))
            case _:
                return None

    async def _sides(self, tx: Transaction, entity: Entity, identities: Collection[Identity]) -> list[_Side]:
        rows, _ = await tx.table_rows(identities, ())
        entries = await tx.captured(identities) if entity.capture else []
        held = await self._held(tx, entity, identities)
        read = {row.identity: self._reader.read(row) for row in rows}
        waiting = {Identity(entry.entity, entry.identity) for entry in entries}
        return [_Side(i, read.get(i), held[i], i in waiting) for i in identities]

    async def _held(
        self, tx: Transaction, entity: Entity, identities: Iterable[Identity]
    ) -> dict[Identity, list[FeedRow]]:
        """The live rows of the feed under each identity."""
        keys = {i: anywhere(entity, i) for i in identities}
        live: dict[tuple[str, str], list[FeedRow]] = defaultdict(list)
        for row in await tx.load(set(keys.values())):
            if not row.deleted:
                live[row.scope if entity.key.per_scope else "", row.row].append(row)
        return {identity: live.get((key.scope, key.row), []) for identity, key in keys.items()}


def _compare(entity: Entity, read: Image | UnfitRow | None, held: list[FeedRow]) -> tuple[What, tuple[str, ...]] | None:
    """How table and feed differ in one row, or None."""
    if not isinstance(read, Image):
        return ("surplus", ()) if held else None
    if not held:
        return "missing", ()
    if len(held) > 1 or held[0].scope != read.key.scope:
        return "surplus", ()
    fields = changed(feed.from_feed(entity, held[0]), read.values)
    return ("values", tuple(fields)) if fields else None
