"""Thousands of connections: what an idle one costs, how soon all are in, one that stalls, all coming back at once."""

from __future__ import annotations

import heapq
import json
import re
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from .fanout import percentile
from .fleet import PATIENCE, Client, Fleet, verify
from .poster import Poster
from .rows import Source
from .services import SCOPE, Service, Tidemark, fleet, memory

IDLE: Final = 5_000
ARRIVALS: Final = 2_000
STALL_RATE: Final = 20
"""Pushes a second while one reader stalls, of 8,000 bytes each."""
STALL_WITHIN: Final = 60.0
"""Seconds until a stalled connection that still stands is given up."""


def idle(service: Service) -> float:
    """KB of memory for each authenticated connection that does nothing. The service is fresh."""
    with fleet(service) as clients:
        first = [service.client(IDLE + number) for number in range(200)]
        clients.enlist(first, at_once=50)
        clients.settle()
        for client in first:
            clients.dismiss(client)
        clients.settle(1)
        before = service.settled_memory()
        clients.enlist((service.client(number) for number in range(IDLE)), at_once=100)
        clients.settle(2)
        return (service.settled_memory() - before) / IDLE / 1_024


def arrivals(service: Service, rounds: int = 3) -> float:
    """Seconds until all are let in who come at once, each a user who was never seen before."""
    took = []
    for number in range(rounds):
        with fleet(service) as clients:
            users = range(10_000 * (number + 1), 10_000 * (number + 1) + ARRIVALS)
            took.append(clients.enlist([service.client(each) for each in users], at_once=ARRIVALS))
            clients.settle()
    return statistics.median(took)


# ── one that stalls ──────────────────────────────────────────────────────────────────────────────────────────────────


class Stall(NamedTuple):
    """Seconds until its socket was gone (None: it stood), bytes that the service grew by at most, and the 99th
    percentile (ms) of a push until all others had it: before, and meanwhile.
    """

    gone: float | None
    growth: int
    before: float
    meanwhile: float


def stall(service: Tidemark, count: int) -> Stall:
    """One of many followers stops reading while there is traffic."""
    source, body = Source(23), "y" * 8_000
    with fleet(service) as clients, Poster(service.port, service.token(0)) as poster:
        others = [service.client(number) for number in range(count - 1)]
        clients.enlist(others, at_once=200)
        stalled = service.client(count - 1)
        clients.connect(stalled, receive_buffer=4_096)
        clients.await_open(count)
        clients.settle()
        clients.count(Tidemark.changes)

        def push_for(seconds: float, readers: int, over: Callable[[], bool]) -> tuple[list[float], int]:
            """(sorted times in ms until all readers had a push, most memory) until it is over or time is."""
            times: list[float] = []
            began, most = time.monotonic(), 0
            while time.monotonic() - began < seconds and not over():
                clients.wait(began + len(times) / STALL_RATE)
                before = time.perf_counter()
                poster.push(source.note(SCOPE, body))
                clients.await_counted(clients.counted + readers)
                times.append((time.perf_counter() - before) * 1_000)
                most = max(most, memory(service.pid))
            return sorted(times), most

        quiet, _ = push_for(5, count, lambda: False)
        base = memory(service.pid)
        clients.ignore(stalled)
        port, began = stalled.port, time.monotonic()
        loud, most = push_for(STALL_WITHIN, count - 1, lambda: not held(service.pid, port))
        gone = None if held(service.pid, port) else time.monotonic() - began
        verify(others, [len(quiet) + len(loud)] * len(others))
    return Stall(gone, max(0, most - base), percentile(quiet, 0.99), percentile(loud, 0.99))


def held(pid: int, port: int) -> bool:
    """Whether the process still has a connection from that port; one that only the kernel knows has no inode."""
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(f":{port:04X}"):
            return fields[9] != "0"
    return False


# ── all come back ────────────────────────────────────────────────────────────────────────────────────────────────────

_HINT: Final = re.compile(r"retry (\d+) ms")


class Storm(NamedTuple):
    """Seconds from the service being ready until all were back with what they had missed, the share of clients that
    were given a hint, and how many attempts failed once it was ready.
    """

    back: float
    hinted: float
    failed: int


class Returning:
    """Clients that come back as the protocol asks: no sooner than the hint, and after a back-off of their own."""

    def __init__(self, clients: Fleet) -> None:
        self.hinted = self.failed = 0
        self.ready = False
        self._fleet = clients
        self._random = Random(29)
        self._attempts: dict[Client, int] = {}
        self._due: list[tuple[float, int, Client]] = []

    def gone(self, client: Client) -> None:
        """Come back later."""
        attempt = self._attempts.get(client, 0)
        self._attempts[client] = attempt + 1
        self.failed += self.ready
        hint = _HINT.match(client.closed[1]) if client.closed is not None else None
        self.hinted += hint is not None
        pause = self._random.uniform(0, min(10.0, 0.5 * 2**attempt))
        due = time.monotonic() + max(pause, int(hint[1]) / 1_000 if hint is not None else 0)
        heapq.heappush(self._due, (due, id(client), client))

    def turn(self) -> None:
        """Take what comes, and connect those whose time has come."""
        self._fleet.turn(0.005)
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            self._fleet.connect(heapq.heappop(self._due)[2])


def storm(service: Tidemark, count: int, *, killed: bool) -> Storm:
    """The service ends and is started again while all its clients follow a scope; each has missed some rows."""
    source = Source(31)
    server = service.server
    with fleet(service) as clients:
        with Poster(service.port, service.token(0)) as poster:
            page = json.loads(poster.call("POST", "/sync/pull", source.pull()))
            mark = next(run["watermark"] for run in page["scopes"] if run["scope"] == SCOPE)
            for _ in range(20):
                poster.push(source.note(SCOPE, "z" * 300))
        members = [service.client(number, mark=mark) for number in range(count)]
        clients.enlist(members, at_once=200)
        clients.settle()
        returning = Returning(clients)
        clients.on_gone = returning.gone
        clients.count(Tidemark.changes)

        def restart() -> None:
            if killed:
                server.kill()
            else:
                server.stop()
            server.start()

        service_back = threading.Thread(target=restart)
        service_back.start()
        while service_back.is_alive():
            returning.turn()
        returning.ready, ready = True, time.monotonic()
        while clients.open < count or clients.counted < count:
            if time.monotonic() - ready > PATIENCE:
                raise AssertionError(f"{clients.open} of {count} are back, {clients.counted} caught up")
            returning.turn()
        took = max(client.opened for client in members) - ready
        clients.settle()
        verify(members, [1] * count)
    return Storm(took, returning.hinted / count, returning.failed)
