"""Rooms over several processes: what they tell each other, and what happens when some of it is lost (SPEC 6)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backend.rooms_world import Cluster, Process, Reader
from tidemark.sync.presence import MAX_SILENCE, Foreign, decoded
from tidemark.sync.rooms import BEAT, PRESENCE_INTERVAL
from tidemark_protocol.errors import RequestError

ROOM = "workspace:7"
SOON = 2 * PRESENCE_INTERVAL


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster without limits."""
    cluster = Cluster()
    yield cluster
    cluster.close()


def joined(cluster: Cluster, process: Process, room: str = ROOM, user: str = "ada") -> Reader:
    """A reader in a room, whose join has been answered."""
    reader = process.reader(user)
    process.rooms.join(reader, room, None)
    cluster.loop.pass_time(SOON)
    return reader


def tags(cluster: Cluster) -> list[str]:
    """Kinds of the messages sent so far."""
    return [msgspec.json.decode(message)["type"] for message in cluster.sent]


def test_a_room_spans_all_processes(cluster: Cluster) -> None:
    """Members, states and broadcasts of a room reach its guests in every process."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there, user="bob")
    assert one.pictures == two.pictures
    assert two.pictures[ROOM] == {
        one.session: {"user": "ada", "state": None},
        two.session: {"user": "bob", "state": None},
    }
    here.rooms.show(one, ROOM, {"cursor": 1})
    here.rooms.cast(one, ROOM, "e", "hello")
    cluster.loop.pass_time(SOON)
    assert two.heard() == ["hello"] and one.heard() == []
    assert two.pictures[ROOM][one.session]["state"] == {"cursor": 1}
    assert there.figures.fanned[-1][3] == "here" and "elsewhere" in {origin for *_, origin in there.figures.fanned}
    there.rooms.leave(two, ROOM)
    two.left(ROOM)
    cluster.loop.pass_time(SOON)
    assert one.pictures[ROOM].keys() == {one.session}


def test_a_new_process_learns_of_everybody(cluster: Cluster) -> None:
    """A process that starts knows all members of the others before a beat has passed, however many they are."""
    old = cluster.start()
    for number in range(1_000):
        old.rooms.join(old.reader(), f"workspace:{number % 10}", "x" * 300)
    cluster.loop.pass_time(1)
    new = cluster.start()
    cluster.loop.pass_time(BEAT / 2)
    assert new.figures.watched["room_members_elsewhere"]() == 1_000
    reader = joined(cluster, new, "workspace:3")
    assert len(reader.pictures["workspace:3"]) == 101
    assert max(map(len, cluster.sent)) <= 64 << 10
    assert tags(cluster).count("whole") > 1


def test_limits_count_the_members_of_other_processes(cluster: Cluster) -> None:
    """A room that others have filled is full here too."""
    cluster.limits = msgspec.structs.replace(cluster.limits, room_members=2)
    here, there = cluster.start(), cluster.start()
    joined(cluster, here)
    joined(cluster, here)
    with pytest.raises(RequestError) as refused:
        there.rooms.join(there.reader(), ROOM, None)
    assert refused.value.code == "room_full"


def test_ghosts_of_a_killed_process_are_gone_in_time(cluster: Cluster) -> None:
    """The members of a process that died are gone between 30 and 45 s later, and those of others stay (I43)."""
    here, there, third = cluster.start(), cluster.start(), cluster.start()
    one, ghost, other = joined(cluster, here), joined(cluster, there), joined(cluster, third)
    cluster.kill(there)
    cluster.loop.pass_time(BEAT * (MAX_SILENCE - 1))
    assert ghost.session in one.pictures[ROOM]
    cluster.loop.pass_time(45 - BEAT * (MAX_SILENCE - 1))
    assert one.pictures[ROOM].keys() == other.pictures[ROOM].keys() == {one.session, other.session}
    assert here.figures.watched["room_members_elsewhere"]() == 1


def test_a_process_that_stops_says_goodbye(cluster: Cluster) -> None:
    """The members of a process that stops are gone at once, and a late message of it brings none back."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there)
    late = [message for message in cluster.sent if two.session.encode() in message]
    cluster.stop(there)
    cluster.loop.pass_time(SOON)
    assert one.pictures[ROOM].keys() == {one.session}
    assert late
    for message in late:
        here.rooms.received(message)
    cluster.loop.pass_time(SOON)
    assert one.pictures[ROOM].keys() == {one.session}


def test_a_process_that_stopped_says_no_more(cluster: Cluster) -> None:
    """After its goodbye a process tells the others nothing, whatever its guests still do."""
    here, there = cluster.start(), cluster.start()
    two = joined(cluster, there)
    there.rooms.goodbye()
    cluster.sent.clear()
    there.rooms.cast(two, ROOM, "e", 1)
    there.rooms.depart(two)
    two.left(ROOM)
    cluster.loop.pass_time(2 * BEAT)
    assert {msgspec.json.decode(message)["node"] for message in cluster.sent} == {here.name}


def test_a_deaf_process_catches_up_when_told(cluster: Cluster) -> None:
    """What was lost in both directions while the channel was down is made up for at once when it is up again (I42)."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there)
    cluster.deaf.add(there.name)
    here.rooms.show(one, ROOM, "unheard")
    three = joined(cluster, there)
    there.rooms.leave(two, ROOM)
    two.left(ROOM)
    cluster.loop.pass_time(2 * BEAT)
    assert three.pictures[ROOM][one.session]["state"] is None
    cluster.deaf.clear()
    there.rooms.resynchronise()
    cluster.loop.pass_time(2 * SOON)
    assert one.pictures == three.pictures
    assert one.pictures[ROOM].keys() == {one.session, three.session}
    assert one.pictures[ROOM][one.session]["state"] == "unheard"


def test_what_comes_late_changes_nothing(cluster: Cluster) -> None:
    """What a process told of earlier takes nothing back, and makes nobody ask."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there)
    there.rooms.received(msgspec.json.encode({"type": "ask", "node": here.name, "of": there.name}))
    cluster.loop.pass_time(BEAT)
    late = [message for message in cluster.sent if msgspec.json.decode(message)["node"] == there.name]
    assert set(tags(cluster)) >= {"beat", "delta", "whole"}
    there.rooms.show(two, ROOM, "new")
    cluster.loop.pass_time(SOON)
    cluster.sent.clear()
    one.frames.clear()
    for message in late:
        here.rooms.received(message)
    cluster.loop.pass_time(SOON)
    assert one.frames == []
    assert set(tags(cluster)) <= {"beat"}


def test_a_process_held_for_a_minute_comes_back(cluster: Cluster) -> None:
    """A process that was silent for too long is forgotten, and is back with its members within two beats."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there)
    cluster.deaf.add(there.name)
    cluster.loop.pass_time(60)
    assert one.pictures[ROOM].keys() == {one.session}
    cluster.deaf.clear()
    cluster.loop.pass_time(2 * BEAT)
    assert one.pictures == two.pictures
    assert one.pictures[ROOM].keys() == {one.session, two.session}


def test_a_loss_that_nothing_follows_is_found_by_a_beat(cluster: Cluster) -> None:
    """A lost message is noticed within a beat though the process says nothing more."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there)
    cluster.deaf.add(there.name)
    here.rooms.show(one, ROOM, "lost")
    cluster.loop.pass_time(0.1)
    cluster.deaf.clear()
    cluster.loop.pass_time(BEAT + SOON)
    assert two.pictures[ROOM][one.session]["state"] == "lost"


def test_a_gap_is_closed_at_once(cluster: Cluster) -> None:
    """A lost message is made up for as soon as another one follows; a lost answer is asked for again after a beat."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there)
    three = joined(cluster, here)
    cluster.loop.pass_time(BEAT)
    for lost, within in ((0.1, SOON), (0.15, BEAT + 2 * SOON)):
        cluster.deaf.add(there.name)
        here.rooms.show(one, ROOM, "lost")
        cluster.loop.pass_time(0.1)
        cluster.deaf.clear()
        here.rooms.show(three, ROOM, lost)
        cluster.loop.pass_time(0.0041)  # the second message has come, and the question is on its way
        if lost > 0.1:
            cluster.deaf.add(there.name)
            cluster.loop.pass_time(0.05)
            cluster.deaf.clear()
        cluster.loop.pass_time(within)
        assert two.pictures == one.pictures
        assert two.pictures[ROOM][three.session]["state"] == lost
        here.rooms.show(one, ROOM, None)
        cluster.loop.pass_time(2 * BEAT)


def test_a_quiet_cluster_is_quiet(cluster: Cluster) -> None:
    """While nothing happens nobody is told anything, and processes send beats alone."""
    processes = [cluster.start() for _ in range(3)]
    readers = [joined(cluster, process) for process in processes for _ in range(2)]
    processes[0].rooms.leave(readers[0], ROOM)
    readers[0].left(ROOM)
    late = cluster.start()
    readers.append(joined(cluster, late))
    cluster.loop.pass_time(2 * BEAT)
    cluster.sent.clear()
    for reader in readers:
        reader.frames.clear()
    cluster.loop.pass_time(300)
    assert set(tags(cluster)) == {"beat"}
    assert len(cluster.sent) <= 4 * (300 / BEAT + 1)
    assert all(reader.frames == [] for reader in readers)


def test_a_room_that_was_left_is_seen_anew(cluster: Cluster) -> None:
    """Whoever comes back to a room that others kept sees what changed there meanwhile."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there)
    here.rooms.join(one, ROOM, "shown")
    cluster.loop.turn()
    here.rooms.show(one, ROOM, "not told any more")
    here.rooms.leave(one, ROOM)
    one.left(ROOM)
    there.rooms.show(two, ROOM, "meanwhile")
    cluster.loop.pass_time(1)
    here.rooms.join(one, ROOM, "shown")
    cluster.loop.pass_time(1)
    assert one.pictures == two.pictures
    assert one.pictures[ROOM][two.session]["state"] == "meanwhile"


def test_many_who_ask_are_answered_together(cluster: Cluster) -> None:
    """However many processes start at once, each of the others tells the whole a few times only."""
    old = cluster.start()
    joined(cluster, old)
    cluster.loop.pass_time(BEAT)
    cluster.sent.clear()
    for _ in range(10):
        cluster.start()
        cluster.loop.pass_time(0.05)
    cluster.loop.pass_time(BEAT)
    wholes = [m for m in map(msgspec.json.decode, cluster.sent) if m["type"] == "whole" and m["node"] == old.name]
    assert 1 <= len(wholes) <= 2
    cluster.sent.clear()
    cluster.loop.pass_time(4 * BEAT)
    assert set(tags(cluster)) == {"beat"}


def test_a_broadcast_travels_only_where_it_is_heard(cluster: Cluster) -> None:
    """A broadcast is not sent to other processes while none of them has anybody in the room."""
    here, there = cluster.start(), cluster.start()
    one = joined(cluster, here)
    joined(cluster, there, "workspace:8")
    cluster.sent.clear()
    here.rooms.cast(one, ROOM, "e", 1)
    cluster.loop.turn()
    assert cluster.sent == []
    two = joined(cluster, there)
    here.rooms.cast(one, ROOM, "e", 2)
    cluster.loop.pass_time(SOON)
    assert tags(cluster).count("cast") == 1
    assert two.heard() == [2]


def test_a_process_alone_tells_nobody(cluster: Cluster) -> None:
    """While no other process is known nothing is sent but beats."""
    alone = cluster.start()
    one, two = joined(cluster, alone), joined(cluster, alone)
    alone.rooms.show(one, ROOM, 1)
    alone.rooms.cast(two, ROOM, "e", 1)
    cluster.loop.pass_time(2 * BEAT)
    assert set(tags(cluster)) == {"beat"}
    there = cluster.start()
    other = joined(cluster, there)
    assert other.pictures == one.pictures


def test_a_repeated_broadcast_is_heard_once(cluster: Cluster) -> None:
    """A broadcast that the channel repeats, or brings after a later one, is not heard again."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there)
    cluster.sent.clear()
    for payload in (1, 2):
        here.rooms.cast(one, ROOM, "e", payload)
    cluster.loop.pass_time(SOON)
    for message in cluster.sent * 2:
        there.rooms.received(message)
        here.rooms.received(message)
    cluster.loop.pass_time(SOON)
    assert two.heard() == [1, 2] and one.heard() == []


def test_what_is_not_understood_is_ignored_and_counted(cluster: Cluster) -> None:
    """Bytes that are no message of ours change nothing, nor does one who speaks for another's sessions."""
    here, there = cluster.start(), cluster.start()
    one, two = joined(cluster, here), joined(cluster, there)
    node = "f" * 16
    member = b'{"user":"eve","state":1}'
    foreign = [
        b"",
        b"\xff\xfe",
        b"null",
        b"[" * 10_000,
        b'{"type":"later","node":"%b"}' % node.encode(),
        b'{"type":"delta","node":"%b","number":-1,"rooms":{}}' % node.encode(),
        b'{"type":"delta","node":"%b","number":1,"rooms":{"%b":{"%b":%b}}}'
        % (node.encode(), ROOM.encode(), two.session.encode(), member),
        b'{"type":"whole","node":"%b","number":9,"part":1,"parts":1,"rooms":{}}' % node.encode(),
        b'{"type":"delta","node":"x","number":1,"rooms":{"%b":{"x-1":{"user":"e","state":{nan}}}}}' % ROOM.encode(),
        b'{"type":"delta","node":"x","number":1,"rooms":{"%b":{"x-1":{"user":"e","state":"\xff"}}}}' % ROOM.encode(),
        b'{"type":"cast","node":"%b","number":1,"room":"%b","session":"%b","frame":{}}'
        % (node.encode(), ROOM.encode(), two.session.encode()),
    ]
    for message in foreign:
        here.rooms.received(message)
    cluster.loop.pass_time(SOON)
    assert here.figures.messages_foreign == len(foreign)
    assert one.pictures == two.pictures
    assert one.pictures[ROOM].keys() == {one.session, two.session}


@given(st.one_of(st.binary(max_size=80), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists)))
def test_any_bytes_are_understood_or_foreign(body: object) -> None:
    """Whatever comes, decoding gives a message or says that it is none."""
    message = body if isinstance(body, bytes) else msgspec.json.encode({"type": "delta", "node": "x", "rooms": body})
    with pytest.raises(Foreign):
        decoded(message)
