"""Following live over the stream (SPEC 6): what comes is applied as it comes, what is written goes out at once.

Pushes and pulls go over HTTP, one after the other and between frames, so that no answer is ever older than the one
before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, assert_never

from msgspec import Struct

from tidemark_protocol import stream_client as effects
from tidemark_protocol.client_rooms import Gathered, Heard
from tidemark_protocol.messages import Change, Changes, Welcome

from .errors import Temporary
from .peer import Document, Peer
from .stream import Heeded, Streaming
from .sync import Synchroniser
from .values import plural

PUSH_PAUSE: Final = 5_000
"""Milliseconds before a push that failed is tried again."""


class Seen(Struct, frozen=True):
    """One change as it came: the row before and after (None: no row)."""

    scope: str
    entity: str
    row: str
    version: int
    before: Document | None
    after: Document | None


class Follower(Streaming):
    """Keeps a store up to date until it is told to stop; the caller holds `Database.synchronising`."""

    def __init__(
        self,
        peer: Peer,
        synchroniser: Synchroniser,
        *,
        on_change: Callable[[Seen], None],
        say: Callable[[str], None],
        sleep: Callable[[float], None],
        until: Callable[[], bool],
    ) -> None:
        super().__init__(peer, say=say, sleep=sleep, until=until)
        self._synchroniser = synchroniser
        self._on_change = on_change
        self._pulled = False
        self._push_after = 0

    def prepare(self) -> dict[str, str]:
        """Catch up over HTTP, so that the stream has little to bring."""
        self._push()
        if self._synchroniser.refresh():
            self._begin_anew()
        self._pull()
        self._pulled = False
        return self.peer.replica.watermark()

    def greet(self, welcome: Welcome) -> None:
        self.say(f"Following {', '.join(sorted(welcome.scopes))} as {welcome.user}.")

    def between(self) -> None:
        """Other processes write to the outbox too."""
        if self.connected and self.peer.now() >= self._push_after and self.peer.outbox.count():
            self._push_live()

    def heed(self, effect: Heeded) -> None:
        match effect:
            case effects.ApplyRun(run, asked):
                self._apply(run, asked=asked and not self._pulled)
            case effects.PullScope():
                self._pull()
            case effects.Revoke(scope):
                self.say(f"{scope} may not be read any more.")
                self._synchroniser.revoke(scope)
            case effects.Added(scope):
                self.say(f"{scope} may be read now.")
            case effects.Refused(code, message):
                self.say(f"The service said: {message} ({code}).")
            case effects.Verdicts() | Gathered() | Heard():
                # Ours are pushed over HTTP, and no room is joined.
                return
            case _:
                assert_never(effect)

    def stopped(self, why: str, reason: str) -> None:
        """The declaration may have changed meanwhile."""
        if why == "upgrade" and self._synchroniser.refresh():
            self.do(self._begin_anew())
        else:
            super().stopped(why, reason)

    def _begin_anew(self) -> list[effects.Effect]:
        self.stream = self.fresh()
        return self.stream.start(self.peer.now())

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _apply(self, run: Changes, *, asked: bool) -> None:
        seen = [self._seen(run.scope, change) for change in run.changes]
        applied = self.peer.replica.apply(run, asked=asked)
        if applied.must_pull or applied.faulty:
            self._pull()
        elif applied.changes:
            for change in seen:
                self._on_change(change)

    def _seen(self, scope: str, change: Change) -> Seen:
        name = (scope, change.entity, change.row)
        held = self.peer.replica.documents("scope = ? AND entity = ? AND row = ?", *name).get(name)
        return Seen(*name, change.version, held, change.doc)

    def _pull(self) -> None:
        pulled = self._synchroniser.pull()
        # What the stream still brings answers an older request than this pull.
        self._pulled = True
        for scope in pulled.healed:
            self.say(f"The digest of {scope} was not the server's; it was pulled anew. Please report this.")
        if pulled.changes:
            self.say(f"{plural(pulled.changes, 'change')} fetched.")

    def _push_live(self) -> None:
        """A service that cannot take our changes now may still send others'."""
        try:
            self._push()
        except Temporary as fault:
            self.say(f"{fault} Trying again in {PUSH_PAUSE // 1000} s.")
            self._push_after = self.peer.now() + PUSH_PAUSE

    def _push(self) -> None:
        pushed = self._synchroniser.push()
        if pushed.applied or pushed.superseded:
            self.say(f"{plural(pushed.applied + pushed.superseded, 'change')} sent.")
        if pushed.rejected:
            self.say(f"{plural(pushed.rejected, 'change')} could not be accepted: tide rejected")
