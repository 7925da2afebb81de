"""Ways to the service other than the stream, and without a page."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.browser.conftest import MakePeer, Opens
from tests.browser.front import Front
from tests.servers import TidemarkServer

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_where_no_websocket_gets_through_the_app_polls(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """Changes still come by themselves, by long poll, and writes are sent; a stream is used once there is one."""
    front.sockets = False
    tab, other = await open_app(front, ada), peers(calendar, ada)
    await tab.until('db.status.value.connection === "polling"')
    other.apply(other.put("user_categories", name="theirs"))
    await tab.shows("categories", "theirs")
    await tab.add("ours")
    await tab.sent()
    assert other.names() == ["ours", "theirs"]
    front.sockets = True
    await tab.js("() => void window.dispatchEvent(new Event('online'))")
    await tab.live()
    other.apply(other.put("user_categories", name="more"))
    await tab.shows("categories", "more", "ours", "theirs")


async def test_writes_are_pushed_after_the_last_tab_is_closed(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """Background Sync lets the service worker push what a closed page has left in the outbox (I25)."""
    tab = await open_app(front, ada, worker="1")
    await tab.until("navigator.serviceWorker.controller !== null")
    await tab.live()
    tools = await tab.context.new_cdp_session(await tab.context.new_page())
    workers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    tools.on("ServiceWorker.workerRegistrationUpdated", workers.put_nowait)
    await tools.send("ServiceWorker.enable")
    registration = await _of(workers, front.url)
    await front.stop()
    await tab.add("Work")
    await tab.page.close()
    await front.start()
    other = peers(calendar, ada)
    assert other.names() == []
    await tools.send(
        "ServiceWorker.dispatchSyncEvent",
        {"origin": front.url, "registrationId": registration, "tag": "tidemark:calendar", "lastChance": False},
    )
    async with asyncio.timeout(20):
        while other.names() != ["Work"]:  # noqa: ASYNC110 - the service tells no plain client
            await asyncio.sleep(0.05)
    again = await open_app(front, ada, beside=tab)
    await again.shows("categories", "Work")
    await again.shows("outbox")
    assert len(other.events(entity="user_categories")) == 1


async def _of(found: asyncio.Queue[dict[str, Any]], origin: str) -> str:
    """The registration of an origin's service worker."""
    async with asyncio.timeout(10):
        while True:
            for one in (await found.get())["registrations"]:
                if one["scopeURL"].startswith(origin) and not one["isDeleted"]:
                    return str(one["registrationId"])
