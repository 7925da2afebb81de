"""What the servers of tests share."""

from __future__ import annotations

import random
import socket
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

READY_WITHIN = 60.0
"""Seconds a server may take to start, or to end when asked to."""


class ServerError(Exception):
    """A server did not start or did not end; the message holds the end of its log."""


class ThrowAway(ABC):
    """A server that lives in a temporary folder, for one run of tests; ServerError where it cannot be had."""

    def __init__(self) -> None:
        missing = self.missing()
        if missing:
            raise ServerError(missing)
        self.port = 0
        self._folder = Path()

    @classmethod
    def attach(cls, port: int, folder: Path) -> Self:
        """A server that another process of this test run has started."""
        server = cls()
        server.port, server._folder = port, folder
        return server

    @property
    def folder(self) -> Path:
        """Holds its data, its socket and its log, as far as it has them."""
        return self._folder

    @staticmethod
    @abstractmethod
    def missing() -> str | None:
        """Why it cannot be had here, or None when it can."""

    @abstractmethod
    def start(self) -> Self:
        """Start it on a free port; returns when it answers."""

    @abstractmethod
    def stop(self) -> None:
        """End it and remove its folder."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now.

    It lies below the range from which the kernel takes the ports of outgoing connections, so that none of these takes
    it between this look and the server's start.
    """
    chance = random.SystemRandom()
    for _ in range(1_000):
        port = chance.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no free port between 20000 and 32000")


def log_tail(log: Path, lines: int = 30) -> str:
    """The last lines of a server's log, for the message of a failure."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"
