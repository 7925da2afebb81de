"""Memberships that begin and end while streams are open (SPEC sections 6 and 9)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.client import Device, Service, code
from tests.contract.stream import Stream


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def test_a_scope_added_is_announced_and_brought(service: Service, device: Device) -> None:
    """A membership that begins is announced by `scope_added`, and the scope's changes follow from 0."""
    owner = service.device()
    scope = service.workspace(owner=owner)
    old = owner.put("tasks", title="old", scope=scope)
    owner.apply(old)
    with Stream(device) as stream:
        stream.welcome()
        owner.grant(scope, device.user, "viewer")
        stream.until("scope_added", where=lambda frame: frame["scope"] == scope)
        frame = stream.until("changes", where=lambda frame: frame["scope"] == scope)
        assert (frame["from"], [change["row"] for change in frame["changes"]]) == (0, [old["row"]])
        live = owner.put("tasks", title="live", scope=scope)
        owner.apply(live)
        stream.change(live["row"])


def test_a_scope_revoked_is_announced_and_silent(service: Service, device: Device) -> None:
    """A membership that ends is announced by `scope_revoked`, and nothing of the scope comes any more."""
    owner = service.device()
    scope = service.workspace(owner=owner, viewer=device)
    with Stream(device) as stream:
        stream.welcome()
        owner.expel(scope, device.user)
        stream.until("scope_revoked", where=lambda frame: frame["scope"] == scope)
        owner.apply(owner.put("tasks", title="secret", scope=scope))
        own = device.put("notes", title="own")
        device.apply(own)
        stream.change(own["row"])
        stream.ping()
        assert stream.rows() == {own["row"]}


def test_what_was_revoked_meanwhile_is_said_at_the_welcome(service: Service, device: Device) -> None:
    """Scopes of the hello's watermark that may not be read any more come in the welcome's `revoked`."""
    owner = service.device()
    scope = service.workspace(owner=owner, viewer=device)
    watermark = {run["scope"]: run["watermark"] for run in device.pull()["scopes"]}
    owner.expel(scope, device.user)
    with Stream(device, watermark) as stream:
        welcome = stream.welcome()
    assert welcome["revoked"] == [scope]
    assert welcome["scopes"].keys() == {device.scope}


def test_a_role_that_changes_ends_writing_and_not_reading(service: Service, device: Device) -> None:
    """A role lowered while a stream is open ends pushes over it; changes go on."""
    owner = service.device()
    scope = service.workspace(owner=owner, editor=device)
    with Stream(device) as stream:
        stream.welcome()
        owner.grant(scope, device.user, "viewer")
        mutations = [{"seq": 1} | device.put("tasks", title="t", scope=scope)]
        stream.send({"t": "push", "id": "p", "schema": 3, "mutations": mutations})
        (result,) = stream.until("result")["results"]
        assert code(result) == "forbidden"
        live = owner.put("tasks", title="live", scope=scope)
        owner.apply(live)
        stream.change(live["row"])


def revoke_in_a_storm(writer: Device, manager: Device, member: Device, scope: str) -> None:
    """End a membership while tasks pour in; what was sent after the answer must never arrive."""
    ended, over = threading.Event(), threading.Event()
    secret: set[str] = set()

    def write() -> None:
        while not over.is_set():
            after = ended.is_set()
            put = writer.put("tasks", title="t", scope=scope)
            if after:
                secret.add(put["row"])
            writer.apply(put)

    with Stream(member) as stream, ThreadPoolExecutor(1) as pool:
        stream.welcome()
        writing = pool.submit(write)
        try:
            stream.until("changes", where=lambda frame: frame["scope"] == scope and bool(frame["changes"]))
            manager.expel(scope, member.user)
            ended.set()
            stream.until("scope_revoked", where=lambda frame: frame["scope"] == scope)
            for _ in stream.incoming(0.7):
                pass
            pulled = member.pull()
        finally:
            over.set()
            writing.result()
        stream.ping()
        assert secret
        assert not stream.rows() & secret
        assert [run["scope"] for run in pulled["scopes"]] == [member.scope]
        kinds = [frame["t"] for frame in stream.frames if frame.get("scope") == scope]
        assert kinds[-1] == "scope_revoked"


@pytest.mark.parametrize("attempt", range(3))
def test_revocation_is_as_strong_as_the_order_of_commits(service: Service, device: Device, attempt: int) -> None:
    """No change committed after a membership's end was answered reaches the former member (I39)."""
    owner, manager = service.device(), service.device()
    scope = service.workspace(owner=manager, editor=owner, viewer=device)
    revoke_in_a_storm(owner, manager, device, scope)


@pytest.mark.parametrize("attempt", range(3))
def test_revocation_holds_over_processes(pair: tuple[Service, Service], attempt: int) -> None:
    """The same when the writer, the manager and the member speak to different processes (I39)."""
    here, there = pair
    owner, manager, member = here.device(), here.device(), here.device()
    scope = here.workspace(owner=manager, editor=owner, viewer=member)
    writer = owner.on(here if attempt % 2 else there)
    revoke_in_a_storm(writer, manager, member.on(there), scope)


def test_a_membership_comes_and_goes_over_processes(pair: tuple[Service, Service]) -> None:
    """`scope_added` and `scope_revoked` arrive on the stream of another process, time after time."""
    here, there = pair
    owner, member = here.device(), here.device()
    scope = here.workspace(owner=owner)
    with Stream(member.on(there)) as stream:
        stream.welcome()
        for _ in range(3):
            owner.grant(scope, member.user, "viewer")
            stream.until("scope_added", where=lambda frame: frame["scope"] == scope)
            put = owner.put("tasks", title="t", scope=scope)
            owner.apply(put)
            stream.change(put["row"])
            owner.expel(scope, member.user)
            stream.until("scope_revoked", where=lambda frame: frame["scope"] == scope)
