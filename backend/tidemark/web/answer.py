"""What goes back: a whole answer or a stream of pieces, compressed where the client accepts it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import msgspec
from litestar.types import Send

Header = tuple[bytes, bytes]

JSON: Final = b"application/json"
NDJSON: Final = b"application/x-ndjson"
EVENTS: Final = b"text/event-stream"
HTML: Final = b"text/html; charset=utf-8"

# 20,000 documents of 322 bytes: level 1 takes 32 ms and leaves 28 %, level 6 takes 102 ms and leaves 22 %.
_LEVEL: Final = 1
COMPRESS_FROM: Final = 1024
_IN_A_THREAD_FROM: Final = 1 << 16
_GZIP: Final = 31
_WITHOUT_CONTENT: Final = frozenset({204, 304})


class Answer(NamedTuple):
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()


class Streamed(NamedTuple):
    """An answer in pieces, sent as they come; the first is here already, so what refuses the whole has had its say."""

    first: bytes
    rest: AsyncGenerator[bytes]
    content_type: bytes
    status: int = 200


class Live(NamedTuple):
    """An answer that `run` sends for as long as it lasts; it gives the number of bytes on the wire."""

    run: Callable[[Send], Awaitable[int]]
    status: int = 200


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(msgspec.json.encode(value), status)


def accepts(header: bytes | None, wanted: bytes) -> bool:
    """Whether an `Accept…` header names exactly `wanted`, and does not say `q=0`."""
    if header is None or wanted not in header:
        return False
    for part in header.split(b","):
        name, *parameters = (piece.strip().lower() for piece in part.split(b";"))
        if name == wanted:
            return not any(
                parameter.replace(b" ", b"") in {b"q=0", b"q=0.0", b"q=0.00", b"q=0.000"} for parameter in parameters
            )
    return False


async def send_whole(send: Send, answer: Answer, *, gzip: bool) -> int:
    """Send it; the number of bytes of its body on the wire."""
    body, status, content_type, more = answer
    headers: list[Header] = list(more)
    if status not in _WITHOUT_CONTENT:
        headers.append((b"content-type", content_type))
    if len(body) >= COMPRESS_FROM:
        headers.append((b"vary", b"accept-encoding"))
        if gzip:
            body = await asyncio.to_thread(_gzipped, body) if len(body) >= _IN_A_THREAD_FROM else _gzipped(body)
            headers.append((b"content-encoding", b"gzip"))
    if status not in _WITHOUT_CONTENT:
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
    return len(body)


async def send_streamed(send: Send, answer: Streamed, *, gzip: bool) -> int:
    """Send the pieces, each flushed; the number of bytes on the wire."""
    headers: list[Header] = [(b"content-type", answer.content_type), (b"vary", b"accept, accept-encoding")]
    headers += [(b"content-encoding", b"gzip")] if gzip else []
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    sent = 0
    async with aclosing(answer.rest) as rest:
        pieces = _with_first(answer.first, rest)
        async for piece in _gzipped_pieces(pieces) if gzip else pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += len(piece)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return sent


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _gzipped(body: bytes) -> bytes:
    return zlib.compress(body, _LEVEL, _GZIP)


async def _gzipped_pieces(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces as one gzip stream, each flushed; the next one is fetched while a long one is packed in a thread."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    packing: asyncio.Task[bytes] | None = None

    def pack(piece: bytes) -> bytes:
        return packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)

    async for piece in pieces:
        if packing is not None:
            yield await packing
        packing = asyncio.create_task(asyncio.to_thread(pack, piece)) if len(piece) >= _IN_A_THREAD_FROM else None
        if packing is None:
            yield pack(piece)
    if packing is not None:
        yield await packing
    yield packer.flush()
