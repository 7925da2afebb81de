"""Letting go of an entity: everything of ours that concerns it, in the tables of ours.

Replicas learn of it by a reset: the head and the floor of each scope that held its rows rise together, so that no
watermark from before can be continued (SPEC 5).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tidemark.store.base import JournalRow
from tidemark_protocol import digest

from . import triggers
from .fit import claim, sqlite_path
from .tables import own_metadata

_OWN: Final = own_metadata().tables
_SCOPE, _FEED, _JOURNAL, _INBOX = (_OWN[f"sync_{name}"] for name in ("scope", "feed", "journal", "inbox"))
_SCOPES_AT_ONCE: Final = 100
_ENTRIES_AT_ONCE: Final = 1_000


class Holdings(NamedTuple):
    """What there is of an entity: rows of the feed (tombstones among them), their scopes, entries of the inbox."""

    rows: int
    scopes: int
    entries: int


class Rewritten(NamedTuple):
    """A journal entry without some of its events; `rows` are the hashes of the rows that it still names."""

    id: int
    events: str
    rows: list[int]


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Keep a service from a database that serves one process alone; InUse if one has it."""
    if not url.startswith("sqlite:"):
        yield
        return
    with claim(Path(sqlite_path(url)).absolute()):
        yield


def holdings(entity: str) -> Callable[[Connection], Holdings]:
    """Count what there is."""

    def read(connection: Connection) -> Holdings:
        counts = sa.select(sa.func.count(), sa.func.count(sa.distinct(_FEED.c.scope))).where(_FEED.c.entity == entity)
        waiting = sa.select(sa.func.count()).where(_INBOX.c.entity == entity)
        return Holdings(*connection.execute(counts).one(), connection.execute(waiting).scalar_one())

    return read


def services(connection: Connection) -> int:
    """How many connections of a running service a server counts; 0 where it cannot tell."""
    if connection.dialect.name != "postgresql":
        return 0
    found = connection.exec_driver_sql(
        "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database() "
        "AND application_name = 'tidemark' AND pid <> pg_catalog.pg_backend_pid()"
    )
    return int(found.scalar_one())


def drop_capture(entity: str) -> Callable[[Connection], None]:
    """Its triggers, and what they reported."""
    return lambda connection: triggers.remove(connection, entity)


def drop_rows(entity: str) -> Callable[[Connection], int]:
    """The rows of the next few scopes, under their locks; how many scopes there were."""

    def write(connection: Connection) -> int:
        here = sa.select(_FEED.c.scope).where(_FEED.c.entity == entity).distinct().limit(_SCOPES_AT_ONCE)
        scopes = sorted(connection.execute(here).scalars())
        states = connection.execute(
            sa.select(_SCOPE).where(_SCOPE.c.scope.in_(scopes)).order_by(_SCOPE.c.scope).with_for_update()
        ).all()
        # By the index of scopes, whatever else these hold: by that of entities each page would read all rows again.
        mine = sa.and_(_FEED.c.scope.in_(scopes), sa.func.coalesce(_FEED.c.entity, "") == entity)
        terms: dict[str, list[int]] = defaultdict(list)
        live = sa.select(_FEED.c.scope, _FEED.c.entity, _FEED.c.row, _FEED.c.version).where(mine, ~_FEED.c.deleted)
        for scope, name, row, version in connection.execute(live):
            terms[scope].append(digest.term(name, row, version))
        connection.execute(sa.delete(_FEED).where(mine))
        for state in states:
            gone = terms[state.scope]
            values = {
                "live": state.live - len(gone),
                "total": (state.total - sum(gone)) % digest.MODULUS,
                "head": state.head + 1,
                "floor": state.head + 1,
            }
            connection.execute(sa.update(_SCOPE).where(_SCOPE.c.scope == state.scope).values(values))
        return len(scopes)

    return write


def journal(entity: str, after: int) -> Callable[[Connection], list[JournalRow]]:
    """The next entries behind an id that may name the entity."""
    columns = (_JOURNAL.c.id, _JOURNAL.c.scope, _JOURNAL.c.arrived, _JOURNAL.c.events)
    named = sa.select(*columns).where(_JOURNAL.c.id > after, _JOURNAL.c.events.contains(f'"{entity}"', autoescape=True))
    page = named.order_by(_JOURNAL.c.id).limit(_ENTRIES_AT_ONCE)
    return lambda connection: [JournalRow(*found) for found in connection.execute(page)]


def rewrite_journal(gone: Sequence[int], kept: Sequence[Rewritten]) -> Callable[[Connection], None]:
    """Remove entries, and put others in place of what they were."""

    def write(connection: Connection) -> None:
        connection.execute(sa.delete(_JOURNAL).where(_JOURNAL.c.id.in_(gone)))
        for entry in kept:
            values = {"events": entry.events, "rows": _hashes(connection, entry.rows)}
            connection.execute(sa.update(_JOURNAL).where(_JOURNAL.c.id == entry.id).values(values))

    return write


def _hashes(connection: Connection, rows: list[int]) -> Any:
    """Row hashes as their column holds them."""
    return rows if connection.dialect.name == "postgresql" else f" {' '.join(map(str, rows))} "
