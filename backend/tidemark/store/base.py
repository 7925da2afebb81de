"""The port to a database: what the sync engine asks of it, and what it may rely on.

Guarantees every store gives (the conformance suite holds them against each):

* **One transaction, all or nothing.** `transact` runs `body`; what it saved is durable when `transact` returns, and
  nothing of it is seen before. If it raises, nothing happened.
* **Versions in commit order.** A scope locked by `Transaction.lock` stays locked until its transaction has ended, so
  whoever reads head N reads every change up to N, from any process (SPEC 9.5).
* **Locks do not queue.** `lock` passes over scopes locked elsewhere; it returns those it got.
* **A run is one snapshot**: head, floor, digest, members and changes of one `run` belong together (SPEC 5).
* **Foreign errors are translated** here: the exceptions below, each `from` the driver's.

Everything is set-based: no call makes a round trip per row. `body` awaits nothing but its transaction (a store may run
it in a thread of its own). Scopes, rows and clocks are compared byte by byte. Times are Unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from msgspec import Struct

T = TypeVar("T")


class Unavailable(Exception):
    """The database is away, busy beyond its time limits, or ended the transaction: trying again later may help."""


class Unfit(Exception):
    """The database cannot be used as it stands; the message says why, and what would mend it."""


class InUse(Unfit):
    """Another process has the database, which serves one alone."""


class RowTaken(Exception):
    """A key was taken in another scope between `load` and `save`: run the transaction again."""


class ConstraintFailed(Exception):
    """The database refused what was saved because of the data; `unique` tells a uniqueness from any other reason."""

    def __init__(self, message: str, *, unique: bool) -> None:
        super().__init__(message)
        self.unique = unique


class Held(Exception):
    """What was saved waits for a row, key or unique value that another program's transaction has not committed yet."""


class TableAway(Exception):
    """The table of `entity` cannot be used for now: another program holds all of it, or has changed what it is."""

    def __init__(self, message: str, entity: str) -> None:
        super().__init__(message)
        self.entity = entity


class RowKey(NamedTuple):
    scope: str
    entity: str
    row: str


class ScopeState(Struct):
    """A row of `sync_scope`: `head` the last version given, `floor` the version below which tombstones were forgotten
    (no watermark below it can be continued), `clock` the highest reading that took effect, `live` and `total` the
    digest's parts, `members` the number of the last change of members, `horizon` the latest horizon tombstones were
    forgotten at (ms).
    """

    scope: str
    head: int = 0
    floor: int = 0
    clock: str = ""
    live: int = 0
    total: int = 0
    members: int = 0
    horizon: int = 0


class FeedRow(Struct):
    """A row of `sync_feed`: one row's present state in one scope.

    `doc` is the wire document as JSON text while the row is live; for a tombstone, the values that outlived it
    (`{}` mostly). `root` is the clock of the latest put or delete, `clocks` the JSON object of clocks below it ("" when
    none). `version` is 0 for a row that never showed. `arrived` is when its last write came. `residue` marks what
    retention may forget one day: a tombstone, or the clock of a removed map key.
    """

    scope: str
    entity: str
    row: str
    version: int
    deleted: bool
    doc: str
    root: str
    clocks: str
    arrived: int
    residue: bool = False


class RowImage(Struct, frozen=True):
    """A live row as the declared table must hold it; `new` tells that the table holds none yet."""

    key: RowKey
    values: dict[str, Any]
    created_at: str
    updated_at: str
    new: bool


class JournalEntry(Struct):
    """One row of `sync_journal`: what one commit did in one scope, or one rejected mutation.

    `events` is JSON text (its shape is the sync engine's). `rows` holds the 63-bit hashes of the (entity, row) pairs
    named in it, for finding it again; `spent` the 63-bit hash of a rejected reading, None on entries of commits.
    """

    scope: str
    arrived: int
    events: str
    rows: list[int]
    spent: int | None = None


class JournalRow(NamedTuple):
    id: int
    scope: str
    arrived: int
    events: str


UNIT: Final = "\x1f"
"""Stands between the parts of an identity: the ASCII unit separator, which no key of the protocol holds."""


class Identity(NamedTuple):
    """What names a row of a captured table in SQL: the texts of the columns that no two rows share (the scope column
    first where keys are `per_scope`, then those of the key), joined by UNIT.
    """

    entity: str
    text: str


class InboxEntry(NamedTuple):
    """A row of `sync_inbox`: triggers saw this row change. `captured_at` is a time of the database's clock (ms), `who`
    the database's user, where it has users. Two entries of different rows may have one `id`.
    """

    id: int
    entity: str
    identity: str
    captured_at: int
    who: str | None


class TableRow(Struct, frozen=True):
    """A row of a captured table as SQL holds it. `scope` is the text of the scope column; `values` are canonical where
    the column's value has a canonical form for the field's type, else the text that the database gives (a validator
    refuses it).
    """

    identity: Identity
    scope: str | None
    values: dict[str, Any]


class Backlog(NamedTuple):
    """How much waits in the inbox, and since when (ms; None when empty)."""

    entries: int
    oldest: int | None


class Connections(NamedTuple):
    """How many of a store's pooled connections are in use, and may be at most."""

    used: int
    most: int


class Saved(Struct):
    """Everything one transaction writes.

    `swapped` are live rows whose unique values pass from one to another within this save: their table rows are
    removed before any is written. `gone` are rows to remove from their tables. `drained` are entries of the inbox
    to remove.
    """

    scopes: list[ScopeState]
    feed: list[FeedRow]
    images: list[RowImage]
    gone: list[RowKey]
    swapped: list[RowKey]
    journal: list[JournalEntry]
    drained: Sequence[InboxEntry] = ()


class Run(Struct, frozen=True):
    """One page of a scope's changes: `body` is the wire form of `count` changes joined by commas, in version order;
    `to` is the last one's version (`state.head` when the page reaches it); `state` belongs to the same snapshot.
    """

    state: ScopeState
    count: int
    to: int
    body: bytes


class Transaction(Protocol):
    """What a transaction can do; every method takes and gives sets."""

    async def lock(self, scopes: Collection[str], create: Collection[str]) -> dict[str, ScopeState]:
        """Lock scopes in text order, making those of `create` that do not exist; skips the ones locked elsewhere."""

    async def roles(self, members: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """The role of each (scope, user) that has one."""

    async def load(self, keys: Collection[RowKey]) -> list[FeedRow]:
        """The feed's rows under these keys; unless an entity's keys are `per_scope`, those of other scopes too."""

    async def spent(self, hashes: Collection[int]) -> list[JournalRow]:
        """Entries of rejected readings by their hash."""

    async def entries_of(self, scope: str, rows: Collection[int], since: int, limit: int) -> list[JournalRow]:
        """Commit entries of a scope that name any of these row hashes and arrived at `since` (ms) or later: the first
        `limit` of them in the order of ids. What stands behind those is given up, so that a row written all day costs
        no more than any other.
        """

    async def referring(self, scope: str, entity: str, field: str, targets: Collection[str]) -> list[tuple[str, str]]:
        """(target, row) of every table row of `entity` in the scope whose `field` names one of `targets`."""

    async def holders(
        self, scope: str, entity: str, fields: tuple[str, ...], values: Collection[tuple[Any, ...]]
    ) -> list[tuple[tuple[Any, ...], str]]:
        """(values, row) of every table row in the scope that holds one of these value tuples (canonical values)."""

    async def set_role(self, scope: str, user: str, role: str | None) -> None:
        """Give a user a role in a scope, or take it away (None)."""

    async def table_rows(
        self, identities: Collection[Identity], lock: Collection[Identity]
    ) -> tuple[list[TableRow], set[Identity]]:
        """The rows of captured tables under these identities as they stand; and those of `lock` (a subset) that a
        transaction of another program holds.

        The other rows of `lock` are locked until the end, without waiting: no other program changes them meanwhile.
        A row that is not there is not locked. TableAway where a table is held as a whole for longer than a moment.
        """

    async def captured(self, identities: Collection[Identity]) -> list[InboxEntry]:
        """Of each of these rows that has entries in the inbox, the one with the latest time."""

    async def save(self, saved: Saved) -> None:
        """Write it all; raises RowTaken, ConstraintFailed, Held or TableAway: then the transaction can only end.

        What this writes into a captured table need not be reported to the inbox, unless the table holds something else
        afterwards than what was written: another program's trigger may change it.
        """


class EventQuery(Struct, frozen=True):
    """Which journal entries to read: of `scopes` (None: of every scope), of any of `rows` (hashes) if given, with `id`
    strictly between `after` and `before`, arrived in [`since`, `until`) ms; newest first unless `ascending`.
    """

    scopes: Sequence[str] | None
    rows: Sequence[int] | None = None
    after: int | None = None
    before: int | None = None
    since: int | None = None
    until: int | None = None
    ascending: bool = False
    limit: int = 100


class Store(Protocol):
    """A database that holds the feed, the journal and the declared tables."""

    epoch: str
    exclusive: bool
    """Whether one process alone may have this database open."""
    pace: int
    """Milliseconds between two looks into the inbox, unless told otherwise."""

    async def open(self) -> None:
        """Connect, check settings, and settle the epoch by the database's fingerprint (SPEC 1)."""

    async def close(self) -> None: ...

    async def transact(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `body` in one transaction; raises Unavailable when the database is away."""

    async def memberships(self, users: Collection[str]) -> dict[str, dict[str, str]]:
        """User → scope → role, of every scope that these users are members of."""

    async def members(self, scope: str) -> dict[str, str]:
        """User → role."""

    async def states(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        """The present state of those that exist."""

    async def run(self, scope: str, after: int, base: int, limit: int, max_bytes: int) -> Run | None:
        """Changes above `after`, without tombstones at or under `base`; at least one, even beyond `max_bytes`.
        None when the scope does not exist.
        """

    async def events(self, query: EventQuery) -> list[JournalRow]: ...

    async def rows_of(self, scope: str) -> Iterable[FeedRow]:
        """Every feed row of a scope in one snapshot (for checks, not for hot paths)."""

    async def residues(self, before: int, latest: str, limit: int) -> list[FeedRow]:
        """Feed rows with `residue` that arrived before `before` and whose root is below `latest`, oldest first."""

    async def forget(self, scope: str, horizon: int, dropped: Sequence[FeedRow], rewritten: Sequence[FeedRow]) -> int:
        """Under the scope's lock, drop tombstones and rewrite clocks and residue (same version, same doc unless a
        tombstone), each only if its root, clocks and arrival are still those given (`rewritten` are compared by
        version and arrival); raises floor to the highest version dropped and horizon to `horizon` (ms). How many.
        """

    async def forget_journal(self, before: int, limit: int) -> int:
        """Drop up to `limit` journal entries that arrived before that time; how many went."""

    async def lease(self, name: str, owner: str, now: int, until: int) -> bool:
        """Take or keep a lease row of `sync_meta` until `until`; False while another holds it."""

    async def inbox(
        self, passed: Collection[int], limit: int, without: Collection[str] = (), *, newest: bool = False
    ) -> list[InboxEntry]:
        """The inbox's first entries in the order of ids (the last ones backwards: `newest`), of entities declared as
        captured, without those `passed` over and `without` some entities.

        Others are left to processes that know them: a declaration may be ahead of this one.
        """

    async def backlog(self) -> Backlog:
        """How much waits in the inbox."""

    def connections(self) -> Connections:
        """What is in use now; of a store that keeps no pool, nothing."""

    async def report(self, identities: Collection[Identity], at: int) -> None:
        """Append rows to the inbox, as triggers do, at the time `at` (ms)."""

    async def sweep(self, entity: str, after: Identity | None, limit: int) -> list[TableRow]:
        """The rows of an entity's table (captured or not) behind an identity, in the order of its columns."""

    async def live(self, entity: str, after: tuple[str, str] | None, limit: int) -> list[FeedRow]:
        """The live feed rows of an entity behind (row, scope), in that order."""
