"""What the service tells of its own work; `/metrics` shows it (`web/metrics.py` implements this).

Called once for a batch, a page, a fan-out or a stream, never for a mutation or a delivery. Who is to say what:

    pipeline   batch, verdicts, split, deferred                    pull     pulled
    inbox      drained, drain_failed                               housekeeping  kept_house
    hub, rooms fanned_out, after each pass over the receivers of one batch of changes or one frame of a room
    rooms      broadcast, for each broadcast and state that came in, by what became of it; withheld, foreign
    follower   fell_behind, when a `behind` is sent, with its cause
    session    stream_opened once the welcome was sent, stream_closed for each of those, stream_refused for others
    wake       wake_sent, wake_heard, wake_connected

Present values are not told but asked for: `watch("rooms", lambda: len(self._rooms))`, once, when the part is made.
The reading is called for each scrape, in the event loop's thread, and must be cheap.

Seconds are of a monotonic clock unless said otherwise, sizes are bytes, labels come from the closed sets below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

StreamKind = Literal["websocket", "events"]
"""`events`: server-sent events."""
Fanned = Literal["changes", "room"]
Origin = Literal["here", "elsewhere"]
"""Whether a fan-out began with a commit or broadcast of this process or was woken by another."""
BehindCause = Literal["too_far", "too_large", "slow_reader"]
"""More changes than a stream carries; more bytes than it buffers; a reader whose buffer was full: frames dropped."""
BroadcastFate = Literal["sent", "coalesced", "dropped"]
"""`coalesced`: a later one of the same sender and event took its place; `dropped`: refused, or lost."""
SplitCause = Literal["constraint", "row_taken", "held", "table_away"]
Watched = Literal[
    "streams_websocket",
    "streams_events",
    "streams_waiting",
    "topics",
    "rooms",
    "room_members_here",
    "room_members_elsewhere",
    "mutations_waiting",
    "pulls_waiting",
    "inbox_entries",
    "inbox_oldest_seconds",
    "inbox_passed_over",
    "connections_used",
    "connections_most",
]
"""Present values. `streams_waiting` are those that wait to be let in; `topics` are scopes that somebody follows here;
`room_members_elsewhere` are those of other processes; the `inbox_…` are 0 in a process that does not drain, where
`inbox_oldest_seconds` is how long the first entry has waited; `connections_…` are the database's.
"""


class Meter:
    """Takes figures, and does nothing with them."""

    def watch(self, what: Watched, reading: Callable[[], float]) -> None:
        """Ask `reading` for this value whenever somebody looks; a later reading takes an earlier one's place."""

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def batch(self, mutations: int, waited: float, seconds: float) -> None:
        """The pipeline settled a batch of so many mutations and captured rows in `seconds`, deferred ones included;
        its first had `waited` that long.
        """

    def verdicts(self, counts: Mapping[str, int]) -> None:
        """Verdicts by status, of one batch."""

    def split(self, cause: SplitCause) -> None:
        """The database refused a transaction, so that its mutations are settled in parts."""

    def deferred(self, requests: int) -> None:
        """Requests put back because another process holds a scope of theirs."""

    def drained(self, entries: int, lag: float) -> None:
        """The inbox let go of so many entries, the earliest `lag` seconds after SQL wrote it (wall clocks)."""

    def drain_failed(self) -> None:
        """A look into the inbox ended in an error."""

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def pulled(self, changes: int, size: int) -> None:
        """One page of a pull: how many changes, and the bytes of their runs."""

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def stream_opened(self, kind: StreamKind, seconds: float) -> None:
        """A stream was welcomed, `seconds` after its connection was accepted."""

    def stream_closed(self, kind: StreamKind, code: int) -> None:
        """A stream that had been opened ended with this code (1006 when its peer went without one)."""

    def stream_refused(self, kind: StreamKind, code: int) -> None:
        """A connection ended with this code before it was welcomed."""

    def fanned_out(self, what: Fanned, receivers: int, size: int, lag: float, origin: Origin) -> None:
        """The same frame was handed to so many receivers, `size` bytes to all of them together.

        `lag` is from the commit (or the broadcast's arrival) in this process, or from the wake, to when the last
        receiver's was handed over.
        """

    def fell_behind(self, cause: BehindCause) -> None:
        """A stream was told `behind` for one scope."""

    def broadcast(self, fate: BroadcastFate, count: int = 1) -> None:
        """What became of broadcasts of this process's streams."""

    def withheld(self, frames: int) -> None:
        """So many frames of rooms were not sent, each to a reader whose buffer was full."""

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def wake_sent(self, payloads: int = 1) -> None:
        """Payloads of wakes and messages went to the other processes."""

    def wake_heard(self, payloads: int = 1) -> None:
        """Payloads came over the channel, this process's own among them where they come back."""

    def wake_connected(self, *, connected: bool) -> None:
        """The channel to the other processes is up, or down; not called where there is none."""

    def foreign(self) -> None:
        """Another process sent a message that is not understood: it runs another version, perhaps."""

    def kept_house(self, rows: int, entries: int, at: float) -> None:
        """A round forgot so many rows' remains and journal entries, and ended well at that Unix time (seconds)."""


SILENT: Final = Meter()
"""For parts that nobody watches."""
