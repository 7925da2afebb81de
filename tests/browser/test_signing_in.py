"""Who is signed in: tokens that run out, that are not accepted, and other users on the same device."""

from __future__ import annotations

import time

import pytest

from tests.browser.conftest import MakePeer, Opens, sign_in
from tests.browser.front import Front
from tests.contract.client import fresh, token
from tests.servers import TidemarkServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

TTL = 14
"""Seconds that a short token is good for; the client wants a fresh one 10 s before."""


async def test_a_token_is_renewed_in_place(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """Before its token runs out the client gets another one, and the stream goes on beyond the end (I48)."""
    front.token = lambda user: calendar.token(user, ttl=TTL)
    tab, other = await open_app(front, ada), peers(calendar, ada)
    await tab.live()
    first = time.time() + TTL
    await tab.until("(end) => Date.now() > end", (first + 5) * 1000)
    other.apply(other.put("user_categories", name="Work"))
    await tab.shows("categories", "Work")
    assert front.asked["/token"] > 1
    assert front.asked["/sync/stream"] == 1


@pytest.mark.parametrize("kind", ["none", "refused"])
async def test_without_a_good_token_writes_wait(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str, kind: str
) -> None:
    """`needs-auth` is said; what is written goes on waiting, and is sent once somebody has signed in again (I25)."""
    tab = await open_app(front, ada)
    await tab.live()
    front.token = lambda user: None if kind == "none" else token(user, secret="another secret, 32 bytes or more")
    await tab.js("db.signedIn()")
    await tab.until('db.status.value.connection === "needs-auth"')
    await tab.add("Work")
    await tab.shows("categories", "Work")
    await tab.shows("outbox", "put user_categories")
    assert peers(calendar, ada).names() == []
    assert await tab.js('db.status.value.problem.code === "needs_auth"')
    front.token = calendar.token
    await tab.js("db.signedIn()")
    await tab.sent()
    await tab.live()
    assert peers(calendar, ada).names() == ["Work"]


async def test_users_of_one_device_see_nothing_of_each_other(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """Another user finds and sends nothing of the first one's, who finds it again when back (I25, I33)."""
    bob = fresh("bob")
    tab = await open_app(front, ada)
    await tab.add("ada's")
    await tab.sent()
    await tab.live()
    front.token = lambda _: None
    await tab.js("db.signedIn()")
    await tab.until('db.status.value.connection === "needs-auth"')
    await tab.add("ada's unsent")
    await sign_in(tab.context, front, bob)
    # None for ada, who may just have asked again: with it her edit would go out, rightly.
    front.token = lambda user: calendar.token(user) if user == bob else None
    await tab.js("db.signedIn()")
    await tab.until("(user) => db.status.value.user === user", bob)
    await tab.live()
    await tab.shows("categories")
    await tab.shows("outbox")
    assert await tab.names() == []
    await tab.add("bob's")
    await tab.sent()
    assert peers(calendar, bob).names() == ["bob's"]
    assert peers(calendar, ada).names() == ["ada's"]
    front.token = calendar.token
    await sign_in(tab.context, front, ada)
    await tab.js("db.signedIn()")
    await tab.shows("categories", "ada's", "ada's unsent")
    await tab.sent()
    assert peers(calendar, ada).names() == ["ada's", "ada's unsent"]
    assert peers(calendar, bob).names() == ["bob's"]
