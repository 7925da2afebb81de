"""A stream to the service, kept up (SPEC 6): what to do is decided by `tidemark_protocol.stream_client`, done here."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import websockets.sync.client as websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.typing import Subprotocol

from tidemark_protocol import stream_client as effects
from tidemark_protocol.client_rooms import Gathered, Heard
from tidemark_protocol.messages import Welcome, decode_server_frame, encode
from tidemark_protocol.stream_client import ClientStream, Effect
from tidemark_protocol.stream_server import SUBPROTOCOL, retry_hint

from .errors import LoginNeeded, Temporary, TideError, Upgrade
from .peer import Peer, claims_of

Heeded = (
    effects.ApplyRun
    | effects.PullScope
    | effects.Revoke
    | effects.Added
    | effects.Verdicts
    | effects.Refused
    | Gathered
    | Heard
)
"""What is left to those who stream."""


class Streaming(ABC):
    """Streams until it is told to stop.

    `scopes` are those followed: all, if None. While nothing comes, it looks around every `glance` seconds.
    """

    def __init__(
        self,
        peer: Peer,
        *,
        scopes: list[str] | None = None,
        glance: float = 0.3,
        say: Callable[[str], None],
        sleep: Callable[[float], None],
        until: Callable[[], bool],
    ) -> None:
        self.peer = peer
        self.say = say
        self._scopes = scopes
        self._glance = glance
        self.stream = self.fresh()
        self._sleep = sleep
        self._until = until
        self._held = ExitStack()
        self._connection: websocket.ClientConnection | None = None
        self._token = ""

    def fresh(self) -> ClientStream:
        return ClientStream(self.peer.client, self.peer.declaration.number, self._scopes)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def run(self) -> None:
        """Stream, connecting again with growing pauses whenever the connection is lost."""
        now = self.peer.now
        try:
            self.do(self.stream.start(now()))
            while not self._until():
                try:
                    self._listen()
                    self.do(self.stream.elapsed(now(), random.random()))
                except Temporary as fault:
                    self._lost(None, "", str(fault))
                self.between()
        finally:
            self._hang()

    # ── what it is for ───────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def prepare(self) -> dict[str, str]:
        """What is to be done before connecting; the watermark to begin from. May raise Temporary."""

    @abstractmethod
    def greet(self, welcome: Welcome) -> None:
        """The stream is open."""

    @abstractmethod
    def heed(self, effect: Heeded) -> None:
        """Something came."""

    @abstractmethod
    def between(self) -> None:
        """There is time for something else."""

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        """Take the next frame, if one comes soon."""
        if self._connection is None:
            self._sleep(self._glance)
            return
        try:
            frame = decode_server_frame(self._connection.recv(timeout=self._glance))
        except TimeoutError:
            return
        except ConnectionClosed as closed:
            code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "")
            why = reason.partition("; ")[2] if retry_hint(reason) else reason
            self._lost(code, reason, f"The stream was closed ({why or code or 'connection lost'}).")
            return
        if isinstance(frame, Welcome):
            self.greet(frame)
        self.do(self.stream.received(frame, self.peer.now()))

    def _open(self) -> None:
        url = "ws" + self.peer.url.removeprefix("http").rstrip("/") + "/sync/stream"
        try:
            watermark = self.prepare()
            self._connection = self._held.enter_context(
                websocket.connect(
                    url,
                    subprotocols=[Subprotocol(SUBPROTOCOL)],
                    compression=None,
                    max_size=None,
                    ping_interval=None,
                    close_timeout=1,
                )
            )
        except Temporary as fault:
            self._lost(None, "", str(fault))
            return
        except (OSError, InvalidHandshake, InvalidMessage) as fault:
            self._lost(None, "", f"The service cannot be reached ({fault}).")
            return
        self._token = self.peer.token()
        expires = int(claims_of(self._token).exp)
        self.do(self.stream.connected(self._token, expires, watermark, self.peer.now()))

    def _lost(self, code: int | None, reason: str, why: str) -> None:
        """There is no connection any more, or none came about."""
        self.say(why)
        self._hang()
        self.do(self.stream.closed(code, reason, self.peer.now(), random.random()))

    def _hang(self) -> None:
        self._connection = None
        self._held.close()

    def _send(self, text: str) -> None:
        """Send; that the connection is gone is noticed by the next `_listen`."""
        if self._connection is not None:
            try:
                self._connection.send(text)
            except ConnectionClosed:
                return

    def _renew(self) -> None:
        """Another login may have left a fresh token; without one the end of the old one is the end."""
        token = self.peer.token()
        if token != self._token:
            self._token = token
            self.do(self.stream.renewed(token, int(claims_of(token).exp), self.peer.now()))
        elif self._connection is None:
            raise LoginNeeded("The token is not accepted any more. Run: tide login")

    # ── effects ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def do(self, todo: Iterable[Effect]) -> None:
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
                with self.peer.database.transaction():
                    self.peer.outbox.observe(clock)
            case effects.Stop(why, reason):
                self.stopped(why, reason)
            case _:
                self.heed(effect)

    def stopped(self, why: str, reason: str) -> None:
        """Connecting again would not help."""
        if why == "upgrade":
            raise Upgrade(f"The service does not speak this store's schema number ({reason}). Everything is kept.")
        raise TideError(f"The service refused the stream ({reason or why}).")
