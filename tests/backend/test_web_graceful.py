"""What happens between a signal and the server's own shutdown (SPEC 6)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import FrameType

import pytest

from tidemark.web import graceful
from tidemark.web.graceful import Graceful
from tidemark.web.shutdown import Shutdown


class Server:
    """Stands where a server's handlers of signals would: it notes what it is told, and by then."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.heard = asyncio.Event()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The server's own handler."""
        self.told.append(number)
        self.heard.set()

    async def hears(self) -> None:
        """Wait until it has been told."""
        async with asyncio.timeout(5):
            await self.heard.wait()


@asynccontextmanager
async def running(
    end_streams: Callable[[], Awaitable[None]], within: float = 5
) -> AsyncIterator[tuple[Server, Shutdown]]:
    """An application under a server, in this very process."""
    server, shutdown = Server(), Shutdown()
    before = {number: signal.signal(number, server.handle) for number in graceful.SIGNALS}
    try:
        async with Graceful(shutdown, end_streams, within).lifespan(None):
            yield server, shutdown
        assert {signal.getsignal(number) for number in graceful.SIGNALS} == {server.handle}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", graceful.SIGNALS)
async def test_the_server_is_told_after_the_streams_have_ended(number: int) -> None:
    """At the signal what is held lets go and streams end; then the server hears of it, with the same signal."""
    going, ended = asyncio.Event(), asyncio.Event()

    async def end_streams() -> None:
        going.set()
        await ended.wait()

    async with running(end_streams) as (server, shutdown):
        signal.raise_signal(number)
        await going.wait()
        assert shutdown.begun
        assert not server.told
        ended.set()
        await server.hears()
        assert server.told == [number]


async def test_streams_that_do_not_end_are_not_waited_for_for_ever() -> None:
    """After its time the server is told whatever the streams do."""
    async with running(asyncio.Event().wait, within=0.05) as (server, _):  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)
        await server.hears()


async def test_an_end_that_fails_is_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault while streams end is logged, and the server is told."""

    async def end_streams() -> None:
        raise ZeroDivisionError

    async with running(end_streams) as (server, _):
        signal.raise_signal(signal.SIGTERM)
        await server.hears()
    assert "end_failed" in capsys.readouterr().out


async def test_a_repeat_is_not_impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a supervisor sends once more changes nothing; a signal that comes later goes to the server at once."""
    async with running(asyncio.Event().wait) as (server, _):  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert not server.told
        monkeypatch.setattr(graceful, "IMPATIENT_AFTER", 0)
        signal.raise_signal(signal.SIGTERM)
        assert server.told == [signal.SIGTERM]


async def test_where_nobody_handles_the_signal_it_does_what_it_does_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose signals nobody handles ends by the signal, after its streams."""
    raised: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def end_streams() -> None:
        monkeypatch.setattr(signal, "raise_signal", raised.set_result)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        async with Graceful(Shutdown(), end_streams, 5).lifespan(None), asyncio.timeout(5):
            os.kill(os.getpid(), signal.SIGTERM)
            assert await raised == signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
