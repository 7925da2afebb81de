"""Every store that keeps the port's promises, and how each is made for a test."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Final

import pytest

from tests.conformance.declared import DECLARATION
from tidemark.store.base import Store
from tidemark.store.memory import MemoryStore


def now() -> int:
    """The wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Database(ABC):
    """An empty database for one test. Differences between stores are declared here, nowhere else."""

    overlapping: ClassVar[bool]
    """Whether transactions of different scopes run at the same time, so that one may wait for what another does."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        """Keep the way to further fixtures and the test's own folder."""
        self.request = request
        self.folder = folder

    @abstractmethod
    async def prepare(self) -> None:
        """Make the tables."""

    @abstractmethod
    def store(self) -> Store:
        """A store on this database, not opened yet; each is as a process of its own would have it."""


class Memory(Database):
    """Contents live as long as the one store does."""

    overlapping = True

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        super().__init__(request, folder)
        self._store = MemoryStore(DECLARATION, chance=secrets.token_bytes)

    async def prepare(self) -> None:
        """Nothing to be made."""

    def store(self) -> Store:
        """The one store."""
        return self._store


KINDS: Final[dict[str, type[Database]]] = {"memory": Memory}
