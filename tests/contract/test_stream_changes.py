"""Changes by stream: what was missed, what is live, what is followed, what is pushed (SPEC section 6)."""

from __future__ import annotations

import pytest

from tests.contract.client import SCHEMA, Device, Json, Service, code, fresh, key
from tests.contract.replica import Replica
from tests.contract.stream import Follower, Stream, following


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def held(device: Device) -> Replica:
    """A replica that has everything."""
    replica = Replica()
    replica.pull(device)
    return replica


def test_what_was_missed_comes_first(device: Device) -> None:
    """After the welcome comes one run up to the head, from the hello's watermark."""
    device.apply(device.put("notes", title="old"))
    watermark = held(device).watermark
    puts = [device.put("notes", title="new") for _ in range(3)]
    *_, last = device.apply(*puts)
    with Stream(device, watermark) as stream:
        stream.welcome()
        frame = stream.until("changes")
    assert [change["row"] for change in frame["changes"]] == [put["row"] for put in puts]
    assert frame["from"] > 0
    assert frame["to"] == frame["head"] >= last["version"]
    assert len(frame["clock"]) == 34


def test_a_stream_from_nothing_brings_everything(device: Device) -> None:
    """A hello without watermark brings a run from 0 of the live rows."""
    puts = [device.put("notes", title="n") for _ in range(5)]
    device.apply(*puts, device.delete("notes", puts[0]["row"]))
    with following(device) as follower:
        head = device.pull()["scopes"][0]["head"]
        follower.reach(device.scope, head)
        assert {row for _, row in follower.replica.versions(device.scope)} == {put["row"] for put in puts[1:]}
        assert follower.replica.proved


def test_nothing_missed_brings_no_frame(device: Device) -> None:
    """A hello from the head is followed by nothing until something is written."""
    device.apply(device.put("notes", title="old"))
    with Stream(device, held(device).watermark) as stream:
        stream.welcome()
        stream.ping()
        assert stream.rows() == set()


def test_a_hello_from_elsewhere_is_reset(device: Device) -> None:
    """A hello with a watermark that cannot be followed on brings a run from 0 marked as a reset."""
    put = device.put("notes", title="n")
    device.apply(put)
    with Stream(device, {device.scope: "garbage.1.0.3"}) as stream:
        stream.welcome()
        frame = stream.until("changes")
    assert (frame["reset"], frame["from"], len(frame["changes"])) == (True, 0, 1)


def test_live_changes_follow_each_other(device: Device) -> None:
    """Live frames, of own writes too, begin where the one before ended (I38)."""
    with following(device) as follower:
        for number in range(20):
            (result,) = device.apply(device.put("notes", title=str(number)))
            follower.reach(device.scope, result["version"])
        assert follower.replica.docs(device.scope).keys() == {("notes", row) for row in device.docs()}


def test_a_live_frame_holds_whole_commits(device: Device) -> None:
    """The mutations of one group arrive in one frame (I38)."""
    with Stream(device, held(device).watermark) as stream:
        stream.welcome()
        for _ in range(5):
            group = [device.put("notes", title="g", group="g") for _ in range(30)]
            device.apply(*group)
            stream.change(group[0]["row"])
            assert {put["row"] for put in group} <= {change["row"] for change in stream.frames[-1]["changes"]}


def test_a_push_over_the_stream_is_answered(device: Device) -> None:
    """A push frame is answered by a result frame with its id, verdicts as in section 4, and the clock."""
    with Stream(device) as stream:
        stream.welcome()
        good, bad = device.put("notes", title="good"), device.put("notes")
        mutations = [{"seq": 7} | good, {"seq": 9} | bad]
        stream.send({"t": "push", "id": "first", "schema": SCHEMA, "mutations": mutations})
        result = stream.until("result")
        assert result["id"] == "first"
        assert [(item["seq"], item["status"]) for item in result["results"]] == [(7, "applied"), (9, "rejected")]
        assert code(result["results"][1]) == "missing_field"
        assert len(result["clock"]) == 34
        if good["row"] not in stream.rows():
            stream.change(good["row"])
    assert device.docs().keys() == {good["row"]}


def test_a_push_over_the_stream_and_one_by_http_agree(device: Device) -> None:
    """A mutation pushed by stream and again by HTTP has one effect and one version."""
    put = device.put("notes", title="one")
    with Stream(device) as stream:
        stream.welcome()
        stream.send({"t": "push", "id": "p", "schema": SCHEMA, "mutations": [{"seq": 1} | put]})
        (first,) = stream.until("result")["results"]
    (again,) = device.apply(put)
    assert again["version"] == first["version"]


def test_a_hello_may_name_scopes(service: Service, device: Device) -> None:
    """A hello with `scopes` follows these alone, and is told nothing of scopes that may not be read."""
    one, two, closed = (
        service.workspace(owner=device),
        service.workspace(owner=device),
        service.workspace(owner=service.device()),
    )
    with Stream(device, scopes=[one, closed, f"workspace:{fresh('none')}"]) as stream:
        assert stream.welcome()["scopes"].keys() == {one}
        first, second = device.put("tasks", title="1", scope=one), device.put("tasks", title="2", scope=two)
        device.apply(second, first)
        stream.change(first["row"])
        stream.ping()
        assert second["row"] not in stream.rows()


def test_a_scope_unfollowed_is_silent(service: Service, device: Device) -> None:
    """After `unfollow` no changes of the scope come; others do."""
    scope = service.workspace(owner=device)
    with Stream(device) as stream:
        stream.welcome()
        stream.send({"t": "unfollow", "scopes": [scope]})
        stream.ping()
        silent, heard = device.put("tasks", title="t", scope=scope), device.put("notes", title="n")
        device.apply(silent, heard)
        stream.change(heard["row"])
        stream.ping()
        assert silent["row"] not in stream.rows()


def test_a_scope_followed_again_goes_on_where_it_stood(service: Service, device: Device) -> None:
    """A scope unfollowed and followed again brings what was missed, without gap or repetition."""
    scope = service.workspace(owner=device)
    with following(device) as follower:
        stream = follower.stream
        (first,) = device.apply(device.put("tasks", title="1", scope=scope))
        follower.reach(scope, first["version"])
        stream.send({"t": "unfollow", "scopes": [scope]})
        stream.ping()
        missed = [device.put("tasks", title="2", scope=scope) for _ in range(3)]
        *_, last = device.apply(*missed)
        stream.send({"t": "follow", "scopes": [scope]})
        frame = stream.until("changes", where=lambda frame: frame["scope"] == scope)
        assert frame["from"] == first["version"]
        follower.take(frame)
        follower.reach(scope, last["version"])
        assert len(follower.replica.docs(scope)) == 4


def test_follow_adds_a_scope_from_a_watermark(service: Service, device: Device) -> None:
    """`follow` with a watermark brings what came after it, and then what is live."""
    scope = service.workspace(owner=device)
    device.apply(device.put("tasks", title="old", scope=scope))
    replica = held(device)
    missed = device.put("tasks", title="missed", scope=scope)
    device.apply(missed)
    with Stream(device, scopes=[device.scope]) as stream:
        stream.welcome()
        stream.send({"t": "follow", "scopes": [scope], "watermark": {scope: replica.watermark[scope]}})
        frame = stream.until("changes", where=lambda frame: frame["scope"] == scope)
        assert [change["row"] for change in frame["changes"]] == [missed["row"]]
        replica.apply(frame, asked=True)
        live = device.put("tasks", title="live", scope=scope)
        device.apply(live)
        assert stream.change(live["row"])["doc"]["title"] == "live"


def test_following_what_may_not_be_read_brings_nothing(service: Service, device: Device) -> None:
    """`follow` of a scope that may not be read, or of none, brings no changes and leaves the stream alive."""
    owner = service.device()
    scope = service.workspace(owner=owner)
    owner.apply(owner.put("tasks", title="secret", scope=scope))
    with Stream(device) as stream:
        stream.welcome()
        stream.send({"t": "follow", "scopes": [scope, owner.scope, f"workspace:{fresh('none')}", "no scope"]})
        stream.ping()
        owner.apply(owner.put("tasks", title="secret", scope=scope), owner.put("notes", title="secret"))
        own = device.put("notes", title="own")
        device.apply(own)
        stream.change(own["row"])
        stream.ping()
        assert stream.rows() == {own["row"]}


def test_what_is_too_much_to_catch_up_is_left_to_a_pull(device: Device) -> None:
    """A replica more than 512 KiB behind is told `behind`; after its pull the next frame follows on the head."""
    device.apply(*(device.put("notes", title="n", body="x" * 200_000) for _ in range(4)))
    with following(device) as follower:
        behind = follower.stream.until("behind")
        assert behind["scope"] == device.scope
        assert behind["head"] == device.pull(limit=1)["scopes"][0]["head"]
        follower.take(behind)
        (result,) = device.apply(device.put("notes", title="live"))
        frame = follower.stream.until("changes")
        assert frame["from"] == behind["head"]
        follower.take(frame)
        follower.reach(device.scope, result["version"])
        assert follower.replica.proved


def test_more_than_five_thousand_changes_are_left_to_a_pull(device: Device) -> None:
    """A replica more than 5,000 changes behind is told `behind`."""
    for _ in range(6):
        device.apply(*(device.put("slugs", key()) for _ in range(900)))
    with Stream(device) as stream:
        stream.welcome()
        assert stream.until("behind")["scope"] == device.scope


def test_a_commit_larger_than_the_buffer_is_left_to_a_pull(device: Device) -> None:
    """A live commit above the stream's buffer comes as `behind`; the next frame follows on it."""
    with following(device) as follower:
        (small,) = device.apply(device.put("notes", title="small"))
        follower.reach(device.scope, small["version"])
        group = [device.put("notes", title="g", body="x" * 230_000, group="g") for _ in range(4)]
        *_, last = device.apply(*group)
        behind = follower.stream.until("behind")
        assert behind["head"] >= last["version"]
        follower.take(behind)
        (result,) = device.apply(device.put("notes", title="live"))
        follower.reach(device.scope, result["version"])
        assert len(follower.replica.docs(device.scope)) == 6


def reaches(follower: Follower, device: Device, mutation: Json) -> None:
    """Push by HTTP through `device` and follow until the change has arrived."""
    (result,) = device.apply(mutation)
    follower.reach(result["scope"], result["version"])


def test_changes_through_another_process_arrive(pair: tuple[Service, Service]) -> None:
    """Writes through one process arrive on streams of another, in either direction."""
    here, there = pair
    device = here.device()
    remote = device.on(there)
    with following(device) as near, following(remote) as far:
        for _ in range(10):
            put = device.put("notes", title="n")
            (result,) = device.apply(put)
            for follower in (near, far):
                follower.reach(device.scope, result["version"])
            reaches(near, remote, device.patch("notes", put["row"], title="m"))
        far.reach(device.scope, near.replica.copy(device.scope).to)
        assert near.replica.docs(device.scope) == far.replica.docs(device.scope)
