"""Random histories: any writes, any order, any duplication end as the plain fold says (SPEC sections 3 and 9)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.contract.client import Device, Json, Service, key, reading, wall
from tests.contract.model import NOTES_DEFAULTS, TASKS_DEFAULTS, Model
from tests.contract.replica import Replica

WORDS = ["", "a", "b", "é", "日本", "x" * 32]


def node(seed: int, number: int) -> str:
    """The node of one peer of one history."""
    return f"{seed:015x}{number:x}"


@dataclass
class Peer:
    """A device that writes with a clock of its own, late and more than once, and pulls when it likes."""

    device: Device
    skew: int
    node: str
    outbox: list[Json] = field(default_factory=list)
    sent: list[Json] = field(default_factory=list)
    replica: Replica = field(default_factory=Replica)
    counter: int = 0

    def at(self, chance: random.Random) -> str:
        """A reading of the last half minute or of the next, as this peer's clock has it; never the same twice."""
        self.counter += 1
        return reading(wall() + self.skew - chance.randrange(30_000), self.counter & 0xFFFF, self.node)


class Play:
    """Peers of one scope, the model beside them, and a source of chance."""

    def __init__(self, seed: int, peers: list[Peer], scope: str, entity: str, defaults: Json) -> None:
        self.chance = random.Random(seed)
        self.peers, self.scope, self.entity = peers, scope, entity
        self.model = Model({entity: defaults})
        self.rows = [key() for _ in range(6)]
        self.sent = 0

    def value(self, name: str) -> Any:
        """A good value of a field, in its canonical form."""
        choice = self.chance.choice
        if name == "status":
            return choice(["todo", "doing", "done"])
        if name == "amount":
            return choice([None, "0.00", "-1.50", "999999999999.99"])
        if name == "position":
            return self.chance.randrange(-5, 5)
        if name == "extra":
            return choice([None, [], {"a": [1, {"b": None}]}, "text", 7, False])
        if name == "labels":
            return {choice("abc"): self.chance.randrange(9) for _ in range(self.chance.randrange(3))}
        return choice(WORDS)

    def fields(self, names: list[str]) -> Json:
        """Good values for some fields."""
        return {name: self.value(name) for name in names}

    def write(self, peer: Peer) -> Json:
        """A new mutation of one of the rows."""
        kind = self.chance.choices(["put", "patch", "delete"], [3, 6, 2])[0]
        mutation: Json = {
            "op": kind,
            "entity": self.entity,
            "row": self.chance.choice(self.rows),
            "at": peer.at(self.chance),
            "scope": self.scope,
        }
        optional = sorted(self.model.defaults[self.entity])
        names = self.chance.sample(optional, self.chance.randrange(len(optional)))
        if kind == "put":
            mutation["fields"] = {"title": self.value("title")} | self.fields(names)
        elif kind == "patch":
            paths = self.fields(names)
            if self.chance.random() < 0.6:
                paths.pop("labels", None)
                for inner in self.chance.sample(["a", "b", "c~1d"], 2):
                    paths[f"labels/{inner}"] = self.chance.choice([None, 1, {"deep": [2]}])
            mutation["fields"] = paths or {"title": self.value("title")}
        return mutation

    def push(self, peer: Peer) -> None:
        """Send some of the outbox in any order, with some of what was sent before, and check every verdict."""
        self.chance.shuffle(peer.outbox)
        size = self.chance.randrange(1, len(peer.outbox) + 1)
        batch, peer.outbox = peer.outbox[:size], peer.outbox[size:]
        batch += self.chance.sample(peer.sent, min(len(peer.sent), self.chance.randrange(4)))
        batch += self.chance.sample(batch, min(len(batch), self.chance.randrange(2)))
        self.chance.shuffle(batch)
        for mutation, result in zip(batch, peer.device.push(*batch), strict=True):
            self.model.check(mutation, result)
        peer.sent += batch
        self.sent += len(batch)

    def pull(self, peer: Peer) -> None:
        """Pull some pages of any size, perhaps not all."""
        for _ in range(self.chance.randrange(1, 5)):
            page = peer.device.pull(peer.replica.watermark, limit=self.chance.choice([1, 2, 5, 1000]))
            for run in page["scopes"]:
                peer.replica.apply(run, asked=True)
            if not page["more"]:
                return

    def run(self, mutations: int) -> None:
        """Play until so many mutations were sent, then let everybody catch up."""
        while self.sent < mutations:
            peer = self.chance.choice(self.peers)
            step = self.chance.random()
            if step < 0.6 or not peer.outbox:
                peer.outbox += [self.write(peer) for _ in range(self.chance.randrange(1, 8))]
            elif step < 0.85:
                self.push(peer)
            else:
                self.pull(peer)
        expected = self.model.docs()
        for peer in self.peers:
            peer.replica.pull(peer.device)
            assert peer.replica.docs(self.scope) == expected
            assert peer.replica.proved
        fresh = Replica()
        fresh.pull(self.peers[0].device)
        assert fresh.scopes[self.scope].rows == self.peers[0].replica.scopes[self.scope].rows


@pytest.mark.parametrize("seed", range(4))
def test_a_shared_scope_ends_as_the_plain_fold(service: Service, seed: int) -> None:
    """Five devices of three users write, repeat and pull at random: verdicts, digests and rows are the model's (I7)."""
    ada, bob, eve = service.device(), service.device(), service.device()
    scope = service.workspace(editor=ada, owner=bob)
    service.admin().grant(scope, eve.user, "editor")
    devices = [ada, ada.again(), bob, eve, eve.again()]
    skews = [0, -20_000, 25_000, 5_000, -3_000]
    peers = [Peer(*pair, node(seed, number)) for number, pair in enumerate(zip(devices, skews, strict=True))]
    Play(seed, peers, scope, "tasks", TASKS_DEFAULTS).run(300)


@pytest.mark.parametrize("seed", range(10, 12))
def test_a_users_scope_ends_as_the_plain_fold(service: Service, seed: int) -> None:
    """The same for three devices of one user in the user's own scope."""
    device = service.device()
    peers = [
        Peer(one, skew, node(seed, number))
        for number, (one, skew) in enumerate([(device, 0), (device.again(), 29_000), (device.again(), -29_000)])
    ]
    Play(seed, peers, device.scope, "notes", NOTES_DEFAULTS).run(250)


def test_a_history_over_two_processes_ends_as_the_plain_fold(pair: tuple[Service, Service]) -> None:
    """The same with devices that speak to different processes."""
    here, there = pair
    ada, bob = here.device(), here.device()
    scope = here.workspace(editor=ada, owner=bob)
    devices = [ada, ada.on(there), bob, bob.on(there)]
    peers = [Peer(device, 0, node(99, number)) for number, device in enumerate(devices)]
    Play(99, peers, scope, "tasks", TASKS_DEFAULTS).run(300)
