"""One scope on one connection: how it stands, and the shortest way for what comes next in it (SPEC 6).

    DUE ──► READING ──► LIVE ◄──► LAGGING
     ▲                    │
     └────────────────────┘

DUE: what it missed must be read from the feed. READING: a read is under way, what comes meanwhile is held. LIVE: what
comes is sent. LAGGING: the reader was too slow; once it has taken what waits it is told that it is `behind`. OVER: it
is followed no more, though the rest of a long fan-out may still come.

A live batch is sent if it begins where the last frame ended, skipped if it ends there or before, and otherwise makes
the scope due. So there is no gap and no repetition, in whatever order commits, wakes and reads come.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from tidemark.store.base import ScopeState

from .fanout import Slice, Write
from .frames import Batch
from .outgoing import Outgoing
from .topic import Follower


class Phase(Enum):
    """How a scope stands; see the module."""

    DUE = "due"
    READING = "reading"
    LIVE = "live"
    LAGGING = "lagging"
    OVER = "over"


_LIVE = Phase.LIVE


class Owner(Protocol):
    """The connection that follows; `schema` is the number that it named."""

    user: str
    own: str
    schema: int
    outgoing: Outgoing

    def offered(self, following: Following, batch: Batch) -> None:
        """A batch that did not simply fit."""

    def revoked(self, scope: str) -> None:
        """The user may not read a scope any more."""


class Following:
    """One followed scope. `mark` is the watermark of what the peer has (None: nothing of the scope); `sent` the version
    that the next frame begins at (-1: nothing was sent yet); `admitted` the number of the change of members under which
    its rights were looked up. `asked`: the peer waits for the answer to its hello or follow, which may be a reset.
    `held` came while the feed was read; `missed`: not all that came could be held.
    """

    __slots__ = (
        "_send",
        "_sent",
        "_some",
        "admitted",
        "asked",
        "held",
        "mark",
        "missed",
        "own",
        "owner",
        "phase",
        "schema",
        "scope",
        "state",
        "user",
    )

    def __init__(self, owner: Owner, mark: str | None, state: ScopeState) -> None:
        self.owner = owner
        self.user, self.own, self.schema = owner.user, owner.own, owner.schema
        self.scope = state.scope
        self.mark = mark
        self.state = state
        self.admitted = state.members
        self._sent = -1
        self._some: Slice[Follower] | None = None
        self.asked = True
        self.phase = Phase.DUE
        self.held: list[Batch] = []
        self.missed = False
        self._send = owner.outgoing.offer

    @property
    def sent(self) -> int:
        return self._sent if self._some is None else self._some.at

    @sent.setter
    def sent(self, version: int) -> None:
        self._sent = version

    def straight(self, after: int, schema: int) -> Write | None:
        fits = self.phase is _LIVE and self._sent == after and self.schema == schema
        return self.owner.outgoing.straight() if fits else None

    def enter(self, some: Slice[Follower]) -> None:
        self._some, self.asked = some, False

    def leave(self) -> None:
        if self._some is not None:
            self._sent, self._some = self._some.at, None

    def offer(self, batch: Batch) -> None:
        """Almost always the frame fits behind the last one; the owner deals with all else."""
        if self.sent == batch.after and self.phase is _LIVE:
            frame = batch.frame(self.schema)
            if frame is not None and self._send(frame):
                self.sent, self.asked = batch.to, False
                return
        self.owner.offered(self, batch)

    def revoked(self) -> None:
        self.owner.revoked(self.scope)


class Visit:
    """Presence in rooms of one scope: it ends when the scope may not be read any more."""

    __slots__ = ("own", "owner", "schema", "scope", "user")

    def __init__(self, owner: Owner, scope: str) -> None:
        self.owner = owner
        self.user, self.own, self.schema = owner.user, owner.own, owner.schema
        self.scope = scope

    def offer(self, batch: Batch) -> None:
        """Nothing of a scope comes by its rooms."""

    def straight(self, after: int, schema: int) -> Write | None:
        """Nothing does."""

    def enter(self, some: Slice[Follower]) -> None:
        """It is in no slice."""

    def leave(self) -> None:
        """It is in no slice."""

    def revoked(self) -> None:
        self.owner.revoked(self.scope)
