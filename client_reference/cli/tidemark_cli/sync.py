"""Push and pull: one at a time, each answer in one transaction (SPEC 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from msgspec import Struct

from tidemark_protocol.errors import Remedy
from tidemark_protocol.messages import Run, Trailer, VerdictError
from tidemark_protocol.outbox import MAX_MUTATIONS, Pending, Settled, batch, halved, settle

from .errors import Mismatch, Temporary, TooMuch, Upgrade
from .peer import Peer
from .server import Server, Time

TRIES: Final = 3
"""How often one command asks again when the service says `retry` or names a time to wait."""
PATIENCE: Final = 10.0
"""The longest wait within a command, in seconds."""
TOLERANCE: Final = 500
"""A deviation of clocks below this many ms is left alone."""


class Progress(Protocol):
    """Is told how far some long work has got; `total` may grow."""

    def __call__(self, what: str, done: int, total: int, /) -> None: ...


class Pushed(Struct):
    """What a push came to, in mutations."""

    applied: int = 0
    superseded: int = 0
    rejected: int = 0


class Pulled(Struct):
    """What a pull came to; `revoked`: scopes that went; `healed`: scopes whose digest was wrong and is right again."""

    changes: int = 0
    revoked: list[str] = []
    healed: list[str] = []


class Synchroniser:
    """Talks to the service for a store; the caller holds `Database.synchronising`."""

    def __init__(self, peer: Peer, server: Server, *, sleep: Callable[[float], None], progress: Progress) -> None:
        self._peer = peer
        self._server = server
        self._sleep = sleep
        self._progress = progress

    # ── clocks and declaration ───────────────────────────────────────────────────────────────────────────────────────

    def measure(self) -> Time:
        """Measure the offset; what was never handed over is stamped anew if it was made by a wrong one (SPEC 2)."""
        time = self._server.time()
        peer = self._peer
        with peer.database.transaction():
            peer.outbox.observe(time.clock)
            known = peer.offset
            if known is None or abs(time.offset - known) > max(TOLERANCE, time.error):
                peer.database.set("offset", str(time.offset))
                unsent = list(peer.outbox.pending("handed = 0"))
                peer.outbox.correct(unsent, offset=time.offset, now=time.now)
        return time

    def refresh(self) -> bool:
        """Fetch the declaration if it is another one than ours."""
        found = self._server.schema(self._peer.database.get("etag"))
        if found is not None:
            self._peer.adopt(*found)
        return found is not None

    # ── push ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def push(self) -> Pushed:
        """Send the outbox, in order, until it is empty or the service says to wait (Temporary, Upgrade)."""
        pushed = Pushed()
        total = self._peer.outbox.count()
        if total == 0:
            return pushed
        self.measure()
        limit, tries = MAX_MUTATIONS, 0
        while sending := batch(self._peer.outbox.upcoming(limit), max_mutations=limit):
            self._progress("Pushing", total - self._peer.outbox.count(), total)
            self._peer.outbox.hand_over(sending)
            try:
                settled = self._send(sending, pushed)
            except TooMuch as refused:
                limit = self._send_less(sending, refused, pushed)
                continue
            except Temporary as delay:
                if delay.retry_after is None or delay.retry_after > PATIENCE or (tries := tries + 1) > TRIES:
                    raise
                self._sleep(delay.retry_after)
                continue
            limit = min(2 * limit, MAX_MUTATIONS)
            tries = tries + 1 if len(settled.kept) == len(sending) else bool(settled.kept)
            if settled.kept:
                self._overcome(settled, tries, pushed)
        self._progress("Pushing", total, total)
        return pushed

    def _send(self, sending: list[Pending], pushed: Pushed) -> Settled:
        answer = self._server.push(self._peer.client, sending)
        settled = settle(sending, answer.results)
        with self._peer.database.transaction():
            self._peer.outbox.observe(answer.clock)
            self._peer.outbox.settle(settled)
            pushed.rejected += self._park(settled.rejected)
        pushed.applied += len(settled.applied)
        pushed.superseded += len(settled.superseded)
        return settled

    def _park(self, rejected: Iterable[tuple[Pending, VerdictError]]) -> int:
        return self._peer.outbox.park(list(rejected), now=self._peer.now(), refs=self._peer.refs)

    def _send_less(self, sending: list[Pending], refused: TooMuch, pushed: Pushed) -> int:
        """After a push was refused whole: how many to send next. What is refused alone is a dead letter."""
        less = halved(sending)
        if less is not None:
            return less
        if not refused.final:
            raise Temporary(f"{refused} Everything is kept.") from refused
        error = VerdictError(refused.code, str(refused))
        with self._peer.database.transaction():
            pushed.rejected += self._park((mutation, error) for mutation in sending)
        return MAX_MUTATIONS

    def _overcome(self, settled: Settled, tries: int, pushed: Pushed) -> None:
        """Do what the obstacle of a `retry` asks for, or give up for now."""
        obstacle = settled.obstacle
        said = obstacle.message if obstacle else ""
        if settled.remedy is Remedy.UPGRADE:
            number = self._peer.declaration.number
            if obstacle and all(mutation.schema < number for mutation in settled.kept):
                # Written under a number that is no longer converted: no upgrade makes it good (SPEC 4).
                with self._peer.database.transaction():
                    pushed.rejected += self._park((mutation, obstacle) for mutation in settled.kept)
                return
            raise Upgrade(f"The service no longer takes changes of this schema number ({said}). They are kept.")
        if tries > TRIES:
            raise Temporary(f"The service asks to try later ({said}). Everything is kept.")
        if settled.remedy is Remedy.RESTAMP:
            self._stamp_anew(settled.kept[0])
        else:
            self._sleep(0.2 * 2**tries)

    def _stamp_anew(self, first: Pending) -> None:
        """Our clock runs ahead: correct it, and stamp everything from `first` on again (SPEC 2)."""
        time = self._server.time()
        peer = self._peer
        with peer.database.transaction():
            peer.outbox.observe(time.clock)
            peer.database.set("offset", str(time.offset))
            peer.outbox.correct(peer.outbox.pending("seq >= ?", first.seq), offset=time.offset, now=time.now)

    # ── pull ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def pull(self) -> Pulled:
        """Take in all that is new. A scope whose digest is wrong is pulled anew; Mismatch if it still is afterwards."""
        pulled = Pulled()
        faulty = self._pull_once(pulled)
        if faulty:
            still = self._pull_once(pulled)
            if still:
                raise Mismatch(f"The digest of {', '.join(sorted(still))} is not the server's, even after a new pull.")
            pulled.healed = sorted(faulty)
        return pulled

    def _pull_once(self, pulled: Pulled) -> set[str]:
        """One streamed pull; the scopes that have to be pulled again."""
        peer = self._peer
        faulty: set[str] = set()
        for item in self._server.pull(peer.client, peer.declaration.number, peer.replica.watermark()):
            if isinstance(item, Trailer):
                with peer.database.transaction():
                    peer.outbox.observe(item.clock)
                    peer.outbox.lapse_beyond(item.readable)
                for scope in item.revoked:
                    self.revoke(scope)
                pulled.revoked += item.revoked
            else:
                pulled.changes += self._take(item, faulty)
        return faulty

    def _take(self, run: Run, faulty: set[str]) -> int:
        self._progress(f"Pulling {run.scope}", run.to, run.head)
        applied = self._peer.replica.apply(run, asked=True)
        if applied.must_pull:
            raise Temporary(f"Something of {run.scope} is missing in the service's answer. Pull again.")
        if applied.faulty:
            faulty.add(run.scope)
        return applied.changes

    def revoke(self, scope: str) -> None:
        """A scope may not be read any more: its rows go, its unsent changes become dead letters."""
        error = VerdictError("revoked", f"{scope} may not be read any more")
        with self._peer.database.transaction():
            self._park((mutation, error) for mutation in list(self._peer.outbox.pending("scope = ?", scope)))
            self._peer.replica.revoke(scope)
