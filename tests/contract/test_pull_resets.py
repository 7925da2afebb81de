"""Watermarks that the service cannot follow on: resets (SPEC sections 1 and 5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.client import Device, Json, Service
from tests.contract.conftest import DECLARATION, Launcher, Running
from tests.contract.replica import Replica


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone, with three notes."""
    device = service.device()
    device.apply(*(device.put("notes", title="n") for _ in range(3)))
    return device


def resumed(device: Device, watermark: str) -> Json:
    """The run given to a replica that says it stands at `watermark`."""
    (run,) = device.pull({device.scope: watermark})["scopes"]
    found: Json = run
    return found


@pytest.mark.parametrize(
    "watermark",
    ["garbage", "k3f9x2.17.0.3", "a.b.c.d", "...", "k3f9x2", "0", "-1.-1.-1.-1", "é.1.1.1", "x" * 5000, "nul\0.1.0.3"],
)
def test_a_watermark_that_says_nothing_is_reset(device: Device, watermark: str) -> None:
    """A watermark that the service never gave brings the whole scope again, marked as a reset."""
    run = resumed(device, watermark)
    assert (run["reset"], run["from"], len(run["changes"])) == (True, 0, 3)


@pytest.mark.parametrize("version", ["1000000", "9007199254740991", "9" * 30])
def test_a_watermark_ahead_of_the_head_is_reset(device: Device, version: str) -> None:
    """A watermark that lies ahead of the head, as after a restored backup, is reset (I30)."""
    replica = Replica()
    replica.pull(device)
    epoch, _, *rest = replica.watermark[device.scope].split(".")
    run = resumed(device, ".".join([epoch, version, *rest]))
    assert (run["reset"], run["from"], len(run["changes"])) == (True, 0, 3)


def test_a_reset_replaces_what_the_replica_holds(device: Device) -> None:
    """A replica with a watermark from nowhere ends as the server is, rows it should not have included (I30)."""
    replica = Replica()
    replica.pull(device)
    copy = replica.copy(device.scope)
    copy.rows["notes", "ghost"] = copy.to, {"title": "from another life"}
    copy.watermark = "another.99.0.3"
    replica.pull(device)
    assert len(replica.docs(device.scope)) == 3


def test_another_scopes_watermark_is_no_way_in(service: Service, device: Device) -> None:
    """A watermark given for another scope reveals nothing of that scope (I33)."""
    other = service.device()
    replica = Replica()
    replica.pull(other)
    page = device.pull({device.scope: replica.watermark[other.scope]})
    assert {run["scope"] for run in page["scopes"]} <= {device.scope}


@pytest.fixture(scope="module")
def own(launch: Launcher) -> Running:
    """A service of this module, to be restarted at will."""
    return launch()


def test_another_epoch_is_reset(service: Service, own: Running) -> None:
    """A watermark of another database is reset: versions compare within one epoch alone (I2)."""
    here, there = service.device(), own.service.device()
    there = Device(own.service, here.user)
    for device in (here, there):
        device.apply(*(device.put("notes", title="n") for _ in range(3)))
    replica = Replica()
    replica.pull(there)
    run = resumed(here, replica.watermark[here.scope])
    assert (run["reset"], run["from"], len(run["changes"])) == (True, 0, 3)


def test_a_restart_keeps_the_epoch(own: Running) -> None:
    """After a restart, asked for or by a crash, replicas go on from where they were (I2)."""
    device = own.service.device()
    device.apply(device.put("notes", title="before"))
    replica = Replica()
    replica.pull(device)
    for end in (own.server.stop, own.server.kill):
        end()
        own.server.start()
        assert device.pull(replica.watermark)["scopes"] == []
        device.apply(device.put("notes", title="after"))
        (run,) = replica.pull(device)
        assert (run["reset"], len(run["changes"])) == (False, 1)
    assert len(replica.docs(device.scope)) == 3


def test_another_schema_number_is_reset(own: Running, tmp_path: Path) -> None:
    """A watermark given under another schema number is reset, and the new documents have the new fields."""
    device = own.service.device()
    device.apply(device.put("notes", title="before"))
    replica = Replica()
    replica.pull(device)
    newer = tmp_path / "schema.yaml"
    text = DECLARATION.read_text(encoding="utf-8").replace("schema: 3", "schema: 4", 1)
    field = "      extra:     {type: json, nullable: true}\n"
    assert field in text
    newer.write_text(text.replace(field, field + "      mood:      {type: text, default: calm}\n", 1), encoding="utf-8")
    own.server.stop()
    own.server.schema = newer
    own.server.start()
    try:
        (run,) = device.pull(replica.watermark, schema=4)["scopes"]
        assert (run["reset"], run["from"]) == (True, 0)
        (change,) = run["changes"]
        assert (change["doc"]["title"], change["doc"]["mood"]) == ("before", "calm")
        page = device.pull({device.scope: run["watermark"]}, schema=4)
        assert page["scopes"] == []
    finally:
        own.server.stop()
        own.server.schema = DECLARATION
