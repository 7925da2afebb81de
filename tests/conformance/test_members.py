"""Members and their roles (SPEC 7)."""

from __future__ import annotations

from collections.abc import Sequence

from tidemark.store.base import Store, Transaction

W = "workspace:7"
V = "workspace:8"


async def give(store: Store, *roles: tuple[str, str, str | None]) -> None:
    """Set (scope, user, role) in one transaction."""

    async def body(transaction: Transaction) -> None:
        for scope, user, role in roles:
            await transaction.set_role(scope, user, role)

    await store.transact(body)


async def roles_of(store: Store, *members: tuple[str, str]) -> dict[tuple[str, str], str]:
    """What a transaction sees."""

    async def body(transaction: Transaction) -> dict[tuple[str, str], str]:
        return await transaction.roles(members)

    return await store.transact(body)


async def test_nobody_is_a_member_at_first(store: Store) -> None:
    """Unknown users and scopes are no error."""
    assert (await store.memberships(["ada"]), await store.members(W)) == ({}, {})
    assert await roles_of(store, (W, "ada")) == {}


async def test_a_role_is_given_changed_and_taken(store: Store) -> None:
    """Each user has one role in a scope, or none."""
    await give(store, (W, "ada", "owner"), (W, "bob", "viewer"), (V, "ada", "viewer"))
    assert await store.members(W) == {"ada": "owner", "bob": "viewer"}
    assert await store.memberships(["ada", "eve"]) == {"ada": {W: "owner", V: "viewer"}}
    await give(store, (W, "bob", "editor"), (V, "ada", None), (V, "bob", None))
    assert await store.members(W) == {"ada": "owner", "bob": "editor"}
    assert await store.members(V) == {}
    assert await store.memberships(["ada"]) == {"ada": {W: "owner"}}


async def test_roles_are_asked_in_sets(store: Store) -> None:
    """Exactly the pairs asked for, not every user in every scope."""
    await give(store, (W, "ada", "owner"), (W, "bob", "viewer"), (V, "bob", "editor"))
    found = await roles_of(store, (W, "ada"), (V, "bob"), (V, "ada"), ("workspace:9", "ada"))
    assert found == {(W, "ada"): "owner", (V, "bob"): "editor"}


async def test_a_transaction_sees_the_roles_it_gave(store: Store) -> None:
    """As they will be when it has ended."""
    await give(store, (W, "bob", "viewer"))

    async def body(transaction: Transaction) -> Sequence[object]:
        await transaction.set_role(W, "ada", "owner")
        await transaction.set_role(W, "bob", None)
        return [await transaction.roles([(W, "ada"), (W, "bob")])]

    assert await store.transact(body) == [{(W, "ada"): "owner"}]


async def test_users_are_told_apart_byte_by_byte(store: Store) -> None:
    """Users are any text, as tokens name them."""
    users = ["ada", "Ada", "ada ", "auth0|7", "ä", "a\u0308", "o'brien \"%_", "😀"]
    await give(store, *((W, user, "viewer") for user in users))
    assert set(await store.members(W)) == set(users)
    assert await store.memberships(users) == {user: {W: "viewer"} for user in users}
    for user in users:
        assert await store.memberships([user]) == {user: {W: "viewer"}}
