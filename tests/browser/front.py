"""The app's own server: its files, a token for whoever is signed in, and the service below the same origin."""

from __future__ import annotations

import asyncio
import mimetypes
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers import TidemarkServer

COOKIE = "user"


class Front:
    """In the test's own event loop, from `async with` to its end; every connection bears one request.

    `upstream` is the port of the service, or of what stands before it. `token` gives a token of a user, None where
    that one is not signed in any more. `sockets`: whether websockets get through. `asked` counts requests by path.
    """

    def __init__(self, files: Path, service: TidemarkServer) -> None:
        self.files = files
        self.upstream = service.port
        self.token: Callable[[str], str | None] = service.token
        self.sockets = True
        self.asked: Counter[str] = Counter()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where the app is, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, after `stop` on the same port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Away, with all connections."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            # `stop` cancels; the streams of asyncio want a task that has ended by itself.
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        path = head.split(" ", 2)[1].partition("?")[0]
        self.asked[path] += 1
        headers = dict(line.lower().partition(": ")[::2] for line in head.split("\r\n")[1:-2])
        if path.startswith("/sync/"):
            if self.sockets or "upgrade" not in headers:
                await self._pass_on(head, reader, writer, lasting="upgrade" in headers)
            return
        if path == "/token":
            status, kind, body = self._issue(headers.get("cookie", ""))
        else:
            status, kind, body = self._file(path)
        writer.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        await writer.drain()

    def _issue(self, cookies: str) -> tuple[HTTPStatus, str, bytes]:
        user = dict(part.strip().partition("=")[::2] for part in cookies.split(";")).get(COOKIE)
        token = self.token(user) if user else None
        return (HTTPStatus.OK if token else HTTPStatus.UNAUTHORIZED), "text/plain", (token or "").encode()

    def _file(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        file = self.files / (path.lstrip("/") or "index.html")
        if not file.is_file():
            return HTTPStatus.NOT_FOUND, "text/plain", b""
        return HTTPStatus.OK, mimetypes.guess_type(file.name)[0] or "text/plain", file.read_bytes()

    async def _pass_on(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lasting: bool
    ) -> None:
        """To the service and back until either side has ended; what is no websocket ends with its answer."""
        service_reader, service_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        if not lasting:
            lines = [line for line in head.split("\r\n")[:-2] if not line.lower().startswith("connection:")]
            head = "\r\n".join([*lines, "Connection: close", "", ""])
        service_writer.write(head.encode("latin-1"))
        pumps = [asyncio.ensure_future(_pump(*way)) for way in ((reader, service_writer), (service_reader, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            service_writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
