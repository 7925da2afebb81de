"""The orderly end: what happens between the signal and the server's own shutdown (SPEC 6).

    signal ──► not ready, held requests let go ──► streams: pushes answered, 1012 with a hint ──► the server's handler
       └─────► now and then: connections that take or send nothing any more are cut

uvicorn by itself closes every websocket the moment it is told to end, before a push could be answered, and waits for
connections whose peers have stopped reading. Lifespan's end would come too late for both.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, Final

import structlog
from uvicorn import Server

from .shutdown import Shutdown

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
IMPATIENT_AFTER: Final = 1.0
"""Seconds from the first signal to one that means "at once": a supervisor repeats what its whole group was sent."""
STALLED_AFTER: Final = 1.0
"""Seconds without any progress that an end does not wait for."""
_GOODBYE: Final = 1.0
"""Seconds that peers may take to answer a close frame: closed before, they might lose it."""
_LOOK: Final = 0.05

_log = structlog.get_logger(__name__)


class Graceful:
    """Ends a service that a signal has told to end. `end_streams` ends them all, `within` bounds it all in seconds."""

    def __init__(self, shutdown: Shutdown, end_streams: Callable[[], Awaitable[None]], within: float) -> None:
        self._shutdown = shutdown
        self._end_streams = end_streams
        self._within = within
        self._told_at: float | None = None
        self._handlers: dict[int, Any] = {}
        self._ending: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Listens to the signals for as long as an application lives; not where they are another thread's."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def told(number: int, frame: FrameType | None) -> None:
            if self._told_at is None:
                self._told_at = time.monotonic()
                loop.call_soon_threadsafe(self._begin, number)
            elif time.monotonic() - self._told_at >= IMPATIENT_AFTER:
                self._hand_over(number, frame)

        self._handlers = {number: signal.signal(number, told) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            if self._ending is not None:
                self._ending.cancel()
                await asyncio.gather(self._ending, return_exceptions=True)

    def _begin(self, number: int) -> None:
        self._ending = asyncio.create_task(self._end(number))

    def _hand_over(self, number: int, frame: FrameType | None = None) -> None:
        handler = self._handlers[number]
        if callable(handler):
            handler(number, frame)
        elif handler is signal.SIG_DFL:
            signal.signal(number, handler)
            signal.raise_signal(number)

    async def _end(self, number: int) -> None:
        handler = self._handlers[number]
        server = getattr(handler, "__self__", None)
        self._shutdown.begin()
        async with asyncio.TaskGroup() as tasks:
            if isinstance(server, Server):
                tasks.create_task(_keep_cutting(server))
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._within):
                    await self._end_streams()
                    if isinstance(server, Server):
                        await _said_goodbye(server)
            except TimeoutError:
                _log.info("streams_unended", seconds=self._within)
            except Exception as error:  # noqa: BLE001  (whatever it is, the process was told to end)
                _log.error("end_failed", exc_info=error)
            if isinstance(server, Server) and server.config.timeout_graceful_shutdown is not None:
                left = int(self._within - (time.monotonic() - began))
                server.config.timeout_graceful_shutdown = max(1, left)
            self._hand_over(number)


async def _keep_cutting(server: Server) -> None:
    """A fault of it holds up no end."""
    try:
        await cut_stalled(server)
    except Exception as error:  # noqa: BLE001  (whatever it is, the process was told to end)
        _log.error("stalled_uncut", exc_info=error)


async def cut_stalled(server: Server) -> None:
    """Abort the connections that no progress is seen on between two looks: their peers read or send no more."""
    stood: dict[Any, object] = {}
    while True:
        await asyncio.sleep(STALLED_AFTER)
        stands: dict[Any, object] = {
            connection: _unfinished(connection) for connection in server.server_state.connections
        }
        for connection, what in stands.items():
            if what is not None and stood.get(connection) == what:
                connection.transport.abort()
        stood = stands


def _unfinished(connection: Any) -> object:
    """Where a connection stands that is to go on: bytes not taken by its peer, or bytes of a body still to come."""
    waiting = connection.transport.get_write_buffer_size()
    cycle = getattr(connection, "cycle", None)
    incoming = len(cycle.body) if cycle is not None and cycle.more_body and not cycle.response_complete else None
    return (waiting, incoming) if waiting or incoming is not None else None


async def _said_goodbye(server: Server) -> None:
    """Wait until the peers of websockets have answered the close frame, or might have."""
    for _ in range(int(_GOODBYE / _LOOK)):
        if not any(getattr(connection, "close_sent", False) for connection in server.server_state.connections):
            return
        await asyncio.sleep(_LOOK)
