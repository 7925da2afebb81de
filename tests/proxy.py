"""A TCP proxy in the test's own event loop, through which connections go slow, half dead or are cut."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self


class _Gates(NamedTuple):
    """What lets data of one connection through, to the server and from it."""

    up: asyncio.Event
    down: asyncio.Event


class Proxy:
    """Before the port `upstream` of the loopback interface, from `async with` to its end.

    What is held back arrives, in order, after `release`. `delay` is in seconds, for each piece of data either way.
    """

    def __init__(self, upstream: int, delay: float = 0.0) -> None:
        self.upstream = upstream
        self.delay = delay
        self.port = 0
        self._server: asyncio.Server | None = None
        self._gates: list[_Gates] = []
        self._waiting = 0
        self._held: tuple[bool, bool] = (False, False)
        self._open: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def holding(self) -> bool:
        """Whether something that has come waits to be let through."""
        return self._waiting > 0

    @property
    def accepted(self) -> int:
        """How many connections there have ever been."""
        return len(self._gates)

    def hold(self, *, up: bool = True, down: bool = True) -> None:
        """Let nothing through to the server (`up`), from it (`down`), or both; connections stay, new ones are taken."""
        self._held = up, down
        for number in range(self.accepted):
            self.hold_one(number, up=up, down=down)

    def hold_one(self, number: int, *, up: bool = True, down: bool = True) -> None:
        """The same for one connection alone, by the order in which they came, from 0."""
        gates = self._gates[number]
        for held, gate in ((up, gates.up), (down, gates.down)):
            if held:
                gate.clear()

    def release(self) -> None:
        """Let everything through."""
        self._held = False, False
        for gates in self._gates:
            gates.up.set()
            gates.down.set()

    def cut(self) -> None:
        """End all connections at once, with a reset; new ones are taken."""
        for writer in tuple(self._open):
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in tuple(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connected(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        gates = _Gates(asyncio.Event(), asyncio.Event())
        self._gates.append(gates)
        for held, gate in zip(self._held, gates, strict=True):
            if not held:
                gate.set()
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            to_client.transport.abort()
            return
        pair = (to_client, to_server)
        self._open.update(pair)
        for work in (self._pump(from_client, to_server, gates.up), self._pump(from_server, to_client, gates.down)):
            pump = asyncio.create_task(work)
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)
            pump.add_done_callback(lambda _: self._end(pair))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                self._waiting += 1
                try:
                    await asyncio.sleep(self.delay)
                    await gate.wait()
                finally:
                    self._waiting -= 1
                sink.write(data)
                await sink.drain()

    def _end(self, pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        """One side has ended: so does the other."""
        for writer in pair:
            writer.close()
        self._open.difference_update(pair)
