"""What the tables of ours tell of a database's health, and what of it can be mended without the sync engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from tidemark_protocol import digest
from tidemark_protocol.model import Entity

from .base import Identity, RowKey
from .entities import EntityTable
from .schema.tables import own_metadata
from .schema.triggers_sql import NOW

Level = Literal["fault", "warning", "note"]

_OWN: Final = own_metadata().tables
_SCOPE, _FEED, _MEMBER, _INBOX, _META = (_OWN[f"sync_{name}"] for name in ("scope", "feed", "member", "inbox", "meta"))
_SCOPES_AT_ONCE: Final = 500
_NAMED: Final = 10
"""Scopes named in one finding at most."""
_NO_HOUSEKEEPING: Final = 24 * 60 * 60 * 1_000
"""Milliseconds behind a lease's end from which nobody seems to keep house any more."""
_RESTART: Final = 10 * 60 * 1_000
"""Milliseconds for which nobody is missed: a service may just be restarted."""
_CLOCK_APART: Final = 1_000


class Finding(Struct, frozen=True, omit_defaults=True):
    """Something that endangers what the service promises (`fault`), may come to that (`warning`), or is good to know.

    `code` is stable, `message` a sentence, `remedy` what to do. `rows` tells the rows that it is about.
    """

    code: str
    level: Level
    message: str
    remedy: str
    rows: list[dict[str, str]] = []


class Limits(Struct, frozen=True):
    """Above these, things are found unusual: milliseconds, rows, members. `max_drift` (ms) is the service's setting,
    `workers` the number of its processes.
    """

    long_transaction: int = 60_000
    inbox_lag: int = 60_000
    scope_rows: int = 1_000_000
    scope_members: int = 10_000
    max_drift: int = 60_000
    workers: int = 1


class Content(NamedTuple):
    """A scope's digest and head as its feed rows have them, and as `sync_scope` holds them."""

    scope: str
    live: int
    total: int
    head: int
    held: tuple[int, int, int]

    @property
    def sound(self) -> bool:
        live, total, head = self.held
        return (live, total % digest.MODULUS) == (self.live, self.total % digest.MODULUS) and self.head <= head


def now_of(connection: Connection) -> int:
    """The database's clock in Unix milliseconds."""
    return int(connection.exec_driver_sql(f"SELECT {NOW[connection.dialect.name]}").scalar_one())


def last_entry(connection: Connection) -> int:
    """The number of the inbox's last entry; 0 when it is empty."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(_INBOX.c.id), 0))).scalar_one())


def made(connection: Connection) -> bool:
    """Whether the tables of ours are there."""
    return set(_OWN) <= set(sa.inspect(connection).get_table_names())


def sample(entity: Entity, size: int) -> Callable[[Connection], list[Identity]]:
    """Some rows of an entity's table by chance."""

    def read(connection: Connection) -> list[Identity]:
        table, dialect = EntityTable(entity), connection.dialect.name
        chance = "RAND()" if dialect in {"mysql", "mariadb"} else "random()"
        texts = connection.exec_driver_sql(
            f"SELECT {table.identity_text(dialect, 't.')} FROM {table.name} AS t ORDER BY {chance} LIMIT {size}"
        )
        return [Identity(entity.name, text) for (text,) in texts]

    return read


def sample_feed(entity: Entity, size: int) -> Callable[[Connection], list[RowKey]]:
    """Some live rows of the feed by chance."""
    live = sa.select(_FEED.c.scope, _FEED.c.entity, _FEED.c.row).where(_FEED.c.entity == entity.name, ~_FEED.c.deleted)

    def read(connection: Connection) -> list[RowKey]:
        return [RowKey(*found) for found in connection.execute(live.order_by(sa.func.random()).limit(size))]

    return read


def look(connection: Connection, limits: Limits) -> list[Finding]:
    """Everything that a few cheap queries find."""
    return [
        *_clock(connection, limits),
        *_inbox(connection, limits),
        *_leases(connection),
        *_sizes(connection, limits),
    ]


def contents(after: str) -> Callable[[Connection], list[Content]]:
    """The next few scopes behind one, counted from the feed in one snapshot."""

    def read(connection: Connection) -> list[Content]:
        page = sa.select(_SCOPE).where(_SCOPE.c.scope > after).order_by(_SCOPE.c.scope).limit(_SCOPES_AT_ONCE)
        scopes = list(connection.execute(sa.select(page.subquery().c.scope)).scalars())
        return _counted(connection, scopes)

    return read


def mend(scope: str) -> Callable[[Connection], None]:
    """Make a scope's digest and head what its feed rows say, under its lock."""

    def write(connection: Connection) -> None:
        connection.execute(sa.select(_SCOPE.c.scope).where(_SCOPE.c.scope == scope).with_for_update())
        for found in _counted(connection, [scope]):
            head = max(found.head, found.held[2])
            values = {"live": found.live, "total": found.total % digest.MODULUS, "head": head}
            connection.execute(sa.update(_SCOPE).where(_SCOPE.c.scope == scope).values(values))

    return write


def homeless(connection: Connection) -> list[Finding]:
    """Feed rows of scopes that there are not."""
    absent = ~sa.exists().where(_SCOPE.c.scope == _FEED.c.scope)
    found = connection.execute(sa.select(_FEED.c.scope).where(absent).distinct().limit(_NAMED)).scalars().all()
    if not found:
        return []
    return [
        Finding(
            "scope_missing",
            "fault",
            f"the feed holds rows of scopes that sync_scope lacks: {', '.join(found)}",
            "something else wrote into our tables: restore a backup, then run `tidemark epoch renew`",
        )
    ]


def age(milliseconds: int) -> str:
    """A duration for people: its largest unit."""
    seconds = milliseconds // 1_000
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"


def _counted(connection: Connection, scopes: list[str]) -> list[Content]:
    if not scopes:
        return []
    columns = (_SCOPE.c.scope, _SCOPE.c.live, _SCOPE.c.total, _SCOPE.c.head)
    found = connection.execute(
        sa.select(*columns, _FEED.c.entity, _FEED.c.row, _FEED.c.version, _FEED.c.deleted)
        .select_from(_SCOPE.outerjoin(_FEED, _FEED.c.scope == _SCOPE.c.scope))
        .where(_SCOPE.c.scope.in_(scopes))
        .order_by(_SCOPE.c.scope)
    )
    by_scope = groupby(found, lambda row: (row[0], (row[1], row[2], row[3])))
    return [_content(scope, held, rows) for (scope, held), rows in by_scope]


def _content(scope: str, held: tuple[int, int, int], rows: Iterable[Any]) -> Content:
    live = total = head = 0
    for *_, entity, row, version, deleted in rows:
        if entity is None:
            continue
        head = max(head, version)
        if not deleted:
            live += 1
            total += digest.term(entity, row, version)
    return Content(scope, live, total, head, held)


def _clock(connection: Connection, limits: Limits) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite":
        return
    before = time.time_ns() // 1_000_000
    theirs = now_of(connection)
    after = time.time_ns() // 1_000_000
    apart = theirs - after if theirs > after else min(theirs - before, 0)
    if abs(apart) <= _CLOCK_APART:
        return
    way = "ahead of" if apart > 0 else "behind"
    yield Finding(
        "clock_difference",
        "fault" if abs(apart) > limits.max_drift else "warning",
        f"the database's clock is {age(abs(apart))} {way} this machine's",
        "let both keep time (NTP): writes made in SQL are merged by the database's clock, others by ours",
    )


def _inbox(connection: Connection, limits: Limits) -> Iterator[Finding]:
    count, oldest = connection.execute(sa.select(sa.func.count(), sa.func.min(_INBOX.c.captured_at))).one()
    if not count:
        return
    lag = max(0, now_of(connection) - oldest)
    if lag > limits.inbox_lag:
        yield Finding(
            "inbox_lag",
            "warning",
            f"{count} writes made in SQL wait to be taken in, the first for {age(lag)}",
            "see whether the service runs with this declaration; rows that an open transaction holds wait for its end",
        )


def _leases(connection: Connection) -> Iterator[Finding]:
    now = time.time_ns() // 1_000_000
    held = connection.execute(sa.select(_META.c.name, _META.c.value).where(_META.c.name.startswith("lease:")))
    for name, value in held:
        until = msgspec.json.decode(value)["until"]
        if now - until < _RESTART:
            continue
        since = datetime.fromtimestamp(until / 1_000, UTC)
        yield Finding(
            "lease_expired",
            "warning" if now - until > _NO_HOUSEKEEPING else "note",
            f"no process has done {name.partition(':')[2]} since {since:%F %T} UTC",
            "no service seems to run on this database: start it",
        )


def _sizes(connection: Connection, limits: Limits) -> Iterator[Finding]:
    count = sa.func.count().label("count")
    members = sa.select(_MEMBER.c.scope, count).group_by(_MEMBER.c.scope).having(count > limits.scope_members)
    rows = sa.select(_SCOPE.c.scope, _SCOPE.c.live).where(_SCOPE.c.live > limits.scope_rows)
    for code, what, query, order in (
        ("scope_rows", "rows", rows, _SCOPE.c.live),
        ("scope_members", "members", members, count),
    ):
        found = connection.execute(query.order_by(order.desc()).limit(_NAMED)).all()
        if found:
            named = ", ".join(f"{scope} ({number:,})" for scope, number in found)
            yield Finding(
                code,
                "warning",
                f"scopes with unusually many {what}: {named}",
                "each device of a member copies the whole scope: divide it, if clients find it slow",
            )
