"""PostgreSQL as what joins processes and nothing else, to be killed, held and started again under them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.servers import READY_WITHIN, PostgresServer, ServerError


class PostgresBroker(PostgresServer):
    """A PostgreSQL cluster for wakes alone: the data lies in another one."""

    @property
    def wake(self) -> str:
        """What `TIDEMARK_WAKE` says."""
        return self.url()

    def kill(self) -> None:
        """End it at once, all its processes."""
        pids = self._pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + READY_WITHIN
        while any(_lives(pid) for pid in pids):
            if time.monotonic() > deadline:
                raise ServerError("PostgreSQL outlives SIGKILL")
            time.sleep(0.01)

    def revive(self) -> None:
        """Start it again on the same port and data."""
        # A process number that nobody has asked after yet would pass for a server that runs.
        (self.folder / "data" / "postmaster.pid").unlink()
        (self.folder / f".s.PGSQL.{self.port}.lock").unlink()
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", str(self.folder / "log"), "-o", self._options)

    def hold(self) -> None:
        """Stop all its processes."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def release(self) -> None:
        """Let them go on."""
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    @property
    def _options(self) -> str:
        return f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=200"

    def _pids(self) -> list[int]:
        """The server's processes, the one that starts others first."""
        first = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        found = subprocess.run(["pgrep", "-P", str(first)], check=False, capture_output=True, text=True)
        return [first, *map(int, found.stdout.split())]


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked after does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
