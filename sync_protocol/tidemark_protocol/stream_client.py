"""The client's end of the stream as a state machine (SPEC 6): frames, closings and time in, effects out.

    RESTING ──start──► CONNECTING ──connected──► GREETING ──welcome──► LIVE
                            ▲                        │                   │
                            └── WAITING ◄── closed ──┴───────────────────┘      STOPPED: nobody may reconnect

The caller carries out all effects of one call, in order, and calls `elapsed` no later than `deadline` says. Times are
Unix milliseconds; chance comes in as a number in [0, 1).

Rooms that were joined and not left are joined again after every welcome, with the state shown last.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Literal, assert_never

from msgspec import UNSET, Struct

from .client_rooms import ClientRooms, Gathered, Heard
from .messages import (
    Auth,
    Authed,
    Behind,
    Broadcasted,
    Changes,
    ClientFrame,
    ErrorFrame,
    Follow,
    Hello,
    Mutation,
    Ping,
    Pong,
    Presence,
    PushResult,
    Result,
    ScopeAdded,
    ScopeRevoked,
    ServerFrame,
    StreamPush,
    Unfollow,
    Welcome,
)
from .stream_server import CloseCode, retry_hint

FIRST_DELAY: Final = 500
LONGEST_DELAY: Final = 60_000
STEADY: Final = 10_000
"""A connection that has lived this long was a good one: the next back-off starts from the beginning."""
RENEW_AHEAD: Final = 60_000
"""A fresh token is asked for this long before the old one runs out, or at half its time if that is later."""
RENEW_AT_LEAST: Final = 5_000
"""One that is as good as over is not asked for over and over again."""
PATIENCE: Final = 15_000
"""How long connecting and greeting may take."""


class State(Enum):
    """Where a connection stands."""

    RESTING = "not asked to connect"
    CONNECTING = "opening a connection"
    GREETING = "hello is sent"
    LIVE = "welcomed"
    WAITING = "backing off before the next attempt"
    STOPPED = "refused for good"


# ── effects ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Connect(Struct, frozen=True):
    """Open a websocket, then tell `connected`; if it fails, tell `closed`."""


class Send(Struct, frozen=True):
    """Send this frame."""

    frame: ClientFrame


class Hang(Struct, frozen=True):
    """Drop the connection without waiting for the peer; `closed` has been taken into account."""


class RenewToken(Struct, frozen=True):
    """Get a fresh token and tell `renewed`."""


class Observe(Struct, frozen=True):
    """Advance the replica's clock to this reading (SPEC 2)."""

    clock: str


class ApplyRun(Struct, frozen=True):
    """Give this run to `replica.judge`; `asked`: it answers our own hello or follow."""

    run: Changes
    asked: bool


class PullScope(Struct, frozen=True):
    """The stream will not carry this: pull the scope, at least up to `head`."""

    scope: str
    head: int


class Revoke(Struct, frozen=True):
    """Delete the scope's rows; its unsent mutations become dead letters (SPEC 5)."""

    scope: str


class Added(Struct, frozen=True):
    """The scope may be read now; its changes follow."""

    scope: str


class Verdicts(Struct, frozen=True):
    """The answer to a push."""

    id: str | int
    results: list[Result]


class Refused(Struct, frozen=True):
    """A frame of ours was refused; `id` is a push's. We may have been put out of `room`, see `ClientStream.rooms`."""

    code: str
    message: str
    id: str | int | None
    room: str | None = None


class Stop(Struct, frozen=True):
    """Reconnecting would not help: `upgrade` the app, `forbidden` here, or our own `fault`."""

    why: Literal["upgrade", "forbidden", "fault"]
    reason: str


Effect = (
    Connect
    | Send
    | Hang
    | RenewToken
    | Observe
    | ApplyRun
    | PullScope
    | Revoke
    | Added
    | Verdicts
    | Refused
    | Gathered
    | Heard
    | Stop
)


class ClientStream:
    """One replica's connection, kept up for as long as it is wanted."""

    __slots__ = (
        "_asked",
        "_attempts",
        "_barred",
        "_client",
        "_heard",
        "_heartbeat",
        "_pinged",
        "_renew_at",
        "_rooms",
        "_schema",
        "_scopes",
        "_since",
        "_until",
        "state",
    )

    def __init__(self, client: str, schema: int, scopes: list[str] | None = None) -> None:
        self.state = State.RESTING
        self._client = client
        self._schema = schema
        self._scopes = scopes
        self._attempts = 0
        self._renew_at: int | None = None
        self._heartbeat = 0
        self._heard = 0
        self._pinged = False
        self._since = 0
        self._until = 0
        self._barred = 0
        self._asked: set[str] = set()
        self._rooms = ClientRooms()

    @property
    def rooms(self) -> dict[str, Any]:
        """The rooms that are joined, now or as soon as there is a connection, and the state shown in each."""
        return self._rooms.states

    @property
    def deadline(self) -> int | None:
        """When `elapsed` must be called next."""
        match self.state:
            case State.CONNECTING | State.GREETING | State.WAITING:
                return self._until
            case State.LIVE:
                silence = self._heard + self._heartbeat * (2 if self._pinged else 1)
                return min(due for due in (silence, self._renew_at, self._rooms.again) if due is not None)
            case State.RESTING | State.STOPPED:
                return None
            case _ as never:
                assert_never(never)

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, now: int) -> list[Effect]:
        """Connect as soon as the server allows: the first time, after a rest, or as the network is said to be back."""
        self._mend(now)
        if self.state not in {State.RESTING, State.WAITING}:
            return []
        if now < self._barred:
            self.state, self._until = State.WAITING, self._barred
            return []
        self.state, self._until = State.CONNECTING, now + PATIENCE
        return [Connect()]

    def connected(self, token: str, expires: int, watermark: dict[str, str], now: int) -> list[Effect]:
        """The websocket is open; `expires` (Unix seconds) is the token's, `watermark` the replica's by now."""
        if self.state is not State.CONNECTING:
            return [Hang()]
        self.state, self._until, self._heard, self._pinged = State.GREETING, now + PATIENCE, now, False
        self._expect(expires, now)
        hello = Hello(token, self._client, self._schema, watermark, self._scopes)
        return [Send(hello)]

    def received(self, frame: ServerFrame, now: int) -> list[Effect]:
        """A frame came."""
        if self.state not in {State.GREETING, State.LIVE}:
            return []
        self._heard, self._pinged = now, False
        match frame:
            case Welcome():
                return self._welcomed(frame, now)
            case Changes(scope=scope, clock=clock):
                asked = scope in self._asked
                self._asked.discard(scope)
                return [Observe(clock), ApplyRun(frame, asked)]
            case Behind(scope=scope, head=head):
                self._asked.discard(scope)
                return [PullScope(scope, head)]
            case ScopeAdded(scope=scope):
                return [Added(scope)]
            case ScopeRevoked(scope=scope):
                self._asked.discard(scope)
                self._rooms.shut_out(scope)
                return [Revoke(scope)]
            case PushResult(id=name, results=results, clock=clock):
                return [Observe(clock), Verdicts(name, results)]
            case Authed(exp=expires):
                self._expect(expires, now)
                return []
            case ErrorFrame():
                return [self._refused(frame, now)]
            case Pong(clock=clock):
                return [Observe(clock)]
            case Presence() | Broadcasted():
                return [*self._rooms.received(frame)]
            case _ as never:
                assert_never(never)

    def closed(self, code: int | None, reason: str, now: int, chance: float) -> list[Effect]:
        """The connection ended with this close code, or could not be made (None)."""
        if self.state not in {State.CONNECTING, State.GREETING, State.LIVE}:
            return []
        match code:
            case CloseCode.SCHEMA_MISMATCH:
                return self._stop(Stop("upgrade", reason))
            case CloseCode.FORBIDDEN_ORIGIN:
                return self._stop(Stop("forbidden", reason))
            case CloseCode.MALFORMED:
                return self._stop(Stop("fault", reason))
            case CloseCode.UNAUTHENTICATED:
                return [*self._back_off(now, chance, reason), RenewToken()]
            case _:
                return self._back_off(now, chance, reason)

    def elapsed(self, now: int, chance: float) -> list[Effect]:
        """Time has passed."""
        self._mend(now)
        if self.deadline is None or now < self.deadline:
            return []
        match self.state:
            case State.WAITING:
                return self.start(now)
            case State.CONNECTING | State.GREETING:
                return [Hang(), *self._back_off(now, chance)]
            case _:
                return self._live_for(now, chance)

    def renewed(self, token: str, expires: int, now: int) -> list[Effect]:
        """There is a fresh token, asked for or not."""
        if self.state is not State.LIVE:
            return []
        self._expect(expires, now)
        return [Send(Auth(token))]

    def follow(self, scopes: list[str], watermark: dict[str, str] | None = None) -> list[Effect]:
        """Add scopes to the followed set, now and after reconnecting."""
        if self._scopes is not None:
            self._scopes = list(dict.fromkeys([*self._scopes, *scopes]))
        if self.state is not State.LIVE:
            return []
        self._asked.update(scopes)
        return [Send(Follow(scopes, watermark))]

    def unfollow(self, scopes: list[str]) -> list[Effect]:
        """Take scopes from the followed set; reconnecting follows them again unless the replica was narrowed."""
        if self._scopes is not None:
            self._scopes = [scope for scope in self._scopes if scope not in scopes]
        return [Send(Unfollow(scopes))] if self.state is State.LIVE else []

    def join(self, room: str, state: Any = None) -> list[Effect]:
        """Be in a room, now and after reconnecting; RequestError `malformed` for what names none."""
        return self._sent(self._rooms.join(room, state))

    def leave(self, room: str) -> list[Effect]:
        """Be in a room no more."""
        return self._sent(self._rooms.leave(room))

    def show(self, room: str, state: Any) -> list[Effect]:
        """Show another state in a joined room, now and after reconnecting."""
        return self._sent(self._rooms.show(room, state))

    def broadcast(self, room: str, event: str, payload: Any = None) -> list[Effect]:
        """Say something to the others in a joined room; [] when there is no connection to say it on."""
        return self._sent(self._rooms.broadcast(room, event, payload))

    def push(self, name: str | int, mutations: list[Mutation]) -> list[Effect]:
        """Send a push; [] when there is no connection to send it on. At most one may be in flight (SPEC 4)."""
        return [Send(StreamPush(name, self._schema, mutations))] if self.state is State.LIVE else []

    def stop(self) -> list[Effect]:
        """Rest until `start`."""
        up = self.state in {State.CONNECTING, State.GREETING, State.LIVE}
        self.state = State.RESTING
        return [Hang()] if up else []

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _welcomed(self, frame: Welcome, now: int) -> list[Effect]:
        self.state, self._since = State.LIVE, now
        self._heartbeat = max(1, round(frame.heartbeat * 1_000))
        self._asked = set(frame.scopes)
        for scope in frame.revoked:
            self._rooms.shut_out(scope)
        revoked = [Revoke(scope) for scope in frame.revoked]
        return [Observe(frame.clock), *revoked, *self._sent(self._rooms.welcomed())]

    def _refused(self, frame: ErrorFrame, now: int) -> Refused:
        room = None if frame.room is UNSET else frame.room
        if room is not None:
            self._rooms.refused(room, frame.code, now)
        return Refused(frame.code, frame.message, None if frame.id is UNSET else frame.id, room)

    def _sent(self, frames: Sequence[ClientFrame]) -> list[Effect]:
        return [Send(frame) for frame in frames] if self.state is State.LIVE else []

    def _mend(self, now: int) -> None:
        """The clock was set back: what lies further ahead than it can have been set is over."""
        if self._barred > now + LONGEST_DELAY:
            self._barred = now
        if self._until > now + LONGEST_DELAY:
            self._until = now
        self._heard = min(self._heard, now)

    def _live_for(self, now: int, chance: float) -> list[Effect]:
        """A token to renew, rooms to ask for, or a silence to break: a ping after one heartbeat, the end after two."""
        effects: list[Effect] = []
        if self._renew_at is not None and now >= self._renew_at:
            self._renew_at = None
            effects.append(RenewToken())
        if self._rooms.again is not None and now >= self._rooms.again:
            effects += self._sent(self._rooms.asked_again())
        if now >= self._heard + 2 * self._heartbeat:
            return [*effects, Hang(), *self._back_off(now, chance)]
        if now >= self._heard + self._heartbeat and not self._pinged:
            self._pinged = True
            effects.append(Send(Ping()))
        return effects

    def _expect(self, expires: int, now: int) -> None:
        left = max(0, expires * 1_000 - now)
        self._renew_at = now + max(left - RENEW_AHEAD, left // 2, RENEW_AT_LEAST)

    def _back_off(self, now: int, chance: float, reason: str = "") -> list[Effect]:
        """Wait half a delay and up to as much again by chance; the delay doubles with every failure in a row.

        It is no shorter than what the server asked for.
        """
        if self.state is State.LIVE and now - self._since >= STEADY:
            self._attempts = 0
        delay = min(LONGEST_DELAY, FIRST_DELAY << min(self._attempts, 10))
        self._attempts += 1
        self._barred = now + min(retry_hint(reason), LONGEST_DELAY)
        self.state, self._until = State.WAITING, max(self._barred, now + round(delay * (0.5 + chance / 2)))
        self._asked.clear()
        return []

    def _stop(self, stop: Stop) -> list[Effect]:
        self.state = State.STOPPED
        return [stop]
