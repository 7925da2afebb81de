"""The websocket as a session sees it, under the server that runs it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn import Config, Server

from tidemark.web.direct import EXTENSION, WireProtocol
from tidemark.web.stream import Frames

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
MORE_THAN_FITS = 16 << 20


async def test_a_peer_that_the_server_has_given_up_is_gone() -> None:
    """Closing what the server is closing by itself, as no ping is answered, is no fault: the peer is gone."""
    told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        wire = scope["extensions"][EXTENSION]
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        wire.write(bytes(MORE_THAN_FITS))
        while not wire.close_sent:  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.01)
        wire.resume_writing()
        socket: Any = SimpleNamespace(scope=scope, send=send)
        with pytest.raises(ConnectionError):
            await Frames(socket).close(4401, "the token has expired")
        told.set_result(None)
        wire.abort()

    config = Config(
        app, port=0, ws=WireProtocol, ws_ping_interval=0.05, ws_ping_timeout=0.05, lifespan="off", log_level="critical"
    )
    server = Server(config)
    serving = asyncio.create_task(server._serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.01)
        _, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
        writer.write(HANDSHAKE)
        await told
        writer.close()
        server.should_exit = True
        await serving
