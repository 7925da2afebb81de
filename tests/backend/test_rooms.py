"""Rooms of one process: joining, states, broadcasts, and readers that are slow (SPEC 6)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backend.rooms_world import NO_LIMITS, Cluster, Process, Reader
from tidemark.sync.fanout import LIGHT
from tidemark.sync.frames import Frame
from tidemark.sync.rooms import MAX_WAITING, PRESENCE_INTERVAL, RoomLimits
from tidemark_protocol.errors import RequestError

ROOM = "workspace:7"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster without limits."""
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def process(cluster: Cluster) -> Process:
    """A process that is alone."""
    return cluster.start()


def limited(cluster: Cluster, **limits: int) -> Process:
    """A process with some limits."""
    cluster.limits = RoomLimits(**{"broadcast_rate": 0, "room_rate": 0} | limits)
    return cluster.start()


def entered(cluster: Cluster, process: Process, count: int, room: str = ROOM) -> list[Reader]:
    """Readers that are in a room and know all of each other."""
    readers = [process.reader() for _ in range(count)]
    for reader in readers:
        process.rooms.join(reader, room, None)
    cluster.loop.pass_time(2 * PRESENCE_INTERVAL)
    for reader in readers:
        reader.frames.clear()
    return readers


def test_a_join_in_a_quiet_room_is_answered_at_once(cluster: Cluster, process: Process) -> None:
    """The whole room, oneself included, follows a join in the same turn of the loop."""
    one = process.reader("ada")
    process.rooms.join(one, ROOM, {"cursor": 1})
    cluster.loop.turn()
    assert one.frames == [
        {"t": "presence", "room": ROOM, "members": {one.session: {"user": "ada", "state": {"cursor": 1}}}}
    ]


def test_changes_are_gathered(cluster: Cluster, process: Process) -> None:
    """In a room where much happens a frame of changes comes ten times a second, with the last of each session."""
    one, two = entered(cluster, process, 2)
    started = cluster.loop.time()
    for step in range(100):
        process.rooms.show(two, ROOM, step)
        cluster.loop.pass_time(0.01)
    cluster.loop.pass_time(PRESENCE_INTERVAL)
    assert one.frames == two.frames
    assert len(one.frames) <= 1 + (cluster.loop.time() - started) / PRESENCE_INTERVAL
    assert one.pictures[ROOM][two.session]["state"] == 99


def test_who_comes_and_goes_unseen_is_not_told_of(cluster: Cluster, process: Process) -> None:
    """A session that joins and leaves before the next frame of changes shows nowhere."""
    one, two = entered(cluster, process, 2)
    process.rooms.show(two, ROOM, "begins the interval")
    cluster.loop.turn()
    three = process.reader()
    process.rooms.join(three, ROOM, None)
    process.rooms.leave(three, ROOM)
    process.rooms.show(one, ROOM, "for a moment")
    process.rooms.show(one, ROOM, None)
    cluster.loop.pass_time(2 * PRESENCE_INTERVAL)
    assert [frame.keys() for frame in one.frames] == [{"t", "room", "changed"}]
    assert three.frames == []


def test_all_who_join_at_once_are_given_the_same_frame(cluster: Cluster, process: Process) -> None:
    """A thousand joins are answered out of a few frames, each built once, and change nothing twice for the others."""
    readers = [process.reader() for _ in range(1_000)]
    for reader in readers:
        process.rooms.join(reader, ROOM, None)
    cluster.loop.pass_time(1)
    assert all(len(reader.pictures[ROOM]) == 1_000 for reader in readers)
    assert len({id(frame) for reader in readers for frame in reader.pieces}) <= 3


def test_joining_again_shows_another_state_and_all_members(cluster: Cluster, process: Process) -> None:
    """Whoever is in and joins again is answered with all members; the others hear of a changed state."""
    one, two = entered(cluster, process, 2)
    process.rooms.join(one, ROOM, "again")
    cluster.loop.pass_time(PRESENCE_INTERVAL)
    assert [frame["members"][one.session]["state"] for frame in one.frames] == ["again"]
    assert [frame["changed"].keys() for frame in two.frames] == [{one.session}]
    assert process.rooms.members == 2


def test_a_room_left_is_left(cluster: Cluster, process: Process) -> None:
    """Nothing of a room reaches whoever left it, and nothing it says is taken; the others are told."""
    one, two = entered(cluster, process, 2)
    process.rooms.leave(two, ROOM)
    two.left(ROOM)
    process.rooms.cast(one, ROOM, "e", "unheard")
    cluster.loop.pass_time(PRESENCE_INTERVAL)
    assert two.frames == []
    assert one.pictures[ROOM].keys() == {one.session}
    with pytest.raises(RequestError, match="not in the room") as refused:
        process.rooms.leave(two, ROOM)
    assert refused.value.code == "not_joined"
    with pytest.raises(RequestError, match="not in the room"):
        process.rooms.show(two, ROOM, 1)
    with pytest.raises(RequestError, match="not in the room"):
        process.rooms.cast(two, ROOM, "e", 1)


def test_a_room_that_all_have_left_is_served_no_more(cluster: Cluster, process: Process) -> None:
    """What was to be told in a room when its last guest left is told to nobody."""
    readers = entered(cluster, process, 2)
    process.rooms.show(readers[0], ROOM, "begins the interval")
    cluster.loop.turn()
    process.figures.fanned.clear()
    process.rooms.show(readers[0], ROOM, "gathered")
    process.rooms.cast(readers[0], ROOM, "e", "said")
    for reader in readers:
        process.rooms.leave(reader, ROOM)
        reader.left(ROOM)
    cluster.loop.pass_time(2 * PRESENCE_INTERVAL)
    assert process.figures.fanned == []


def test_a_departed_guest_leaves_all_its_rooms(cluster: Cluster, process: Process) -> None:
    """The end of a connection leaves all its rooms; the loss of a scope those of that scope alone (I43)."""
    one, two = entered(cluster, process, 2)
    for room in (f"{ROOM}/document:12", "workspace:77", "workspace:77/a"):
        process.rooms.join(two, room, None)
    process.rooms.depart(two, ROOM)
    two.left(ROOM)
    assert process.rooms.rooms_of(two) == {"workspace:77", "workspace:77/a"}
    cluster.loop.pass_time(PRESENCE_INTERVAL)
    assert one.pictures[ROOM].keys() == {one.session}
    process.rooms.depart(two)
    process.rooms.depart(one)
    assert (process.rooms.rooms, process.rooms.members) == (0, 0)
    for reader in (one, two):
        assert process.rooms.rooms_of(reader) == frozenset()
        reader.pictures.clear()
    assert (process.rooms._visitors, process.rooms._rooms) == ({}, {})


def test_a_broadcast_reaches_the_others(cluster: Cluster, process: Process) -> None:
    """All in the room but the sender get one frame, the same for all, and nobody elsewhere does (I44)."""
    one, two, three, four = entered(cluster, process, 4)
    (other,) = entered(cluster, process, 1, f"{ROOM}/a")
    process.rooms.cast(one, ROOM, "typing", {"on": True})
    cluster.loop.turn()
    told = {
        "t": "broadcast",
        "room": ROOM,
        "from": {"session": one.session, "user": one.user},
        "event": "typing",
        "payload": {"on": True},
    }
    assert (one.frames, two.frames, three.frames, other.frames) == ([], [told], [told], [])
    assert two.pieces[-1] is four.pieces[-1]


def test_broadcasts_of_one_turn_go_out_in_one_piece(cluster: Cluster, process: Process) -> None:
    """What many say in one turn of the loop is handed to each guest once, in order, and never what it said itself."""
    readers = entered(cluster, process, 200)
    for reader in readers[:150]:
        reader.pieces.clear()
        process.rooms.cast(reader, ROOM, "e", reader.session)
    silent = readers[-1]
    silent.pieces.clear()
    cluster.loop.pass_time(0)
    said = [reader.session for reader in readers[:150]]
    for reader in readers:
        assert reader.heard() == [session for session in said if session != reader.session]
    assert len(silent.pieces) == 3
    assert silent.pieces[-1] is readers[-3].pieces[-1]


def test_broadcasts_go_out_in_pieces_that_a_reader_can_take(cluster: Cluster, process: Process) -> None:
    """However much is said in one turn, no piece of it is larger than the smallest buffers are, and nothing is lost."""
    one, two = entered(cluster, process, 2)
    two.pieces.clear()
    for number in range(50):
        process.rooms.cast(one, ROOM, f"e{number}", f"{number:02}" + "x" * 16_000)
    process.rooms.show(one, ROOM, "busy")
    cluster.loop.pass_time(2 * PRESENCE_INTERVAL)
    assert [int(payload[:2]) for payload in two.heard()] == list(range(50))
    assert two.pictures[ROOM][one.session]["state"] == "busy"
    sizes = [len(piece.wire) if isinstance(piece, Frame) else len(piece) for piece in two.pieces]
    assert max(sizes) <= LIGHT + 1_000


def test_a_room_is_silent_while_it_is_not_known_who_may_hear(cluster: Cluster, process: Process) -> None:
    """What is said while members are looked up is heard by those who are left, and by them alone (I43, I44)."""
    one, two, former = entered(cluster, process, 3)
    process.unsettled.add(ROOM.partition("/")[0])
    process.rooms.cast(one, ROOM, "e", "secret")
    cluster.loop.pass_time(1)
    assert (two.heard(), former.heard()) == ([], [])
    process.rooms.depart(former, ROOM.partition("/")[0])
    former.left(ROOM)
    process.unsettled.clear()
    process.rooms.settled(ROOM.partition("/")[0])
    cluster.loop.pass_time(1)
    assert (two.heard(), former.heard()) == (["secret"], [])
    assert two.presence()[-1]["left"] == [former.session]


def test_limits_of_rooms(cluster: Cluster) -> None:
    """Sessions and states of a room are bounded, and the rooms of a stream; who is refused changes nothing."""
    process = limited(cluster, room_members=2, room_state=20, rooms_per_stream=1)
    one, two = entered(cluster, process, 2)
    three = process.reader()
    for guest, room, state, code in (
        (three, ROOM, None, "room_full"),
        (one, f"{ROOM}/a", None, "too_many_rooms"),
        (three, f"{ROOM}/a", "x" * 20, "room_full"),
        (one, ROOM, "x" * 20, "room_full"),
    ):
        with pytest.raises(RequestError) as refused:
            process.rooms.join(guest, room, state)
        assert refused.value.code == code
    with pytest.raises(RequestError) as refused:
        process.rooms.show(one, ROOM, "x" * 20)
    assert refused.value.code == "room_full"
    process.rooms.show(one, ROOM, "x" * 14)
    process.rooms.show(one, ROOM, "y" * 14)
    cluster.loop.pass_time(1)
    assert two.pictures[ROOM][one.session]["state"] == "y" * 14
    assert (process.rooms.rooms, process.rooms.members) == (1, 2)


def test_above_the_rate_the_latest_waits(cluster: Cluster) -> None:
    """Above its rate a connection's latest of each event waits for its turn, and its latest state."""
    process = limited(cluster, broadcast_rate=10)
    one, two = entered(cluster, process, 2)
    for step in range(100):
        process.rooms.cast(one, ROOM, "cursor", step)
        process.rooms.cast(one, ROOM, "typing", step)
        process.rooms.show(one, ROOM, step)
    cluster.loop.turn()
    assert len(two.heard()) <= 20
    cluster.loop.pass_time(1)
    assert two.heard()[-2:] == [99, 99]
    assert two.pictures[ROOM][one.session]["state"] == 99
    fates = process.figures.fates
    assert fates["sent"] <= 20 + 10 + 1
    assert fates["sent"] + fates["coalesced"] == 300


def test_the_rate_of_a_room_is_shared(cluster: Cluster) -> None:
    """Above a room's rate the latest of each sender waits, first come first served."""
    process = limited(cluster, room_rate=10)
    readers = entered(cluster, process, 41)
    for step in range(3):
        for reader in readers[:40]:
            process.rooms.cast(reader, ROOM, "e", [reader.session, step])
    cluster.loop.pass_time(0.001)
    heard = readers[40].heard()
    assert heard == [[reader.session, 0] for reader in readers[:20]]
    cluster.loop.pass_time(4.1)
    assert readers[40].heard()[20:] == [[reader.session, 2] for reader in readers[20:40] + readers[:20]]


@pytest.mark.parametrize("limit", ["broadcast_rate", "room_rate"])
def test_what_waits_is_dropped_with_the_stay(cluster: Cluster, limit: str) -> None:
    """What a guest said above a rate is not said after it left, though it comes back."""
    process = limited(cluster, **{limit: 1})
    one, two = entered(cluster, process, 2)
    for event in ("a", "b", "c", "d"):
        process.rooms.cast(one, ROOM, event, event)
    cluster.loop.turn()
    process.rooms.leave(one, ROOM)
    one.left(ROOM)
    process.rooms.join(one, ROOM, "back")
    cluster.loop.pass_time(10)
    assert two.heard() == ["a", "b"]
    assert two.pictures[ROOM][one.session]["state"] == "back"


def test_a_join_outdoes_the_state_that_waits(cluster: Cluster) -> None:
    """Whoever joins again shows that state, not an earlier one that waited for its turn."""
    process = limited(cluster, broadcast_rate=1)
    one, two = entered(cluster, process, 2)
    for state in (1, 2, "waits"):
        process.rooms.show(one, ROOM, state)
    process.rooms.join(one, ROOM, "joined again")
    cluster.loop.pass_time(10)
    assert two.pictures[ROOM][one.session]["state"] == "joined again"


def test_broadcasts_do_not_outdo_a_state(cluster: Cluster) -> None:
    """However many events wait, of which the oldest give way, the latest state is shown in the end."""
    process = limited(cluster, broadcast_rate=1)
    one, two = entered(cluster, process, 2)
    for state in range(4):
        process.rooms.show(one, ROOM, state)
    for number in range(100):
        process.rooms.cast(one, ROOM, f"event {number}", number)
    cluster.loop.pass_time(30)
    assert two.pictures[ROOM][one.session]["state"] == 3
    assert two.heard() == list(range(100 - MAX_WAITING, 100))


def test_a_state_that_waited_may_find_the_room_full(cluster: Cluster) -> None:
    """A state that fitted when it was sent and does not when its turn comes is refused then."""
    process = limited(cluster, broadcast_rate=1, room_state=20)
    one, two = entered(cluster, process, 2)
    for state in (1, 2, "x" * 12):
        process.rooms.show(one, ROOM, state)
    process.rooms.show(two, ROOM, "y" * 10)
    cluster.loop.pass_time(2)
    assert [(frame["code"], frame["room"]) for frame in one.frames if frame["t"] == "error"] == [("room_full", ROOM)]
    assert two.pictures[ROOM][one.session]["state"] == 2


def test_a_slow_reader_gets_the_whole_once_it_has_caught_up(cluster: Cluster, process: Process) -> None:
    """A reader that was too slow for changes hears of them in the whole, in each room, and only once."""
    rooms = [ROOM, f"{ROOM}/a", f"{ROOM}/b"]
    slow, quick = process.reader(), process.reader()
    for room in rooms:
        process.rooms.join(slow, room, None)
        process.rooms.join(quick, room, None)
    cluster.loop.pass_time(1)
    slow.frames.clear()
    slow.slow = True
    for room in rooms[:2]:
        process.rooms.show(quick, room, "first")
        cluster.loop.pass_time(1)
        process.rooms.show(quick, room, "second")
        cluster.loop.pass_time(1)
    assert slow.frames == []
    process.rooms.drained(slow)
    assert [frame["room"] for frame in slow.frames] == rooms[:1]
    slow.slow = False
    process.rooms.show(quick, rooms[1], "third")
    process.rooms.drained(slow)
    process.rooms.drained(slow)
    cluster.loop.pass_time(1)
    assert [(frame["room"], "members" in frame) for frame in slow.frames] == [
        (rooms[0], True),
        (rooms[1], True),
        (rooms[1], False),
    ]
    assert slow.pictures == quick.pictures
    assert process.figures.frames_withheld == 2


def test_what_changes_while_a_reader_catches_up(cluster: Cluster, process: Process) -> None:
    """The whole that a slow reader gets and the changes that follow fit each other; a room left is not among it."""
    slow, quick = entered(cluster, process, 2)
    process.rooms.join(slow, f"{ROOM}/a", None)
    cluster.loop.pass_time(1)
    slow.slow = True
    process.rooms.show(quick, ROOM, "missed")
    process.rooms.join(quick, f"{ROOM}/a", None)
    cluster.loop.turn()
    process.rooms.show(quick, ROOM, "gathered")
    process.rooms.leave(slow, f"{ROOM}/a")
    slow.left(f"{ROOM}/a")
    slow.slow = False
    process.rooms.drained(slow)
    assert slow.pictures[ROOM][quick.session]["state"] == "missed"
    cluster.loop.pass_time(1)
    assert slow.pictures[ROOM] == quick.pictures[ROOM]
    assert slow.pictures[ROOM][quick.session]["state"] == "gathered"


def test_a_guest_too_slow_for_its_answer_gets_it_later(cluster: Cluster, process: Process) -> None:
    """Who is too slow for the answer to a join hears nothing of the room before that answer."""
    slow, quick = process.reader(), process.reader()
    slow.slow = True
    process.rooms.join(quick, ROOM, None)
    process.rooms.join(slow, ROOM, None)
    cluster.loop.pass_time(1)
    slow.slow = False
    process.rooms.cast(quick, ROOM, "e", "early")
    cluster.loop.pass_time(1)
    assert slow.frames == []
    process.rooms.drained(slow)
    process.rooms.cast(quick, ROOM, "e", "late")
    cluster.loop.pass_time(1)
    assert slow.heard() == ["late"]
    assert slow.pictures == quick.pictures


def test_a_long_fan_out_overtaken(cluster: Cluster, process: Process) -> None:
    """Guests served late in a long fan-out, who leave meanwhile, hear nothing more; who comes back sees all."""
    readers = entered(cluster, process, 600)
    *_, gone, last = readers

    def overtake() -> None:
        assert readers[0].frames and not last.frames
        for reader in (gone, last):
            process.rooms.leave(reader, ROOM)
            reader.left(ROOM)
        process.rooms.join(last, ROOM, "back")

    process.rooms.show(readers[0], ROOM, "first")
    cluster.loop.call_soon(overtake)
    cluster.loop.pass_time(1)
    assert last.pictures == readers[0].pictures
    assert last.pictures[ROOM][last.session]["state"] == "back"
    assert gone.frames == []


def test_leaving_before_the_answer(cluster: Cluster, process: Process) -> None:
    """Of many who join at once, those who leave before their answer get none."""
    entered(cluster, process, 1)
    readers = [process.reader() for _ in range(600)]

    def overtake() -> None:
        assert readers[0].frames and not readers[-1].frames
        for reader in readers[-10:]:
            process.rooms.leave(reader, ROOM)

    for reader in readers:
        process.rooms.join(reader, ROOM, None)
    cluster.loop.call_soon(overtake)
    cluster.loop.pass_time(1)
    assert all(reader.frames == [] for reader in readers[-10:])
    assert len(readers[0].pictures[ROOM]) == 591


def test_a_fault_of_one_guest_is_made_up_for(cluster: Cluster, process: Process) -> None:
    """Guests that missed something by the fault of another have the right picture after the next change."""
    readers = entered(cluster, process, 4)
    readers[1].broken = True
    process.rooms.show(readers[0], ROOM, "left out")
    late = process.reader()
    process.rooms.join(late, ROOM, "late")
    cluster.loop.pass_time(1)
    readers[1].broken = False
    process.rooms.show(readers[0], ROOM, "told")
    cluster.loop.pass_time(1)
    assert all(reader.pictures == late.pictures for reader in readers)
    assert late.pictures[ROOM][readers[0].session]["state"] == "told"


def test_figures_of_rooms(cluster: Cluster, process: Process) -> None:
    """Rooms, members and fan-outs are told to whoever watches."""
    readers = entered(cluster, process, 3)
    process.figures.fanned.clear()
    process.rooms.cast(readers[0], ROOM, "e", "x" * 100)
    cluster.loop.pass_time(0.01)
    ((receivers, size, lag, origin),) = process.figures.fanned
    assert (receivers, origin) == (2, "here") and size > 200 and 0 <= lag < 0.01
    assert {what: reading() for what, reading in process.figures.watched.items()} == {
        "rooms": 1,
        "room_members_here": 3,
        "room_members_elsewhere": 0,
    }
    assert cluster.limits == NO_LIMITS
