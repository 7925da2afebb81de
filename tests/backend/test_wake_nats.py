"""What is peculiar to wakes over NATS: several servers, passwords, and an encryption that is asked for."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import pytest

from tests.backend.wake_world import QUICK, SPACE, Ear, eventually, joined, reached, wake_at
from tests.servers import NatsServer, free_port
from tidemark.wake.nats import NatsWake

INFO = {"server_id": "a", "version": "2.9.10", "max_payload": 1 << 20, "auth_required": True, "tls_required": False}


class Plain:
    """A server, or somebody between, that says it knows no encryption, and keeps what it is told then."""

    def __init__(self) -> None:
        self.port = free_port()
        self.visits = 0
        self.told = b""

    async def visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Greet, listen, and say that all is well."""
        self.visits += 1
        writer.write(b"INFO " + json.dumps(INFO).encode() + b"\r\n")
        while line := await reader.readline():
            self.told += line
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()


@pytest.fixture
async def plain() -> AsyncIterator[Plain]:
    """One that listens."""
    server = Plain()
    listener = await asyncio.start_server(server.visited, "127.0.0.1", server.port)
    yield server
    listener.close()


@pytest.mark.parametrize("who", ["ada:secret@", "secret@", ""])
async def test_nothing_is_said_in_the_clear_where_encryption_is_asked_for(plain: Plain, who: str) -> None:
    """Under `tls:` a server that does not encrypt is not told the password, nor anything else of ours."""
    wake, ear = wake_at(f"nats://{who}127.0.0.1:{plain.port}"), Ear()
    await wake.start(ear.on_wake, ear.on_message, SPACE)
    await eventually(lambda: b"SUB" in plain.told)
    await wake.stop()
    assert (b"secret" in plain.told) == bool(who)
    plain.visits, plain.told = 0, b""

    guarded = NatsWake(f"tls://{who}127.0.0.1:{plain.port}", chance=os.urandom, timing=QUICK)
    await guarded.start(ear.on_wake, ear.on_message, SPACE)
    await eventually(lambda: plain.visits >= 2)
    await guarded.stop()
    assert b"secret" not in plain.told and b"SUB" not in plain.told


async def test_another_server_of_the_cluster_will_do(nats_server: NatsServer) -> None:
    """Where the first of several servers does not answer, the next is asked."""
    url = f"nats://127.0.0.1:{free_port()},{nats_server.wake}"
    async with joined(url) as (here, _), joined(nats_server.wake) as (_, ear):
        await reached(here, ear)
