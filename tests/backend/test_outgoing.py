"""Both ways of sending keep one contract, over real connections whose readers are slow."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest

from tidemark.sync.frames import Frame, joined
from tidemark.sync.outgoing import DirectOutgoing, QueuedOutgoing

LIMIT: Final = 200_000
PATIENCE: Final = 0.3
BIG: Final = 50_000


def frame(name: int, size: int = 0) -> Frame:
    """A frame that ends with its name."""
    return Frame(b'"' + b"x" * size + b"%08d" % name + b'"')


def nothing() -> None:
    """Nobody is told."""


class Line(asyncio.Protocol):
    """The service's end of a connection, as `Wire` and as what a queue is pumped into."""

    def __init__(self) -> None:
        self.congested = False
        self.on_pause: Callable[[], None] = nothing
        self.on_resume: Callable[[], None] = nothing
        self.on_end: Callable[[], None] = nothing
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Straight to the transport."""
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=LIMIT // 4, low=0)
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.waiting = transport.get_write_buffer_size
        self.abort = transport.abort

    def pause_writing(self) -> None:
        """The reader is slow."""
        self.congested = True
        self._writable.clear()
        self.on_pause()

    def resume_writing(self) -> None:
        """The reader has taken all."""
        self.congested = False
        self._writable.set()
        self.on_resume()

    async def send(self, text: str) -> None:
        """As a server does: in messages, and waiting for a slow reader."""
        self.write(Frame(text.encode()).wire)
        await self._writable.wait()


class Setting:
    """A way of sending, what it has told, and the reader's end."""

    def __init__(self, outgoing: DirectOutgoing | QueuedOutgoing, reader: socket.socket, told: list[str]) -> None:
        self.outgoing = outgoing
        self.reader = reader
        self.told = told
        self._left = b""

    async def read(self, name: int) -> None:
        """Take everything up to the frame of this name."""
        ending = b'%08d"' % name
        async with asyncio.timeout(10):
            while ending not in self._left:
                self._left += await asyncio.get_running_loop().sock_recv(self.reader, 1 << 20)
        self._left = self._left.partition(ending)[2]

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(10):
            while not happened():  # noqa: ASYNC110  (what is waited for has no event)
                await asyncio.sleep(0.005)

    def fill(self) -> int:
        """Offer until it is refused; how many were taken."""
        for count in range(10_000):
            if not self.outgoing.offer(frame(count, BIG)):
                return count
        raise AssertionError("never refused")


@asynccontextmanager
async def direct(told: list[str]) -> AsyncIterator[Setting]:
    """Into the transport."""
    async with connection() as (line, reader):
        outgoing = DirectOutgoing(
            line,
            LIMIT,
            PATIENCE,
            lambda: told.append("drained"),
            lambda: told.append("stalled"),
            lambda: told.append("disturbed"),
        )
        yield Setting(outgoing, reader, told)
        outgoing.let_go()


@asynccontextmanager
async def queued(told: list[str]) -> AsyncIterator[Setting]:
    """Through a queue."""
    async with connection() as (line, reader):
        outgoing = QueuedOutgoing(LIMIT, PATIENCE, lambda: told.append("drained"), lambda: told.append("stalled"))
        pump = asyncio.create_task(outgoing.pump(line.send))
        yield Setting(outgoing, reader, told)
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[Line, socket.socket]]:
    """Both ends of a connection whose own buffers are small."""
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    for end in (here, there):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        end.setblocking(False)
    with there:
        transport, line = await loop.create_connection(Line, sock=here)
        yield line, there
        transport.abort()


@pytest.fixture(params=[direct, queued], ids=["direct", "queued"])
async def setting(request: pytest.FixtureRequest) -> AsyncIterator[Setting]:
    """Each way in turn."""
    async with request.param([]) as made:
        yield made


async def test_frames_arrive_in_order(setting: Setting) -> None:
    """Whether put or offered, alone or joined, frames leave in the order of the calls."""
    setting.outgoing.put(frame(1))
    assert setting.outgoing.offer(joined([frame(2), frame(3, 70_000)]))
    setting.outgoing.put(frame(4))
    for name in (1, 2, 3, 4):
        await setting.read(name)


async def test_what_waits_is_bounded(setting: Setting) -> None:
    """A slow reader is refused what goes beyond the limit; answers are not refused (I40)."""
    taken = setting.fill()
    assert LIMIT // BIG - 1 <= taken <= LIMIT // BIG + 2
    setting.outgoing.put(frame(77))
    await setting.read(77)


async def test_a_reader_that_has_taken_all_is_told_of(setting: Setting) -> None:
    """Once nothing waits any more whoever was refused hears of it, and there is room again."""
    taken = setting.fill()
    waiting = asyncio.create_task(setting.outgoing.clear())
    await asyncio.sleep(0)
    assert not waiting.done()
    setting.told.clear()
    await setting.read(taken - 1)
    await setting.until(lambda: "drained" in setting.told)
    async with asyncio.timeout(5):
        await waiting
    assert setting.outgoing.offer(frame(1, BIG))


async def test_who_was_refused_is_caught_up_soon(setting: Setting) -> None:
    """After one refusal nothing is taken until nothing waits: a busy sender of small frames keeps nobody behind."""
    setting.fill()
    assert not setting.outgoing.offer(frame(1))


async def test_a_frame_that_never_fits_is_made_up_for(setting: Setting) -> None:
    """Also where nothing waits, whoever was refused something hears of it."""
    assert not setting.outgoing.offer(frame(1, LIMIT))
    await setting.until(lambda: "drained" in setting.told)
    assert setting.outgoing.offer(frame(2))
    await setting.read(2)


async def test_after_the_end_nothing_is_taken(setting: Setting) -> None:
    """What was taken before is still sent, nothing after."""
    setting.outgoing.put(frame(1))
    setting.outgoing.end()
    setting.outgoing.put(frame(2))
    setting.outgoing.offer(frame(3))
    await setting.read(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await setting.read(3)


async def test_a_reader_that_takes_nothing_is_stalled(setting: Setting) -> None:
    """It is told once, after as long as is patient."""
    began = asyncio.get_running_loop().time()
    setting.fill()
    await setting.until(lambda: "stalled" in setting.told)
    assert asyncio.get_running_loop().time() - began >= PATIENCE * 0.9


async def test_a_slow_reader_is_not_a_stalled_one(setting: Setting) -> None:
    """Who takes a little now and then stays, however long the rest waits."""
    taken = setting.fill()
    for name in range(taken):
        await asyncio.sleep(PATIENCE / 5)
        await setting.read(name)
    assert "stalled" not in setting.told


async def test_a_slow_reader_in_a_busy_place_is_not_a_stalled_one(setting: Setting) -> None:
    """Who takes something stays, also while more comes than it takes."""
    for name in range(4):
        assert setting.outgoing.offer(frame(name, LIMIT // 5))
    for name in range(10):
        await asyncio.sleep(PATIENCE / 4)
        await setting.read(name)
        setting.outgoing.put(frame(name + 4, LIMIT // 4))
    assert "stalled" not in setting.told


async def test_what_writes_straight_holds_until_a_disturbance(setting: Setting) -> None:
    """Whoever writes without a look is told when the reader is slow, quick again, or gone."""
    outgoing = setting.outgoing
    write = outgoing.straight()
    if isinstance(outgoing, QueuedOutgoing):
        assert write is None
        return
    assert write is not None
    write(frame(1).wire)
    await setting.read(1)
    assert not setting.told
    taken = setting.fill()
    assert setting.told == ["disturbed"] and outgoing.straight() is None
    setting.told.clear()
    await setting.read(taken - 1)
    await setting.until(lambda: "disturbed" in setting.told)
    assert outgoing.straight() is not None
    setting.told.clear()
    outgoing.end()
    assert setting.told == ["disturbed"] and outgoing.straight() is None
