"""Many at once, on one process and on two: no change skipped, nothing given twice (SPEC section 9)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from tests.contract.client import Device, Json, Service, code, fresh, key
from tests.contract.replica import Replica
from tests.contract.stream import following

T = TypeVar("T")


def at_once(works: Sequence[Callable[[], T]]) -> list[T]:
    """Run all works from the same moment on."""
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], T]) -> T:
        gate.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


class Race:
    """Writers, readers and followers of one workspace, spread over the processes of a service."""

    WRITERS, PUSHES, READERS, FOLLOWERS = 6, 25, 2, 2

    def __init__(self, services: Sequence[Service]) -> None:
        self.services = services
        self.editor, self.owner = services[0].device(), services[0].device()
        self.scope = services[0].workspace(editor=self.editor, owner=self.owner)
        self.shared = [self.owner.put("tasks", title="shared", scope=self.scope) for _ in range(5)]
        self.owner.apply(*self.shared)
        self.over = threading.Event()
        self.left = self.WRITERS
        self.lock = threading.Lock()
        self.written: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.versions: list[int] = []

    def device(self, number: int) -> Device:
        """A device of one of the members, speaking to one of the processes."""
        owner = self.owner if number % 2 else self.editor
        return owner.again().on(self.services[number % len(self.services)])

    def write(self, number: int) -> None:
        """Push small batches: rows of its own, shared rows, bad mutations, deletions."""
        chance, device = random.Random(number), self.device(number)
        mine: list[Json] = []
        for _ in range(self.PUSHES):
            batch = [device.put("tasks", title=fresh("t"), scope=self.scope) for _ in range(chance.randrange(1, 5))]
            shared = chance.choice(self.shared)["row"]
            extra = [device.patch("tasks", shared, title=fresh("s"), scope=self.scope)]
            if chance.random() < 0.2:
                extra.append(device.put("tasks", title=None, scope=self.scope))
            gone = mine.pop() if mine and chance.random() < 0.3 else None
            if gone is not None:
                extra.append(device.delete("tasks", gone["row"], scope=self.scope))
            results = device.push(*batch, *extra)
            assert all(result["status"] == "applied" for result in results[: len(batch)]), results
            mine += batch
            with self.lock:
                self.versions += [result["version"] for result in results[: len(batch)]]
                self.written |= {put["row"]: put["fields"]["title"] for put in batch}
                self.deleted |= {gone["row"]} if gone is not None else set()
        with self.lock:
            self.left -= 1
            if not self.left:
                self.over.set()

    def read(self, number: int) -> Replica:
        """Pull all the time, in pages of any size from any process, each head proved by its digest."""
        chance, replica = random.Random(number), Replica()
        devices = [self.device(number + offset) for offset in range(len(self.services) * 2)]
        while not self.over.is_set():
            replica.pull(chance.choice(devices), scopes=[self.scope], limit=chance.choice([1, 3, 20, 1000]))
        replica.pull(devices[0], scopes=[self.scope])
        return replica

    def follow(self, number: int) -> Replica:
        """Follow by stream from the start to the last write."""
        device = self.device(number)
        with following(device, scopes=[self.scope]) as follower:
            while not self.over.is_set():
                for frame in follower.stream.incoming(0.2):
                    follower.take(frame)
                    if self.over.is_set():
                        break
            head = device.pull(scopes=[self.scope], limit=1)["scopes"][0]["head"]
            follower.reach(self.scope, head)
            return follower.replica

    def run(self) -> None:
        """Let them all loose and compare what they hold in the end."""
        works: list[Callable[[], Replica | None]] = [partial(self.write, n) for n in range(self.WRITERS)]
        works += [partial(self.read, n) for n in range(self.READERS)]
        works += [partial(self.follow, n) for n in range(self.FOLLOWERS)]
        replicas = [replica for replica in at_once(works) if replica is not None]
        truth = Replica()
        truth.pull(self.owner, scopes=[self.scope])
        rows = truth.scopes[self.scope].rows
        assert len(replicas) == self.READERS + self.FOLLOWERS
        for replica in replicas:
            assert replica.proved
            assert replica.scopes[self.scope].rows == rows
        alive = {row: doc["title"] for (_, row), (_, doc) in rows.items() if row in self.written}
        assert alive == {row: title for row, title in self.written.items() if row not in self.deleted}
        versions = [version for version, _ in rows.values()]
        assert len(versions) == len(set(versions))
        assert len(self.versions) == len(set(self.versions))


def test_no_change_is_skipped_under_load(service: Service) -> None:
    """Readers and streams of a scope that six writers fill hold every acknowledged write, each head proved (I27)."""
    Race([service]).run()


def test_no_change_is_skipped_over_two_processes(pair: tuple[Service, Service]) -> None:
    """The same with writers, readers and streams spread over two processes (I27)."""
    Race(pair).run()


def one_of_many(services: Sequence[Service], make: Callable[[Device], Json], error: str) -> None:
    """Of many mutations that exclude each other, sent at once by devices of one user, one is applied."""
    for _ in range(5):
        user = services[0].device()
        devices = [user.again().on(services[number % len(services)]) for number in range(8)]
        results = [result for (result,) in at_once([partial(device.push, make(device)) for device in devices])]
        assert sorted(result["status"] for result in results) == ["applied", *["rejected"] * 7]
        assert {code(result) for result in results if result["status"] == "rejected"} == {error}
        assert len(user.docs()) == 1


def test_one_of_many_takes_a_unique_value(service: Service) -> None:
    """Of eight rows with one unique value, put at once, one is applied and the others are `unique_violation`."""
    one_of_many([service], lambda device: device.put("categories", name="same"), "unique_violation")


def test_one_of_many_takes_a_unique_value_over_two_processes(pair: tuple[Service, Service]) -> None:
    """The same over two processes."""
    one_of_many(pair, lambda device: device.put("categories", name="same"), "unique_violation")


def one_of_many_users(services: Sequence[Service]) -> None:
    """Of many users who put one key into their own scopes at once, one gets it; no row is overwritten."""
    for _ in range(5):
        row = key()
        devices = [services[number % len(services)].device() for number in range(8)]
        puts = [device.put("notes", row, title=device.user) for device in devices]
        works = [partial(device.push, put) for device, put in zip(devices, puts, strict=True)]
        results = [result for (result,) in at_once(works)]
        winners = [device for device, result in zip(devices, results, strict=True) if result["status"] == "applied"]
        assert {code(result) for result in results if result["status"] == "rejected"} == {"row_taken"}
        (winner,) = winners
        for device in devices:
            docs = device.docs()
            assert docs == {} if device is not winner else docs[row]["title"] == winner.user


def test_one_of_many_users_takes_a_key(service: Service) -> None:
    """Of eight users who put one key at once, one gets it and the others are `row_taken`."""
    one_of_many_users([service])


def test_one_of_many_users_takes_a_key_over_two_processes(pair: tuple[Service, Service]) -> None:
    """The same over two processes, which hold different scopes' locks for one new key."""
    one_of_many_users(pair)


def same_many_times(services: Sequence[Service]) -> None:
    """One mutation sent by many connections at once has one effect and one version."""
    for _ in range(5):
        device = services[0].device()
        put = device.put("notes", title="one")
        senders = [device.on(services[number % len(services)]) for number in range(8)]
        results = at_once([partial(sender.push, put) for sender in senders])
        assert len({(result["status"], result["version"]) for (result,) in results}) == 1
        assert len(device.pull()["scopes"][0]["changes"]) == 1


def test_a_mutation_sent_many_times_at_once_has_one_effect(service: Service) -> None:
    """One mutation sent eight times at once is applied with one version (I8)."""
    same_many_times([service])


def test_a_mutation_sent_many_times_over_two_processes_has_one_effect(pair: tuple[Service, Service]) -> None:
    """The same over two processes."""
    same_many_times(pair)


def no_dangling_reference(services: Sequence[Service]) -> None:
    """A parent deleted while a child is put leaves either both or neither."""
    user = services[0].device()
    for _ in range(10):
        parent = user.put("parents")
        user.apply(parent)
        here, there = user.again().on(services[0]), user.again().on(services[-1])
        child = here.put("holders", parent_id=parent["row"])
        delete = there.delete("parents", parent["row"])
        (put,), (gone,) = at_once([partial(here.push, child), partial(there.push, delete)])
        assert (put["status"], code(gone)) in [("applied", "ref_in_use"), ("rejected", None)], (put, gone)
        docs = user.docs()
        assert (child["row"] in docs) == (parent["row"] in docs)


def test_a_reference_never_dangles(service: Service) -> None:
    """A child put and its parent deleted at once: one of the two is refused (I21)."""
    no_dangling_reference([service])


def test_a_reference_never_dangles_over_two_processes(pair: tuple[Service, Service]) -> None:
    """The same over two processes."""
    no_dangling_reference(pair)


def test_groups_stay_whole_for_readers(service: Service) -> None:
    """A reader at the head sees all rows of a group or none, while groups move a value from row to row (I13)."""
    device = service.device()
    rows = [device.put("notes", title="n", position=100 if number == 0 else 0) for number in range(4)]
    device.apply(*rows)
    over = threading.Event()

    def move() -> None:
        writer, chance = device.again(), random.Random(1)
        held = [100, 0, 0, 0]
        for _ in range(60):
            source, target = chance.sample(range(4), 2)
            held[source], held[target] = held[source] - 7, held[target] + 7
            writer.apply(
                *(writer.patch("notes", rows[n]["row"], position=held[n], group="g") for n in (source, target))
            )
        over.set()

    def watch() -> None:
        reader, replica = device.again(), Replica()
        while not over.is_set():
            replica.pull(reader)
            assert sum(doc["position"] for doc in replica.docs(device.scope).values()) == 100

    at_once([move, watch, watch])
