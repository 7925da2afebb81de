"""Who may do what in which scope (SPEC 1, 7 and 8)."""

from __future__ import annotations

import pytest

from tests.backend.engine_world import DECLARATION, World
from tidemark.sync.access import Access, Grant, Principal, allows


@pytest.mark.parametrize(
    ("grant", "needed", "allowed"),
    [
        (None, "read", False),
        ("read", "read", True),
        ("read", "write", False),
        ("write", "read", True),
        ("write", "manage", False),
        ("manage", "write", True),
    ],
)
def test_grants_contain_each_other(grant: Grant | None, needed: Grant, allowed: bool) -> None:
    """Managing is writing is reading; none is nothing."""
    assert allows(grant, needed) == allowed


async def test_readable_is_the_own_scope_and_what_roles_allow() -> None:
    """The own scope comes first, the rest in text order; undeclared roles and kinds allow nothing, nor does `admin`."""
    world = World()
    access = Access(world.store, DECLARATION)
    roles = {"workspace:8": "owner", "workspace:10": "viewer", "workspace:9": "ruler", "garden:1": "owner"}
    world.memory.roles.update(
        {(scope, "ada"): role for scope, role in roles.items()} | {("workspace:1", "bob"): "owner"}
    )
    for admin in (False, True):
        readable = await access.readable(Principal("ada", "user:ada", admin, 0))
        assert list(readable.items()) == [("user:ada", "write"), ("workspace:10", "read"), ("workspace:8", "manage")]
    assert access.grant_of("user:bob", "owner") is None
    assert access.grant_of("workspace:8", None) is None
