"""Being in a room: `tide room` on a real service (SPEC 6)."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.cli.conftest import SCHEMA, Desk
from tests.cli.devices import Tide, environment, grant
from tests.servers import TidemarkServer, free_port
from tidemark_cli.room import Visitor
from tidemark_protocol.client_rooms import Gathered, Heard
from tidemark_protocol.messages import Member
from tidemark_protocol.stream_server import SUBPROTOCOL, retry_reason

ROOM = "workspace:1/board"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TidemarkServer]:
    """A service with a workspace that ann and bob may edit."""
    folder = tmp_path_factory.mktemp("rooms")
    (folder / "schema.yaml").write_text(SCHEMA)
    with TidemarkServer(folder / "schema.yaml", f"sqlite:///{folder / 'tidemark.db'}") as server:
        for user in ("ann", "bob"):
            grant(server, user, "editor")
        yield server


@pytest.fixture(scope="module")
def ann(service: TidemarkServer, tmp_path_factory: pytest.TempPathFactory) -> Tide:
    """A device of ann's."""
    return Tide(service, tmp_path_factory.mktemp("ann") / "store", "ann")


@pytest.fixture(scope="module")
def bob(service: TidemarkServer, tmp_path_factory: pytest.TempPathFactory) -> Tide:
    """A device of bob's."""
    return Tide(service, tmp_path_factory.mktemp("bob") / "store", "bob")


class Guest:
    """A `tide room` that runs, and who is in the room as far as it has told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.members: dict[str, Any] = {}

    def frame(self) -> dict[str, Any]:
        """The next frame."""
        assert self.process.stdout is not None
        frame: dict[str, Any] = json.loads(self.process.stdout.readline())
        if frame["t"] == "presence":
            self.members = frame.get("members", self.members) | frame.get("joined", {}) | frame.get("changed", {})
            for gone in frame.get("left", []):
                del self.members[gone]
        return frame

    def sees(self, *users: str) -> None:
        """Read until exactly these are in the room."""
        while sorted(member["user"] for member in self.members.values()) != sorted(users):
            self.frame()

    def hears(self) -> tuple[str, str, Any]:
        """The next broadcast: whose, its event and payload."""
        while (frame := self.frame())["t"] != "broadcast":
            continue
        return frame["from"]["user"], frame["event"], frame["payload"]

    def type(self, line: str) -> None:
        """Write a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def notes(self, words: str) -> str:
        """The next note that holds these words."""
        assert self.process.stderr is not None
        return next(line for line in self.process.stderr if words in line)

    def leave(self) -> int:
        """End it as Ctrl-C would; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)
        return self.process.returncode


@contextmanager
def inside(device: Tide, *words: str) -> Iterator[Guest]:
    """In the room, from the moment its members have come."""
    guest = Guest(device.start("room", ROOM, *words, stdin=subprocess.PIPE))
    try:
        assert "members" in guest.frame()
        yield guest
    finally:
        guest.leave()


def test_two_see_and_hear_each_other(ann: Tide, bob: Tide) -> None:
    """Joins, states, what is said at once or typed, and leaves arrive as frames; who leaves ends with 0 (I42, I44)."""
    with inside(ann, "--state", '{"cursor": 1}') as one:
        with inside(bob, "--say", "wave", '{"hello": true}', "--say", "note", "not JSON") as two:
            two.sees("ann", "bob")
            assert {member["state"] and member["state"]["cursor"] for member in two.members.values()} == {None, 1}
            assert [one.hears(), one.hears()] == [("bob", "wave", {"hello": True}), ("bob", "note", "not JSON")]
            one.sees("ann", "bob")
            one.type("typing [1, 2]")
            one.type("")
            one.type("ping")
            assert [two.hears(), two.hears()] == [("ann", "typing", [1, 2]), ("ann", "ping", None)]
            assert two.leave() == 0
        one.sees("ann")
        assert one.leave() == 0


def test_a_room_ends_with_the_right_to_read_it(service: TidemarkServer, ann: Tide, bob: Tide) -> None:
    """Whoever may not read the scope any more is told so and leaves; whoever may not at all never joins (I43)."""
    with inside(ann) as one, inside(bob) as two:
        one.sees("ann", "bob")
        grant(service, "bob", None)
        try:
            assert "may not be read any more" in two.notes("Not in")
            assert two.process.wait(20) == 1
            one.sees("ann")
            assert "forbidden" in bob.said("room", ROOM, "--seconds", "20", code=1)
        finally:
            grant(service, "bob", "editor")


def test_what_cannot_be_a_room_or_a_state_is_refused_at_once(ann: Tide) -> None:
    """Before anything is sent."""
    assert "is no room" in ann.said("room", "lobby", code=1)
    assert "is not JSON" in ann.said("room", ROOM, "--state", "{", code=1)


def test_a_refused_broadcast_does_not_end_the_stay(ann: Tide) -> None:
    """It is told, and the room goes on."""
    with inside(ann) as one:
        one.type(f"{'x' * 65} 1")
        assert "malformed" in one.notes("The service said")
        assert one.leave() == 0


def test_a_stay_may_have_an_end(ann: Tide) -> None:
    """After its time a room is left, as it is by Ctrl-C."""
    assert ann.run("room", ROOM, "--seconds", "0") == ""


def test_on_a_terminal_there_is_a_table_and_a_line_to_type(ann: Tide, bob: Tide) -> None:
    """Who is there with what they show, who comes, what is typed and said; Ctrl-D leaves."""
    with Terminal(ann) as screen, ExitStack() as stack:
        screen.until("1 session", "ann (you)")
        two = stack.enter_context(inside(bob, "--state", '"at work"'))
        screen.until("bob joined", "at work")
        two.type('say "hello [b]there[/b]"')
        screen.until("bob say hello [b]there[/b]")
        screen.type("answer 42\n")
        assert two.hears() == ("ann", "answer", 42)
        screen.until("you answer 42")
        two.leave()
        screen.until("bob left")
        screen.type("\x04")
        assert screen.process.wait(20) == 0


class Terminal:
    """A `tide room` on a terminal of its own."""

    def __init__(self, device: Tide) -> None:
        self._own, other = pty.openpty()
        env = environment() | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", "NO_COLOR": "1"}
        self.process = subprocess.Popen(device.command("room", ROOM), stdin=other, stdout=other, stderr=other, env=env)
        os.close(other)
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)

    def until(self, *words: str) -> None:
        """Read until all of these have been shown since the last time."""
        while not all(word in self._shown for word in words):
            self._shown += plain(os.read(self._own, 1 << 16).decode())
        self._shown = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._own, text.encode())


def plain(text: str) -> str:
    """Text without the control sequences of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


class Silent:
    """A view that nobody looks at."""

    def gathered(self, change: Gathered, members: dict[str, Member], session: str) -> None:
        """Who is there."""

    def heard(self, heard: Heard) -> None:
        """What is said."""

    def said(self, event: str, payload: Any) -> None:
        """What was said oneself."""


def visitor(desk: Desk, port: int, notes: list[str], until: Callable[[], bool]) -> Visitor:
    """One who would be in a room of the service at a port."""
    desk.peer.database.set("url", f"http://127.0.0.1:{port}")
    desk.peer.now = lambda: time.time_ns() // 1_000_000
    return Visitor(
        desk.peer,
        "workspace:1",
        None,
        Silent(),
        first=[],
        lines=list,
        say=notes.append,
        sleep=time.sleep,
        until=until,
    )


def test_a_service_that_is_away_is_told_of_in_words(desk: Desk) -> None:
    """Not by the system's error alone."""
    notes: list[str] = []
    visitor(desk, free_port(), notes, lambda: bool(notes)).run()
    assert notes[0].startswith("The service cannot be reached (")


def test_a_client_that_is_asked_to_stay_away_does(desk: Desk) -> None:
    """Whatever streams, a room as a watch: it comes back no sooner than the close reason says (I45)."""
    pause, came, enough = 1.2, list[float](), threading.Event()

    def full(connection: ServerConnection) -> None:
        connection.recv()
        came.append(time.monotonic())
        if len(came) == 2:
            enough.set()
        connection.close(1013, retry_reason(round(pause * 1_000), "full"))

    notes: list[str] = []
    with serve(full, "127.0.0.1", 0, subprotocols=[SUBPROTOCOL]) as server:  # type: ignore[list-item]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        visitor(desk, server.socket.getsockname()[1], notes, enough.is_set).run()
        server.shutdown()
    assert came[1] - came[0] >= pause
    assert notes[0] == "The stream was closed (full)."
