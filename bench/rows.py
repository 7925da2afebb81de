"""The rows that are measured, made from a seed: the same for the limit and for the service."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from random import Random
from typing import Any

from tidemark_protocol import clock, messages

NOTES = "Remember the milk, the bread and everything else that stands on the list by the door. " * 2


@dataclass(frozen=True)
class Row:
    """One row with its key."""

    id: str
    fields: dict[str, Any]


class Source:
    """Rows and requests, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._clock = clock.Clock(f"{self._random.getrandbits(64):016x}")
        self._lists = [self.uuid() for _ in range(20)]
        self.client = self.uuid()

    def uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def rows(self, count: int) -> list[Row]:
        return [
            Row(
                self.uuid(),
                {
                    "list_id": self._random.choice(self._lists),
                    "title": f"Number {self._random.randrange(10**6)} of the things to do",
                    "done": self._random.random() < 0.3,
                    "priority": self._random.randrange(5),
                    "notes": NOTES[: self._random.randrange(60, 120)],
                },
            )
            for _ in range(count)
        ]

    def push(self, rows: list[Row], op: str = "put") -> bytes:
        """A push of whole rows (`put`) or of one changed field each (`patch`)."""
        now = time.time_ns() // 1_000_000
        return messages.encode(
            messages.PushRequest(
                self.client,
                1,
                [
                    messages.Mutation(
                        seq=index + 1,
                        op=op,
                        entity="todos",
                        row=row.id,
                        at=self._clock.issue(now),
                        fields=row.fields if op == "put" else {"title": f"Done at {now}.{index}"},
                    )
                    for index, row in enumerate(rows)
                ],
            )
        )

    def note(self, scope: str, body: str) -> bytes:
        """A push of one new row of `stream.yaml` into a shared scope."""
        at, fields = self._clock.issue(time.time_ns() // 1_000_000), {"title": "A note", "body": body}
        mutation = messages.Mutation(1, op="put", entity="notes", row=self.uuid(), at=at, scope=scope, fields=fields)
        return messages.encode(messages.PushRequest(self.client, 1, [mutation]))

    def pull(self, watermark: dict[str, str] | None = None, limit: int = 10_000) -> bytes:
        return messages.encode(messages.PullRequest(self.client, 1, watermark, limit=limit))
