"""Several tabs of one browser: one of them synchronises, all of them write and see."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Playwright

from tests.browser.app import Tab
from tests.browser.conftest import MakePeer, Opens, sign_in
from tests.browser.front import Front
from tests.browser.process import Chromium
from tests.servers import TidemarkServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

LEADS = "db.status.value.leader"


async def pair(open_app: Opens, front: Front, user: str) -> tuple[Tab, Tab]:
    """The leading tab, and one that follows."""
    leader = await open_app(front, user)
    await leader.live()
    follower = await open_app(front, user, beside=leader)
    await follower.live()
    assert (await leader.js(LEADS), await follower.js(LEADS)) == (True, False)
    return leader, follower


async def test_tabs_show_each_others_writes_over_one_connection(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """Whichever tab writes, both draw it and the leader sends it; there is one stream for both."""
    leader, follower = await pair(open_app, front, ada)
    await follower.add("by the follower")
    await leader.add("by the leader")
    for tab in (leader, follower):
        await tab.shows("categories", "by the follower", "by the leader")
        await tab.sent()
    assert peers(calendar, ada).names() == ["by the follower", "by the leader"]
    assert front.asked["/sync/stream"] == 1


async def test_when_the_leader_is_closed_another_tab_takes_over(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """The tab that is left connects by itself, sends what the closed one had written, and hears of changes."""
    leader, follower = await pair(open_app, front, ada)
    await front.stop()
    await leader.add("unsent")
    await leader.page.close()
    await front.start()
    await follower.until(LEADS)
    await follower.sent()
    await follower.live()
    other = peers(calendar, ada)
    assert other.names() == ["unsent"]
    other.apply(other.put("user_categories", name="later"))
    await follower.shows("categories", "later", "unsent")


async def test_when_the_leader_is_frozen_another_tab_takes_over(
    playwright: Playwright, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str, tmp_path: Path
) -> None:
    """A tab that the browser freezes hands over before, and works on, following, once it is awake again."""
    async with Chromium(playwright, tmp_path) as chromium:
        await sign_in(chromium.context, front, ada)
        leader, follower = [Tab(await chromium.context.new_page(), front) for _ in range(2)]
        for tab in (leader, follower):
            await tab.load()
            await tab.live()
        assert await leader.js(LEADS)
        tools = await leader.cdp()
        await tools.send("Page.setWebLifecycleState", {"state": "frozen"})
        await follower.until(f"{LEADS} && db.status.value.connection === 'live'")
        # Frozen by force, a tab may hold on to a transaction that its live queries have begun, where the browser by
        # itself would let it go on: so nothing is written before it is awake.
        await tools.send("Page.setWebLifecycleState", {"state": "active"})
        await follower.add("meanwhile")
        await leader.shows("categories", "meanwhile")
        await leader.add("awake")
        await follower.shows("categories", "awake", "meanwhile")
        await follower.sent()
        assert peers(calendar, ada).names() == ["awake", "meanwhile"]
        assert (await leader.js(LEADS), await follower.js(LEADS)) == (False, True)
        for tab in (leader, follower):
            assert await tab.js("reports") == [] == tab.faults


async def test_a_leader_that_hangs_is_deposed(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """A tab that holds the lock and gives no sign of life loses its office; running again, it follows."""
    leader, follower = await pair(open_app, front, ada)
    tools, paused = await leader.cdp(), asyncio.Event()
    await tools.send("Debugger.enable")
    tools.on("Debugger.paused", lambda _: paused.set())
    await tools.send("Debugger.pause")
    await paused.wait()
    await follower.until(LEADS)
    await follower.add("meanwhile")
    await follower.sent()
    assert peers(calendar, ada).names() == ["meanwhile"]
    await tools.send("Debugger.resume")
    await leader.until(f"!{LEADS}")
    # What is told to a page that hangs in a debugger is lost: only what happens now is heard.
    await follower.add("later")
    await leader.shows("categories", "later", "meanwhile")
