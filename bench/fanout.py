"""One message to thousands: server CPU for each delivery, and what another request feels of it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from .fleet import Client, Fleet, verify
from .measured import Generator, Measured
from .poster import Poster
from .rows import Source
from .services import ROOM, SCOPE, UNFOLLOWED, Service, Tidemark, cpu

TEXT: Final = "x" * 300
BURST: Final = 20
"""Messages at once, each from another sender."""
ROUNDS: Final = 3
"""The median of so many is taken, of both services by turns."""
DELIVERIES: Final = 50_000
"""A second, of messages one at a time."""


class Crowd(NamedTuple):
    """A service with the clients that sit in one room of it."""

    service: Service
    fleet: Fleet
    members: Sequence[Client]


def gather(service: Service, fleet: Fleet, count: int, room: str | None = ROOM) -> Crowd:
    """Connect clients and let them join a room, where the service has rooms."""
    members = [service.client(number) for number in range(count)]
    fleet.enlist(members, at_once=200)
    if room is not None:
        for member in members:
            member.send(service.join(room))
            fleet.turn(0)
    fleet.settle(2)
    return Crowd(service, fleet, members)


def cost(crowd: Crowd, send: Callable[[], None], expected: Sequence[int], rate: float, rounds: int) -> float:
    """µs of the server's CPU for each delivery. `send` is called `rate` times a second, and not before what it sent
    last has come to all; `expected` is what each member gets of it.
    """
    service, fleet, _ = crowd
    together = sum(expected)
    began, used = time.monotonic(), cpu(service.pid)
    for number in range(rounds):
        fleet.wait(began + number / rate)
        send()
        fleet.await_counted(together * (number + 1))
    used = cpu(service.pid) - used
    verify(crowd.members, [rounds * each for each in expected])
    return used / rounds / together * 1e6


def one_by_one(crowd: Crowd, seconds: float) -> float:
    """Broadcasts of one sender, each delivered to all before the next."""
    service, fleet, members = crowd
    rate = DELIVERIES / len(members)
    fleet.count(service.broadcasts)
    message = service.broadcast(ROOM, TEXT)
    expected = [0] + [1] * (len(members) - 1)
    return cost(crowd, lambda: members[0].send(message), expected, rate, max(3, int(seconds * rate)))


def bursts(crowd: Crowd, seconds: float) -> float:
    """Twenty broadcasts at once, each of another sender."""
    service, fleet, members = crowd
    rate = DELIVERIES / len(members) / BURST
    fleet.count(service.broadcasts)
    message = service.broadcast(ROOM, TEXT)

    def send() -> None:
        for member in members[:BURST]:
            member.send(message)

    expected = [BURST - 1] * BURST + [BURST] * (len(members) - BURST)
    return cost(crowd, send, expected, rate, max(3, int(seconds * rate)))


def pushes(crowd: Crowd, seconds: float, *, poster: Poster) -> float:
    """`changes` frames of pushes of one row into a scope that all follow, one push after the other."""
    fleet, members = crowd.fleet, crowd.members
    rate = DELIVERIES / len(members)
    source = Source(len(members))
    fleet.count(Tidemark.changes)
    expected = [1] * len(members)
    return cost(crowd, lambda: poster.push(source.note(SCOPE, TEXT)), expected, rate, max(3, int(seconds * rate)))


def alone(service: Service, poster: Poster, seconds: float) -> float:
    """µs of the server's CPU for a push of one row into a scope that nobody follows."""
    source, rounds = Source(37), max(20, int(seconds * 50))
    found = []
    for _ in range(ROUNDS):
        used, began = cpu(service.pid), time.monotonic()
        for number in range(rounds):
            time.sleep(max(0.0, began + number / 50 - time.monotonic()))
            poster.push(source.note(UNFOLLOWED, TEXT))
        found.append((cpu(service.pid) - used) / rounds * 1e6)
    return statistics.median(found)


def compared(
    load: Callable[[Crowd, float], float], crowd: Crowd, peer: Crowd | None, generator: Generator, seconds: float
) -> tuple[float, float | None]:
    """Medians of a load on both, by turns."""
    mine, theirs = [], []
    for _ in range(ROUNDS):
        with generator.watched():
            mine.append(load(crowd, seconds))
            theirs += [load(peer, seconds)] if peer is not None else []
    return statistics.median(mine), statistics.median(theirs) if theirs else None


def costs(crowd: Crowd, peer: Crowd | None, poster: Poster, generator: Generator, seconds: float) -> list[Measured]:
    """CPU of a delivery, of three kinds; the peer has no pushes, they stand beside its broadcasts.

    `poster` is a client that is in no crowd.
    """
    count = len(crowd.members)
    goal = 0.6 if count < 5_000 else 0.5
    single, peer_single = compared(one_by_one, crowd, peer, generator, seconds)
    joined, peer_joined = compared(bursts, crowd, peer, generator, seconds)
    whole, _ = compared(partial(pushes, poster=poster), crowd, None, generator, seconds)
    push = alone(crowd.service, poster, seconds)
    pushed = whole - push / count
    note = f"a push alone: {push / 1e3:.1f} ms"
    return [
        Measured(f"broadcast to {count:,}, CPU a delivery", single, "µs", peer_single, goal, relative=True),
        Measured(f"{BURST} broadcasts at once to {count:,}", joined, "µs", peer_joined, 0.3, relative=True),
        Measured(f"changes of a push to {count:,}", pushed, "µs", peer_single, goal, relative=True, note=note),
    ]


def neighbours(crowd: Crowd, seconds: float, token: str = "") -> list[list[float]]:
    """Sorted times (ms) of another's requests while one broadcast after the other goes to all, without a pause."""
    service, fleet, members = crowd
    fleet.count(service.broadcasts)
    message, sent = service.broadcast(ROOM, TEXT), 0
    command = [sys.executable, "-m", "bench.probe", str(service.port), str(seconds), token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as probe:
        while probe.poll() is None:
            members[sent % len(members)].send(message)
            sent += 1
            fleet.await_counted(sent * (len(members) - 1))
        assert probe.stdout is not None
        lines = probe.stdout.read().splitlines()
    if probe.returncode:
        raise AssertionError("a request among the broadcasts failed")
    return [json.loads(line) for line in lines]


def fairness(crowd: Crowd, peer: Crowd | None, token: str, seconds: float) -> list[Measured]:
    """The 99th percentile of a request and of a pull of nothing; beside it a request to the peer during its own."""
    clock, pull = (percentile(times, 0.99) for times in neighbours(crowd, seconds, token))
    theirs = None if peer is None else percentile(neighbours(peer, seconds)[0], 0.99)
    during = f"during broadcasts to {len(crowd.members):,}"
    return [
        Measured(f"GET /sync/time {during}, p99", clock, "ms", theirs, 5),
        Measured(f"a pull of nothing {during}, p99", pull, "ms", None, 5),
    ]


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
