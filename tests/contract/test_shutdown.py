"""The end of a service that is told to end: everything open ends in order, and soon (SPEC section 6)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.contract.client import SCHEMA, SECRET, Device, Json, Service, assert_problem
from tests.contract.conftest import DECLARATION, SETTINGS, Launcher, Running
from tests.contract.event_stream import EventStream
from tests.contract.stream import SUBPROTOCOL
from tests.contract.test_database_away import away
from tests.contract.test_pull_waiting import until_waiting
from tests.contract.test_stream_limits import Bare
from tests.servers import PostgresServer, TidemarkServer

GONE_WITHIN = 8.0
"""Seconds, on a machine that does other things too."""


class Ended:
    """A process that has been told to end."""

    def __init__(self, server: TidemarkServer, number: int = signal.SIGTERM) -> None:
        self._server = server
        self._told = time.monotonic()
        self._logged = server.log.stat().st_size
        os.kill(server.pid, number)

    def orderly(self, levels: Collection[str] = ("info",)) -> None:
        """It is gone in time, with exit code 0, and has had nothing to say above these levels."""
        assert self._server.wait(30) == 0
        assert time.monotonic() - self._told < GONE_WITHIN
        said = self._server.log.read_bytes()[self._logged :].decode()
        assert [line for line in said.splitlines() if json.loads(line)["level"] not in levels] == []


@asynccontextmanager
async def streams(devices: list[Device], url: str | None = None) -> AsyncIterator[list[ClientConnection]]:
    """A welcomed stream of each device."""

    async def begin(device: Device) -> ClientConnection:
        connection = await connect(
            url or device.service.stream_url,
            subprotocols=[SUBPROTOCOL],
            compression=None,
            proxy=None,
            max_size=None,
            ping_interval=None,
        )
        hello = {"t": "hello", "token": device.token, "client": device.client, "schema": SCHEMA, "watermark": {}}
        await connection.send(json.dumps(hello))
        assert json.loads(await connection.recv())["t"] == "welcome"
        return connection

    connections = list(await asyncio.gather(*map(begin, devices)))
    yield connections
    await asyncio.gather(*(connection.close() for connection in connections))


async def until_closed(connection: ClientConnection) -> tuple[list[Json], Any]:
    """The frames that still come, and the close frame."""
    frames: list[Json] = []
    try:
        while True:
            frames.append(json.loads(await connection.recv()))
    except ConnectionClosed as closed:
        return frames, closed.rcvd


def assert_told_to_come_back(close: Any) -> None:
    """Closed with 1012 and a hint when to come back."""
    assert close is not None, "no close frame came"
    assert close.code == 1012
    assert close.reason.startswith("retry ")


def stalled_request(device: Device, path: str, body: Json, accept: str, share: float = 1.0) -> socket.socket:
    """A request whose answer nobody reads, or of which only a part is sent."""
    host, port = device.service.address
    text = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {device.token}\r\nAccept: {accept}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    narrow.connect((host, port))
    narrow.sendall(head.encode() + text[: int(len(text) * share)])
    return narrow


def pushed(device: Device, count: int) -> list[Json]:
    """Puts of new notes."""
    return [device.put("notes", title=str(number)) for number in range(count)]


def rows(mutations: list[Json]) -> set[str]:
    """Which rows they write."""
    return {mutation["row"] for mutation in mutations}


@pytest.fixture
def mortal(launch: Launcher) -> Running:
    """A service that will be told to end."""
    return launch()


@pytest.mark.databases("sqlite", "postgresql")
async def test_everything_open_ends_in_order(mortal: Running) -> None:
    """Of 200 streams, stalled readers, held requests and pushes in flight each gets its due; the process is gone soon.

    A push sent before the end was answered and is there, or is not there at all (I45).
    """
    service, loop = mortal.service, asyncio.get_running_loop()
    users = [service.device() for _ in range(20)]
    devices = [user.again() for user in users for _ in range(10)]
    big = service.device()
    for _ in range(10):
        big.apply(*(big.put("notes", title="big", body="x" * 100_000) for _ in range(5)))
    marks = {user.user: {run["scope"]: run["watermark"] for run in user.pull()["scopes"]} for user in users}
    events = [EventStream(user) for user in users[:3]]
    body = big.pull_body(limit=10_000)
    stalled = [
        stalled_request(big, "/sync/pull", body, accept) for accept in ("application/json", "application/x-ndjson")
    ]
    stalled += [EventStream(big, narrow=True)._socket]
    stalled += [stalled_request(big, "/sync/push", big.envelope(pushed(big, 5)), "*/*", share=0.5)]
    async with streams(devices) as open_streams, streams([big, big]) as silent:
        with ThreadPoolExecutor(40) as pool:
            held = [loop.run_in_executor(pool, partial(user.pull, marks[user.user], wait=25)) for user in users[:10]]
            await asyncio.to_thread(until_waiting, service, len(held))
            by_stream = [(device, pushed(device, 20)) for device in devices[:40]]
            by_request = [(user, pushed(user, 20)) for user in users[:15]]
            for (device, mutations), connection in zip(by_stream, open_streams, strict=False):
                frame = {"t": "push", "id": 1, "schema": SCHEMA} | device.envelope(mutations)
                await connection.send(json.dumps(frame))
            answers = [loop.run_in_executor(pool, tried, user, mutations) for user, mutations in by_request]
            ended = Ended(mortal.server)
            closings = await asyncio.gather(*map(until_closed, open_streams))
            answered = await asyncio.gather(*answers)
            pages = await asyncio.gather(*held)
            await asyncio.to_thread(ended.orderly)
        assert len(silent) == 2
    for _, close in closings:
        assert_told_to_come_back(close)
    assert [stream.close_code() for stream in events] == [1012] * 3
    assert all(page["revoked"] == [] for page in pages)
    for reader in stalled:
        reader.close()
    mortal.server.start()
    there = set().union(*(user.docs("notes").keys() for user in users))
    results = {frame["id"]: frame for frames, _ in closings for frame in frames if frame["t"] == "result"}
    assert results, "no push of a stream was answered"
    for (_, mutations), (frames, _) in zip(by_stream, closings, strict=False):
        expected = rows(mutations) if any(frame["t"] == "result" for frame in frames) else set()
        assert rows(mutations) & there == expected
    for (_, mutations), answer in zip(by_request, answered, strict=True):
        assert rows(mutations) & there == (rows(mutations) if answer else set())


def tried(device: Device, mutations: list[Json]) -> list[Json] | None:
    """The results of a push, or None where no answer came."""
    try:
        with httpx2.Client(base_url=device.service.url, trust_env=False, timeout=20) as http:
            response = http.post("/sync/push", json=device.envelope(mutations), headers=device.headers)
    except httpx2.TransportError:
        return None
    assert response.status_code == 200, response.text
    results: list[Json] = response.json()["results"]
    return results


@pytest.mark.databases("sqlite")
async def test_it_is_not_ready_at_once(mortal: Running) -> None:
    """While what is open still ends, the process answers, says that it is not ready, and lets nobody in."""
    silent = Bare(mortal.service)
    silent.hello(mortal.service.device())
    ended = Ended(mortal.server)
    assert_problem(mortal.service.http.get("/health/ready"), 503, "unavailable")
    assert mortal.service.http.get("/health/live").status_code == 200
    async with connect(mortal.service.stream_url, subprotocols=[SUBPROTOCOL], proxy=None) as late:
        _, close = await until_closed(late)
        assert_told_to_come_back(close)
    await asyncio.to_thread(ended.orderly)
    silent.socket.close()


@pytest.mark.databases("postgresql")
async def test_every_worker_ends_in_order(launch: Launcher, tmp_path: Path) -> None:
    """Of several processes each closes its streams with the hint, though a terminal sends all of them the signal."""
    server = TidemarkServer(
        DECLARATION, launch.new_database(), env=SETTINGS, secret=SECRET, folder=tmp_path, workers=2
    ).start()
    service = Service(server.url)
    devices = [service.device() for _ in range(30)]
    async with streams(devices) as open_streams:
        for child in children(server.pid):
            os.kill(child, signal.SIGINT)
        ended = Ended(server, signal.SIGINT)
        for _, close in await asyncio.gather(*map(until_closed, open_streams)):
            assert_told_to_come_back(close)
        await asyncio.to_thread(ended.orderly)
    service.close()


def children(pid: int) -> list[int]:
    """The processes that a supervisor has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


@pytest.fixture
def by_hand(launch: Launcher, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Service]]:
    """The application under uvicorn's own command."""
    server = TidemarkServer(DECLARATION, launch.new_database(), env=SETTINGS, secret=SECRET, folder=tmp_path)
    with server:
        pass
    env = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMARK_")} | SETTINGS
    env |= {
        "TIDEMARK_JWT_SECRET": SECRET,
        "TIDEMARK_SCHEMA": str(DECLARATION),
        "TIDEMARK_DATABASE_URL": server.database,
    }
    command = [sys.executable, "-m", "uvicorn", "tidemark.app:factory", "--factory", "--port", str(server.port)]
    service = Service(server.url)
    with ExitStack() as stack, (tmp_path / "uvicorn.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
        stack.callback(process.kill)
        stack.callback(service.close)
        deadline = time.monotonic() + 20
        while True:
            try:
                if service.http.get("/health/ready").status_code == 200:
                    break
            except httpx2.TransportError:
                assert time.monotonic() < deadline
        yield process, service


@pytest.mark.databases("sqlite")
async def test_under_uvicorn_by_hand(by_hand: tuple[subprocess.Popen[bytes], Service], tmp_path: Path) -> None:
    """The application ends in the same order under uvicorn as others start it."""
    process, service = by_hand
    device = service.device()
    events = EventStream(device)
    stalled = stalled_request(device, "/sync/push", {}, "*/*", share=0.5)
    async with streams([device] * 5) as open_streams:
        told = time.monotonic()
        process.terminate()
        for _, close in await asyncio.gather(*map(until_closed, open_streams)):
            assert_told_to_come_back(close)
        assert await asyncio.to_thread(process.wait, 20) == -signal.SIGTERM
        assert time.monotonic() - told < GONE_WITHIN
    assert events.close_code() == 1012
    stalled.close()
    log = (tmp_path / "uvicorn.log").read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert "ERROR" not in log


@pytest.mark.databases("postgresql")
async def test_the_database_is_away(mortal: Running, postgres_server: PostgresServer) -> None:
    """Without its database the service ends as soon, streams told to come back, pushes under way not answered well."""
    devices = [mortal.service.device() for _ in range(5)]
    async with streams(devices) as open_streams:
        with away(postgres_server, mortal.server.database), ThreadPoolExecutor(5) as pool:
            waiting = [pool.submit(device.post, "/sync/push", device.envelope(pushed(device, 3))) for device in devices]
            for device, connection in zip(devices, open_streams, strict=True):
                frame = {"t": "push", "id": 1, "schema": SCHEMA} | device.envelope(pushed(device, 3))
                await connection.send(json.dumps(frame))
            ended = Ended(mortal.server)
            for frames, close in await asyncio.gather(*map(until_closed, open_streams)):
                assert_told_to_come_back(close)
                assert not any(frame["t"] == "result" for frame in frames)
            # That the pool cannot connect is worth a warning, and no fault of the end.
            await asyncio.to_thread(ended.orderly, {"info", "warning"})
    for answer in waiting:
        assert answer.exception() is not None or answer.result().status_code == 503


@pytest.mark.databases("postgresql")
async def test_the_database_hangs(launch: Launcher, postgres_server: PostgresServer) -> None:
    """A database that takes statements and never answers does not keep the service from ending."""
    running = launch(env={"TIDEMARK_SHUTDOWN_TIMEOUT": "1s"})
    device = running.service.device()
    async with streams([device]) as (stream,):
        name = running.server.database.rpartition("/")[2]
        asked = f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        backends = [int(pid) for pid in postgres_server.sql(asked).split()]
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        try:
            await stream.send(json.dumps({"t": "push", "id": 1, "schema": SCHEMA} | device.envelope(pushed(device, 1))))
            os.kill(running.server.pid, signal.SIGTERM)
            frames, close = await until_closed(stream)
            assert close is not None and close.code == 1012
            assert not any(frame["t"] == "result" for frame in frames)
            assert await asyncio.to_thread(running.server.wait, 25) == 0
        finally:
            for pid in backends:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
