"""A world for tests of rooms: time that jumps, guests that check every frame, processes joined by a bad channel."""

from __future__ import annotations

import asyncio
import selectors
from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from tidemark.meter import BroadcastFate, Fanned, Meter, Origin
from tidemark.sync.fanout import Fanout
from tidemark.sync.frames import Frame
from tidemark.sync.rooms import RoomLimits, Rooms

Json = dict[str, Any]
NO_LIMITS = RoomLimits(broadcast_rate=0, room_rate=0)


class _Jumping(selectors.DefaultSelector):
    """Does not wait, but lets as much time pass."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes at once whenever nothing is to be done.

    It is the running one all the time, so that plain functions can do between its turns what callbacks do in them.
    """

    def __init__(self) -> None:
        self.clock = _Jumping()
        super().__init__(self.clock)
        asyncio._set_running_loop(self)

    def time(self) -> float:
        """Seconds that have passed."""
        return self.clock.now

    def pass_time(self, seconds: float) -> None:
        """Let the loop run for so long."""
        asyncio._set_running_loop(None)
        self.run_until_complete(asyncio.sleep(seconds))
        asyncio._set_running_loop(self)

    def close(self) -> None:
        """The end of time."""
        asyncio._set_running_loop(None)
        super().close()

    def turn(self) -> None:
        """Let the loop do what is due."""
        self.pass_time(0.0)
        self.pass_time(0.0)


class Reader:
    """A guest that folds what it is told, each frame of which must fit those before.

    `slow`: refuses offers; `broken`: raises; `gone`: its process has ended. With a `fanout` it may be written to
    straight, as long as it is none of these.
    """

    def __init__(self, session: str, user: str = "ada", fanout: Fanout | None = None) -> None:
        self._fanout = fanout
        self.session = session
        self.user = user
        self.slow = self.broken = self.gone = False
        self.frames: list[Json] = []
        self.pieces: list[Frame | bytes] = []
        """What it was handed, several frames in one where they were joined."""
        self.pictures: dict[str, Json] = {}
        self.faults: list[str] = []

    def __setattr__(self, name: str, value: object) -> None:
        """What keeps it from being written to disturbs."""
        super().__setattr__(name, value)
        if name in {"slow", "broken", "gone"} and self._fanout is not None:
            self._fanout.disturbed()

    def straight(self) -> Callable[[bytes], None] | None:
        """What takes messages as they are on the wire."""
        if self._fanout is None or self.slow or self.broken or self.gone:
            return None
        return self._written

    def _written(self, wire: bytes) -> None:
        assert not (self.slow or self.broken or self.gone), "written to, and was disturbed"
        self.pieces.append(wire)
        while wire:
            size, head = wire[1], 2
            if size >= 126:
                head = 4 if size == 126 else 10
                size = int.from_bytes(wire[2:head], "big")
            self._read(wire[head : head + size])
            wire = wire[head + size :]

    def put(self, frame: Frame) -> None:
        """Take a frame."""
        if self.gone:
            return
        self.pieces.append(frame)
        for text in frame.texts:
            self._read(text)

    def _read(self, text: str | bytes) -> None:
        try:
            self._take(msgspec.json.decode(text))
        except (AssertionError, KeyError) as fault:
            self.faults.append(f"{fault!r} in {text!r}")  # raised, it would be logged and forgotten

    def offer(self, frame: Frame) -> bool:
        """Take a frame unless it is slow."""
        if self.broken:
            raise RuntimeError("broken")
        if self.slow:
            return False
        self.put(frame)
        return True

    def heard(self, room: str | None = None) -> list[Any]:
        """Payloads of broadcasts so far."""
        return [f["payload"] for f in self.frames if f["t"] == "broadcast" and room in (None, f["room"])]

    def presence(self) -> list[Json]:
        """Frames of presence so far."""
        return [frame for frame in self.frames if frame["t"] == "presence"]

    def left(self, room: str) -> None:
        """It has left a room: what it saw there is void."""
        self.pictures.pop(room, None)

    def _take(self, frame: Json) -> None:
        self.frames.append(frame)
        if frame["t"] == "broadcast":
            assert frame["from"]["session"] != self.session, "one's own broadcast"
            assert frame["room"] in self.pictures, "a broadcast before the room's members"
        elif frame["t"] == "presence":
            self._fold(frame)

    def _fold(self, frame: Json) -> None:
        room = frame["room"]
        if "members" in frame:
            assert frame.keys() == {"t", "room", "members"}
            self.pictures[room] = frame["members"]
            return
        picture = self.pictures[room]
        joined, changed, left = frame.get("joined", {}), frame.get("changed", {}), frame.get("left", [])
        assert joined or changed or left, "a frame that says nothing"
        assert not joined.keys() & picture.keys(), "joined, and was in"
        assert changed.keys() <= picture.keys(), "changed, and was not in"
        assert all(picture[session] != member for session, member in changed.items()), "changed, and is the same"
        assert set(left) <= picture.keys(), "left, and was not in"
        picture.update(joined | changed)
        for session in left:
            del picture[session]


class Figures(Meter):
    """Keeps what rooms tell of their work."""

    def __init__(self) -> None:
        self.fates: defaultdict[str, int] = defaultdict(int)
        self.fanned: list[tuple[int, int, float, Origin]] = []
        self.watched: dict[str, Callable[[], float]] = {}
        self.frames_withheld = self.messages_foreign = 0

    def watch(self, what: str, reading: Callable[[], float]) -> None:
        """Keep how to find a value."""
        self.watched[what] = reading

    def broadcast(self, fate: BroadcastFate, count: int = 1) -> None:
        """Count."""
        self.fates[fate] += count

    def withheld(self, frames: int) -> None:
        """Count."""
        self.frames_withheld += frames

    def foreign(self) -> None:
        """Count."""
        self.messages_foreign += 1

    def fanned_out(self, what: Fanned, receivers: int, size: int, lag: float, origin: Origin) -> None:
        """Keep the figures."""
        assert what == "room"
        self.fanned.append((receivers, size, lag, origin))


class Process:
    """One process with its rooms; `name` is that of its node, `readers` takes its connections."""

    def __init__(
        self, loop: JumpingLoop, name: str, send: Callable[[bytes], None], limits: RoomLimits, readers: list[Reader]
    ) -> None:
        self.name = name
        self.figures = Figures()
        self.readers = readers
        self.fanout = Fanout(few=1)
        self.unsettled: set[str] = set()
        """Scopes of which it is not known yet who lost them."""
        self.rooms = Rooms(
            node=name,
            send=send,
            limits=limits,
            fanout=self.fanout,
            unsettled=self.unsettled.__contains__,
            monotonic=loop.time,
            meter=self.figures,
        )
        self._count = 0
        self.running = loop.create_task(self.rooms.run())

    def reader(self, user: str = "ada") -> Reader:
        """A new connection; every other one may be written to straight."""
        self._count += 1
        reader = Reader(f"{self.name}-{self._count}", user, self.fanout if self._count % 2 else None)
        self.readers.append(reader)
        return reader


class Cluster:
    """Processes joined by a channel, which keeps the order and loses nothing unless it is `bad`."""

    def __init__(self, limits: RoomLimits = NO_LIMITS, seed: int = 0) -> None:
        self.loop = JumpingLoop()
        self.limits = limits
        self.processes: dict[str, Process] = {}
        self.readers: list[Reader] = []
        self.bad = False
        self.sent: list[bytes] = []
        self.carried = 0
        self.deaf: set[str] = set()
        self._chance = Random(seed)
        self._names = 0

    def start(self) -> Process:
        """Another process."""
        self._names += 1
        name = f"{self._names:016x}"
        process = Process(self.loop, name, lambda message: self._carry(name, message), self.limits, self.readers)
        self.processes[name] = process
        self.loop.turn()
        return process

    def kill(self, process: Process) -> None:
        """A process ends without a word."""
        del self.processes[process.name]
        for reader in self.readers:
            reader.gone |= reader.session.startswith(process.name)
        process.running.cancel()
        self.loop.turn()

    def stop(self, process: Process) -> None:
        """A process says goodbye and ends."""
        process.rooms.goodbye()
        self.loop.pass_time(0.01)
        self.kill(process)

    def close(self) -> None:
        """The world ends, well if every frame of every guest fitted those before, and came of a room it was in."""
        for process in self.processes.values():
            process.running.cancel()
        self.loop.turn()
        self.loop.close()
        assert [fault for reader in self.readers for fault in reader.faults] == []
        for process in self.processes.values():
            for reader in self.readers:
                if reader.session.startswith(process.name):
                    assert reader.pictures.keys() <= process.rooms.rooms_of(reader)

    def _carry(self, sender: str, message: bytes) -> None:
        if sender not in self.processes:
            return  # what a killed process still does in here
        self.sent.append(message)
        self.carried += 1
        for name in self.processes:
            copies = self._chance.choice([0, 1, 1, 2]) if self.bad else 1
            for _ in range(copies):
                delay = self._chance.choice([0.001, 0.001, 0.2, 7.0]) if self.bad else 0.001
                self.loop.call_later(delay + self.carried * 1e-9, self._arrive, name, sender, message)

    def _arrive(self, name: str, sender: str, message: bytes) -> None:
        process = self.processes.get(name)
        if process is not None and not {name, sender} & self.deaf:
            process.rooms.received(message)
