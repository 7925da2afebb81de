"""Thousands of websocket clients in one process that costs next to nothing, so that it never holds up who is measured.

Raw sockets and epoll; what is sent was built before, what comes is told apart by its first bytes and counted.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

_CHUNK: Final = 65_536
_TEXT: Final = 0x81
_CLOSE: Final = 0x88
_PING: Final = 0x89
_PONG: Final = 0x8A
PATIENCE: Final = 120.0
"""Seconds until something that does not come is given up."""


def masked(payload: bytes, head: int = _TEXT) -> bytes:
    """A client's frame. The mask is zero: the server's work is the same, ours is none."""
    size = len(payload)
    if size < 126:
        return bytes((head, 0x80 | size)) + b"\0\0\0\0" + payload
    if size < 65_536:
        return struct.pack(">BBH", head, 0xFE, size) + b"\0\0\0\0" + payload
    return struct.pack(">BBQ", head, 0xFF, size) + b"\0\0\0\0" + payload


class Dialect(NamedTuple):
    """How a service's clients come in: the handshake's request; the beginning of the frame that asks for the opening
    one (empty: the handshake's answer does); the beginning of the one that lets in; the service's own ping, and its
    answer.
    """

    upgrade: bytes
    greeting: bytes
    welcome: bytes
    ping: bytes = b"\0"
    pong: bytes = b""


class Phase(IntEnum):
    """How far a client has come."""

    CONNECTING = 0
    UPGRADING = 1
    OPENING = 2
    OPEN = 3
    GONE = 4


class Client:
    """One connection. `opening` is its first frame; `counted` what it got of what is counted; `heard` everything else
    it got, where that is asked for; `closed` the close frame's code and reason.
    """

    __slots__ = ("closed", "counted", "heard", "opened", "opening", "phase", "rest", "socket")

    def __init__(self, opening: bytes, *, listens: bool = False) -> None:
        self.opening = opening
        self.phase = Phase.GONE
        self.counted = 0
        self.heard: list[bytes] | None = [] if listens else None
        self.closed: tuple[int, str] | None = None
        self.opened = 0.0
        self.rest = b""
        self.socket: socket.socket

    def send(self, frame: bytes) -> None:
        """Hand a whole frame to the kernel, which has room for it: clients send little."""
        if self.socket.send(frame) != len(frame):
            raise AssertionError("the service does not read")

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port


class Fleet:
    """Clients of one service on a port of this machine. `prefix` is how the frames begin that are counted; `on_gone`
    is told of a client whose connection has ended, which is a failure where nobody asks.
    """

    def __init__(self, port: int, dialect: Dialect) -> None:
        self.clients: list[Client] = []
        self.counted = 0
        self.open = 0
        self.prefix = b"\0"
        self.on_gone: Callable[[Client], None] = _unexpected
        self._port = port
        self._dialect = dialect
        self._upgrade = dialect.upgrade
        self._came = 0
        self._epoll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    # ── coming and going ─────────────────────────────────────────────────────────────────────────────────────────────

    def enlist(self, clients: Iterable[Client], *, at_once: int) -> float:
        """Connect clients, `at_once` at a time, until each is let in; seconds that it took."""
        waiting = list(clients)
        began = time.perf_counter()
        for first in range(0, len(waiting), at_once):
            group = waiting[first : first + at_once]
            already = self.open
            for client in group:
                self.connect(client)
            self.await_open(already + len(group))
        self.clients += waiting
        return time.perf_counter() - began

    def connect(self, client: Client, *, receive_buffer: int = 0) -> None:
        """Begin to connect a client that is not connected."""
        client.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if receive_buffer:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Gone at once when closed: no port waits for its time, however many come and go.
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.connect_ex(("127.0.0.1", self._port))
        client.phase, client.rest, client.closed = Phase.CONNECTING, b"", None
        self._by_fd[client.socket.fileno()] = client
        self._epoll.register(client.socket, select.EPOLLOUT)

    def dismiss(self, client: Client) -> None:
        """Close a client's connection."""
        if client.phase is Phase.OPEN:
            self.open -= 1
        client.phase = Phase.GONE
        del self._by_fd[client.socket.fileno()]
        client.socket.close()

    def ignore(self, client: Client) -> None:
        """Read nothing of it any more."""
        self._epoll.modify(client.socket, 0)

    def close(self) -> None:
        for client in tuple(self._by_fd.values()):
            self.dismiss(client)
        self._epoll.close()

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def count(self, prefix: bytes) -> None:
        """Count from here on the frames that begin so."""
        self.prefix, self.counted = prefix, 0
        for client in self.clients:
            client.counted = 0

    def await_counted(self, frames: int) -> None:
        """Take what comes until so many frames were counted; AssertionError when they do not come."""
        deadline = time.monotonic() + PATIENCE
        while self.counted < frames:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.counted} of {frames} frames came")
            self.turn(0.1)

    def await_open(self, clients: int) -> None:
        """Take what comes until so many clients are let in; AssertionError when they are not."""
        deadline = time.monotonic() + PATIENCE
        while self.open < clients:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.open} of {clients} clients were let in")
            self.turn(0.1)

    def wait(self, moment: float) -> None:
        """Take what comes until a moment of the monotonic clock."""
        while (left := moment - time.monotonic()) > 0:
            self.turn(left)

    def settle(self, quiet: float = 0.5) -> None:
        """Take what comes until nothing but pings has come for that many seconds."""
        came, since = self._came, time.monotonic()
        while time.monotonic() - since < quiet:
            self.turn(quiet)
            if self._came != came:
                came, since = self._came, time.monotonic()

    def turn(self, timeout: float) -> int:
        """One look at all connections, after waiting at most so many seconds; how many had something."""
        events = self._epoll.poll(timeout, 4_096)
        by_fd, take, read = self._by_fd, self._take, os.read
        for fd, event in events:
            client = by_fd.get(fd)
            if client is None:
                continue
            try:
                if client.phase is Phase.CONNECTING:
                    self._connected(client, event)
                elif event & select.EPOLLIN and (data := read(fd, _CHUNK)):
                    take(client, data)
                else:
                    self._lost(client)
            except ConnectionError:
                self._lost(client)
        return len(events)

    def _lost(self, client: Client) -> None:
        self.dismiss(client)
        self.on_gone(client)

    def _connected(self, client: Client, event: int) -> None:
        if event & (select.EPOLLERR | select.EPOLLHUP):
            self._lost(client)
            return
        client.phase = Phase.UPGRADING
        self._epoll.modify(client.socket, select.EPOLLIN)
        client.send(self._upgrade)

    def _take(self, client: Client, data: bytes) -> None:
        """Count the whole frames that came; keep the rest."""
        if client.rest:
            data, client.rest = client.rest + data, b""
        if client.phase is Phase.UPGRADING:
            data = self._upgraded(client, data)
        at, end, prefix, width = 0, len(data), self.prefix, len(self.prefix)
        while end - at >= 2:
            size, begin = data[at + 1], at + 2
            if size == 126:
                size, begin = int.from_bytes(data[at + 2 : at + 4]), at + 4
            elif size == 127:
                size, begin = int.from_bytes(data[at + 2 : at + 10]), at + 10
            if begin + size > end:
                break
            if data[begin : begin + width] == prefix and data[at] == _TEXT:
                client.counted += 1
                self.counted += 1
                self._came += 1
            else:
                self._other(client, data[at], data[begin : begin + size])
            at = begin + size
        if at < end and client.phase is not Phase.GONE:
            client.rest = data[at:]

    def _upgraded(self, client: Client, data: bytes) -> bytes:
        """What follows the handshake's answer."""
        answer, found, frames = data.partition(b"\r\n\r\n")
        if not found:
            client.rest = data
            return b""
        if not answer.startswith(b"HTTP/1.1 101"):
            client.closed = int(answer[9:12]), answer.decode(errors="replace")
            self._lost(client)
            return b""
        client.phase = Phase.OPENING
        if not self._dialect.greeting:
            client.send(client.opening)
        return frames

    def _other(self, client: Client, head: int, payload: bytes) -> None:
        dialect = self._dialect
        if head == _PING:
            client.send(masked(payload, _PONG))
            return
        self._came += 1
        if head == _CLOSE:
            client.closed = int.from_bytes(payload[:2]), payload[2:].decode()
        elif client.phase is Phase.OPENING and dialect.greeting and payload.startswith(dialect.greeting):
            client.send(client.opening)
        elif client.phase is Phase.OPENING and payload.startswith(dialect.welcome):
            client.phase, client.opened = Phase.OPEN, time.monotonic()
            self.open += 1
        elif payload == dialect.ping:
            client.send(masked(dialect.pong))
        if client.heard is not None:
            client.heard.append(payload)


def _unexpected(client: Client) -> None:
    raise AssertionError(f"a client's connection ended: {client.closed}")


def verify(clients: Sequence[Client], expected: Sequence[int]) -> None:
    """Each client got exactly as many of the counted frames as it should."""
    wrong = [(index, client.counted) for index, client in enumerate(clients) if client.counted != expected[index]]
    if wrong:
        raise AssertionError(f"{len(wrong)} clients did not get every message once, such as {wrong[:3]}")
