"""Rooms as components are in them."""

from __future__ import annotations

import pytest

from tests.browser.conftest import MakePeer, Opens
from tests.browser.front import Front
from tests.contract.client import fresh
from tests.servers import TidemarkServer

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_people_in_a_room_see_each_other(
    open_app: Opens, front: Front, productions: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """Two people, one of them in two tabs, see who is there, what each shows and says, and who has gone (I42, I43)."""
    bob = fresh("bob")
    scope = peers(productions, ada).service.workspace(editor=peers(productions, ada), viewer=peers(productions, bob))
    front.upstream, front.token = productions.port, productions.token
    room = f"{scope}/document:1"
    one = await open_app(front, ada, schema="productions", room=room)
    beside = await open_app(front, ada, beside=one)
    other = await open_app(front, bob, schema="productions", room=room)
    start = '{"cursor":"start"}'
    # The tabs of one browser are one session.
    for tab in (one, beside, other):
        await tab.shows("members", f"{ada} {start}", f"{bob} {start}")
    await beside.page.get_by_label("cursor").fill("here")
    for tab in (one, beside, other):
        await tab.shows("members", f'{ada} {{"cursor":"here"}}', f"{bob} {start}")
    await other.page.get_by_role("button", name="Say hello").click()
    for tab in (one, beside):
        await tab.shows("said", f"{bob}: start")
    await one.page.close()
    await beside.live()
    for tab in (beside, other):
        await tab.until("document.querySelectorAll('#members li').length === 2")
    await beside.page.close()
    await other.shows("members", f"{bob} {start}")
