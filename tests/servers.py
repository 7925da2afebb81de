"""Servers that tests, the bench and the demo start for themselves, on free ports of the loopback interface.

`PostgresServer` is a private throw-away cluster, `MariadbServer` the same of MariaDB, `TidemarkServer` the real
`tidemark serve` in a process of its own:

    with PostgresServer() as postgres, TidemarkServer(SCHEMA, postgres.create_database()) as server:
        httpx2.post(f"{server.url}/sync/push", headers={"Authorization": f"Bearer {server.token('ada')}"}, json=...)

Inside tests take the fixtures of `tests/conftest.py` instead of servers of your own: `database_url` (runs the test on
SQLite, PostgreSQL and MariaDB), `postgresql_url` and `mariadb_url` (a fresh database), `postgres_server` and
`mariadb_server` (the server itself).
Everything here blocks; in an async test call the slow parts through `asyncio.to_thread`.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import jwt

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


class PostgresServer:
    """A private PostgreSQL cluster in a temporary folder: durable, 200 connections, no passwords, loopback only.

    As root, which PostgreSQL refuses, its programs run as the user `postgres`.
    """

    def __init__(self) -> None:
        missing = self.missing()
        if missing:
            raise ServerError(missing)
        self.port = 0
        self._folder = Path()

    @classmethod
    def attach(cls, port: int, folder: Path) -> Self:
        """A cluster that another process of this test run has started."""
        server = cls()
        server.port, server._folder = port, folder
        return server

    @property
    def folder(self) -> Path:
        """Holds the data, the unix socket and the log."""
        return self._folder

    @staticmethod
    def missing() -> str | None:
        """Why PostgreSQL cannot be had here, or None when it can."""
        if _postgres_bin() is None:
            return "PostgreSQL is not installed (Debian package: postgresql)"
        if os.geteuid() == 0 and not _user_exists("postgres"):
            return "PostgreSQL refuses to run as root, and there is no user `postgres` to run it as"
        return None

    def start(self) -> Self:
        """Create the cluster and start it; returns when it answers."""
        self._folder = Path(tempfile.mkdtemp(prefix="tidemark-pg-"))
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
        data = str(self._folder / "data")
        self._run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
        for attempt in range(3):
            self.port = free_port()
            options = (
                f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c max_connections=200 -c fsync=on"
            )
            log = str(self._folder / "log")
            try:
                self._run("pg_ctl", "start", "-w", "-t", "60", "-D", data, "-l", log, "-o", options)
            except ServerError as error:
                if attempt == 2:
                    shutil.rmtree(self._folder)
                    raise ServerError(f"{error}\n{log_tail(Path(log))}") from error
            else:
                break
        return self

    def stop(self) -> None:
        """End the cluster at once, whoever is connected, and remove its folder."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self._folder / "data"))
        shutil.rmtree(self._folder)

    def url(self, database: str = "postgres") -> str:
        """The plain URL of a database of this cluster."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Create an empty database and return its URL."""
        name = f"t_{uuid4().hex}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database by its URL, and every connection to it."""
        self.sql(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run SQL through psql; returns what it prints, unaligned and without headers."""
        return self._run("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statement)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _run(self, program: str, *arguments: str) -> str:
        root = os.geteuid() == 0
        # A file, not a pipe: the server that pg_ctl leaves behind would keep a pipe open.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [f"{_postgres_bin()}/{program}", *arguments],
                check=False,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user="postgres" if root else None,
                group="postgres" if root else None,
                extra_groups=[] if root else None,
            )
            output.seek(0)
            text = output.read()
        if done.returncode:
            raise ServerError(f"{program} failed: {text.strip()}")
        return text


class MariadbServer:
    """A private MariaDB in a temporary folder: durable, 200 connections, root without a password, loopback only.

    It runs as whoever starts it, root included.
    """

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
        """Holds the data, the unix socket and the log."""
        return self._folder

    @staticmethod
    def missing() -> str | None:
        """Why MariaDB cannot be had here, or None when it can."""
        lacking = [name for name in ("mariadb-install-db", "mariadbd", "mariadb") if _mariadb(name) is None]
        if lacking:
            packages = "Debian packages: mariadb-server-core, mariadb-client-core"
            return f"MariaDB is not installed ({packages}): no {', '.join(lacking)}"
        return None

    def start(self) -> Self:
        """Create the data and start the server; returns when it answers."""
        self._folder = Path(tempfile.mkdtemp(prefix="tidemark-mariadb-"))
        own = ["--no-defaults", f"--datadir={self._folder / 'data'}", f"--user={pwd.getpwuid(os.geteuid()).pw_name}"]
        try:
            self._run("mariadb-install-db", *own, "--auth-root-authentication-method=normal", "--skip-test-db")
            for attempt in range(3):
                self.port = free_port()
                try:
                    self._launch(own)
                except ServerError:
                    if attempt == 2:
                        raise
                else:
                    break
        except ServerError as error:
            tail = log_tail(self._folder / "log.err")
            shutil.rmtree(self._folder)
            raise ServerError(f"{error}\n{tail}") from error
        return self

    def stop(self) -> None:
        """End the server at once, whoever is connected, and remove its folder."""
        os.kill(int((self._folder / "pid").read_text()), signal.SIGKILL)
        deadline = time.monotonic() + READY_WITHIN
        while self._listens():
            if time.monotonic() > deadline:
                raise ServerError(f"MariaDB did not end within {READY_WITHIN:g} s")
            time.sleep(0.02)
        shutil.rmtree(self._folder)

    def url(self, database: str = "mysql") -> str:
        """The plain URL of a database of this server."""
        return f"mariadb://root@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Create an empty database, its default collation blind to case and trailing blanks; returns its URL."""
        name = f"t_{uuid4().hex}"
        self.sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database by its URL, and every connection to it."""
        name = url.rpartition("/")[2]
        self.sql(
            "DELIMITER //\n"
            "BEGIN NOT ATOMIC\n"
            "  DECLARE CONTINUE HANDLER FOR 1094 BEGIN END; -- one that has ended by itself\n"
            f"  FOR held IN (SELECT id FROM information_schema.processlist WHERE db = '{name}') DO\n"
            "    KILL held.id;\n"
            "  END FOR;\n"
            f"  DROP DATABASE IF EXISTS {name};\n"
            "END //"
        )

    def sql(self, statement: str, database: str = "mysql") -> str:
        """Run SQL through the client; returns what it prints: values between tabs, no headers."""
        where = ["--no-defaults", "--host=127.0.0.1", f"--port={self.port}", "--user=root", "--connect-timeout=10"]
        where += ["--default-character-set=utf8mb4", f"--database={database}"]
        return self._run("mariadb", *where, "--batch", "--skip-column-names", f"--execute={statement}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _launch(self, own: list[str]) -> None:
        folder = self._folder
        options = [*own, f"--port={self.port}", "--bind-address=127.0.0.1", f"--socket={folder / 'socket'}"]
        options += [f"--pid-file={folder / 'pid'}", f"--log-error={folder / 'log.err'}", "--max-connections=200"]
        options += ["--skip-name-resolve"]
        # Through a shell that leaves it behind: it outlives the process that started it, as pg_ctl's servers do.
        command = ["sh", "-c", '"$0" "$@" >/dev/null 2>&1 & echo $!', str(_mariadb("mariadbd")), *options]
        pid = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, start_new_session=True).stdout)
        deadline = time.monotonic() + READY_WITHIN
        while not (self._listens() and (folder / "pid").exists()):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                raise ServerError("MariaDB ended instead of starting") from None
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise ServerError(f"MariaDB was not ready within {READY_WITHIN:g} s")
            time.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(_mariadb(program)), *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise ServerError(f"{program} failed: {done.stdout.strip()}")
        return done.stdout


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
        """Start the process; returns when `/health/ready` answers 200."""
        self.launch()
        try:
            self.wait_ready()
        except ServerError:
            self.kill()
            raise
        return self

    def wait_ready(self, within: float = READY_WITHIN) -> None:
        """Ask `/health/ready` until it answers 200."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise ServerError(f"the server ended instead of starting\n{log_tail(self.log)}")
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise ServerError(f"the server was not ready within {within:g} s\n{log_tail(self.log)}")

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


def _postgres_bin() -> Path | None:
    """The folder with the programs of the newest PostgreSQL installed; Debian keeps it off PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if debian:
        return debian[-1].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def _mariadb(program: str) -> str | None:
    """The path of a program of MariaDB; the server itself is off the PATH of most users."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def _user_exists(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())
