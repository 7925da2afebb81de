"""The streams of a process together: who is let in, and when those who are not come back (SPEC 6)."""

from __future__ import annotations

import re
from functools import partial

import pytest

from tidemark.settings import Settings
from tidemark.sync.streams import Ending, Streams
from tidemark_protocol.stream_server import CloseCode


async def ended() -> None:
    """Nothing is left to be done."""


def entered(streams: Streams, count: int) -> None:
    """So many streams begin."""
    for _ in range(count):
        assert streams.enter(object(), "websocket", ended) is None


def pause(ending: Ending | None) -> int:
    """The milliseconds that a close asks to wait."""
    assert ending is not None
    asked = re.match(r"retry (\d+) ms; ", ending.reason)
    assert asked is not None
    return int(asked[1])


@pytest.mark.parametrize(("count", "longest"), [(0, 500), (1_000, 2_500), (10_000, 5_000)])
def test_the_more_there_are_the_wider_their_return_is_spread(count: int, longest: int) -> None:
    """Pauses are drawn up to a bound that grows with the streams, and never above the setting."""
    for chance in (0.0, 0.5, 1.0):
        streams = Streams(Settings(reconnect_spread=5_000, max_streams=20_000), partial(float, chance))
        entered(streams, count)
        assert pause(streams.going_away()) == chance * longest


def test_who_ends_gives_its_places_free() -> None:
    """Of the process's places and of its user's, whatever its user did, and nobody is remembered."""
    streams = Streams(Settings(max_streams=2, streams_per_user=1), lambda: 0.0)
    one, two = object(), object()
    for stream, user in ((one, "ada"), (two, "bob")):
        assert streams.enter(stream, "websocket", ended) is None
        assert streams.claim(user) is None
    full, many = streams.enter(object(), "events", ended), streams.claim("ada")
    assert full is not None and full.code is CloseCode.TRY_LATER
    assert many is not None and many.code is CloseCode.TOO_MANY
    streams.leave(one, "websocket", "ada")
    assert streams.enter(one, "events", ended) is None
    assert streams.claim("ada") is None
    streams.leave(one, "events", "ada")
    streams.leave(two, "websocket", "bob")
    assert not streams._users


async def test_nobody_is_let_in_any_more_once_all_are_ended() -> None:
    """A stream that comes while the service stops is told to come back; those that were there have been ended."""
    streams, told = Streams(Settings(), lambda: 0.0), []

    async def end() -> None:
        told.append(streams.enter(object(), "websocket", ended))

    assert streams.enter(object(), "websocket", end) is None
    await streams.end()
    (late,) = told
    assert late is not None and late.code is CloseCode.RESTARTING
