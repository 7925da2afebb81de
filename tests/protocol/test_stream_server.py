"""The server's end of the stream: what every event does in every state."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol import messages
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import Authed, ErrorFrame
from tidemark_protocol.stream_server import (
    MAX_FRAME,
    Answer,
    Authenticate,
    Close,
    CloseCode,
    Effect,
    Limits,
    Open,
    Pause,
    Push,
    Resume,
    Send,
    ServerStream,
    State,
)

CLIENT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
EXPIRES = 1_000
"""Seconds."""


def check_schema(number: int) -> None:
    """Serves 3 alone."""
    if number != 3:
        raise RequestError("schema_mismatch", "only 3")


def text(**frame: Any) -> str:
    """A frame's text."""
    return json.dumps(frame)


HELLO = text(t="hello", token="good", client=CLIENT, schema=3)


def stream_in(state: State, limits: Limits | None = None) -> ServerStream:
    """A connection of ada's in a state, at time 0."""
    stream = ServerStream(limits or Limits(), 0, check_schema)
    if state is State.CLOSED:
        stream.closed()
    if state in {State.OPENING, State.OPEN}:
        stream.receive(HELLO, 0)
    if state is State.OPEN:
        stream.authenticated("ada", EXPIRES, 0)
    assert stream.state is state
    return stream


class Event(Enum):
    """What can happen to a connection."""

    HELLO = "hello"
    FRAME = "a known frame"
    WRONG = "a known frame with wrong fields"
    UNKNOWN = "an unknown t"
    NOT_JSON = "no JSON"
    BINARY = "a binary frame"
    LARGE = "a frame too large"
    OWN_TOKEN = "the token is good"
    OTHER_TOKEN = "the token is another user's"
    BAD_TOKEN = "the token is bad"
    UNCHECKED_TOKEN = "the token cannot be checked"
    LITTLE_TIME = "a second passes"
    MUCH_TIME = "a day passes"


def send(stream: ServerStream, event: Event) -> list[Effect]:
    """Let an event happen."""
    frames: dict[Event, str | bytes] = {
        Event.HELLO: HELLO,
        Event.FRAME: text(t="ping", n=1),
        Event.WRONG: text(t="ping", n=[]),
        Event.UNKNOWN: text(t="sing"),
        Event.NOT_JSON: "{",
        Event.BINARY: b"{}",
        Event.LARGE: text(t="ping", n="x" * MAX_FRAME),
    }
    calls: dict[Event, Callable[[], list[Effect]]] = {
        Event.OWN_TOKEN: lambda: stream.authenticated("ada", EXPIRES, 1),
        Event.OTHER_TOKEN: lambda: stream.authenticated("eve", EXPIRES, 1),
        Event.BAD_TOKEN: lambda: stream.refused("unauthenticated", "bad"),
        Event.UNCHECKED_TOKEN: lambda: stream.refused("unavailable", "away"),
        Event.LITTLE_TIME: lambda: stream.elapsed(1_000),
        Event.MUCH_TIME: lambda: stream.elapsed(86_400_000),
    }
    return stream.receive(frames[event], 1) if event in frames else calls[event]()


def tell(effects: list[Effect]) -> str:
    """Effects in a few words."""
    words = []
    for effect in effects:
        match effect:
            case Close(code=code):
                words.append(f"close {int(code)}")
            case Send(frame=ErrorFrame(code=code)):
                words.append(f"error {code}")
            case Send(frame=frame):
                words.append(type(frame).__name__.lower())
            case _:
                words.append(type(effect).__name__.lower())
    return ", ".join(words)


NOT_NOW = "not now"
TABLE: dict[State, dict[Event, tuple[str, State]]] = {
    State.WAITING: {
        Event.HELLO: ("authenticate", State.OPENING),
        Event.FRAME: ("close 4400", State.CLOSED),
        Event.WRONG: ("close 4400", State.CLOSED),
        Event.UNKNOWN: ("close 4400", State.CLOSED),
        Event.NOT_JSON: ("close 4400", State.CLOSED),
        Event.BINARY: ("close 4400", State.CLOSED),
        Event.LARGE: ("close 4413", State.CLOSED),
        Event.OWN_TOKEN: ("", State.WAITING),
        Event.OTHER_TOKEN: ("", State.WAITING),
        Event.BAD_TOKEN: ("", State.WAITING),
        Event.UNCHECKED_TOKEN: ("", State.WAITING),
        Event.LITTLE_TIME: ("", State.WAITING),
        Event.MUCH_TIME: ("close 4408", State.CLOSED),
    },
    State.OPENING: {
        Event.HELLO: (NOT_NOW, State.OPENING),
        Event.FRAME: (NOT_NOW, State.OPENING),
        Event.WRONG: (NOT_NOW, State.OPENING),
        Event.UNKNOWN: (NOT_NOW, State.OPENING),
        Event.NOT_JSON: (NOT_NOW, State.OPENING),
        Event.BINARY: (NOT_NOW, State.OPENING),
        Event.LARGE: (NOT_NOW, State.OPENING),
        Event.OWN_TOKEN: ("open", State.OPEN),
        Event.OTHER_TOKEN: ("open", State.OPEN),
        Event.BAD_TOKEN: ("close 4401", State.CLOSED),
        Event.UNCHECKED_TOKEN: ("close 1012", State.CLOSED),
        Event.LITTLE_TIME: ("", State.OPENING),
        Event.MUCH_TIME: ("", State.OPENING),
    },
    State.OPEN: {
        Event.HELLO: ("error malformed", State.OPEN),
        Event.FRAME: ("answer", State.OPEN),
        Event.WRONG: ("error malformed", State.OPEN),
        Event.UNKNOWN: ("error malformed", State.OPEN),
        Event.NOT_JSON: ("close 4400", State.CLOSED),
        Event.BINARY: ("close 4400", State.CLOSED),
        Event.LARGE: ("close 4413", State.CLOSED),
        Event.OWN_TOKEN: ("authed", State.OPEN),
        Event.OTHER_TOKEN: ("close 4401", State.CLOSED),
        Event.BAD_TOKEN: ("error unauthenticated", State.OPEN),
        Event.UNCHECKED_TOKEN: ("error unavailable", State.OPEN),
        Event.LITTLE_TIME: ("", State.OPEN),
        Event.MUCH_TIME: ("close 4401", State.CLOSED),
    },
    State.CLOSED: dict.fromkeys(Event, ("", State.CLOSED)),
}


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_event_in_every_state(state: State, event: Event) -> None:
    """The table of transitions is total and true (I41)."""
    stream = stream_in(state)
    effects, after = TABLE[state][event]
    if effects == NOT_NOW:
        with pytest.raises(RuntimeError):
            send(stream, event)
    else:
        assert tell(send(stream, event)) == effects
    assert stream.state is after


FRAMES: list[tuple[dict[str, Any], Effect]] = [
    ({"t": "auth", "token": "fresh"}, Authenticate("fresh")),
    ({"t": "follow", "scopes": ["a:1"]}, Resume(["a:1"], {})),
    ({"t": "follow", "scopes": ["a:1"], "watermark": {"a:1": "x"}}, Resume(["a:1"], {"a:1": "x"})),
    ({"t": "unfollow", "scopes": ["a:1"]}, Pause(["a:1"])),
    ({"t": "push", "id": "p", "schema": 3, "mutations": []}, Push("p", 3, [])),
    ({"t": "ping", "n": 7}, Answer(7)),
    ({"t": "ping"}, Answer(None)),
]


@pytest.mark.parametrize(("frame", "effect"), FRAMES)
def test_frames_of_an_open_stream(frame: dict[str, Any], effect: Effect) -> None:
    """Each known frame asks for its effect."""
    assert stream_in(State.OPEN).receive(json.dumps(frame), 1) == [effect]


KINDS = ["hello", "auth", "follow", "unfollow", "push", "ping", "join", "leave", "presence", "broadcast", "welcome", ""]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ROOMS = st.sampled_from(["a:1", "a:1/b", "a:1/", "lobby", "", "a:1\n"])
SAID = st.fixed_dictionaries(
    {"t": st.sampled_from(KINDS) | VALUES},
    optional={
        "room": ROOMS | VALUES,
        "state": VALUES,
        "event": st.text(max_size=70) | VALUES,
        "payload": VALUES,
        "id": VALUES,
        "n": VALUES,
        "scopes": VALUES,
        "mutations": VALUES,
        "schema": VALUES,
        "token": VALUES,
    },
)


@given(st.lists(SAID.map(json.dumps) | VALUES.map(json.dumps) | st.text() | st.binary(), max_size=8))
def test_no_frame_is_too_odd(frames: list[str | bytes]) -> None:
    """Whatever comes, the machine answers with effects or closes; what it sends can be written; a room's frame that is
    refused is answered by one error, and the connection lives (I41).
    """
    stream = stream_in(State.OPEN, Limits(max_state=8, max_payload=8))
    for frame in frames:
        effects = stream.receive(frame, 1)
        for effect in effects:
            if isinstance(effect, Send):
                messages.encode(effect.frame)
        if any(isinstance(effect, Send) for effect in effects):
            assert tell(effects).startswith("error ")
            assert stream.state is State.OPEN


@pytest.mark.parametrize("mutations", [[{"seq": 2}, {"seq": 1}], [{}], 7, [{"seq": n} for n in range(1, 1_002)]])
def test_a_refused_push_is_named(mutations: Any) -> None:
    """The error that answers a refused push bears its id."""
    effects = stream_in(State.OPEN).receive(text(t="push", id="p7", schema=3, mutations=mutations), 1)
    assert [effect.frame.id for effect in effects if isinstance(effect, Send) and isinstance(effect.frame, ErrorFrame)]
    assert "p7" in repr(effects)


def test_a_wrong_schema_number_is_said_before_closing() -> None:
    """A number that is not served gets `error`, then 4409."""
    stream = ServerStream(Limits(), 0, check_schema)
    stream.receive(text(t="hello", token="good", client=CLIENT, schema=4), 0)
    assert tell(stream.authenticated("ada", EXPIRES, 0)) == "error schema_mismatch, close 4409"


def test_a_token_that_ran_out_meanwhile_opens_nothing() -> None:
    """A token that expires between hello and its check closes with 4401."""
    stream = stream_in(State.OPENING)
    assert tell(stream.authenticated("ada", EXPIRES, EXPIRES * 1_000)) == "close 4401"


def test_a_fresh_token_moves_the_end() -> None:
    """After `auth` the connection lives until the new token's end."""
    stream = stream_in(State.OPEN)
    stream.receive(text(t="auth", token="fresh"), 1)
    assert stream.authenticated("ada", 2 * EXPIRES, 1) == [Send(Authed(2 * EXPIRES))]
    assert stream.elapsed(EXPIRES * 1_000) == []
    assert tell(stream.receive(text(t="ping"), 2_000 * EXPIRES)) == "close 4401"


def test_a_frame_of_just_the_limit_passes() -> None:
    """The limit is counted in bytes of UTF-8, not in characters."""
    stream = stream_in(State.OPEN, Limits(max_frame=200))
    assert tell(stream.receive(text(t="ping").ljust(200), 1)) == "answer"
    wide = '{"t":"ping","n":"' + "é" * 100 + '"}'
    assert len(wide) < 200 < len(wide.encode())
    assert tell(stream.receive(wide, 1)) == "close 4413"


@given(st.lists(st.integers(0, 400), min_size=1, max_size=300))
def test_too_many_frames_close(pauses: list[int]) -> None:
    """No window of time holds more frames than two seconds' worth and what was earned in it; slower ones all pass."""
    rate = 20
    stream = stream_in(State.OPEN, Limits(frames_per_second=rate))
    now, passed = 0, [0]
    for pause in pauses:
        now += pause
        if tell(stream.receive(text(t="ping"), now)) != "answer":
            break
        passed.append(now)
    window = [sum(1 for when in passed if first <= when) - (now - first) * rate / 1_000 for first in passed]
    assert max(window) <= 2 * rate + 1
    if all(pause >= 1_000 // rate for pause in pauses):
        assert len(passed) == len(pauses) + 1


def test_a_flood_closes_with_4429() -> None:
    """Frames without end and without pause close the connection."""
    stream = stream_in(State.OPEN, Limits(frames_per_second=10))
    effects = [stream.receive(text(t="ping"), 1) for _ in range(25)]
    assert [Close(CloseCode.TOO_MANY, "more than 10 frames a second")] in effects
    assert effects[-1] == []


def test_hello_opens_with_itself() -> None:
    """What is opened is the hello that was said."""
    stream = stream_in(State.OPENING)
    (effect,) = stream.authenticated("ada", EXPIRES, 0)
    assert isinstance(effect, Open)
    assert effect.hello.client == CLIENT


def test_scopes_named_are_bounded() -> None:
    """A hello that names too many scopes ends the stream, a follow that does is refused (I40)."""
    limits, names = Limits(max_scopes=2), ["a:1", "a:2", "a:3"]
    for count in (2, 3):
        opening = stream_in(State.WAITING, limits)
        said = tell(opening.receive(text(t="hello", token="t", client=CLIENT, schema=1, scopes=names[:count]), 1))
        assert said == ("authenticate" if count == 2 else "close 4413")
        following = stream_in(State.OPEN, limits)
        said = tell(following.receive(text(t="follow", scopes=names[:count]), 1))
        assert said == ("resume" if count == 2 else "error too_large")
