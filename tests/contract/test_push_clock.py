"""The server's clock in answers, readings ahead of it, and what a `retry` holds up (SPEC sections 2 and 4)."""

from __future__ import annotations

import pytest

from tests.contract.client import Device, Service, code, fresh, milliseconds, reading, wall


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def test_the_clock_is_not_below_the_servers_time(device: Device) -> None:
    """Answers of push and pull carry a reading not below the server's wall time."""
    before = wall()
    for answer in (device.push_answer(device.put("notes", title="one")), device.pull()):
        assert before <= milliseconds(answer["clock"]) <= wall() + 2_000


def test_the_clock_is_not_below_what_it_reflects(device: Device) -> None:
    """After a write 40 s ahead, the answers to the push and to any later pull and push of its user are not below it."""
    # Invariant (I4).
    ahead = reading(wall() + 40_000, 7, "ffffffffffffffff")
    answer = device.push_answer(device.put("notes", title="one", at=ahead))
    assert answer["results"][0]["status"] == "applied"
    assert answer["clock"] >= ahead
    other = device.again()
    assert other.pull()["clock"] >= ahead
    assert other.push_answer(other.put("notes", title="two"))["clock"] >= ahead


def test_causality_needs_no_good_clocks(device: Device) -> None:
    """A write made after seeing another one wins over it, however fast the clock of the first was (I4)."""
    put = device.put("notes", title="from the future", at=reading(wall() + 50_000))
    device.apply(put)
    other = device.again()
    other.pull()
    other.apply(other.patch("notes", put["row"], title="from the present"))
    doc = device.doc("notes", put["row"])
    assert doc is not None
    assert doc["title"] == "from the present"


def test_one_users_fast_clock_does_not_move_anothers(service: Service, device: Device) -> None:
    """A fast write in one user's scope leaves the clock that others are given alone (I5)."""
    ahead = reading(wall() + 50_000)
    device.apply(device.put("notes", title="fast", at=ahead))
    other = service.device()
    assert other.pull()["clock"] < ahead
    assert other.push_answer(other.put("notes", title="calm"))["clock"] < ahead


def test_the_clock_of_a_shared_scope_is_shared(service: Service) -> None:
    """A fast write in a workspace moves the clock that its other members are given."""
    ada, bob = service.device(), service.device()
    scope = service.workspace(editor=ada, viewer=bob)
    ahead = reading(wall() + 50_000)
    ada.apply(ada.put("tasks", title="fast", scope=scope, at=ahead))
    assert bob.pull()["clock"] >= ahead


def test_only_writes_that_took_effect_move_the_clock(device: Device) -> None:
    """A rejected write ahead of time does not move the clock (I5)."""
    ahead = reading(wall() + 50_000)
    answer = device.push_answer(device.put("notes", at=ahead))
    assert code(answer["results"][0]) == "missing_field"
    assert answer["clock"] < ahead


def test_a_clock_too_far_ahead_is_put_off(device: Device) -> None:
    """A reading more than 60 s ahead is `retry` / `clock_ahead` with the server's clock, and nothing is dropped."""
    # Invariant (I6).
    put = device.put("notes", title="far", at=reading(wall() + 3_600_000))
    answer = device.push_answer(put)
    (result,) = answer["results"]
    assert (result["status"], code(result)) == ("retry", "clock_ahead")
    assert milliseconds(answer["clock"]) < wall() + 60_000
    assert device.docs() == {}
    device.apply(put | {"at": device.clock.tick()})


def test_a_clock_slightly_ahead_is_taken(device: Device) -> None:
    """A reading 50 s ahead lies within the drift that is allowed."""
    device.apply(device.put("notes", title="near", at=reading(wall() + 50_000)))


def test_a_retry_stops_what_is_behind(device: Device) -> None:
    """Nothing behind the first `retry` is processed: it answers `retry` / `unavailable`, good or bad (I17)."""
    before = device.put("notes", title="before")
    ahead = device.put("notes", title="ahead", at=reading(wall() + 3_600_000))
    behind, bad = device.put("notes", title="behind"), device.put("nothing")
    results = device.push(before, ahead, behind, bad)
    assert [result["status"] for result in results] == ["applied", "retry", "retry", "retry"]
    assert [code(result) for result in results[1:]] == ["clock_ahead", "unavailable", "unavailable"]
    assert device.docs().keys() == {before["row"]}
    device.apply(behind)


def test_a_rejection_does_not_block(device: Device) -> None:
    """Nothing behind a `rejected` mutation is held up by it (I16)."""
    after = device.put("notes", title="after")
    rejected, applied = device.push(device.put("notes"), after)
    assert (rejected["status"], applied["status"]) == ("rejected", "applied")


def test_another_schema_number_is_put_off(device: Device) -> None:
    """A push under a number above the server's, or below the oldest it serves, is `retry` / `schema_mismatch`."""
    put = device.put("notes", title="odd")
    for schema in (4, 2, 1000):
        results = device.push(put, device.put("notes", title="behind"), schema=schema)
        assert [result["status"] for result in results] == ["retry", "retry"]
        assert code(results[0]) == "schema_mismatch"
        assert device.docs() == {}
    device.apply(put)


def test_readings_of_other_nodes_order_by_text(device: Device) -> None:
    """Of two writes in one millisecond the higher counter wins, and then the higher node."""
    now, row = wall() - 1_000, device.put("notes")["row"]
    writes = [reading(now, 0, "ff" * 8), reading(now, 1, "00" * 8), reading(now, 1, "00" * 7 + "01")]
    device.apply(device.put("notes", row, title="start", at=reading(now - 1)))
    for at in writes:
        device.apply(device.patch("notes", row, title=at, at=at))
    for at in writes[:2]:
        (result,) = device.push(device.patch("notes", row, title=fresh("lost"), at=reading(now - 1, 9, at[18:])))
        assert result["status"] == "superseded"
    doc = device.doc("notes", row)
    assert doc is not None
    assert doc["title"] == writes[-1]
