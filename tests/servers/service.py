"""The real `tidemark serve`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import jwt

from .common import READY_WITHIN, ServerError, free_port, log_tail


class TidemarkServer:
    """`tidemark serve` in a process group of its own, on a free port that it keeps over restarts.

    `schema` is the declaration's path, `database` a plain URL, `env` further settings (`{"TIDEMARK_RETENTION": "1s"}`),
    `folder` where it runs and logs (a new temporary one by default). `secret=None` starts it in development mode.
    Settings of the caller's own environment do not reach it.
    """

    def __init__(
        self,
        schema: str | Path,
        database: str,
        *,
        env: dict[str, str] | None = None,
        workers: int = 1,
        migrate: bool = True,
        secret: str | None = "a secret of tests, 32 bytes or more",
        folder: Path | None = None,
    ) -> None:
        self.schema = Path(schema).resolve()
        self.database = database
        self.env = env or {}
        self.workers = workers
        self.migrate = migrate
        self.secret = secret
        self.port = free_port()
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="tidemark-"))
        self.log = self.folder / f"serve-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str:
        """The same for websockets."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process (with several workers: their supervisor), which leads its process group."""
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process.pid

    def command(self) -> list[str]:
        """The command line it is started with."""
        program = Path(sys.executable).with_name("tidemark")
        command = [str(program), "serve", "--schema", str(self.schema), "--database", self.database]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--migrate"] if self.migrate else []
        command += ["--workers", str(self.workers)] if self.workers != 1 else []
        return command

    def launch(self) -> Self:
        """Start the process without waiting until it is ready."""
        if self._process is not None:
            raise ServerError("the server is running already")
        env = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMARK_")}
        if self.secret is not None:
            env["TIDEMARK_JWT_SECRET"] = self.secret
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=env | self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def start(self) -> Self:
        """Start the process; returns when `/health/ready` answers 200, and every worker answers."""
        self.launch()
        try:
            self.wait_ready()
        except ServerError:
            self.kill()
            raise
        return self

    def wait_ready(self, within: float = READY_WITHIN) -> None:
        """Ask `/health/ready` until it answers 200; of several workers each answers something."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise ServerError(f"the server ended instead of starting\n{log_tail(self.log)}")
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        else:
            raise ServerError(f"the server was not ready within {within:g} s\n{log_tail(self.log)}")
        if self.workers > 1:
            self.nodes(self.workers, deadline - time.monotonic())

    def nodes(self, count: int = 1, within: float = READY_WITHIN) -> set[str]:
        """The workers that answer, each by the node of its clock, asked until there are so many."""
        found: set[str] = set()
        deadline = time.monotonic() + within
        # One after the other: of requests put at once the first worker that wakes up takes all.
        while True:
            for _ in range(20):
                found |= self._node()
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                raise ServerError(f"{len(found)} of {count} workers answer\n{log_tail(self.log)}")

    def _node(self) -> set[str]:
        """Whoever answers; nobody where a worker ends before it has."""
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/sync/time", timeout=10) as answer:
            return {json.load(answer)["clock"][-16:]}
        return set()

    def wait(self, within: float = READY_WITHIN) -> int:
        """Wait until the process has ended by itself; returns its exit code. What it left behind is killed."""
        if self._process is None:
            raise ServerError("the server is not running")
        try:
            code = self._process.wait(within)
        except subprocess.TimeoutExpired as error:
            raise ServerError(f"the server did not end within {within:g} s\n{log_tail(self.log)}") from error
        self.kill()
        return code

    def stop(self) -> int:
        """Ask it to end (SIGTERM) and wait; returns its exit code. One that stays is killed, which is an error."""
        os.kill(self.pid, signal.SIGTERM)
        try:
            return self.wait()
        except ServerError:
            self.kill()
            raise

    def kill(self) -> None:
        """End the whole process group at once (SIGKILL); nothing happens when it has ended already."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            # All of the group has ended; only its exit code is left to be read.
            process.poll()
        process.wait()

    def restart(self) -> Self:
        """Start it again on the same port and database, after stopping it if it runs."""
        if self._process is not None:
            self.stop()
        return self.start()

    def token(self, user: str, role: str | None = None, ttl: float = 3600, **claims: object) -> str:
        """A token it accepts: `ttl` in seconds (negative: expired); further claims override."""
        if self.secret is None:
            raise ServerError("in development mode the server keeps a secret of its own: use `tidemark token`")
        payload: dict[str, object] = {"sub": user, "exp": int(time.time() + ttl)}
        if role is not None:
            payload["role"] = role
        return jwt.encode(payload | claims, self.secret, algorithm="HS256")

    def headers(self, user: str, role: str | None = None) -> dict[str, str]:
        """The `Authorization` header of a user."""
        return {"Authorization": f"Bearer {self.token(user, role)}"}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._process is not None:
                self.stop()
        finally:
            if self._temporary:
                shutil.rmtree(self.folder)
