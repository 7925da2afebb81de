"""What the servers of tests share."""

from __future__ import annotations

import random
import socket
from pathlib import Path

READY_WITHIN = 30.0
"""Seconds a server may take to start, or to end when asked to."""


class ServerError(Exception):
    """A server did not start or did not end; the message holds the end of its log."""


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
