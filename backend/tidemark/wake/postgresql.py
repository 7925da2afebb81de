"""Wakes by PostgreSQL's LISTEN and NOTIFY, on a connection of its own.

The connection is for this alone: a pooler in transaction mode would swallow LISTEN without an error, and a NOTIFY takes
one lock for the whole server when its transaction commits, so it never rides in a transaction with data. What waits
travels as one statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import asyncpg

from tidemark.meter import SILENT, Meter

from .channel import DEFAULT, ChannelWake, Timing

APPLICATION: Final = "tidemark wake"
"""How the connection shows in `pg_stat_activity`."""
_NOTIFY: Final = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"


class PostgresWake(ChannelWake):
    """`url` is that of a database, past any pooler."""

    most: ClassVar[int] = 7_900  # PostgreSQL takes less than 8,000

    def __init__(
        self, url: str, *, chance: Callable[[int], bytes], timing: Timing = DEFAULT, meter: Meter = SILENT
    ) -> None:
        super().__init__(chance=chance, timing=timing, meter=meter)
        self._url = url

    def line(self, channel: str, heard: Callable[[bytes], None], broken: Callable[[], None]) -> _Line:
        return _Line(self._url, channel, heard, broken, self.timing.answer_within)


class _Line:
    def __init__(
        self, url: str, channel: str, heard: Callable[[bytes], None], broken: Callable[[], None], patience: float
    ) -> None:
        self._url = url
        self._channel = channel
        self._heard = heard
        self._broken = broken
        self._patience = patience
        self._connection: Any = None

    async def open(self) -> None:
        with _translated():
            self._connection = await asyncpg.connect(
                self._url,
                timeout=self._patience,
                command_timeout=self._patience,
                server_settings={"application_name": APPLICATION},
            )
            self._connection.add_termination_listener(lambda _: self._broken())
            await self._connection.add_listener(self._channel, self._on_notify)

    async def publish(self, payloads: Sequence[bytes]) -> None:
        with _translated():
            await self._connection.execute(_NOTIFY, self._channel, [payload.decode() for payload in payloads])

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()

    def _on_notify(self, _connection: Any, _process: int, _channel: str, payload: str) -> None:
        self._heard(payload.encode())


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the driver as ConnectionError."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise ConnectionError(str(error)) from error
