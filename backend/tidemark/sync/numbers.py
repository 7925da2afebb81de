"""Which schema numbers clients still write under, as far as the journal remembers (SPEC 7 and 10)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from msgspec import Struct

from tidemark.store.base import EventQuery, JournalRow, Store
from tidemark_protocol import clock
from tidemark_protocol.model import Declaration

from .journal import Event, decode

_CHUNK = 500
"""Journal entries read at once."""


class Number(Struct, frozen=True):
    """One schema number: how many clients and users pushed under it, and how many mutations; when the latest came, and
    the longest that one had waited in its outbox (ms).
    """

    number: int
    clients: int
    users: int
    mutations: int
    last: int
    waited: int


class Usage(Struct, frozen=True):
    """`numbers` in their order. `since`: when the oldest entry came (Unix ms; None: the journal is empty). `unnumbered`
    are mutations of which no number was kept.
    """

    since: int | None
    numbers: list[Number]
    unnumbered: int

    def unused(self, declaration: Declaration) -> list[tuple[int, int]]:
        """The numbers served that nobody wrote under, as ranges, both ends included."""
        served = [n.number for n in self.numbers if declaration.oldest <= n.number <= declaration.number]
        edges = [declaration.oldest - 1, *served, declaration.number + 1]
        return [(low + 1, high - 1) for low, high in pairwise(edges) if high - low > 1]


class _Count:
    """What is known of one number so far."""

    def __init__(self) -> None:
        self.clients: set[tuple[str, str]] = set()
        self.users: set[str] = set()
        self.mutations = self.last = self.waited = 0

    def add(self, event: Event, arrived: int) -> None:
        self.clients.add((event.user, event.client))
        self.users.add(event.user)
        self.mutations += 1
        self.last = max(self.last, arrived)
        if clock.is_reading(event.at):  # what was malformed may have none
            self.waited = max(self.waited, arrived - clock.millis_of(event.at))


async def usage(store: Store, since: int | None = None) -> Usage:
    """Read the journal, from `since` (Unix ms) on if given. Raises Unavailable."""
    counts: dict[int, _Count] = {}
    earliest: int | None = None
    unnumbered = 0
    after: int | None = None
    while True:
        query = EventQuery(None, after=after, since=since, ascending=True, limit=_CHUNK)
        entries = await store.events(query)
        for entry in entries:
            earliest = entry.arrived if earliest is None else min(earliest, entry.arrived)
            for event in _pushed(entry):
                if event.schema is None:
                    unnumbered += 1
                else:
                    counts.setdefault(event.schema, _Count()).add(event, entry.arrived)
        if len(entries) < _CHUNK:
            break
        after = entries[-1].id
    numbers = [
        Number(number, len(count.clients), len(count.users), count.mutations, count.last, count.waited)
        for number, count in sorted(counts.items())
    ]
    return Usage(earliest, numbers, unnumbered)


def _pushed(entry: JournalRow) -> Iterator[Event]:
    """The mutations of clients: neither changes of members nor what the service or SQL wrote."""
    return (event for event in decode(entry) if event.by is None and event.outcome != "member")
