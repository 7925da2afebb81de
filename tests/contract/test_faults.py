"""Lost answers and crashes: no acknowledged write lost, every effect once (SPEC section 9)."""

from __future__ import annotations

import json
import random
import socket

import pytest

from tests.contract.client import Device, Json, Service, code, key
from tests.contract.conftest import Launcher, Running
from tests.contract.model import TASKS_DEFAULTS, Model
from tests.contract.replica import Replica
from tests.contract.storm import Writer, deleted, storm


def send_and_hang_up(device: Device, mutations: list[Json], pause: float, share: float = 1.0) -> None:
    """Send a push, or the first part of one, over a bare socket and hang up without reading the answer."""
    body = json.dumps(device.envelope(mutations)).encode()
    host, port = device.service.address
    head = (
        f"POST /sync/push HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {device.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(head.encode() + body[: int(len(body) * share)])
        if pause:
            connection.settimeout(pause)
            try:
                connection.recv(1)
            except TimeoutError:
                return


@pytest.mark.parametrize("pause", [0, 0.001, 0.005, 0.05])
def test_a_push_whose_answer_was_lost_is_sent_again(service: Service, pause: float) -> None:
    """A push whose answer was never read is applied once, however often it is sent again."""
    device = service.device()
    pushes = [[device.put("notes", title=f"{number}.{part}") for part in range(3)] for number in range(10)]
    for push in pushes:
        send_and_hang_up(device, push, pause)
        versions = [result["version"] for result in device.apply(*push)]
        assert versions == [result["version"] for result in device.apply(*push)]
    (run,) = device.pull()["scopes"]
    assert len(run["changes"]) == 30
    docs = device.docs()
    assert docs.keys() == {put["row"] for push in pushes for put in push}


def test_a_group_whose_answer_was_lost_is_whole(service: Service) -> None:
    """A group whose answer was lost has taken effect wholly or not at all, and does by the time it is sent again."""
    # Invariant (I13).
    device = service.device()
    for _ in range(5):
        group = [device.put("notes", title="g", group="g") for _ in range(10)]
        rows = {put["row"] for put in group}
        send_and_hang_up(device, group, 0)
        assert len(rows & device.docs().keys()) in (0, 10)
        device.apply(*group)
        assert rows <= device.docs().keys()


def test_half_a_push_changes_nothing(service: Service) -> None:
    """A push of which only a part arrived has no effect (I18)."""
    device = service.device()
    for share in (0.0, 0.5, 0.99):
        send_and_hang_up(device, [device.put("notes", title="t") for _ in range(5)], 0.05, share)
    assert device.docs() == {}


@pytest.fixture(scope="module")
def mortal(launch: Launcher) -> Running:
    """A service that will be killed."""
    return launch()


def test_no_acknowledged_write_is_lost_by_kills(mortal: Running) -> None:
    """After kills in a storm of pushes and replays, all that was acknowledged is there, each effect once (I14)."""
    service, server = mortal.service, mortal.server
    user = service.device()
    scope = service.workspace(editor=user)
    writers = [Writer(user.again(), random.Random(number)) for number in range(4)]
    replica = Replica()
    for seconds in (0.3, 0.7, 0.5, 0.9):
        storm(writers, scope, seconds, server.kill)
        server.start()
        told = {mutation["row"] for writer in writers for mutation, _ in writer.acknowledged}
        (run, *_) = user.pull({}, scopes=[scope], limit=10_000)["scopes"]
        seen = {row for writer in writers for row in deleted(writer)} | {change["row"] for change in run["changes"]}
        assert told <= seen
        assert not any(run["reset"] for run in replica.pull(user, scopes=[scope]))
        for writer in writers:
            writer.settle(scope)
    model = Model({"tasks": TASKS_DEFAULTS})
    for writer in writers:
        assert len(writer.acknowledged) > 8
        for mutation, result in writer.acknowledged:
            model.history(mutation).record(mutation, result["status"])
    replica.pull(user, scopes=[scope])
    assert replica.docs(scope) == model.docs()
    assert replica.proved


def test_verdicts_survive_a_kill(mortal: Running) -> None:
    """After a kill, mutations sent again get their first verdicts and versions (I23)."""
    device = mortal.service.device()
    put, bad = device.put("notes", title="t"), device.patch("notes", key(), title="t")
    first = device.push(put, bad)
    mortal.server.kill()
    mortal.server.start()
    again = device.push(put, bad)
    assert [result["status"] for result in again] == ["applied", "rejected"]
    assert (again[0]["version"], code(again[1])) == (first[0]["version"], code(first[1]))


def test_an_orderly_end_answers_what_was_asked(mortal: Running) -> None:
    """A service asked to end in a storm of pushes ends by itself, and what it acknowledged is there."""
    service = mortal.service
    user = service.device()
    scope = service.workspace(editor=user)
    writers = [Writer(user.again(), random.Random(number)) for number in range(3)]
    storm(writers, scope, 0.4, mortal.server.stop)
    mortal.server.start()
    seen = user.docs("tasks", scope).keys() | {row for writer in writers for row in deleted(writer)}
    assert {mutation["row"] for writer in writers for mutation, _ in writer.acknowledged} <= seen
