"""Rooms over three processes: who is in, what is shown and said, and who is gone (SPEC section 6)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.cluster.conftest import Cluster, Joined
from tests.contract.stream import Room, welcomed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

AT_ONCE = 4.0
"""Seconds: a few messages between processes on a busy machine."""
RECOVERED = 20.0
"""Seconds in which a channel that works again is found, and processes have told each other who is where."""
GHOSTS_GONE = 45.0


def agree(rooms: Sequence[Room], seconds: float) -> float:
    """Wait until everybody sees exactly those who are here, with one state each; the seconds that it took."""
    begun = time.monotonic()
    here = {room.stream.session for room in rooms}
    while any(room.look() != rooms[0].look() or room.look().keys() != here for room in rooms):
        pictures = {room.stream.session: room.look() for room in rooms}
        assert time.monotonic() - begun < seconds, f"no agreement within {seconds:g} s: {pictures}"
        for room in rooms:
            for _ in room.stream.incoming(0.02):
                pass
    return time.monotonic() - begun


def shown(rooms: Sequence[Room], session: str, state: object, seconds: float = AT_ONCE) -> None:
    """Wait until everybody sees this state of a session."""
    for room in rooms:
        room.until(lambda found: session in found and found[session]["state"] == state, seconds)


def test_a_room_spans_processes(joined: Joined) -> None:
    """Who joins, shows, says and leaves on one process is seen on all, broadcasts by all others once (I42, I44)."""
    cluster = joined.cluster
    one, two, three = (service.device() for service in cluster.services)
    name = f"{cluster.services[0].workspace(owner=one, editor=two, viewer=three)}/document:1"
    with welcomed(one, two, three) as streams:
        rooms = [stream.join(name, state=number) for number, stream in enumerate(streams)]
        agree(rooms, AT_ONCE)
        assert rooms[2].look() == {
            stream.session: {"user": stream.device.user, "state": number} for number, stream in enumerate(streams)
        }
        for number, stream in enumerate(streams):
            for word in range(20):
                stream.broadcast(name, [number, word])
            stream.send({"t": "presence", "room": name, "state": {"done": number}})
            # One sender's words and states keep their order: with the state all words have come.
            shown(rooms, stream.session, {"done": number})
        for own, stream in enumerate(streams):
            heard = [
                (frame["from"]["session"], frame["from"]["user"], frame["payload"]) for frame in stream.heard(name)
            ]
            assert heard == [
                (other.session, other.device.user, [number, word])
                for number, other in enumerate(streams)
                for word in range(20)
                if number != own
            ]
        streams[1].send({"t": "leave", "room": name})
        agree([rooms[0], rooms[2]], AT_ONCE)
        streams[2].cut()
        agree([rooms[0]], AT_ONCE)
    assert cluster.errors() == []


def test_tabs_of_a_user_on_several_processes(joined: Joined) -> None:
    """Several tabs and devices of a user, wherever they are connected, are several sessions of one user (I42)."""
    cluster = joined.cluster
    user = cluster.services[0].device()
    tabs = [device for device in cluster.devices(user) for _ in range(2)]
    with welcomed(*tabs) as streams:
        rooms = [stream.join(user.scope, state=stream.session) for stream in streams]
        agree(rooms, AT_ONCE)
        for room in rooms:
            assert room.look() == {stream.session: {"user": user.user, "state": stream.session} for stream in streams}


@pytest.mark.parametrize("dead", [False, True], ids=["joined", "apart"])
def test_a_membership_that_ends_ends_rooms(joined: Joined, dead: bool) -> None:
    """Who is expelled on one process is out of the scope's rooms on all within a second, or a poll interval (I43)."""
    cluster = joined.cluster
    owner, member = cluster.services[0].device(), cluster.services[0].device()
    scope = cluster.services[0].workspace(owner=owner, viewer=member)
    with welcomed(*cluster.devices(owner)) as owners, welcomed(*cluster.devices(member)) as former:
        stay = [stream.join(scope) for stream in owners]
        agree(stay + [stream.join(scope) for stream in former], AT_ONCE)
        if dead:
            joined.broker.kill()
        try:
            owner.expel(scope, member.user)
            begun = time.monotonic()
            owners[0].broadcast(scope, "secret")
            for room, gone in zip(stay, former, strict=True):
                gone.until("scope_revoked")
                room.until(lambda found, session=gone.session: session not in found)  # type: ignore[misc]
            assert time.monotonic() - begun < (3.0 if dead else 1.0)
            for stream in owners:
                stream.broadcast(scope, "secret")
                stream.send({"t": "presence", "room": scope, "state": "secret"})
                stream.ping()
            assert former[0].heard() == []
            for stream in former:
                told = len(stream.frames)
                stream.ping()
                assert [frame["t"] for frame in stream.frames[told:]] == ["pong"]
        finally:
            if dead:
                joined.broker.revive()
                cluster.wait_joined()
        agree(stay, RECOVERED if dead else AT_ONCE)
        for room in stay:
            shown(stay, room.stream.session, "secret", RECOVERED)
    assert cluster.errors() == []


@pytest.mark.parametrize("how", ["killed", "held"])
def test_pictures_agree_again_after_the_broker_was_away(joined: Joined, how: str) -> None:
    """What happened in a room while the broker was away is seen by all soon after it is back (I42)."""
    cluster, broker = joined.cluster, joined.broker
    user = cluster.services[0].device()
    here, there, other = cluster.devices(user)
    with welcomed(here, there, other, here, there) as streams:
        rooms = [stream.join(user.scope, state="before") for stream in streams]
        agree(rooms, AT_ONCE)
        away, back = (broker.kill, broker.revive) if how == "killed" else (broker.hold, broker.release)
        away()
        try:
            streams[0].send({"t": "presence", "room": user.scope, "state": "meanwhile"})
            streams[3].send({"t": "leave", "room": user.scope})
            streams[4].cut()
            with welcomed(other, there) as late:
                came = late[0].join(user.scope, state="late")
                late[1].join(user.scope, state="in vain")
                rooms[0].sees(streams[0].session, *(stream.session for stream in (streams[1], streams[2], streams[4])))
                late[1].connection.close()
                back()
                took = agree([*rooms[:3], came], RECOVERED)
                print(f"{joined.kind} {how}: agreed {took:.2f} s after it was back")  # noqa: T201
                assert came.look()[streams[0].session]["state"] == "meanwhile"
                streams[1].broadcast(user.scope, "again")
                for stream in (streams[0], streams[2], late[0]):
                    stream.until("broadcast")
        finally:
            if how == "held":
                broker.release()
    assert cluster.errors() == []


@pytest.mark.parametrize(("end", "within"), [("stop", AT_ONCE), ("kill", GHOSTS_GONE)])
def test_sessions_of_a_process_that_ends_are_gone(cluster: Cluster, end: str, within: float) -> None:
    """They leave at once when it is asked to end, within 45 s when it dies; its clients join anew elsewhere (I43)."""
    user = cluster.services[0].device()
    stay, go = cluster.devices(user)[1:], cluster.devices(user)[0]
    with welcomed(*stay, go, go) as streams:
        rooms = [stream.join(user.scope, state="first") for stream in streams]
        agree(rooms, AT_ONCE)
        begun = time.monotonic()
        getattr(cluster.servers[0], end)()
        with welcomed(go.on(cluster.through), go.on(cluster.through)) as again:
            rooms[2:] = [stream.join(user.scope, state="again") for stream in again]
            took = agree(rooms, within + time.monotonic() - begun)
            print(f"{end}: gone after {took:.2f} s")  # noqa: T201
            cluster.servers[0].start()
            cluster.wait_joined()
            agree(rooms, AT_ONCE)
            assert {tab.session[:16] for tab in again} <= {stream.session[:16] for stream in streams[:2]}
    assert cluster.errors() == []
