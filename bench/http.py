"""A keep-alive HTTP/1.1 client with next to no cost of its own: client and server share the machine's cores."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Refused(Exception):
    """An answer other than 200."""


class Connection:
    """One connection, one request at a time; bodies are JSON."""

    def __init__(self, url: str, token: str = "") -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._head = f"Host: {self._host}\r\nContent-Type: application/json\r\nAuthorization: Bearer {token}\r\n"
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 26)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._writer.close()

    async def post(self, path: str, body: bytes, accept: str = "*/*") -> bytes:
        """The body of a 200; Refused with the answer's text otherwise."""
        head = f"POST {path} HTTP/1.1\r\n{self._head}Accept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        status, _, headers = answer.partition(b"\r\n")
        lowered = headers.lower()
        if b"transfer-encoding: chunked" in lowered:
            content = await self._chunks()
        else:
            length = lowered.partition(b"content-length:")[2].partition(b"\r\n")[0]
            content = await self._reader.readexactly(int(length))
        if b" 200 " not in status + b" ":
            raise Refused((status + b" " + content[:500]).decode())
        return content

    async def _chunks(self) -> bytes:
        pieces: list[bytes] = []
        while True:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            piece = await self._reader.readexactly(size + 2)
            if size == 0:
                return b"".join(pieces)
            pieces.append(piece[:-2])
