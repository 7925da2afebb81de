"""Throw-away databases."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self
from uuid import uuid4

from .common import READY_WITHIN, ServerError, ThrowAway, free_port, log_tail


class PostgresServer(ThrowAway):
    """A private PostgreSQL cluster in a temporary folder: durable, 200 connections, no passwords, loopback only.

    As root, which PostgreSQL refuses, its programs run as the user `postgres`.
    """

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


class MariadbServer(ThrowAway):
    """A private MariaDB in a temporary folder: durable, 200 connections, root without a password, loopback only.

    It runs as whoever starts it, root included.
    """

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
