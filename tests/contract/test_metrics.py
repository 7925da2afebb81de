"""What operators see of a service in use (SPEC section 7): each figure moves with what it stands for."""

from __future__ import annotations

import pytest

from tests.contract.client import Service
from tests.contract.conftest import Launcher
from tests.contract.shop import Shop, eventually
from tests.contract.stream import Stream
from tests.figures import Figures, scrape


@pytest.fixture(scope="module")
def lone(launch: Launcher) -> Service:
    """A service that serves these tests alone, with little room for slow readers."""
    return launch(env={"TIDEMARK_STREAM_BUFFER": "4KiB"}).service


def figures(service: Service) -> Figures:
    """Its figures now."""
    return scrape(str(service.http.base_url))


@pytest.mark.databases("sqlite")
def test_streams_are_counted_by_kind_and_by_how_they_end(lone: Service) -> None:
    """Open ones while they are, how soon they were welcomed, and then with which code they ended; others as refused."""
    before = figures(lone)
    with Stream(lone.device()) as stream:
        stream.welcome()
        shown = figures(lone)
        assert shown.sum("tidemark_streams", kind="websocket") == before.sum("tidemark_streams") + 1
        assert shown.sum("tidemark_stream_open_seconds_count", kind="websocket") == 1 + before.sum(
            "tidemark_stream_open_seconds_count"
        )
    with Stream(lone.device(), token="nobody's") as stream:
        assert stream.close_code() == 4401
    eventually(lambda: figures(lone).sum("tidemark_streams") == before.sum("tidemark_streams"))
    closed, refused = "tidemark_streams_closed_total", "tidemark_streams_refused_total"
    shown = figures(lone)
    assert shown.sum(closed) == before.sum(closed) + 1
    assert shown.sum(refused, code="4401") == before.sum(refused, code="4401") + 1


@pytest.mark.databases("sqlite")
def test_a_change_is_followed_from_its_push_to_its_frames(lone: Service) -> None:
    """One batch, one verdict, one fan-out to all who follow, with its bytes and how late it was."""
    ada = lone.device()
    with Stream(ada) as here, Stream(ada.again()) as there:
        here.welcome()
        there.welcome()
        before = figures(lone)
        op = ada.put("notes", title="a change")
        ada.apply(op)
        frames = [here.change(op["row"]), there.change(op["row"])]
        shown = figures(lone)
    for name, grew in {
        "tidemark_verdicts_total": 1,
        "tidemark_batch_mutations_sum": 1,
        "tidemark_batch_seconds_count": 1,
        "tidemark_fanout_receivers_sum": len(frames),
        "tidemark_fanout_receivers_count": 1,
        "tidemark_fanout_lag_seconds_count": 1,
    }.items():
        assert shown.sum(name) - before.sum(name) == grew, name
    assert shown.sum("tidemark_fanout_bytes_total") - before.sum("tidemark_fanout_bytes_total") > 2 * len(op["row"])


@pytest.mark.databases("sqlite")
def test_what_a_stream_cannot_hold_is_told(lone: Service) -> None:
    """A change larger than the buffer: `behind`, by its cause."""
    ada = lone.device()
    with Stream(ada) as stream:
        stream.welcome()
        before = figures(lone).sum("tidemark_behind_total")
        ada.apply(ada.put("notes", title="long", body="x" * 10_000))
        stream.until("behind")
        assert figures(lone).sum("tidemark_behind_total") == before + 1


@pytest.mark.databases("sqlite")
def test_rooms_their_members_and_broadcasts_are_counted(lone: Service) -> None:
    """Who is in them, what was sent there, to how many."""
    ada, bob = lone.device(), lone.device()
    room = f"{lone.workspace(owner=ada, editor=bob)}/lobby"
    with Stream(ada) as one, Stream(bob) as other:
        for stream in (one, other):
            stream.welcome()
            stream.send({"t": "join", "room": room, "state": {}})
            stream.until("presence", where=lambda frame: "members" in frame)
        shown = figures(lone)
        assert (shown.sum("tidemark_rooms"), shown.sum("tidemark_room_members")) == (1, 2)
        one.send({"t": "broadcast", "room": room, "event": "typing", "payload": {}})
        other.until("broadcast")
        after = figures(lone)
    sent = "tidemark_broadcasts_total"
    assert after.sum(sent, fate="sent") - shown.sum(sent, fate="sent") == 1
    assert after.sum("tidemark_fanout_receivers_sum", what="room") > shown.sum(
        "tidemark_fanout_receivers_sum", what="room"
    )
    eventually(lambda: figures(lone).sum("tidemark_room_members") == 0)


def test_writes_in_sql_are_counted_as_they_are_collected(shop: Shop) -> None:
    """How many the inbox let go of, and how late they reached the feed; what cannot be taken waits, and is counted."""
    ada, scope, tenant = shop.workspace()
    before = figures(shop.service)
    order = shop.insert(tenant)
    shop.arrives(ada, order, scope)
    shop.drained()
    eventually(
        lambda: figures(shop.service).sum("tidemark_inbox_drained_total") > before.sum("tidemark_inbox_drained_total")
    )
    shown = figures(shop.service)
    late = "tidemark_capture_lag_seconds"
    assert shown.sum(f"{late}_count") > before.sum(f"{late}_count")
    assert 0 <= shown.sum(f"{late}_sum") - before.sum(f"{late}_sum") < 30
    assert shown.sum("tidemark_inbox_failures_total") == before.sum("tidemark_inbox_failures_total")
