"""Wakes by publish and subscribe of Redis or Valkey.

A connection that subscribes can do nothing else, so there is another to publish. Neither is ever opened again behind
our back: what was said meanwhile would be missed in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tidemark.meter import SILENT, Meter

from .channel import DEFAULT, ChannelWake, Timing

_SCHEMES: Final = {"valkey": "redis", "valkeys": "rediss"}
"""What the client calls them."""


class RedisWake(ChannelWake):
    """`url` may have options of the client, such as `?ssl_ca_certs=/path`; ValueError when it cannot be read."""

    most: ClassVar[int] = 64 << 10

    def __init__(
        self, url: str, *, chance: Callable[[int], bytes], timing: Timing = DEFAULT, meter: Meter = SILENT
    ) -> None:
        super().__init__(chance=chance, timing=timing, meter=meter)
        scheme, _, rest = url.partition("://")
        self._url = f"{_SCHEMES.get(scheme, scheme)}://{rest}"
        try:
            self._client().connection_pool.make_connection()  # type: ignore[no-untyped-call]
        except (TypeError, ValueError):
            # What the client says of it may hold a piece of the password.
            raise ValueError("the URL, or an option behind it, cannot be read") from None

    def line(self, channel: str, heard: Callable[[bytes], None], broken: Callable[[], None]) -> _Line:
        return _Line(self._client(), channel, heard, broken)

    def _client(self) -> Redis:
        return Redis.from_url(
            self._url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=self.timing.answer_within,
            socket_connect_timeout=self.timing.answer_within,
        )


class _Line:
    def __init__(self, client: Redis, channel: str, heard: Callable[[bytes], None], broken: Callable[[], None]) -> None:
        self._client = client
        self._channel = channel
        self._heard = heard
        self._broken = broken
        self._ear = client.pubsub()
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        with _translated():
            await self._ear.subscribe(self._channel)
            # The first answer says that we are subscribed.
            await self._ear.get_message(timeout=None)
        self._listening = asyncio.create_task(self._listen())

    async def publish(self, payloads: Sequence[bytes]) -> None:
        with _translated():
            batch = self._client.pipeline(transaction=False)
            for payload in payloads:
                batch.publish(self._channel, payload)
            await batch.execute()

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        with _translated():
            await self._ear.aclose()  # type: ignore[no-untyped-call]
            await self._client.aclose()

    async def _listen(self) -> None:
        try:
            with suppress(OSError), _translated():
                while True:
                    message = await self._ear.get_message(ignore_subscribe_messages=True, timeout=None)
                    if message is not None:
                        self._heard(message["data"])
        finally:
            self._broken()


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the client as ConnectionError."""
    try:
        yield
    except RedisError as error:
        raise ConnectionError(str(error)) from error
