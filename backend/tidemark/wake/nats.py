"""Wakes by a subject of NATS.

The client could connect again by itself, but would keep what is said meanwhile, and what others say would be missed in
silence: it is not let.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Final
from urllib.parse import SplitResult, unquote, urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, SlowConsumerError

from tidemark.meter import SILENT, Meter

from .channel import DEFAULT, ChannelWake, Timing

NAME: Final = "tidemark wake"
"""How the connection shows in the server's monitoring."""
_MAX_UNREAD: Final = 16 << 20
"""Bytes that have come and wait for their turn; more, and the connection counts as broken."""


class NatsWake(ChannelWake):
    """`url` may name several servers of a cluster, between commas, the first with the password for all.

    ValueError when it cannot be read.
    """

    most: ClassVar[int] = 64 << 10

    def __init__(
        self, url: str, *, chance: Callable[[int], bytes], timing: Timing = DEFAULT, meter: Meter = SILENT
    ) -> None:
        super().__init__(chance=chance, timing=timing, meter=meter)
        try:
            servers = [urlsplit(part) for part in url.split(",")]
            readable = all(one.scheme in {"nats", "tls"} and one.hostname and one.port != 0 for one in servers)
        except ValueError:
            readable = False
        if not readable:
            # No word of it: it may hold a password.
            raise ValueError("one URL is expected, or several between commas: nats://first:4222,nats://second:4222")
        self._servers = servers

    def line(self, channel: str, heard: Callable[[bytes], None], broken: Callable[[], None]) -> _Line:
        return _Line(self._servers, channel, heard, broken, math.ceil(self.timing.answer_within))


class _Client(Client):
    """Knows whether its connection is encrypted: by itself the client would take `tls:` for a wish."""

    encrypted = False

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """Asked for when the connection is about to be encrypted."""
        self.encrypted = True
        return super().ssl_context


class _Line:
    def __init__(
        self,
        servers: Sequence[SplitResult],
        subject: str,
        heard: Callable[[bytes], None],
        broken: Callable[[], None],
        patience: int,
    ) -> None:
        self._servers = servers
        self._subject = subject
        self._heard = heard
        self._broken = broken
        self._patience = patience
        self._client = _Client()
        self._fault: Exception | None = None

    async def open(self) -> None:
        first = self._servers[0]
        with self._translated():
            await self._client.connect(
                [f"{server.scheme}://{server.netloc.rpartition('@')[2]}" for server in self._servers],
                user=self._guarded(first.username if first.password else None),
                password=self._guarded(first.password),
                token=self._guarded(None if first.password else first.username),
                name=NAME,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=self._patience,
                pending_size=0,
                error_cb=self._on_error,
                closed_cb=self._on_closed,
            )
            self._check_encryption()
            await self._client.subscribe(self._subject, cb=self._on_message, pending_bytes_limit=_MAX_UNREAD)
            await self._client.flush(self._patience)

    async def publish(self, payloads: Sequence[bytes]) -> None:
        with self._translated():
            for payload in payloads:
                await self._client.publish(self._subject, payload)
            await self._client.flush(self._patience)

    async def close(self) -> None:
        with self._translated():
            await self._client.close()

    def _guarded(self, part: str | None) -> Callable[[], str] | None:
        """A part of the URL, given out once the connection is as it shall be."""

        def give() -> str:
            self._check_encryption()
            return unquote(part or "")

        return give if part else None

    def _check_encryption(self) -> None:
        if any(server.scheme == "tls" for server in self._servers) and not self._client.encrypted:
            raise Error("the server does not encrypt")

    async def _on_message(self, message: Msg) -> None:
        self._heard(message.data)

    async def _on_error(self, error: Exception) -> None:
        self._fault = error
        if isinstance(error, SlowConsumerError):
            self._broken()

    async def _on_closed(self) -> None:
        self._broken()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the client as ConnectionError; what it was told of before says more than its own words."""
        try:
            yield
        except Error as error:
            raise ConnectionError(str(self._fault or error)) from error
