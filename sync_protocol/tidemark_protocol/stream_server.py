"""The server's end of the stream as a state machine (SPEC 6): frames and time in, effects out.

    WAITING ──hello──► OPENING ──authenticated──► OPEN
       │                  │                         │
       └──────────────────┴───────── Close ─────────┴──► CLOSED

What a frame may do is decided here; doing it is the caller's part. The caller carries out all effects of one call, in
order, before it gives the next frame, and calls `elapsed` no later than `deadline` says. Times are Unix milliseconds.

The server's pings are no frames of this protocol: websockets have their own, which every peer answers by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any, Final, assert_never

import msgspec
from msgspec import UNSET, Struct, UnsetType

from . import messages, rooms
from .errors import RequestError
from .messages import (
    Auth,
    Authed,
    Broadcast,
    ClientFrame,
    ErrorFrame,
    Follow,
    Hello,
    Join,
    Leave,
    Mutation,
    Ping,
    ServerFrame,
    SetPresence,
    StreamPush,
    Unfollow,
)

SUBPROTOCOL: Final = "tidemark.v1"
MAX_FRAME: Final = 1 << 20
"""Bytes of one frame's text."""


class CloseCode(IntEnum):
    """Why a stream ends (SPEC 6)."""

    GOING_AWAY = 1001
    INTERNAL = 1011
    RESTARTING = 1012
    TRY_LATER = 1013
    MALFORMED = 4400
    UNAUTHENTICATED = 4401
    FORBIDDEN_ORIGIN = 4403
    NO_HELLO = 4408
    SCHEMA_MISMATCH = 4409
    TOO_LARGE = 4413
    TOO_MANY = 4429


_RETRY: Final = re.compile(r"retry ([0-9]{1,9}) ms(?![0-9A-Za-z])")


def retry_reason(pause: int, why: str) -> str:
    """A close reason that asks the client to stay away for `pause` ms."""
    return f"retry {pause} ms; {why}"


def retry_hint(reason: str) -> int:
    """How many ms a close reason asks the client to stay away; 0 if it does not."""
    asked = _RETRY.match(reason)
    return int(asked[1]) if asked else 0


class State(Enum):
    """Where a connection stands."""

    WAITING = "waiting for hello"
    OPENING = "hello is being authenticated"
    OPEN = "open"
    CLOSED = "closed"


class Limits(Struct, frozen=True):
    """`hello_timeout` in ms; `max_frame`, `max_state` and `max_payload` in bytes; `max_scopes` that one frame names;
    `frames_per_second` (0: no limit) may be exceeded for two seconds' worth of frames.
    """

    hello_timeout: int = 10_000
    max_frame: int = MAX_FRAME
    max_mutations: int = 1_000
    max_scopes: int = 5_000
    frames_per_second: int = 1_000
    max_state: int = rooms.MAX_STATE
    max_payload: int = rooms.MAX_PAYLOAD


# ── effects ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Send(Struct, frozen=True):
    """Send this frame."""

    frame: ServerFrame


class Close(Struct, frozen=True):
    """Send what was to be sent before, then close; nothing comes after."""

    code: CloseCode
    reason: str


class Authenticate(Struct, frozen=True):
    """Find out whose token this is; tell `authenticated` or `refused`."""

    token: str


class Open(Struct, frozen=True):
    """Send `welcome`, then what was missed, then what happens."""

    hello: Hello


class Resume(Struct, frozen=True):
    """Add to the followed set."""

    scopes: list[str]
    watermark: dict[str, str]


class Pause(Struct, frozen=True):
    """Take from the followed set."""

    scopes: list[str]


class Push(Struct, frozen=True):
    """Settle these mutations and send a `result`; at most one at a time, in the order of the frames."""

    id: str | int
    schema: int
    mutations: list[Mutation]


class Answer(Struct, frozen=True):
    """Send a `pong` that echoes `n`."""

    n: int | str | None


class EnterRoom(Struct, frozen=True):
    """Be in a room and show this state; send all its members, also where the connection was in it."""

    room: str
    state: Any


class LeaveRoom(Struct, frozen=True):
    """Be in the room no more, or send the error `not_joined`."""

    room: str


class ShowState(Struct, frozen=True):
    """Show another state in a room, or send the error `not_joined`."""

    room: str
    state: Any


class Cast(Struct, frozen=True):
    """Send this to all others in the room, or the error `not_joined` to this one."""

    room: str
    event: str
    payload: Any


Effect = Send | Close | Authenticate | Open | Resume | Pause | Push | Answer | EnterRoom | LeaveRoom | ShowState | Cast


class ServerStream:
    """One connection. `check_schema` raises RequestError `schema_mismatch` for a number that is not served."""

    __slots__ = ("_allowance", "_check_schema", "_counted", "_expires", "_hello", "_limits", "_until", "_user", "state")

    def __init__(self, limits: Limits, now: int, check_schema: Callable[[int], None]) -> None:
        self.state = State.WAITING
        self._limits = limits
        self._check_schema = check_schema
        self._until = now + limits.hello_timeout
        self._hello: Hello | None = None
        self._user: str | None = None
        self._expires = 0
        self._allowance = 2.0 * limits.frames_per_second
        self._counted = now

    @property
    def deadline(self) -> int | None:
        """When `elapsed` must be called next."""
        match self.state:
            case State.WAITING:
                return self._until
            case State.OPEN:
                return self._expires
            case State.OPENING | State.CLOSED:
                return None
            case _ as never:
                assert_never(never)

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, data: str | bytes, now: int) -> list[Effect]:
        """A frame came: its text, or bytes when it was a binary one."""
        if self.state is State.CLOSED:
            return []
        if self.state is State.OPENING:
            raise RuntimeError("hello has not been carried out: its effects come before the next frame")
        late = self.elapsed(now)
        if late:
            return late
        if not self._allows(now):
            return self._close(CloseCode.TOO_MANY, f"more than {self._limits.frames_per_second} frames a second")
        if isinstance(data, bytes):
            return self._close(CloseCode.MALFORMED, "frames are text")
        if _is_larger(data, self._limits.max_frame):
            return self._close(CloseCode.TOO_LARGE, f"a frame holds at most {self._limits.max_frame} bytes")
        try:
            frame = messages.decode_client_frame(data)
        except messages.NotAFrame as fault:
            return self._close(CloseCode.MALFORMED, str(fault))
        except RequestError as refused:
            if self.state is State.WAITING:
                return self._close(CloseCode.MALFORMED, f"the first frame is a hello: {refused.detail}")
            return [_error(refused.code, refused.detail, *_named_in(data))]
        return self._greeted(frame) if self.state is State.WAITING else self._asked(frame)

    def authenticated(self, user: str, expires: int, now: int) -> list[Effect]:
        """The token last asked about is `user`'s and runs out at `expires` (Unix seconds)."""
        match self.state:
            case State.OPENING if self._hello is not None:
                hello, self._hello = self._hello, None
                try:
                    self._check_schema(hello.schema)
                except RequestError as why:
                    return [_error(why.code, why.detail), *self._close(CloseCode.SCHEMA_MISMATCH, why.detail)]
                self.state, self._user, self._expires = State.OPEN, user, expires * 1_000
                return self.elapsed(now) or [Open(hello)]
            case State.OPEN:
                if user != self._user:
                    return self._close(CloseCode.UNAUTHENTICATED, "this token is another user's")
                self._expires = expires * 1_000
                return self.elapsed(now) or [Send(Authed(expires))]
            case _:
                return []

    def refused(self, code: str, message: str) -> list[Effect]:
        """The token last asked about is not good (`unauthenticated`, …), or could not be checked (`unavailable`)."""
        match self.state:
            case State.OPENING:
                away = code == "unavailable"
                return self._close(CloseCode.RESTARTING if away else CloseCode.UNAUTHENTICATED, message)
            case State.OPEN:
                return [_error(code, message)]
            case _:
                return []

    def elapsed(self, now: int) -> list[Effect]:
        """Time has passed."""
        if self.deadline is None or now < self.deadline:
            return []
        if self.state is State.WAITING:
            return self._close(CloseCode.NO_HELLO, f"no hello within {self._limits.hello_timeout} ms")
        return self._close(CloseCode.UNAUTHENTICATED, "the token has expired")

    def closed(self) -> None:
        """The connection is gone, or somebody else closes it."""
        self.state = State.CLOSED

    # ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _greeted(self, frame: ClientFrame) -> list[Effect]:
        if not isinstance(frame, Hello):
            return self._close(CloseCode.MALFORMED, "the first frame is a hello")
        if len(frame.scopes or ()) > self._limits.max_scopes:
            return self._close(CloseCode.TOO_LARGE, f"a hello names at most {self._limits.max_scopes} scopes")
        self.state, self._hello = State.OPENING, frame
        return [Authenticate(frame.token)]

    def _asked(self, frame: ClientFrame) -> list[Effect]:
        match frame:
            case Hello():
                return [_error("malformed", "hello has been said")]
            case Auth(token=token):
                return [Authenticate(token)]
            case Follow(scopes=scopes) if len(scopes) > self._limits.max_scopes:
                return [_error("too_large", f"a follow names at most {self._limits.max_scopes} scopes")]
            case Follow(scopes=scopes, watermark=watermark):
                return [Resume(scopes, watermark or {})]
            case Unfollow(scopes=scopes):
                return [Pause(scopes)]
            case StreamPush(mutations=mutations) if len(mutations) > self._limits.max_mutations:
                return [_error("too_large", f"a push holds at most {self._limits.max_mutations} mutations", frame.id)]
            case StreamPush(id=name, schema=schema, mutations=mutations):
                return [Push(name, schema, mutations)]
            case Ping(n=n):
                return [Answer(n)]
            case Join() | Leave() | SetPresence() | Broadcast():
                try:
                    return [self._about_room(frame)]
                except RequestError as refused:
                    return [_error(refused.code, refused.detail, room=frame.room)]
            case _ as never:
                assert_never(never)

    def _about_room(self, frame: Join | Leave | SetPresence | Broadcast) -> Effect:
        """Whether the room may be joined, or is, is the caller's affair."""
        rooms.scope_of(frame.room)
        match frame:
            case Join(room=room, state=state):
                rooms.check_value("state", state, self._limits.max_state)
                return EnterRoom(room, state)
            case Leave(room=room):
                return LeaveRoom(room)
            case SetPresence(room=room, state=state):
                rooms.check_value("state", state, self._limits.max_state)
                return ShowState(room, state)
            case Broadcast(room=room, event=event, payload=payload):
                rooms.check_value("payload", payload, self._limits.max_payload)
                return Cast(room, event, payload)
            case _ as never:
                assert_never(never)

    def _close(self, code: CloseCode, reason: str) -> list[Effect]:
        self.state = State.CLOSED
        return [Close(code, reason)]

    def _allows(self, now: int) -> bool:
        """Count one frame against the bucket."""
        rate = self._limits.frames_per_second
        if not rate:
            return True
        earned = max(0, now - self._counted) * rate / 1_000
        self._allowance = min(2.0 * rate, self._allowance + earned) - 1
        self._counted = now
        return self._allowance >= 0


def _is_larger(text: str, limit: int) -> bool:
    """Whether a text's UTF-8 is longer than `limit`; a lone surrogate counts as three bytes."""
    return len(text) > limit or (4 * len(text) > limit and len(text.encode(errors="surrogatepass")) > limit)


def _error(code: str, message: str, name: str | int | UnsetType = UNSET, room: str | UnsetType = UNSET) -> Send:
    return Send(ErrorFrame(code, message, name, room))


def _named_in(data: str) -> tuple[str | int | UnsetType, str | UnsetType]:
    """The `id` and the `room` that a refused frame bears, so that its sender knows which one it was."""
    raw: Any = msgspec.json.decode(data)
    name, room = raw.get("id"), raw.get("room")
    return (
        name if isinstance(name, str | int) and not isinstance(name, bool) else UNSET,
        room if isinstance(room, str) else UNSET,
    )
