"""Working on a database beside a service or without one: who drains the inbox, and how far it has come."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tidemark import log
from tidemark.plugin import make_engine, make_store
from tidemark.settings import Settings
from tidemark.store.base import UNIT, Identity, InUse, Store, Unavailable
from tidemark.store.health import last_entry
from tidemark.store.schema.migrate import beside
from tidemark.sync.engine import Engine
from tidemark_protocol.model import Declaration

T = TypeVar("T")

_LOOK: Final = 0.1
_LAGGING: Final = 3.0
"""Seconds without progress after which we drain beside whoever leads: that may be a service of an older declaration."""
PATIENCE: Final = 30.0
"""Seconds without progress after which what is left stays to the service."""


class Work(NamedTuple):
    """An open store, and the engine that drains its inbox; None where a service has the database alone and does so."""

    store: Store
    engine: Engine | None


@asynccontextmanager
async def opened(settings: Settings, declaration: Declaration, *, draining: bool) -> AsyncIterator[Work]:
    """Open the database, beside a service if need be; with `draining`, take what the inbox holds meanwhile."""
    store: Store = make_store(settings, declaration)
    engine = make_engine(settings, declaration, store) if draining else None
    try:
        await (patiently(engine.start) if engine is not None else store.open())
    except InUse:
        await store.close()
        store, engine = make_store(settings, declaration, shared=True), None
        await (patiently(store.open) if draining else store.open())
    try:
        yield Work(store, engine)
    finally:
        await (engine.stop() if engine is not None else store.close())


@asynccontextmanager
async def reading(settings: Settings, declaration: Declaration) -> AsyncIterator[Store]:
    """The store opened beside a service, to be read alone."""
    store = make_store(settings, declaration, shared=True)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def patiently(act: Callable[[], Awaitable[T]]) -> T:
    """Do something that can be repeated, again and again for a while as long as the database is busy or away."""
    begun = time.monotonic()
    while True:
        try:
            return await act()
        except Unavailable:
            if time.monotonic() - begun > PATIENCE:
                raise
        await asyncio.sleep(_LOOK)


async def drained(work: Work, url: str, tell: Callable[[int], None]) -> int:
    """Wait until all that the inbox holds by now is taken, telling how much waits; how much of it nobody takes."""
    upto = await patiently(lambda: asyncio.to_thread(beside, url, last_entry))
    seen, moved = (-1, -1), time.monotonic()
    while (first := await patiently(lambda: work.store.inbox((), 1))) and first[0].id <= upto:
        waiting = (await patiently(work.store.backlog)).entries
        tell(waiting)
        idle = time.monotonic() - moved
        if (first[0].id, waiting) != seen:
            seen, moved = (first[0].id, waiting), time.monotonic()
        elif idle > PATIENCE:
            return waiting
        elif idle > _LAGGING and work.engine is not None:
            while await patiently(work.engine.drain.step):
                tell((await patiently(work.store.backlog)).entries)
        await asyncio.sleep(_LOOK)
    tell(0)
    return 0


def shown(identity: Identity) -> str:
    """An identity for people."""
    return identity.text.replace(UNIT, ", ")


def progress() -> Progress:
    """A bar for people; nothing where nobody looks."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def log_to_stderr(settings: Settings) -> None:
    """What the engine has to say goes beside the command's own output."""
    log.configure("warning", settings.log_format, sys.stderr.buffer, terminal=sys.stderr.isatty())
