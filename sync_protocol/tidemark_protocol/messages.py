"""What travels (SPEC 4 to 7): one struct for each message, decoders built once.

A body is decoded once. The envelope's types are strict (a fault is the whole request's); the members of a mutation
other than `seq` are taken as they come, since a fault there is that mutation's own (SPEC 4).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypedDict, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .errors import RequestError

T = TypeVar("T")

MAX_SEQ: Final = 2**53 - 1
MAX_NESTING: Final = 64

Seq = Annotated[int, Meta(ge=1, le=MAX_SEQ)]
ClientId = Annotated[
    str, Meta(pattern=r"^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}\Z")
]
SchemaNumber = Annotated[int, Meta(ge=0, le=999_999_999)]
EventName = Annotated[str, Meta(min_length=1, max_length=64)]
Verdict = Literal["applied", "superseded", "rejected", "retry"]


class Mutation(Struct, gc=False):
    """One write as a client sent it: only `seq` is checked."""

    seq: Seq
    op: Any = None
    entity: Any = None
    row: Any = None
    at: Any = None
    scope: Any = None
    fields: Any = None
    group: Any = None


class PushRequest(Struct):
    client: ClientId
    schema: SchemaNumber
    mutations: list[Mutation]


class PullRequest(Struct):
    client: ClientId
    schema: SchemaNumber
    watermark: dict[str, str] | None = None
    scopes: list[str] | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000
    wait: Annotated[float, Meta(ge=0, le=25)] = 0


class VerdictError(Struct, frozen=True, gc=False):
    code: str
    message: str
    field: str | None = None


class Result(Struct, frozen=True, gc=False):
    """The verdict on one mutation."""

    seq: int
    status: Verdict
    scope: str | UnsetType = UNSET
    version: int | UnsetType = UNSET
    superseded_fields: list[str] | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    error: VerdictError | UnsetType = UNSET


class PushResponse(Struct, frozen=True):
    results: list[Result]
    clock: str


class Change(Struct, frozen=True, gc=False):
    """One row state of a run; `doc` None is a deletion."""

    entity: str
    row: str
    version: int
    doc: dict[str, Any] | None


class Run(Struct, frozen=True, rename={"from_": "from"}):
    """A run as a replica reads it (the server writes runs as bytes, see `run_bytes`)."""

    scope: str
    from_: int
    to: int
    head: int
    watermark: str
    changes: list[Change]
    digest: str | None = None
    reset: bool = False


class PullResponse(Struct, frozen=True):
    scopes: list[Run]
    readable: list[str]
    revoked: list[str]
    more: bool
    clock: str


class Trailer(Struct, frozen=True):
    """The last line of a streamed pull; a body without it was cut off."""

    readable: list[str]
    revoked: list[str]
    clock: str


def run_bytes(
    *, scope: str, after: int, to: int, head: int, watermark: str, digest: str | None, reset: bool, changes: bytes
) -> bytes:
    """A run's members without the braces; `changes` are the ready-made documents, joined by commas.

    Scopes, watermarks and digests hold no character that JSON escapes.
    """
    proof = f'"digest":"{digest}",' if digest is not None else ""
    head_part = (
        f'"scope":"{scope}","from":{after},"to":{to},"head":{head},"watermark":"{watermark}",{proof}'
        f'"reset":{"true" if reset else "false"},"changes":['
    )
    return b"%b%b]" % (head_part.encode(), changes)


# ── frames, client to server (SPEC 6) ────────────────────────────────────────────────────────────────────────────────


class Hello(Struct, tag_field="t", tag="hello"):
    token: str
    client: ClientId
    schema: SchemaNumber
    watermark: dict[str, str] | None = None
    scopes: list[str] | None = None


class Auth(Struct, tag_field="t", tag="auth"):
    token: str


class Follow(Struct, tag_field="t", tag="follow"):
    scopes: list[str]
    watermark: dict[str, str] | None = None


class Unfollow(Struct, tag_field="t", tag="unfollow"):
    scopes: list[str]


class StreamPush(Struct, tag_field="t", tag="push"):
    id: str | int
    schema: SchemaNumber
    mutations: list[Mutation]


class Ping(Struct, tag_field="t", tag="ping"):
    n: int | str | None = None


class Join(Struct, tag_field="t", tag="join"):
    room: str
    state: Any = None


class Leave(Struct, tag_field="t", tag="leave"):
    room: str


class SetPresence(Struct, tag_field="t", tag="presence"):
    room: str
    state: Any = None


class Broadcast(Struct, tag_field="t", tag="broadcast"):
    room: str
    event: EventName
    payload: Any = None


ClientFrame = Hello | Auth | Follow | Unfollow | StreamPush | Ping | Join | Leave | SetPresence | Broadcast

# ── frames, server to client ─────────────────────────────────────────────────────────────────────────────────────────


class Welcome(Struct, tag_field="t", tag="welcome"):
    session: str
    user: str
    scopes: dict[str, int]
    revoked: list[str]
    clock: str
    heartbeat: float


class Changes(Struct, tag_field="t", tag="changes", rename={"from_": "from"}):
    scope: str
    from_: int
    to: int
    head: int
    watermark: str
    changes: list[Change]
    clock: str
    digest: str | None = None
    reset: bool = False


class Behind(Struct, tag_field="t", tag="behind"):
    scope: str
    head: int


class ScopeAdded(Struct, tag_field="t", tag="scope_added"):
    scope: str


class ScopeRevoked(Struct, tag_field="t", tag="scope_revoked"):
    scope: str


class PushResult(Struct, tag_field="t", tag="result"):
    id: str | int
    results: list[Result]
    clock: str


class Authed(Struct, tag_field="t", tag="authed"):
    exp: int


class ErrorFrame(Struct, tag_field="t", tag="error"):
    code: str
    message: str
    id: str | int | UnsetType = UNSET
    room: str | UnsetType = UNSET


class Pong(Struct, tag_field="t", tag="pong"):
    clock: str
    n: int | str | None = None


class Member(TypedDict):
    """One session in a room: whose it is, and what it shows."""

    user: str
    state: Any


class Presence(Struct, tag_field="t", tag="presence"):
    room: str
    members: dict[str, Member] | UnsetType = UNSET
    joined: dict[str, Member] | UnsetType = UNSET
    changed: dict[str, Member] | UnsetType = UNSET
    left: list[str] | UnsetType = UNSET


class Broadcasted(Struct, tag_field="t", tag="broadcast", rename={"from_": "from"}):
    room: str
    from_: dict[str, str]
    event: str
    payload: Any


ServerFrame = (
    Welcome
    | Changes
    | Behind
    | ScopeAdded
    | ScopeRevoked
    | PushResult
    | Authed
    | ErrorFrame
    | Pong
    | Presence
    | Broadcasted
)


# ── decoding ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_push = msgspec.json.Decoder(PushRequest)
_pull = msgspec.json.Decoder(PullRequest)
_client_frame: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_server_frame: msgspec.json.Decoder[ServerFrame] = msgspec.json.Decoder(ServerFrame)
_any = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()

_NOT_OUTLINE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_AS_ROUND: Final = bytes.maketrans(b"[{]}", b"(())")


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


def decode_push(body: bytes) -> PushRequest:
    """A push, or RequestError `malformed` (SPEC 4: nothing of such a body takes effect)."""
    request = _decode(_push, body)
    check_rising(request.mutations)
    return request


def decode_pull(body: bytes) -> PullRequest:
    return _decode(_pull, body)


def decode_json(body: bytes) -> Any:
    """Any JSON body under the protocol's rules for text and nesting."""
    return _decode(_any, body)


def check_rising(mutations: list[Mutation]) -> None:
    """`seq` rises strictly within a request."""
    last = 0
    for mutation in mutations:
        if mutation.seq <= last:
            raise RequestError("malformed", f"seq must rise strictly: {mutation.seq} follows {last}")
        last = mutation.seq


class NotAFrame(Exception):
    """Not JSON, or no `t`: the connection closes with 4400 (SPEC 6)."""


def decode_client_frame(data: str) -> ClientFrame:
    """A frame; RequestError `malformed` when a known frame's fields are wrong or `t` is unknown; else NotAFrame."""
    try:
        frame = _decode(_client_frame, data.encode())
    except (RequestError, UnicodeEncodeError) as refused:
        try:
            raw = _any.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as broken:
            raise NotAFrame(str(broken)) from broken
        if not isinstance(raw, dict) or not isinstance(raw.get("t"), str):
            raise NotAFrame("a frame is an object with a text `t`") from refused
        raise
    if isinstance(frame, StreamPush):
        check_rising(frame.mutations)
    return frame


def decode_server_frame(data: str | bytes) -> ServerFrame:
    return _server_frame.decode(data)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        body.decode()  # members that nobody reads are skipped unseen; their text must be UTF-8 too
        check_nesting(body)
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise RequestError("malformed", str(fault)) from fault


def check_nesting(body: bytes, limit: int = MAX_NESTING) -> None:
    """Refuse nesting beyond `limit`, exactly for valid JSON, at the price of a few passes in C.

    Strings go first, with the brackets in them; then the innermost level of brackets is stripped, `limit` times at
    most.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outline = body.translate(_AS_ROUND, _NOT_OUTLINE).replace(b'""', b"")
    brackets = b"".join(outline.split(b'"')[::2])
    for _ in range(limit):
        if not brackets:
            return
        brackets = brackets.replace(b"()", b"")
    if brackets:
        raise RequestError("malformed", f"nested more than {limit} deep, or brackets that do not match")
