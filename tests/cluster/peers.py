"""Clients of which thousands fit into one event loop: a bare websocket, a tab that comes back, a writer that repeats.

Times are `time.monotonic()`, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Protocol, cast

import httpx2

from tests.contract.client import SCHEMA, Device, Json
from tests.contract.model import digest

REQUEST: Final = (
    b"GET /sync/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: tidemark.v1\r\n\r\n"
)
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
LONGEST_PAUSE: Final = 2.0
"""Seconds that a client backs off at most before it connects again."""


class Wire(asyncio.Protocol):
    """One websocket (RFC 6455). `take` gets each text frame; `over` is done with the close code and reason."""

    def __init__(self, hello: Json, take: Callable[[Json], None]) -> None:
        self._hello = hello
        self._take = take
        self._buffer = bytearray()
        self._open = False
        self._ending: tuple[int | None, str] = (None, "")
        self._transport: asyncio.Transport | None = None
        self.over: asyncio.Future[tuple[int | None, str]] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the websocket."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        """Take in whole frames."""
        self._buffer += data
        if not self._open and not self._shake_hands():
            return
        while (frame := self._next()) is not None:
            self._received(*frame)

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell how it ended."""
        if not self.over.done():
            self.over.set_result(self._ending)

    def send(self, frame: Json) -> None:
        """Send one frame."""
        self._write(TEXT, json.dumps(frame).encode())

    def close(self) -> None:
        """Cut the connection off."""
        if self._transport is not None:
            self._transport.abort()

    def _shake_hands(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 101"):
            self.close()
            return False
        self._buffer, self._open = rest, True
        self.send(self._hello)
        return True

    def _next(self) -> tuple[int, bytes] | None:
        """The next whole frame; the service sends none in parts."""
        if len(self._buffer) < 2:
            return None
        kind, size, begin = self._buffer[0] & 0x0F, self._buffer[1], 2
        if size > 125:
            begin, form = (4, ">H") if size == 126 else (10, ">Q")
            if len(self._buffer) < begin:
                return None
            (size,) = struct.unpack_from(form, self._buffer, 2)
        if len(self._buffer) < begin + size:
            return None
        payload = bytes(self._buffer[begin : begin + size])
        del self._buffer[: begin + size]
        return kind, payload

    def _received(self, kind: int, payload: bytes) -> None:
        if kind == TEXT:
            self._take(json.loads(payload))
        elif kind == PING:
            self._write(PONG, payload)
        elif kind == CLOSE:
            if payload:
                self._ending = struct.unpack_from(">H", payload)[0], payload[2:].decode()
            self._write(CLOSE, payload)

    def _write(self, kind: int, payload: bytes) -> None:
        """Masked with zeros, which leaves the payload as it is."""
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else struct.pack(">BH", 0xFE, size)
        if size > 0xFFFF:
            length = struct.pack(">BQ", 0xFF, size)
        if self._transport is not None:
            self._transport.write(bytes([0x80 | kind]) + length + bytes(4) + payload)


class Tab:
    """Follows one scope by stream, comes back whenever it is cut off, and distrusts every frame.

    `arrived` says when each row came; `faults` what should not have happened; `endings` the close codes of connections
    that had been welcomed; `hints` the pauses asked for, in ms.
    """

    def __init__(self, device: Device, port: int, scope: str, chance: random.Random | None = None) -> None:
        self.port = port
        self.scope = scope
        self.to = 0
        self.arrived: dict[str, float] = {}
        self.faults: list[str] = []
        self.endings: Counter[int | None] = Counter()
        self.hints: list[int] = []
        self.welcomes = 0
        self.session = ""
        self.revoked = False
        self._device = device
        self._chance = chance or random.Random()
        self._versions: dict[tuple[str, str], int] = {}
        self._digest = ""
        self._watermark: dict[str, str] = {}
        self._wire: Wire | None = None
        self._results: dict[str, asyncio.Future[list[Json]]] = {}
        self._pushed = 0
        self._failures = 0
        self._here = asyncio.Event()

    @property
    def here(self) -> bool:
        """Whether it has been welcomed on its present connection."""
        return self._here.is_set()

    @property
    def proved(self) -> bool:
        """Whether the rows it holds are those of the service, by digest."""
        return digest(self._versions) == self._digest

    async def push(self, mutations: list[Json]) -> list[Json]:
        """Push over the present connection, once there is one; ConnectionError if it ends before the answer."""
        await self._here.wait()
        assert self._wire is not None
        name = f"push {self._pushed}"
        self._pushed += 1
        answer: asyncio.Future[list[Json]] = asyncio.get_running_loop().create_future()
        self._results[name] = answer
        over = self._wire.over
        self._wire.send({"t": "push", "id": name, "schema": SCHEMA, "mutations": mutations})
        either: set[asyncio.Future[Any]] = {answer, over}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        del self._results[name]
        if not answer.done():
            raise ConnectionResetError("the stream ended before the answer")
        return answer.result()

    async def live(self) -> None:
        """Connect, follow, come back; until cancelled."""
        try:
            while True:
                pause = await self._connection()
                await asyncio.sleep(pause)
        finally:
            if self._wire is not None:
                self._wire.close()

    async def _connection(self) -> float:
        """One connection from begin to end; how many seconds to wait before the next one."""
        hello = {"t": "hello", "token": self._device.token, "client": self._device.client, "schema": SCHEMA}
        hello |= {"watermark": self._watermark, "scopes": [self.scope]}
        code, reason = None, ""
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            _, self._wire = await loop.create_connection(lambda: Wire(hello, self._take), "127.0.0.1", self.port)
            code, reason = await self._wire.over
            if self.here:
                self.endings[code] += 1
        self._here.clear()
        self._failures += 1
        hint = re.match(r"retry (\d+) ms", reason)
        if hint is not None:
            self.hints.append(int(hint[1]))
        own = self._chance.random() * min(LONGEST_PAUSE, 0.1 * 2.0**self._failures)
        return max(own, int(hint[1]) / 1_000 if hint else 0)

    def _take(self, frame: Json) -> None:
        match frame["t"]:
            case "welcome":
                self._failures = 0
                self.welcomes += 1
                self.session = frame["session"]
                self._here.set()
            case "changes":
                self._apply(frame)
            case "scope_revoked":
                self.revoked = True
            case "behind" if self._wire is not None:
                self.faults.append(f"behind at {self.to}")
            case "result":
                self._results[frame["id"]].set_result(frame["results"])
            case "error":
                self.faults.append(str(frame))

    def _apply(self, run: Json) -> None:
        now = time.monotonic()
        if run["from"] != self.to or run["reset"]:
            self.faults.append(f"a run from {run['from']} (reset: {run['reset']}) at {self.to}")
        for change in run["changes"]:
            name = change["entity"], change["row"]
            if change["row"] in self.arrived or not self.to < change["version"] <= run["to"]:
                self.faults.append(f"{name} again or out of order, at {change['version']}")
            self.arrived[change["row"]] = now
            self._versions[name] = change["version"]
        self.to, self._watermark = run["to"], {self.scope: run["watermark"]}
        self._digest = run.get("digest", "")


class Way(Protocol):
    """How a writer's pushes travel."""

    async def push(self, mutations: list[Json]) -> list[Json] | None:
        """Their results; None when they are to be sent again. ConnectionError and httpx2.TransportError mean that."""


class Http:
    """By HTTP, on connections of its own."""

    def __init__(self, device: Device, url: str) -> None:
        self._device = device
        self._url = url
        self._http = httpx2.AsyncClient(timeout=15, trust_env=False)

    async def push(self, mutations: list[Json]) -> list[Json] | None:
        """Post them."""
        body = self._device.envelope(mutations)
        answer = await self._http.post(f"{self._url}/sync/push", json=body, headers=self._device.headers)
        assert answer.status_code in (200, 503), answer.text
        results: list[Json] | None = answer.json().get("results")
        return results


class Writer:
    """Puts one new task after the other into a scope, each sent again until it is answered; `twice`: and once more.

    `begun` and `answered` say when, `versions` as what; `retries` counts what had to be sent again.
    """

    def __init__(self, device: Device, scope: str, way: Way | None = None, *, twice: bool = False) -> None:
        self.begun: dict[str, float] = {}
        self.answered: dict[str, float] = {}
        self.versions: dict[str, int] = {}
        self.retries = 0
        self.over = False
        self._device = device
        self._scope = scope
        self._way = way or Http(device, device.service.url)
        self._twice = twice

    @property
    def slowest(self) -> float:
        """Seconds that an answer took at most, with all that was sent again."""
        return max(at - self.begun[row] for row, at in self.answered.items())

    async def put(self) -> str:
        """Put one task; its row."""
        mutation = {"seq": 1} | self._device.put("tasks", title="t", scope=self._scope)
        row = str(mutation["row"])
        self.begun[row] = time.monotonic()
        result = await self._settled(mutation)
        self.answered[row] = time.monotonic()
        self.versions[row] = result["version"]
        if self._twice:
            assert (await self._settled(mutation))["version"] == result["version"], "a repetition had an effect"
        return row

    async def _settled(self, mutation: Json) -> Json:
        """The result of a mutation that is sent until it has one."""
        while True:
            with suppress(httpx2.TransportError, ConnectionError):
                results = await self._way.push([mutation])
                if results is not None and results[0]["status"] != "retry":
                    assert results[0]["status"] == "applied", results
                    return results[0]
            self.retries += 1
            await asyncio.sleep(0.05)

    async def write(self, pause: float) -> None:
        """Put one task after the other with a pause of so many seconds between, until it is over."""
        while not self.over:
            await self.put()
            await asyncio.sleep(pause)


@asynccontextmanager
async def writing(writers: Sequence[Writer], pause: float) -> AsyncIterator[None]:
    """All of them write; what they have begun is answered before this ends."""
    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.write(pause))
        yield
        for writer in writers:
            writer.over = True


@asynccontextmanager
async def living(tabs: Sequence[Tab], seconds: float = 20) -> AsyncIterator[None]:
    """All of them live, and have been welcomed when this begins."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(tab.live()) for tab in tabs]
        await until(lambda: all(tab.here for tab in tabs), seconds, "all are welcomed")
        yield
        for task in tasks:
            task.cancel()


async def until(look: Callable[[], object], seconds: float, what: str = "") -> float:
    """Look every few milliseconds until it is true; the seconds that it took."""
    begun = time.monotonic()
    while not look():
        took = time.monotonic() - begun
        assert took < seconds, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


async def all_have(tabs: Iterable[Tab], head: int, seconds: float) -> float:
    """Wait until every tab stands at `head`; the seconds that it took."""
    waiting = list(tabs)

    def arrived() -> bool:
        waiting[:] = [tab for tab in waiting if tab.to < head]
        return not waiting

    return await until(arrived, seconds, f"everybody at {head}")
