"""Following live over the websocket (SPEC 6): what comes is applied as it comes, what is written goes out at once.

What to do is the state machine's affair (`tidemark_protocol.stream_client`); here it is done. Pushes and pulls go over
HTTP, one after the other and between frames, so that no answer is ever older than the one before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Final, assert_never

import websockets.sync.client as websocket
from msgspec import Struct
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.typing import Subprotocol

from tidemark_protocol import stream_client as effects
from tidemark_protocol.client_rooms import Gathered, Heard
from tidemark_protocol.messages import Change, Changes, Welcome, decode_server_frame, encode
from tidemark_protocol.stream_client import ClientStream, Effect
from tidemark_protocol.stream_server import SUBPROTOCOL

from .errors import LoginNeeded, Temporary, TideError, Upgrade
from .peer import Document, Peer, claims_of
from .sync import Synchroniser
from .values import plural

GLANCE: Final = 0.3
"""Seconds between looks at the outbox, which other processes write to."""
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


class Follower:
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
        self._peer = peer
        self._synchroniser = synchroniser
        self._on_change = on_change
        self._say = say
        self._sleep = sleep
        self._until = until
        self._stream = ClientStream(peer.client, peer.declaration.number)
        self._connection: websocket.ClientConnection | None = None
        self._token = ""
        self._pulled = False
        self._push_after = 0

    def run(self) -> None:
        """Follow, connecting again with growing pauses whenever the connection is lost."""
        now = self._peer.now
        try:
            self._do(self._stream.start(now()))
            while not self._until():
                try:
                    self._listen()
                    self._do(self._stream.elapsed(now(), random.random()))
                except Temporary as fault:
                    self._lost(None, str(fault))
                if self._connection and now() >= self._push_after and self._peer.outbox.count():
                    self._push_live()
        finally:
            self._hang()

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        """Take the next frame, if one comes soon."""
        if self._connection is None:
            self._sleep(GLANCE)
            return
        try:
            frame = decode_server_frame(self._connection.recv(timeout=GLANCE))
        except TimeoutError:
            return
        except ConnectionClosed as closed:
            code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "")
            self._lost(code, f"The stream was closed ({reason or code or 'connection lost'}).")
            return
        if isinstance(frame, Welcome):
            self._say(f"Following {', '.join(sorted(frame.scopes))} as {frame.user}.")
        self._do(self._stream.received(frame, self._peer.now()))

    def _open(self) -> None:
        """Catch up over HTTP, so that the stream has little to bring, then connect."""
        url = "ws" + self._peer.url.removeprefix("http").rstrip("/") + "/sync/stream"
        try:
            self._push()
            if self._synchroniser.refresh():
                self._stream = ClientStream(self._peer.client, self._peer.declaration.number)
                self._stream.start(self._peer.now())
            self._pull()
            self._connection = websocket.connect(
                url,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                max_size=None,
                ping_interval=None,
                close_timeout=1,
            )
        except (Temporary, OSError, InvalidHandshake, InvalidMessage) as fault:
            self._lost(None, str(fault))
            return
        self._token, self._pulled = self._peer.token(), False
        expires = int(claims_of(self._token).exp)
        watermark = self._peer.replica.watermark()
        self._do(self._stream.connected(self._token, expires, watermark, self._peer.now()))

    def _lost(self, code: int | None, why: str) -> None:
        """There is no connection any more, or none came about."""
        self._say(why)
        self._hang()
        self._do(self._stream.closed(code, why, self._peer.now(), random.random()))

    def _hang(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # ── effects ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _do(self, todo: Iterable[Effect]) -> None:
        for effect in todo:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case effects.Connect():
                self._open()
            case effects.Send(frame):
                self._send(encode(frame).decode())
            case effects.Hang():
                self._hang()
            case effects.RenewToken():
                self._renew()
            case effects.Observe(clock):
                with self._peer.database.transaction():
                    self._peer.outbox.observe(clock)
            case effects.ApplyRun(run, asked):
                self._apply(run, asked=asked and not self._pulled)
            case effects.PullScope():
                self._pull()
            case effects.Revoke(scope):
                self._say(f"{scope} may not be read any more.")
                self._synchroniser.revoke(scope)
            case effects.Stop(why, reason):
                self._stop(why, reason)
            case _:
                self._mention(effect)

    def _mention(self, effect: effects.Added | effects.Refused | effects.Verdicts | Gathered | Heard) -> None:
        match effect:
            case effects.Added(scope):
                self._say(f"{scope} may be read now.")
            case effects.Refused(code, message):
                self._say(f"The service said: {message} ({code}).")
            case effects.Verdicts() | Gathered() | Heard():
                # Ours are pushed over HTTP, and no room is joined.
                return
            case _:
                assert_never(effect)

    def _send(self, text: str) -> None:
        """Send; that the connection is gone is noticed by the next `_listen`."""
        if self._connection is not None:
            try:
                self._connection.send(text)
            except ConnectionClosed:
                return

    def _renew(self) -> None:
        """Another login may have left a fresh token; without one the end of the old one is the end."""
        token = self._peer.token()
        if token != self._token:
            self._token = token
            self._do(self._stream.renewed(token, int(claims_of(token).exp), self._peer.now()))
        elif self._connection is None:
            raise LoginNeeded("The token is not accepted any more. Run: tide login")

    def _stop(self, why: str, reason: str) -> None:
        if why == "upgrade":
            if not self._synchroniser.refresh():
                raise Upgrade(f"The service does not speak this store's schema number ({reason}). Everything is kept.")
            self._stream = ClientStream(self._peer.client, self._peer.declaration.number)
            self._do(self._stream.start(self._peer.now()))
        else:
            raise TideError(f"The service refused to be followed ({reason or why}).")

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _apply(self, run: Changes, *, asked: bool) -> None:
        seen = [self._seen(run.scope, change) for change in run.changes]
        applied = self._peer.replica.apply(run, asked=asked)
        if applied.must_pull or applied.faulty:
            self._pull()
        elif applied.changes:
            for change in seen:
                self._on_change(change)

    def _seen(self, scope: str, change: Change) -> Seen:
        name = (scope, change.entity, change.row)
        held = self._peer.replica.documents("scope = ? AND entity = ? AND row = ?", *name).get(name)
        return Seen(*name, change.version, held, change.doc)

    def _pull(self) -> None:
        pulled = self._synchroniser.pull()
        # What the stream still brings answers an older request than this pull.
        self._pulled = True
        for scope in pulled.healed:
            self._say(f"The digest of {scope} was not the server's; it was pulled anew. Please report this.")
        if pulled.changes:
            self._say(f"{plural(pulled.changes, 'change')} fetched.")

    def _push_live(self) -> None:
        """A service that cannot take our changes now may still send others'."""
        try:
            self._push()
        except Temporary as fault:
            self._say(f"{fault} Trying again in {PUSH_PAUSE // 1000} s.")
            self._push_after = self._peer.now() + PUSH_PAUSE

    def _push(self) -> None:
        pushed = self._synchroniser.push()
        if pushed.applied or pushed.superseded:
            self._say(f"{plural(pushed.applied + pushed.superseded, 'change')} sent.")
        if pushed.rejected:
            self._say(f"{plural(pushed.rejected, 'change')} could not be accepted: tide rejected")
