"""Throw-away brokers: what joins processes, to be killed, held and started again under them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Self

from .common import READY_WITHIN, ServerError, ThrowAway, free_port, log_tail


class Broker(ThrowAway):
    """A server without passwords on the loopback interface that keeps nothing; it runs as whoever starts it."""

    @property
    @abstractmethod
    def wake(self) -> str:
        """What `TIDEMARK_WAKE` says."""

    @abstractmethod
    def _command(self, pid_file: Path) -> list[str]:
        """The program's name and arguments."""

    def start(self) -> Self:
        """Start it on a free port; returns when it answers."""
        self._folder = Path(tempfile.mkdtemp(prefix="tidemark-broker-"))
        for attempt in range(3):
            self.port = free_port()
            try:
                self.revive()
            except ServerError as error:
                if attempt == 2:
                    tail = log_tail(self._folder / "log")
                    shutil.rmtree(self._folder)
                    raise ServerError(f"{error}\n{tail}") from error
            else:
                break
        return self

    def stop(self) -> None:
        """End it at once, whoever is connected, and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._signal(signal.SIGKILL)
        deadline = time.monotonic() + READY_WITHIN
        while self._listens():
            if time.monotonic() > deadline:
                raise ServerError(f"{type(self).__name__} outlives SIGKILL")
            time.sleep(0.005)

    def revive(self) -> None:
        """Start it again where it was; returns when it answers."""
        pid_file = self._folder / "pid"
        pid_file.unlink(missing_ok=True)
        # Through a shell that leaves it behind: it outlives the process that started it, as pg_ctl's servers do.
        script = f'exec -a "$0" "$@" >>{self._folder / "log"} 2>&1 & echo $!'
        command = ["bash", "-c", script, *self._command(pid_file)]
        pid = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, start_new_session=True).stdout)
        deadline = time.monotonic() + READY_WITHIN
        while not (self._listens() and pid_file.exists()):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                raise ServerError(f"{type(self).__name__} ended instead of starting") from None
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise ServerError(f"{type(self).__name__} was not ready within {READY_WITHIN:g} s")
            time.sleep(0.005)

    def hold(self) -> None:
        """Let it do nothing: its connections stay, and nothing comes over them (SIGSTOP)."""
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + READY_WITHIN
        while not self._stands_still():
            if time.monotonic() > deadline:
                raise ServerError(f"{type(self).__name__} goes on after SIGSTOP")
            time.sleep(0.001)

    def release(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def _stands_still(self) -> bool:
        """Whether each thread has stopped: one that runs goes on for a moment. Only Linux lists them."""
        states = (path.read_text().rpartition(") ")[2] for path in Path(f"/proc/{self._pid}/task").glob("*/stat"))
        return all(state.startswith("T") for state in states)

    @property
    def _pid(self) -> int:
        return int((self._folder / "pid").read_text())

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class RedisServer(Broker):
    """A private Redis, or Valkey."""

    @staticmethod
    def missing() -> str | None:
        """Why Redis cannot be had here, or None when it can."""
        return None if _redis() else "Redis is not installed (Debian package: redis-tools)"

    @property
    def wake(self) -> str:
        """What `TIDEMARK_WAKE` says."""
        return f"redis://127.0.0.1:{self.port}"

    def _command(self, pid_file: Path) -> list[str]:
        # By this name it serves, whatever the program is called.
        command = ["redis-server", _redis() or "", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        return [*command, "--dir", str(self.folder), "--pidfile", str(pid_file)]


class NatsServer(Broker):
    """A private NATS."""

    @staticmethod
    def missing() -> str | None:
        """Why NATS cannot be had here, or None when it can."""
        return None if _nats() else "NATS is not installed (Debian package: nats-server)"

    @property
    def wake(self) -> str:
        """What `TIDEMARK_WAKE` says."""
        return f"nats://127.0.0.1:{self.port}"

    def _command(self, pid_file: Path) -> list[str]:
        return ["nats-server", _nats() or "", "-a", "127.0.0.1", "-p", str(self.port), "-P", str(pid_file)]


def _redis() -> str | None:
    """The path of the server; Debian's tools hold it under the name of its checker of dumps."""
    return shutil.which("redis-server") or shutil.which("valkey-server") or shutil.which("redis-check-rdb")


def _nats() -> str | None:
    """The path of the server: beside our Python, on PATH, or where Debian puts it, off the PATH of most users."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"]
    return shutil.which("nats-server", path=os.pathsep.join(places))
