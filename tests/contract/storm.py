"""Writers that push all the time while the service is ended under them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx2

from tests.contract.client import Device, Json, fresh


@dataclass
class Writer:
    """One client in the storm: what it was told, and what it was about to be told."""

    device: Device
    chance: random.Random
    acknowledged: list[tuple[Json, Json]] = field(default_factory=list)
    pending: list[Json] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)

    def make(self, scope: str) -> list[Json]:
        """A few puts, patches and deletes of rows of its own."""
        put = self.device.put("tasks", title=fresh("t"), scope=scope)
        self.rows.append(put["row"])
        batch = [put]
        for _ in range(self.chance.randrange(4)):
            row = self.chance.choice(self.rows)
            batch.append(
                self.device.delete("tasks", row, scope=scope)
                if self.chance.random() < 0.2
                else self.device.patch("tasks", row, scope=scope, title=fresh("p"))
            )
        return batch

    def push(self, scope: str) -> bool:
        """Push what is pending, or something new, and keep what is not answered; False when the service is away."""
        self.pending = self.pending or self.make(scope)
        try:
            response = self.device.post("/sync/push", self.device.envelope(self.pending))
        except httpx2.TransportError:
            return False
        if response.status_code == 503:
            return False
        assert response.status_code == 200, response.text
        pairs = list(zip(self.pending, response.json()["results"], strict=True))
        self.acknowledged += [pair for pair in pairs if pair[1]["status"] != "retry"]
        self.pending = [mutation for mutation, result in pairs if result["status"] == "retry"]
        return True

    def storm(self, scope: str, over: threading.Event) -> None:
        """Push until the service is gone."""
        while not over.is_set() and self.push(scope):
            pass

    def settle(self, scope: str) -> None:
        """Push until nothing is pending."""
        for _ in range(100):
            if self.push(scope) and not self.pending:
                return
        raise AssertionError("the service never takes what is pending")


def storm(writers: list[Writer], scope: str, seconds: float, end: Callable[[], object]) -> None:
    """Let all writers loose for a while, then end the service under them."""
    over = threading.Event()
    with ThreadPoolExecutor(len(writers)) as pool:
        running = [pool.submit(writer.storm, scope, over) for writer in writers]
        over.wait(seconds)
        end()
        over.set()
        for each in running:
            each.result()


def deleted(writer: Writer) -> set[str]:
    """Rows that a writer has deleted, or may have."""
    sent = [mutation for mutation, _ in writer.acknowledged] + writer.pending
    return {mutation["row"] for mutation in sent if mutation["op"] == "delete"}
