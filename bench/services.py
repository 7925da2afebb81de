"""The two services whose streams are measured, behind one face: Tidemark, and socket.io in the same run."""

from __future__ import annotations

import gc
import json
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final, Protocol, Self

import jwt

from tests.servers import READY_WITHIN, ServerError, TidemarkServer, free_port, log_tail

from .fleet import Client, Dialect, Fleet, masked
from .poster import Poster
from .rows import Source

FOLDER: Final = Path(__file__).parent
ROWS: Final = FOLDER / "schema.yaml"
NOTES: Final = FOLDER / "stream.yaml"
SCOPE: Final = "workspace:north"
ROOM: Final = f"{SCOPE}/page"
UNFOLLOWED: Final = "workspace:south"
_SECRET: Final = "a secret of tests, 32 bytes or more"  # noqa: S105
_UPGRADE: Final = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
)


class Service(Protocol):
    """A running service; all of it is one process."""

    dialect: Dialect
    broadcasts: bytes
    """How the frames begin that broadcasts arrive in."""

    @property
    def port(self) -> int: ...

    @property
    def pid(self) -> int: ...

    def client(self, number: int, *, listens: bool = False) -> Client:
        """The client of the user of that number."""

    def join(self, room: str) -> bytes:
        """The frame by which one joins a room."""

    def broadcast(self, room: str, text: str) -> bytes:
        """The frame by which one sends a text to the others in a room."""

    def settled_memory(self) -> int:
        """Resident bytes once garbage has gone."""


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used, in the kernel too, to the nanosecond (clock_getcpuclockid of Linux)."""
    return time.clock_gettime((~pid << 3) | 2)


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell how much memory is resident")


class Tidemark:
    """`tidemark serve` on a database, with members of one shared scope: the users of numbers below `members`."""

    dialect = Dialect(
        _UPGRADE.format(path="/sync/stream", more="Sec-WebSocket-Protocol: tidemark.v1\r\n").encode(),
        b"",
        b'{"t":"welcome"',
    )
    broadcasts = b'{"t":"broadcast"'
    changes = b'{"t":"changes"'

    def __init__(self, server: TidemarkServer) -> None:
        self.server = server
        self._source = Source(17)
        self._tokens: dict[int, str] = {}

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def pid(self) -> int:
        return self.server.pid

    def token(self, number: int) -> str:
        """The same one each time."""
        return self._tokens.get(number) or self._tokens.setdefault(number, self.server.token(user(number)))

    def client(self, number: int, *, listens: bool = False, mark: str | None = None) -> Client:
        """With a `mark`, it follows the shared scope from there, and nothing else."""
        hello = {"t": "hello", "token": self.token(number), "client": self._source.uuid(), "schema": 1}
        shared = {} if mark is None else {"watermark": {SCOPE: mark}, "scopes": [SCOPE]}
        return Client(masked(json.dumps(hello | shared).encode()), listens=listens)

    def join(self, room: str) -> bytes:
        return masked(json.dumps({"t": "join", "room": room}).encode())

    def broadcast(self, room: str, text: str) -> bytes:
        return masked(json.dumps({"t": "broadcast", "room": room, "event": "e", "payload": text}).encode())

    def settled_memory(self) -> int:
        return memory(self.pid)

    def admit(self, numbers: Iterable[int], scope: str = SCOPE) -> None:
        """Make users members of a scope."""
        role = json.dumps({"role": "editor"}).encode()
        with Poster(self.port, self.server.token("operator", "admin")) as poster:
            for number in numbers:
                poster.call("PUT", f"/sync/scopes/{scope}/members/{user(number)}", role)


def user(number: int) -> str:
    return f"user-{number}"


@contextmanager
def tidemark(database: str, schema: Path = NOTES, **env: str) -> Iterator[Tidemark]:
    """The service without limits that would hold up a measurement."""
    settings = {
        "TIDEMARK_RATE_LIMIT": "0",
        "TIDEMARK_ROOM_MEMBERS": "10000",
        "TIDEMARK_MAX_STREAMS": "20000",
    }
    with (
        TemporaryDirectory() as folder,
        TidemarkServer(schema, database, folder=Path(folder), env=settings | env) as server,
    ):
        yield Tidemark(server)


class SocketIo:
    """socket.io on the Node.js of this machine, authenticated by the same tokens, deflate off."""

    dialect = Dialect(
        _UPGRADE.format(path="/socket.io/?EIO=4&transport=websocket", more="").encode(), b"0{", b"40{", b"2", b"3"
    )
    broadcasts = b'42["broadcast"'

    def __init__(self) -> None:
        lacking = self.missing()
        if lacking:
            raise ServerError(lacking)
        self._port = free_port()
        self._folder = TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        self._process: subprocess.Popen[bytes]

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be had here, or None when it can."""
        if shutil.which("node") is None:
            return "there is no Node.js"
        if not (FOLDER / "socketio" / "node_modules" / "socket.io").exists():
            return "it is not installed (npm ci in bench/socketio)"
        return None

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        command = ["node", "--expose-gc", "server.mjs", str(self.port), _SECRET]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=FOLDER / "socketio", stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + READY_WITHIN
        while not self._ask("/"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise ServerError(f"socket.io did not start\n{log_tail(self._log)}")
            time.sleep(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def client(self, number: int, *, listens: bool = False) -> Client:
        payload = {"sub": user(number), "exp": int(time.time()) + 3_600}
        token = jwt.encode(payload, _SECRET, algorithm="HS256")
        return Client(masked(f"40{json.dumps({'token': token})}".encode()), listens=listens)

    def join(self, room: str) -> bytes:
        return masked(f'420["join","{room}"]'.encode())

    def broadcast(self, room: str, text: str) -> bytes:
        return masked(f'42["broadcast","{room}","{text}"]'.encode())

    def settled_memory(self) -> int:
        for _ in range(3):
            self._ask("/collect")
        return memory(self.pid)

    def _ask(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=READY_WITHIN):
                return True
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def fleet(service: Service) -> Iterator[Fleet]:
    """Clients to be, all closed at the end; garbage of our own is collected before, not while somebody is measured."""
    clients = Fleet(service.port, service.dialect)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield clients
    finally:
        gc.enable()
        clients.close()
