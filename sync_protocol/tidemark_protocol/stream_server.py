"""The server's end of the stream as a state machine (SPEC 6): frames and time in, effects out.

    WAITING ──hello──► OPENING ──authenticated──► OPEN
       │                  │                         │
       └──────────────────┴───────── Close ─────────┴──► CLOSED

What a frame may do is decided here; doing it is the caller's part. The caller carries out all effects of one call, in
order, before it gives the next frame, and calls `elapsed` no later than `deadline` says. Times are Unix milliseconds.

The server's pings are no frames of this protocol: websockets have their own, which every peer answers by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any, Final, assert_never

import msgspec
from msgspec import UNSET, Struct, UnsetType

from . import messages
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
    MALFORMED = 4400
    UNAUTHENTICATED = 4401
    FORBIDDEN_ORIGIN = 4403
    NO_HELLO = 4408
    SCHEMA_MISMATCH = 4409
    TOO_LARGE = 4413
    TOO_MANY = 4429


class State(Enum):
    """Where a connection stands."""

    WAITING = "waiting for hello"
    OPENING = "hello is being authenticated"
    OPEN = "open"
    CLOSED = "closed"


class Limits(Struct, frozen=True):
    """`hello_timeout` in ms, `max_frame` in bytes; `frames_per_second` (0: no limit) may be exceeded for two seconds'
    worth of frames.
    """

    hello_timeout: int = 10_000
    max_frame: int = MAX_FRAME
    max_mutations: int = 1_000
    frames_per_second: int = 1_000


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


Effect = Send | Close | Authenticate | Open | Resume | Pause | Push | Answer


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
            return [_error(refused.code, refused.detail, _id_of(data))]
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
        self.state, self._hello = State.OPENING, frame
        return [Authenticate(frame.token)]

    def _asked(self, frame: ClientFrame) -> list[Effect]:
        match frame:
            case Hello():
                return [_error("malformed", "hello has been said")]
            case Auth(token=token):
                return [Authenticate(token)]
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
                return [_error("unsupported", "this server has no rooms")]
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


def _error(code: str, message: str, name: str | int | UnsetType = UNSET) -> Send:
    return Send(ErrorFrame(code, message, name))


def _id_of(data: str) -> str | int | UnsetType:
    """The `id` that a refused frame bears, so that its sender knows which one it was."""
    raw: Any = msgspec.json.decode(data)
    name = raw.get("id")
    return name if isinstance(name, str | int) and not isinstance(name, bool) else UNSET
