"""Tombstones with an end: a service that forgets after two seconds (SPEC sections 3 and 5)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.contract.client import Device, Json, Service, changes, code, key, reading, wall
from tests.contract.conftest import Launcher
from tests.contract.replica import Replica

HORIZON = 2.0


@pytest.fixture(scope="module")
def forgetful(launch: Launcher) -> Service:
    """A service with a retention of two seconds, swept all the time."""
    return launch(env={"TIDEMARK_RETENTION": "2s", "TIDEMARK_HOUSEKEEPING_INTERVAL": "200ms"}).service


@pytest.fixture
def device(forgetful: Service) -> Device:
    """A user of this test alone."""
    return forgetful.device()


def eventually(ask: Callable[[], bool], seconds: float = 20) -> None:
    """Ask until the answer is yes."""
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.1)


def alone(device: Device, mutation: Json) -> tuple[str, str | None]:
    """Status and code of a mutation pushed alone."""
    (result,) = device.push(mutation)
    return result["status"], code(result)


def outlive(at: str) -> None:
    """Wait until a reading lies before the retention horizon."""
    left = int(at[:12], 16) / 1000 + HORIZON + 0.3 - wall() / 1000
    if left > 0:
        time.sleep(left)


def test_an_old_write_to_an_unknown_row_is_too_old(device: Device) -> None:
    """A put older than the horizon to an unknown row is `too_old`; a delete is `superseded` (I11)."""
    old = reading(wall() - 3_600_000)
    assert alone(device, device.put("notes", title="t", at=old)) == ("rejected", "too_old")
    assert alone(device, device.delete("notes", key(), at=old)) == ("superseded", None)


def test_an_old_patch_of_an_unknown_row_is_of_an_unknown_row(device: Device) -> None:
    """`row_unknown` comes before `too_old`."""
    assert alone(device, device.patch("notes", key(), title="t", at=reading(wall() - 3_600_000)))[1] == "row_unknown"


def test_an_old_write_to_a_known_row_is_no_matter(device: Device) -> None:
    """A patch older than the horizon to a living row is applied if nothing later stands, else superseded."""
    put = device.put("notes", title="t")
    between, late = device.clock.tick(), device.clock.tick()
    device.apply(put)
    outlive(late)
    assert alone(device, device.patch("notes", put["row"], color="late", at=late)) == ("applied", None)
    assert alone(device, device.patch("notes", put["row"], color="early", at=between)) == ("superseded", None)


def test_an_old_write_to_a_map_key_without_a_clock_is_too_old(device: Device) -> None:
    """An old write to a map key without a clock is `too_old`, unless a later clock stands above it (I11)."""
    before = device.clock.tick()
    put = device.put("notes", title="t", labels={"a": 1})
    after = device.clock.tick()
    device.apply(put)
    outlive(after)
    row = put["row"]
    assert alone(device, device.patch("notes", row, at=before, fields={"labels/x": 1})) == ("superseded", None)
    assert alone(device, device.patch("notes", row, at=after, fields={"labels/x": 1})) == ("rejected", "too_old")


def test_a_tombstone_is_forgotten(device: Device) -> None:
    """Once a tombstone lies before the horizon its row is unknown again, and a new put of it is a new row."""
    put, kept = device.put("notes", title="t"), device.put("notes", title="kept")
    device.apply(put, kept)
    replica = Replica()
    replica.pull(device)
    device.apply(device.delete("notes", put["row"]))
    assert alone(device, device.patch("notes", put["row"], title="x")) == ("superseded", None)
    eventually(lambda: any(run["reset"] for run in device.pull(replica.watermark)["scopes"]))
    assert alone(device, device.patch("notes", put["row"], title="x"))[1] == "row_unknown"
    assert device.docs().keys() == {kept["row"]}
    device.apply(device.put("notes", put["row"], title="anew"))
    assert device.docs().keys() == {kept["row"], put["row"]}


def forgotten(device: Device) -> tuple[Replica, set[str]]:
    """A replica that misses a deletion which the service has forgotten, and the rows that live."""
    puts = [device.put("notes", title="t") for _ in range(10)]
    device.apply(*puts)
    replica = Replica()
    replica.pull(device)
    device.apply(*(device.delete("notes", put["row"]) for put in puts[:5]))
    eventually(lambda: any(run["reset"] for run in device.pull(replica.watermark)["scopes"]))
    return replica, {put["row"] for put in puts[5:]}


def test_a_watermark_below_the_floor_is_reset(device: Device) -> None:
    """A replica older than what the service has forgotten is reset, and ends as the server is."""
    replica, living = forgotten(device)
    runs = replica.pull(device)
    assert [(run["reset"], run["from"]) for run in runs] == [(True, 0)]
    assert {row for _, row in replica.versions(device.scope)} == living
    assert replica.proved


def test_a_first_pull_in_pages_is_not_reset_by_an_old_floor(device: Device) -> None:
    """A pull that begins after the floor goes through in pages of one, though its first versions lie below it (I31)."""
    _, living = forgotten(device)
    pages = list(device.pages(limit=1))
    assert {change["row"] for page in pages for change in changes(page["scopes"])} == living
    assert not any(run["reset"] for page in pages for run in page["scopes"])


def test_a_replica_at_the_head_survives_the_floor(device: Device) -> None:
    """A replica that has seen every deletion is not reset when these are forgotten."""
    _, living = forgotten(device)
    replica = Replica()
    replica.pull(device)
    time.sleep(HORIZON + 1)
    assert device.pull(replica.watermark)["scopes"] == []
    assert {row for _, row in replica.versions(device.scope)} == living
