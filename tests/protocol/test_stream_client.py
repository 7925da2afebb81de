"""The client's end of the stream: what every event does in every state, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol.messages import (
    Authed,
    Behind,
    Broadcasted,
    Changes,
    ErrorFrame,
    Ping,
    Pong,
    Presence,
    PushResult,
    ScopeAdded,
    ScopeRevoked,
    ServerFrame,
    Welcome,
)
from tidemark_protocol.stream_client import (
    FIRST_DELAY,
    LONGEST_DELAY,
    STEADY,
    Added,
    ApplyRun,
    ClientStream,
    Connect,
    Effect,
    Hang,
    Observe,
    PullScope,
    Refused,
    RenewToken,
    Revoke,
    Send,
    State,
    Stop,
    Verdicts,
)
from tidemark_protocol.stream_server import retry_reason

CLIENT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
CLOCK = "0192f3a4b5c6-0000-00000000000000aa"
WELCOME = Welcome("s1", "ada", {"user:ada": 7}, ["a:9"], CLOCK, 25)
EXPIRES = 3_600
"""Seconds."""


def stream_in(state: State) -> ClientStream:
    """A connection in a state, at time 0."""
    stream = ClientStream(CLIENT, 3)
    if state is not State.RESTING:
        stream.start(0)
    if state in {State.GREETING, State.LIVE}:
        stream.connected("token", EXPIRES, {"user:ada": "mark"}, 0)
    if state is State.LIVE:
        stream.received(WELCOME, 0)
    if state is State.WAITING:
        stream.closed(1012, "", 0, 0.5)
    if state is State.STOPPED:
        stream.closed(4409, "", 0, 0.5)
    assert stream.state is state
    return stream


class Event(Enum):
    """What can happen to a connection."""

    START = "the app wants it"
    CONNECTED = "the websocket is open"
    WELCOME = "welcome"
    PONG = "another frame"
    LOST = "closed without a code"
    MISMATCH = "closed with 4409"
    EXPIRED = "closed with 4401"
    TIME = "a day passes"
    RENEWED = "a fresh token"
    STOP = "the app does not want it any more"


EVENTS: dict[Event, Callable[[ClientStream], list[Effect]]] = {
    Event.START: lambda stream: stream.start(1),
    Event.CONNECTED: lambda stream: stream.connected("token", EXPIRES, {}, 1),
    Event.WELCOME: lambda stream: stream.received(WELCOME, 1),
    Event.PONG: lambda stream: stream.received(Pong(CLOCK, 1), 1),
    Event.LOST: lambda stream: stream.closed(None, "", 1, 0.5),
    Event.MISMATCH: lambda stream: stream.closed(4409, "", 1, 0.5),
    Event.EXPIRED: lambda stream: stream.closed(4401, "", 1, 0.5),
    Event.TIME: lambda stream: stream.elapsed(86_400_000, 0.5),
    Event.RENEWED: lambda stream: stream.renewed("fresh", 2 * EXPIRES, 1),
    Event.STOP: lambda stream: stream.stop(),
}

TABLE: dict[State, dict[Event, tuple[str, State]]] = {
    State.RESTING: {
        Event.START: ("connect", State.CONNECTING),
        Event.CONNECTED: ("hang", State.RESTING),
        Event.WELCOME: ("", State.RESTING),
        Event.PONG: ("", State.RESTING),
        Event.LOST: ("", State.RESTING),
        Event.MISMATCH: ("", State.RESTING),
        Event.EXPIRED: ("", State.RESTING),
        Event.TIME: ("", State.RESTING),
        Event.RENEWED: ("", State.RESTING),
        Event.STOP: ("", State.RESTING),
    },
    State.CONNECTING: {
        Event.START: ("", State.CONNECTING),
        Event.CONNECTED: ("send", State.GREETING),
        Event.WELCOME: ("", State.CONNECTING),
        Event.PONG: ("", State.CONNECTING),
        Event.LOST: ("", State.WAITING),
        Event.MISMATCH: ("stop", State.STOPPED),
        Event.EXPIRED: ("renewtoken", State.WAITING),
        Event.TIME: ("hang", State.WAITING),
        Event.RENEWED: ("", State.CONNECTING),
        Event.STOP: ("hang", State.RESTING),
    },
    State.GREETING: {
        Event.START: ("", State.GREETING),
        Event.CONNECTED: ("hang", State.GREETING),
        Event.WELCOME: ("observe, revoke", State.LIVE),
        Event.PONG: ("observe", State.GREETING),
        Event.LOST: ("", State.WAITING),
        Event.MISMATCH: ("stop", State.STOPPED),
        Event.EXPIRED: ("renewtoken", State.WAITING),
        Event.TIME: ("hang", State.WAITING),
        Event.RENEWED: ("", State.GREETING),
        Event.STOP: ("hang", State.RESTING),
    },
    State.LIVE: {
        Event.START: ("", State.LIVE),
        Event.CONNECTED: ("hang", State.LIVE),
        Event.WELCOME: ("observe, revoke", State.LIVE),
        Event.PONG: ("observe", State.LIVE),
        Event.LOST: ("", State.WAITING),
        Event.MISMATCH: ("stop", State.STOPPED),
        Event.EXPIRED: ("renewtoken", State.WAITING),
        Event.TIME: ("renewtoken, hang", State.WAITING),
        Event.RENEWED: ("send", State.LIVE),
        Event.STOP: ("hang", State.RESTING),
    },
    State.WAITING: {
        Event.START: ("connect", State.CONNECTING),
        Event.CONNECTED: ("hang", State.WAITING),
        Event.WELCOME: ("", State.WAITING),
        Event.PONG: ("", State.WAITING),
        Event.LOST: ("", State.WAITING),
        Event.MISMATCH: ("", State.WAITING),
        Event.EXPIRED: ("", State.WAITING),
        Event.TIME: ("connect", State.CONNECTING),
        Event.RENEWED: ("", State.WAITING),
        Event.STOP: ("", State.RESTING),
    },
    State.STOPPED: {
        Event.START: ("", State.STOPPED),
        Event.CONNECTED: ("hang", State.STOPPED),
        Event.WELCOME: ("", State.STOPPED),
        Event.PONG: ("", State.STOPPED),
        Event.LOST: ("", State.STOPPED),
        Event.MISMATCH: ("", State.STOPPED),
        Event.EXPIRED: ("", State.STOPPED),
        Event.TIME: ("", State.STOPPED),
        Event.RENEWED: ("", State.STOPPED),
        Event.STOP: ("", State.RESTING),
    },
}


def tell(effects: list[Effect]) -> str:
    """The effects' names."""
    return ", ".join(type(effect).__name__.lower() for effect in effects)


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_event_in_every_state(state: State, event: Event) -> None:
    """The table of transitions is total and true."""
    stream = stream_in(state)
    effects, after = TABLE[state][event]
    assert tell(EVENTS[event](stream)) == effects
    assert stream.state is after


RUN = Changes("user:ada", 7, 8, 8, "m", [], CLOCK)
FRAMES: list[tuple[ServerFrame, list[Effect]]] = [
    (RUN, [Observe(CLOCK), ApplyRun(RUN, asked=True)]),
    (Behind("a:1", 9), [PullScope("a:1", 9)]),
    (ScopeAdded("a:1"), [Added("a:1")]),
    (ScopeRevoked("a:1"), [Revoke("a:1")]),
    (PushResult("p", [], CLOCK), [Observe(CLOCK), Verdicts("p", [])]),
    (Authed(9), []),
    (ErrorFrame("malformed", "why"), [Refused("malformed", "why", None)]),
    (ErrorFrame("too_large", "why", "p"), [Refused("too_large", "why", "p")]),
    (ErrorFrame("not_joined", "why", room="a:1"), [Refused("not_joined", "why", None, "a:1")]),
    (Presence("a:1", members={}), []),
    (Broadcasted("a:1", {"session": "s2", "user": "bob"}, "e", 1), []),
]


@pytest.mark.parametrize(("frame", "effects"), FRAMES)
def test_frames(frame: ServerFrame, effects: list[Effect]) -> None:
    """What each frame of a live connection means."""
    assert stream_in(State.LIVE).received(frame, 1) == effects


def test_only_the_first_run_was_asked_for() -> None:
    """A run answers hello or follow once; later ones of the scope come unasked."""
    stream = stream_in(State.LIVE)
    stream.received(RUN, 1)
    assert stream.received(RUN, 2) == [Observe(CLOCK), ApplyRun(RUN, asked=False)]
    stream.follow(["user:ada"])
    assert stream.received(RUN, 3) == [Observe(CLOCK), ApplyRun(RUN, asked=True)]


@pytest.mark.parametrize(("code", "why"), [(4409, "upgrade"), (4403, "forbidden"), (4400, "fault")])
def test_some_closings_are_final(code: int, why: str) -> None:
    """After these codes reconnecting would not help."""
    assert stream_in(State.LIVE).closed(code, "r", 1, 0.5) == [Stop(why, "r")]  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [1001, 1006, 1012, 1013, 4408, 4413, 4429, None])
def test_other_closings_are_waited_out(code: int | None) -> None:
    """After any other code the stream comes back."""
    stream = stream_in(State.LIVE)
    assert stream.closed(code, "", 1, 0.5) == []
    assert stream.state is State.WAITING


@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=20))
def test_delays_grow_to_a_bound_and_are_spread(chances: list[float]) -> None:
    """Each failure in a row doubles the delay up to a minute; chance spreads it over half of it."""
    stream = ClientStream(CLIENT, 3)
    now = 0
    for number, chance in enumerate(chances):
        assert tell(stream.start(now)) == "connect"
        stream.closed(None, "", now, chance)
        assert stream.deadline is not None
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2**number)
        assert delay // 2 <= stream.deadline - now <= delay
        now = stream.deadline


def test_a_steady_connection_forgets_its_failures() -> None:
    """After a connection that lived, the first delay is short again."""
    stream = ClientStream(CLIENT, 3)
    for _ in range(8):
        stream.start(0)
        stream.closed(None, "", 0, 0.5)
    stream.start(0)
    stream.connected("token", EXPIRES, {}, 0)
    stream.received(WELCOME, 0)
    stream.closed(1012, "", STEADY, 0.999)
    assert stream.deadline is not None
    assert stream.deadline <= STEADY + FIRST_DELAY


AHEAD = 7_200_000
"""By how much a clock is wrong that is put right later (ms)."""


@pytest.mark.parametrize("reason", ["", "retry 50000 ms"])
@pytest.mark.parametrize("timer", [True, False])
def test_a_clock_that_is_set_back_does_not_put_off_the_next_attempt(timer: bool, reason: str) -> None:
    """What lies further ahead than it can have been set is over, for the timer and for whoever wants it sooner."""
    stream = ClientStream(CLIENT, 3)
    stream.start(AHEAD)
    stream.closed(1012, reason, AHEAD, 0.5)
    assert (stream.elapsed(0, 0.5) if timer else stream.start(0)) == [Connect()]


def test_a_clock_that_is_set_back_does_not_make_a_silence_pass_for_life() -> None:
    """The silence is counted from the clock's own now."""
    stream = stream_in(State.LIVE)
    stream.received(Pong(CLOCK), AHEAD)
    assert stream.elapsed(0, 0.5) == []
    assert stream.elapsed(25_000, 0.5) == [Send(Ping())]
    assert stream.elapsed(50_000, 0.5) == [Hang()]


def test_a_silence_is_broken_by_a_ping_and_then_given_up() -> None:
    """One heartbeat of silence: ping; two: the connection is dead. Any frame counts as a sign of life."""
    stream = stream_in(State.LIVE)
    assert stream.elapsed(24_999, 0.5) == []
    assert stream.elapsed(25_000, 0.5) == [Send(Ping())]
    stream.received(Pong(CLOCK), 30_000)
    assert stream.elapsed(50_000, 0.5) == []
    assert stream.elapsed(55_000, 0.5) == [Send(Ping())]
    assert stream.elapsed(79_999, 0.5) == []
    assert stream.elapsed(80_000, 0.5) == [Hang()]
    assert stream.state is State.WAITING


def test_the_token_is_renewed_ahead_of_its_end() -> None:
    """A fresh token is asked for once, a minute before the old one runs out."""
    stream = stream_in(State.LIVE)
    early = EXPIRES * 1_000 - 60_000
    stream.received(Pong(CLOCK), early - 1)
    assert RenewToken() not in stream.elapsed(early - 1, 0.5)
    assert RenewToken() in stream.elapsed(early, 0.5)
    assert RenewToken() not in stream.elapsed(early + 1, 0.5)


def test_a_narrowed_stream_remembers_what_it_follows() -> None:
    """Reconnecting names the scopes followed by then."""
    stream = ClientStream(CLIENT, 3, ["a:1", "a:2"])
    stream.follow(["a:3"])
    stream.unfollow(["a:1"])
    stream.start(0)
    (effect,) = stream.connected("token", EXPIRES, {}, 0)
    assert isinstance(effect, Send)
    assert getattr(effect.frame, "scopes", None) == ["a:2", "a:3"]


def test_nothing_is_sent_without_a_connection() -> None:
    """Pushing and following wait for a welcome."""
    stream = stream_in(State.GREETING)
    assert stream.push("p", []) == stream.follow(["a:1"]) == stream.unfollow(["a:1"]) == []


# ── pauses asked for ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    st.sampled_from([1001, 1012, 1013, 4429]), st.integers(0, 10**9 - 1), st.floats(0, 0.999), st.integers(0, 100_000)
)
def test_a_client_stays_away_as_long_as_it_is_asked_to(code: int, pause: int, chance: float, later: int) -> None:
    """Neither time, nor the app, nor a network that is back makes it connect sooner; nothing makes it wait
    for more than a minute (I45).
    """
    stream = stream_in(State.LIVE)
    stream.closed(code, retry_reason(pause, "come back"), 0, chance)
    due = stream.deadline
    assert due is not None
    assert min(pause, LONGEST_DELAY) <= due <= LONGEST_DELAY
    stream.stop()
    early = min(later, due)
    effects = stream.start(early)
    assert (effects == []) == (early < min(pause, LONGEST_DELAY))
    if not effects:
        assert stream.deadline is not None
        assert tell(stream.elapsed(stream.deadline, chance)) == "connect"


def test_a_pause_shorter_than_its_own_changes_nothing() -> None:
    """After many failures the client's own delay is the longer one."""
    own, asked = (ClientStream(CLIENT, 3) for _ in range(2))
    for stream, reason in ((own, ""), (asked, retry_reason(1, "come back"))):
        now = 0
        for _ in range(5):
            stream.start(now)
            stream.closed(1012, reason, now, 0.5)
            now = stream.deadline or now
    assert own.deadline == asked.deadline
