"""Membership and roles over HTTP (SPEC section 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.contract.client import Device, Service, assert_problem, code, fresh


@pytest.fixture
def device(service: Service) -> Device:
    """A user of this test alone."""
    return service.device()


def roles(response: httpx2.Response) -> dict[str, str]:
    """Members and their roles, from a mapping or from a list of records."""
    assert response.status_code == 200, response.text
    found = response.json()
    found = found.get("members", found) if isinstance(found, dict) else found
    if isinstance(found, dict):
        return {user: role["role"] if isinstance(role, dict) else role for user, role in found.items()}
    return {member["user"]: member["role"] for member in found}


def test_an_admin_makes_a_scope(service: Service, device: Device) -> None:
    """An admin's PUT makes the scope; its member reads it from then on."""
    scope = f"workspace:{fresh('new')}"
    assert scope not in device.pull()["readable"]
    service.admin().grant(scope, device.user, "viewer")
    assert scope in device.pull()["readable"]


def test_members_are_listed_with_their_roles(service: Service) -> None:
    """A member who may manage, and an admin, see who is in a scope and as what."""
    owner, editor = service.device(), service.device()
    scope = service.workspace(owner=owner, editor=editor)
    expected = {owner.user: "owner", editor.user: "editor"}
    assert roles(owner.members_response(scope)) == expected
    assert roles(service.admin().members_response(scope)) == expected


def test_a_viewer_reads(service: Service, device: Device) -> None:
    """A role that grants `read` reads and does not write."""
    owner = service.device()
    scope = service.workspace(viewer=device, owner=owner)
    task = owner.put("tasks", title="t", scope=scope)
    owner.apply(task)
    assert device.docs("tasks", scope).keys() == {task["row"]}
    for mutation in (
        device.put("tasks", title="t", scope=scope),
        device.patch("tasks", task["row"], title="mine", scope=scope),
        device.delete("tasks", task["row"], scope=scope),
    ):
        assert code(device.push(mutation)[0]) == "forbidden"
    assert owner.docs("tasks", scope)[task["row"]]["title"] == "t"


@pytest.mark.parametrize("role", ["editor", "owner"])
def test_an_editor_writes(service: Service, role: str) -> None:
    """A role that grants `write` writes and reads, and so does one that grants `manage`."""
    device = service.device()
    scope = service.workspace(**{role: device})
    device.apply(device.put("tasks", title="t", scope=scope))
    assert len(device.docs("tasks", scope)) == 1


@pytest.mark.parametrize("role", ["viewer", "editor"])
def test_who_may_not_manage_changes_no_membership(service: Service, role: str) -> None:
    """A role that does not grant `manage` neither adds nor removes nor promotes."""
    device, owner = service.device(), service.device()
    scope = service.workspace(**{role: device}, owner=owner)
    assert_problem(device.grant_response(scope, fresh("friend"), "viewer"), 403)
    assert_problem(device.grant_response(scope, device.user, "owner"), 403)
    assert_problem(device.expel_response(scope, owner.user), 403)
    assert roles(owner.members_response(scope)) == {device.user: role, owner.user: "owner"}


def test_an_owner_manages(service: Service, device: Device) -> None:
    """A role that grants `manage` adds, changes and removes members."""
    owner = service.device()
    scope = service.workspace(owner=owner)
    owner.grant(scope, device.user, "viewer")
    owner.grant(scope, device.user, "editor")
    device.apply(device.put("tasks", title="t", scope=scope))
    owner.grant(scope, device.user, "viewer")
    assert code(device.push(device.put("tasks", title="t", scope=scope))[0]) == "forbidden"
    owner.expel(scope, device.user)
    assert scope not in device.pull()["readable"]
    assert roles(owner.members_response(scope)) == {owner.user: "owner"}


@pytest.mark.parametrize("role", ["viewer", "editor", "owner"])
def test_anyone_may_leave(service: Service, role: str) -> None:
    """A member of any role may end its own membership."""
    device, other = service.device(), service.device()
    scope = service.workspace(**{role: device})
    service.admin().grant(scope, other.user, "owner")
    device.expel(scope, device.user)
    assert device.pull()["readable"] == [device.scope]
    assert roles(other.members_response(scope)) == {other.user: "owner"}


@pytest.mark.parametrize("role", ["king", "", "OWNER", "owner\n", "manage", None, 7, [], {}])
def test_an_unknown_role_is_malformed(service: Service, device: Device, role: Any) -> None:
    """A role that the scope's kind does not declare is a 400."""
    scope = service.workspace(owner=device)
    assert_problem(device.grant_response(scope, fresh("friend"), role), 400)
    assert roles(device.members_response(scope)) == {device.user: "owner"}


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "{}", '"owner"'])
def test_a_membership_without_a_role_is_malformed(service: Service, device: Device, body: str) -> None:
    """A PUT whose body is no object with a role is a 400."""
    scope = service.workspace(owner=device)
    response = service.http.put(
        device.members_path(scope, fresh("friend")),
        content=body,
        headers=device.headers | {"Content-Type": "application/json"},
    )
    assert_problem(response, 400)


def test_what_is_not_allowed_and_what_does_not_exist_look_alike(service: Service, device: Device) -> None:
    """To who may not manage it, a scope that exists answers every request as one that does not (I20)."""
    closed, nowhere = service.workspace(owner=service.device()), f"workspace:{fresh('none')}"
    friend = fresh("friend")
    asks: list[Callable[[str], httpx2.Response]] = [
        device.members_response,
        lambda scope: device.grant_response(scope, friend, "viewer"),
        lambda scope: device.grant_response(scope, device.user, "owner"),
        lambda scope: device.expel_response(scope, friend),
        lambda scope: device.expel_response(scope, device.user),
    ]
    for ask in asks:
        answers = []
        for scope in (closed, nowhere):
            body = assert_problem(ask(scope), 403)
            answers.append({name: str(value).replace(scope, "…") for name, value in body.items() if name != "instance"})
        assert answers[0] == answers[1]


def test_an_admin_sees_no_rows_as_admin(service: Service) -> None:
    """An operator reads and writes a scope's rows only after making itself a member."""
    owner, admin = service.device(), service.admin()
    scope = service.workspace(owner=owner)
    owner.apply(owner.put("tasks", title="t", scope=scope))
    assert admin.pull()["readable"] == [admin.scope]
    assert admin.docs() == {}
    assert code(admin.push(admin.put("tasks", title="mine", scope=scope))[0]) == "forbidden"
    admin.grant(scope, admin.user, "editor")
    assert len(admin.docs("tasks", scope)) == 1
    admin.apply(admin.put("tasks", title="mine", scope=scope))


def test_a_users_scope_takes_no_members(service: Service, device: Device) -> None:
    """Nobody is let into another user's own scope, by the user or by an admin."""
    friend = service.device()
    for asker in (device, service.admin()):
        for role in ("viewer", "owner", "write", "read"):
            response = asker.grant_response(device.scope, friend.user, role)
            assert 400 <= response.status_code < 500, response.text
    assert friend.pull()["readable"] == [friend.scope]


def test_a_scope_of_an_undeclared_kind_is_not_made(service: Service, device: Device) -> None:
    """An admin cannot make a scope of a kind that is not declared, nor one outside the pattern."""
    for scope in (f"galaxy:{fresh('x')}", "workspace:", "workspace:a b", "nothing", "workspace:%2f"):
        response = service.admin().grant_response(scope, device.user, "viewer")
        assert 400 <= response.status_code < 500, (scope, response.text)
    assert device.pull()["readable"] == [device.scope]


@pytest.mark.parametrize("sub", ["auth0|{}", "a b{}", "äö{}", "100%{}", "a?b#c{}"])
def test_members_are_named_by_their_subject(service: Service, sub: str) -> None:
    """A member of any subject is named in the path by that subject, escaped as a URL wants it."""
    device = service.device(sub.format(fresh("x")))
    owner = service.device()
    scope = service.workspace(owner=owner, viewer=device)
    assert scope in device.pull()["readable"]
    assert roles(owner.members_response(scope)) == {owner.user: "owner", device.user: "viewer"}
    owner.expel(scope, device.user)
    assert scope not in device.pull()["readable"]


def test_membership_counts_at_once_on_another_process(pair: tuple[Service, Service]) -> None:
    """A membership given or ended through one process counts at once for requests to another."""
    here, there = pair
    owner, device = here.device(), here.device()
    scope = here.workspace(owner=owner)
    remote = device.on(there)
    for _ in range(5):
        owner.grant(scope, device.user, "editor")
        assert scope in remote.pull()["readable"]
        remote.apply(remote.put("tasks", title="t", scope=scope))
        owner.expel(scope, device.user)
        assert scope not in remote.pull()["readable"]
        assert code(remote.push(remote.put("tasks", title="t", scope=scope))[0]) == "forbidden"
