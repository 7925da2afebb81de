"""Rooms of several processes over a channel that loses, repeats and reorders: in the end all agree (SPEC 6)."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.backend.rooms_world import NO_LIMITS, Cluster, Process, Reader
from tidemark.sync.presence import MAX_SILENCE
from tidemark.sync.rooms import BEAT, RoomLimits

ROOMS = ["workspace:1", "workspace:1/a", "workspace:2"]
LATEST = 7.0
"""Seconds by which the bad channel delays at most."""
room_names = st.sampled_from(ROOMS)
picks = st.integers(0, 30)


class Histories(RuleBasedStateMachine):
    """`truth`: what each session shows in each room, or will when the rates have let it pass."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.truth: dict[str, dict[str, Any]] = {room: {} for room in ROOMS}
        self.inside: list[tuple[Process, Reader]] = []
        self.said = 0

    @initialize(limited=st.booleans(), bad=st.booleans(), seed=st.integers(0, 1_000), processes=st.integers(1, 3))
    def begin(self, limited: bool, bad: bool, seed: int, processes: int) -> None:
        """Some processes start, with a guest each."""
        self.cluster.close()
        limits = RoomLimits(broadcast_rate=2, room_rate=4) if limited else NO_LIMITS
        self.cluster = Cluster(limits, seed)
        for number in range(processes):
            self.cluster.start()
            self.connect(number, "ada")
            self.join(number, ROOMS[0], number)
        self.cluster.bad = bad

    def teardown(self) -> None:
        """Whatever happened, all agree once the channel works again."""
        try:
            self.heal_and_compare()
        finally:
            self.cluster.close()

    # ── processes and their channel ──────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: len(self.cluster.processes) < 4)
    @rule()
    def start(self) -> None:
        """Another process."""
        self.cluster.start()

    @precondition(lambda self: len(self.cluster.processes) > 1)
    @rule(pick=picks, politely=st.booleans())
    def end(self, pick: int, politely: bool) -> None:
        """A process stops, or dies."""
        process = self._process(pick)
        (self.cluster.stop if politely else self.cluster.kill)(process)
        for owner, reader in self.inside:
            if owner is process:
                self._gone(reader, lambda _: True)
        self.inside = [(owner, reader) for owner, reader in self.inside if owner is not process]

    @rule(bad=st.booleans())
    def spoil(self, bad: bool) -> None:
        """The channel gets bad, or good."""
        self.cluster.bad = bad

    @rule(pick=picks)
    def deafen(self, pick: int) -> None:
        """A process hears nothing and is not heard."""
        self.cluster.deaf.add(self._process(pick).name)

    @rule(told=st.booleans())
    def hear_again(self, told: bool) -> None:
        """All hear again, and perhaps know it."""
        for name in self.cluster.deaf & self.cluster.processes.keys():
            if told:
                self.cluster.processes[name].rooms.resynchronise()
        self.cluster.deaf.clear()

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.002, 0.05, 0.3, 2.0, 6.0, 40.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.cluster.loop.pass_time(seconds)

    # ── guests ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(pick=picks, user=st.sampled_from(["ada", "bob"]))
    def connect(self, pick: int, user: str) -> None:
        """Another connection."""
        process = self._process(pick)
        self.inside.append((process, process.reader(user)))

    @precondition(lambda self: self.inside)
    @rule(pick=picks, room=room_names, state=st.integers(0, 3))
    def join(self, pick: int, room: str, state: int) -> None:
        """A guest joins, perhaps again."""
        process, reader = self._guest(pick)
        process.rooms.join(reader, room, state)
        self.truth[room][reader.session] = {"user": reader.user, "state": state}

    @precondition(lambda self: self.inside)
    @rule(pick=picks, room=room_names, state=st.integers(0, 3))
    def show(self, pick: int, room: str, state: int) -> None:
        """A guest shows another state."""
        process, reader = self._guest(pick)
        if room in process.rooms.rooms_of(reader):
            process.rooms.show(reader, room, state)
            self.truth[room][reader.session]["state"] = state

    @precondition(lambda self: self.inside)
    @rule(pick=picks, room=room_names, count=st.integers(1, 3))
    def cast(self, pick: int, room: str, count: int) -> None:
        """A guest says something, which nobody may hear twice."""
        process, reader = self._guest(pick)
        for _ in range(count if room in process.rooms.rooms_of(reader) else 0):
            self.said += 1
            process.rooms.cast(reader, room, "e", self.said)

    @precondition(lambda self: self.inside)
    @rule(pick=picks, room=room_names)
    def leave(self, pick: int, room: str) -> None:
        """A guest leaves."""
        process, reader = self._guest(pick)
        if room in process.rooms.rooms_of(reader):
            process.rooms.leave(reader, room)
            self._gone(reader, room.__eq__)

    @precondition(lambda self: self.inside)
    @rule(pick=picks, scope=st.sampled_from([None, "workspace:1", "workspace:2"]))
    def depart(self, pick: int, scope: str | None) -> None:
        """A connection ends, or loses a scope."""
        process, reader = self._guest(pick)
        process.rooms.depart(reader, scope)
        self._gone(reader, lambda room: scope is None or room.partition("/")[0] == scope)
        if scope is None:
            self.inside.remove((process, reader))

    @precondition(lambda self: self.inside)
    @rule(pick=picks, slow=st.booleans())
    def slow_down(self, pick: int, slow: bool) -> None:
        """A reader gets too slow, or catches up."""
        process, reader = self._guest(pick)
        reader.slow = slow
        if not slow:
            process.rooms.drained(reader)

    # ── what holds ───────────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def every_frame_fits(self) -> None:
        """No guest was told anything that does not fit what it was told before, nor anything twice."""
        for reader in self.cluster.readers:
            assert reader.faults == []
            heard = reader.heard()
            assert len(set(heard)) == len(heard)

    def heal_and_compare(self) -> None:
        """Once the channel works, readers have caught up and a couple of beats have passed, every guest sees the truth.

        So it is of living processes; who died may take longer to be gone.
        """
        self.cluster.bad = False
        self.cluster.deaf.clear()
        for process, reader in self.inside:
            reader.slow = False
            process.rooms.drained(reader)
        self.cluster.loop.pass_time(LATEST + 3 * BEAT)
        self._compare(lambda session: session.partition("-")[0] in self.cluster.processes)
        self.cluster.loop.pass_time((MAX_SILENCE + 2) * BEAT - 3 * BEAT)
        self._compare(lambda _: True)
        for process in self.cluster.processes.values():
            members = sum(len(process.rooms.rooms_of(reader)) for owner, reader in self.inside if owner is process)
            assert process.rooms.members == members
            everybody = members + process.figures.watched["room_members_elsewhere"]()
            assert everybody == sum(map(len, self.truth.values()))

    def _compare(self, counts: Any) -> None:
        for process, reader in self.inside:
            assert reader.pictures.keys() == process.rooms.rooms_of(reader)
            for room, picture in reader.pictures.items():
                assert {s: member for s, member in picture.items() if counts(s)} == self.truth[room], room

    def _process(self, pick: int) -> Process:
        processes = list(self.cluster.processes.values())
        return processes[pick % len(processes)]

    def _guest(self, pick: int) -> tuple[Process, Reader]:
        return self.inside[pick % len(self.inside)]

    def _gone(self, reader: Reader, lost: Any) -> None:
        for room in ROOMS:
            if lost(room):
                self.truth[room].pop(reader.session, None)
                reader.left(room)


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestRoomHistories = Histories.TestCase
