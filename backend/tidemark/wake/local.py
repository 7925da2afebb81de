"""For one process alone: it hears of its own commits directly, and there is nobody else."""

from __future__ import annotations

from .base import OnMessage, OnWake


class LocalWake:
    """Wakes nobody."""

    spans = False

    async def start(self, on_wake: OnWake, on_message: OnMessage, namespace: str) -> None:
        """Nothing to listen to."""

    def publish(self, scope: str, head: int, members: int) -> None:
        """Nobody to tell."""

    def send(self, message: bytes) -> None:
        """Nobody to hear it."""

    async def stop(self) -> None:
        """Nothing to let go."""
