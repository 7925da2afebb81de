"""Long polls and streamed pulls (SPEC section 5)."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.contract.client import Device, Json, Service
from tests.contract.replica import Replica


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Runs what would block the test."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def held(device: Device) -> Replica:
    """A replica that has everything."""
    replica = Replica()
    replica.pull(device)
    return replica


def waiting(pool: ThreadPoolExecutor, device: Device, watermark: dict[str, str], **rest: Any) -> Future[Json]:
    """A pull that waits, sent and not yet answered."""
    answer = pool.submit(device.pull, watermark, **rest)
    with pytest.raises(TimeoutError):
        answer.result(timeout=0.3)
    return answer


def test_a_wait_with_nothing_new_ends_empty(device: Device) -> None:
    """A pull that waits and sees nothing new is answered without runs when its time is up."""
    watermark = held(device).watermark
    started = time.monotonic()
    page = device.pull(watermark, wait=1)
    assert 0.9 <= time.monotonic() - started < 5
    assert (page["scopes"], page["readable"], page["revoked"]) == ([], [device.scope], [])


def test_a_wait_with_something_new_does_not_wait(device: Device) -> None:
    """A pull that would not be empty is answered at once."""
    started = time.monotonic()
    assert device.pull(wait=20)["scopes"]
    assert time.monotonic() - started < 5


def test_a_wait_ends_when_something_is_written(device: Device, background: ThreadPoolExecutor) -> None:
    """A waiting pull is answered as soon as something is written to one of its scopes."""
    answer = waiting(background, device, held(device).watermark, wait=20)
    put = device.again().put("notes", title="new")
    device.apply(put)
    (run,) = answer.result(timeout=5)["scopes"]
    assert [change["row"] for change in run["changes"]] == [put["row"]]


def test_a_wait_does_not_end_for_others(service: Service, device: Device, background: ThreadPoolExecutor) -> None:
    """Writes of other users leave a waiting pull waiting."""
    answer = waiting(background, device, held(device).watermark, wait=2)
    other = service.device()
    other.apply(other.put("notes", title="new"))
    assert answer.result(timeout=10)["scopes"] == []


def test_a_wait_ends_when_a_membership_begins(service: Service, device: Device, background: ThreadPoolExecutor) -> None:
    """A waiting pull is answered when its user is given a scope."""
    answer = waiting(background, device, held(device).watermark, wait=20)
    scope = service.workspace(viewer=device)
    page = answer.result(timeout=5)
    assert scope in page["readable"]
    assert [run["scope"] for run in page["scopes"]] == [scope]


def test_a_wait_ends_when_a_membership_ends(service: Service, device: Device, background: ThreadPoolExecutor) -> None:
    """A waiting pull is answered with `revoked` when its user loses a scope."""
    owner = service.device()
    scope = service.workspace(viewer=device, owner=owner)
    answer = waiting(background, device, held(device).watermark, wait=20)
    owner.expel(scope, device.user)
    page = answer.result(timeout=5)
    assert page["revoked"] == [scope]
    assert scope not in page["readable"]


def test_a_wait_sees_another_process(pair: tuple[Service, Service], background: ThreadPoolExecutor) -> None:
    """A waiting pull is answered when something is written through another process."""
    here, there = pair
    device = here.device()
    answer = waiting(background, device, held(device).watermark, wait=20)
    put = device.put("notes", title="from there")
    device.on(there).apply(put)
    (run,) = answer.result(timeout=10)["scopes"]
    assert [change["row"] for change in run["changes"]] == [put["row"]]


def lines(device: Device, watermark: dict[str, str] | None = None, **rest: Any) -> Generator[Json, None, None]:
    """The lines of a streamed pull."""
    headers = device.headers | {"Accept": "application/x-ndjson"}
    with device.service.http.stream(
        "POST", "/sync/pull", json=device.pull_body(watermark, **rest), headers=headers
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] == "application/x-ndjson"
        for line in response.iter_lines():
            frame: Json = json.loads(line)
            yield frame


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_a_streamed_pull_catches_up(service: Service, limit: int) -> None:
    """A pull as NDJSON gives runs one a line, page after page, until caught up, and then a last line without a run."""
    device = service.device()
    scope = service.workspace(owner=device)
    device.apply(*(device.put("notes", title=str(number)) for number in range(30)))
    device.apply(*(device.put("tasks", title=str(number), scope=scope) for number in range(30)))
    *runs, last = lines(device, limit=limit)
    replica = Replica()
    for run in runs:
        assert len(run["changes"]) <= limit
        replica.apply(run, asked=True)
    assert last.keys() >= {"readable", "revoked", "clock"}
    assert "changes" not in last
    assert sorted(last["readable"]) == sorted([device.scope, scope])
    assert len(replica.versions(device.scope)) == len(replica.versions(scope)) == 30
    assert replica.proved >= 2
    assert device.pull(replica.watermark)["scopes"] == []


def test_a_streamed_pull_with_nothing_new_has_one_line(service: Service, device: Device) -> None:
    """A pull as NDJSON from the head gives the last line alone, with what is revoked."""
    other = service.device()
    scope = service.workspace(owner=other)
    watermark = held(device).watermark | {scope: held(other).watermark[scope]}
    (last,) = lines(device, watermark)
    assert (last["readable"], last["revoked"]) == ([device.scope], [scope])


def test_a_streamed_pull_while_others_write_skips_nothing(device: Device, background: ThreadPoolExecutor) -> None:
    """A first pull as NDJSON in small pages, while rows are written and deleted, ends equal by digest."""
    device.apply(*(device.put("notes", title="n") for _ in range(300)))

    def write() -> None:
        writer = device.again()
        rows = [writer.put("notes", title="w") for _ in range(40)]
        for row in rows:
            writer.apply(row)
            if row["row"] < "8":
                writer.apply(writer.delete("notes", row["row"]))

    replica = Replica()
    writing = background.submit(write)
    for line in lines(device, limit=5):
        if "changes" in line:
            replica.apply(line, asked=True)
    writing.result()
    replica.pull(device)
    assert len(replica.versions(device.scope)) == len(device.docs())
    assert replica.proved


def test_a_cut_streamed_pull_stands_as_far_as_it_came(device: Device) -> None:
    """The lines before a cut stand: a pull goes on from the watermark of the last one."""
    device.apply(*(device.put("notes", title="n") for _ in range(200)))
    replica = Replica()
    stream = lines(device, limit=10)
    for _ in range(3):
        replica.apply(next(stream), asked=True)
    stream.close()
    assert len(replica.versions(device.scope)) == 30
    replica.pull(device)
    assert len(replica.versions(device.scope)) == 200


async def test_many_waits_hold_nobody_up(service: Service) -> None:
    """Of 60 pulls that wait none holds a connection to the database: others are served, and then all are answered."""
    owner = service.device()
    scope = service.workspace(owner=owner)
    devices = [owner.again() for _ in range(60)]
    watermark = held(owner).watermark
    limits = httpx2.Limits(max_connections=len(devices))
    async with httpx2.AsyncClient(base_url=service.url, timeout=40, trust_env=False, limits=limits) as http:
        waits = [
            asyncio.create_task(
                http.post("/sync/pull", json=device.pull_body(watermark, wait=25), headers=device.headers)
            )
            for device in devices
        ]
        await asyncio.to_thread(until_waiting, service, len(waits))
        started = time.monotonic()
        put = owner.put("tasks", title="new", scope=scope)
        await asyncio.to_thread(owner.apply, put)
        assert time.monotonic() - started < 5
        pages = [answer.json() for answer in await asyncio.gather(*waits)]
    assert {change["row"] for page in pages for run in page["scopes"] for change in run["changes"]} == {put["row"]}
    assert all(len(page["scopes"]) == 1 for page in pages)


def until_waiting(service: Service, pulls: int) -> None:
    """Wait until at least so many pulls are held."""
    deadline = time.monotonic() + 20
    while True:
        found = re.search(r"^tidemark_pulls_waiting (\S+)$", service.http.get("/metrics").text, re.MULTILINE)
        if found is not None and float(found[1]) >= pulls:
            return
        assert time.monotonic() < deadline
