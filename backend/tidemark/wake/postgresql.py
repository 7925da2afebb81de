"""Wakes by PostgreSQL's LISTEN and NOTIFY, on a connection of its own.

The connection is for this alone: a pooler in transaction mode would swallow LISTEN without an error, and a NOTIFY takes
one lock for the whole server when its transaction commits, so it never rides in a transaction with data. What is
published within a few milliseconds travels as one statement. The connection is pinged, and opened again with back-off
when it has died; then everybody looks at everything, for what was missed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

import asyncpg
import structlog

from .base import OnWake, Wakeup

CHANNEL: Final = "tidemark_wake"
APPLICATION: Final = "tidemark wake"
"""How the connection shows in `pg_stat_activity`."""
MAX_PAYLOAD: Final = 7_900
"""Bytes; PostgreSQL takes less than 8,000."""
MAX_PAYLOADS: Final = 8
"""More than this at once and the others are told to look at everything."""
LOOK: Final = "*"

_log = structlog.get_logger(__name__)


class PostgresWake:
    """`url` is the database's own, past any pooler; times are in seconds; `chance` gives a number in [0, 1)."""

    def __init__(
        self,
        url: str,
        *,
        chance: Callable[[], float],
        coalesce: float = 0.003,
        ping_every: float = 10.0,
        answer_within: float = 5.0,
        longest_delay: float = 10.0,
    ) -> None:
        self._url = url
        self._chance = chance
        self._coalesce = coalesce
        self._ping_every = ping_every
        self._answer_within = answer_within
        self._longest_delay = longest_delay
        self._pending: dict[str, Wakeup] = {}
        self._look = False
        self._attention = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, on_wake: OnWake) -> None:
        self._task = asyncio.create_task(self._stay_connected(on_wake))

    def publish(self, scope: str, head: int, members: int) -> None:
        if self._look:
            return
        known = self._pending.get(scope)
        if known is not None:
            head, members = max(head, known.head), max(members, known.members)
        self._pending[scope] = Wakeup(scope, head, members)
        self._attention.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _stay_connected(self, on_wake: OnWake) -> None:
        failures = 0
        while True:
            try:
                connection = await asyncpg.connect(
                    self._url,
                    timeout=self._answer_within,
                    command_timeout=self._answer_within,
                    server_settings={"application_name": APPLICATION},
                )
                failures = 0
                try:
                    await self._serve(connection, on_wake)
                finally:
                    connection.terminate()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                failures += 1
                self._lose()
                _log.info("wake connection lost", error=str(error), failures=failures)
            delay = min(self._longest_delay, 0.1 * 2 ** min(failures, 10))
            await asyncio.sleep(delay * (0.5 + self._chance() / 2))

    def _lose(self) -> None:
        """What was published and perhaps not heard becomes one hint: look at everything."""
        self._look = True
        self._pending.clear()
        self._attention.set()

    async def _serve(self, connection: Any, on_wake: OnWake) -> None:
        """Listen, notify and ping until the connection dies, which raises."""

        def heard(_connection: Any, _sender: int, _channel: str, payload: str) -> None:
            for wakeup in _read(payload):
                on_wake(wakeup)

        connection.add_termination_listener(lambda _: self._attention.set())
        await connection.add_listener(CHANNEL, heard)
        on_wake(None)
        while True:
            try:
                async with asyncio.timeout(self._ping_every):
                    await self._attention.wait()
            except TimeoutError:
                await connection.execute("SELECT 1")
                continue
            await asyncio.sleep(self._coalesce)
            await self._notify(connection)

    async def _notify(self, connection: Any) -> None:
        self._attention.clear()
        wakeups, self._pending = self._pending, {}
        payloads = list(_payloads(wakeups.values()))
        if self._look or len(payloads) > MAX_PAYLOADS:
            payloads, self._look = [LOOK], False
        await connection.execute("SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload", CHANNEL, payloads)


def _payloads(wakeups: Iterable[Wakeup]) -> Iterator[str]:
    """Lines of `scope head members`, as many as fit into one notification; scopes are ASCII without spaces."""
    lines: list[str] = []
    size = 0
    for wakeup in wakeups:
        line = f"{wakeup.scope} {wakeup.head} {wakeup.members}"
        if size + len(line) + 1 > MAX_PAYLOAD:
            yield "\n".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield "\n".join(lines)


def _read(payload: str) -> Iterator[Wakeup | None]:
    """What a notification says; one that nobody of ours wrote says: look."""
    for line in payload.split("\n"):
        match line.split(" "):
            case [scope, head, members] if head.isdecimal() and members.isdecimal():
                yield Wakeup(scope, int(head), int(members))
            case _:
                yield None
