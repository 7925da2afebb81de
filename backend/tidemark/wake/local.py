"""For one process alone: it hears of its own commits directly, and there is nobody else."""

from __future__ import annotations

from .base import OnWake


class LocalWake:
    """Wakes nobody."""

    async def start(self, on_wake: OnWake) -> None:
        """Nothing to listen to."""

    def publish(self, scope: str, head: int, members: int) -> None:
        """Nobody to tell."""

    async def stop(self) -> None:
        """Nothing to let go."""
