"""How long a push takes to reach another client's stream."""

from __future__ import annotations

import asyncio
import json
import statistics
import time

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.servers import TidemarkServer

from .http import Connection
from .rows import Source


async def push_to_frame(server: TidemarkServer, rounds: int) -> tuple[float, float]:
    """(median, 99th percentile) in ms from sending a push of one row to the frame at another client of the user."""
    source, times = Source(13), []
    token = server.token("streamer")
    hello = {"t": "hello", "token": token, "client": source.uuid(), "schema": 1, "watermark": {}}
    url = f"{server.websocket_url}/sync/stream"
    async with connect(url, subprotocols=[Subprotocol("tidemark.v1")], compression=None) as socket:
        await socket.send(json.dumps(hello))
        while json.loads(await socket.recv())["t"] != "changes":
            pass
        async with Connection(server.url, token) as connection:
            for row in source.rows(rounds):
                body = source.push([row])
                began = time.perf_counter()
                arrived = asyncio.create_task(_arrival(socket))
                await connection.post("/sync/push", body)
                times.append((await arrived - began) * 1_000)
    times.sort()
    return statistics.median(times), times[int(len(times) * 0.99)]


async def _arrival(socket: ClientConnection) -> float:
    await socket.recv()
    return time.perf_counter()
