"""A plain TCP balancer in a process of its own: round robin over the backends that accept.

    python -m tests.cluster.balancer PORT BACKEND_PORT...

A backend that refuses is passed over; when one side of a connection ends, for whatever reason, so does the other. It
knows nothing of HTTP and keeps no health of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

import uvloop

from tests.servers import READY_WITHIN, ServerError, free_port

ROOT = Path(__file__).parents[2]
BACKLOG: Final = 4_096
"""Connections that may wait to be accepted: thousands come back at once."""


class Balancer:
    """The balancer before some ports of the loopback interface, from `with` to its end."""

    def __init__(self, backends: Sequence[int]) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", __name__, str(self.port), *map(str, backends)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, cwd=ROOT)
        deadline = time.monotonic() + READY_WITHIN
        while not self._accepts():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise ServerError("the balancer does not accept connections")
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Side(asyncio.Protocol):
    """One of the two connections of a pair: what comes in goes out at `other`, which ends with this one."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self.early = b""
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self.early += data

    def connection_lost(self, error: Exception | None) -> None:
        """End the other side too."""
        self.ended = True
        if self.other is not None and self.other.transport is not None:
            # What was received is still to arrive; an abortion is passed on as one.
            self.other.transport.close() if error is None else self.other.transport.abort()

    def pause_writing(self) -> None:
        """This side takes no more: read no more from the other."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """It takes again."""
        if self.other is not None and self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()


async def join(client: Side, candidates: Sequence[int]) -> None:
    """Connect a client to the first of the candidates that accepts, or cut it off when none does."""
    assert client.transport is not None
    for port in candidates:
        with suppress(OSError):
            _, backend = await asyncio.get_running_loop().create_connection(Side, "127.0.0.1", port)
            assert backend.transport is not None
            backend.other, client.other = client, backend
            backend.transport.write(client.early)
            if client.ended:
                backend.transport.close()
            return
    client.transport.abort()


async def serve(port: int, backends: Sequence[int]) -> None:
    """Listen for ever."""
    turns = itertools.count()
    joining: set[asyncio.Task[None]] = set()

    class Client(Side):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            """Find a backend for it."""
            super().connection_made(transport)
            first = next(turns) % len(backends)
            task = asyncio.ensure_future(join(self, [*backends[first:], *backends[:first]]))
            joining.add(task)
            task.add_done_callback(joining.discard)

    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), [int(argument) for argument in sys.argv[2:]]))
