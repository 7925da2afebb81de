"""Writes without a network, and with one that fails at the worst moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Playwright

from tests.browser.app import Tab
from tests.browser.conftest import MakePeer, Opens, example, sign_in
from tests.browser.front import Front
from tests.browser.process import Chromium
from tests.cli.devices import Tide
from tests.proxy import Proxy
from tests.servers import TidemarkServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

GROUPS, EACH = 5, 500
"""Transactions, and rows of each: more than two pushes."""


@pytest_asyncio.fixture(loop_scope="session")
async def proxied(built: Path, own: TidemarkServer) -> AsyncIterator[tuple[Front, Proxy]]:
    """A front whose way to the service can be cut."""
    async with Proxy(own.port) as proxy, Front(built, own) as front:
        front.upstream = proxy.port
        yield front, proxy


async def answered(proxy: Proxy) -> None:
    """Wait until the service has answered something that is held back: what was asked for is committed."""
    async with asyncio.timeout(20):
        while not proxy.holding:  # noqa: ASYNC110 - the proxy has no event for it
            await asyncio.sleep(0.01)


async def test_the_app_loads_and_writes_without_a_network(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """After one visit the app opens from its service worker, shows its rows, takes writes, and sends them later."""
    tab = await open_app(front, ada, worker="1")
    await tab.until("navigator.serviceWorker.controller !== null")
    await tab.add("Work")
    await tab.sent()
    await front.stop()
    await tab.load()
    await tab.shows("categories", "Work")
    await tab.add("Play")
    await tab.shows("categories", "Play", "Work")
    await tab.shows("outbox", "put user_categories")
    await front.start()
    await tab.sent()
    assert peers(calendar, ada).names() == ["Play", "Work"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_two_browsers_and_a_command_line_converge(
    open_app: Opens, built: Path, tmp_path: Path, request: pytest.FixtureRequest, ada: str, kind: str
) -> None:
    """Offline writes of the same rows in two browsers and in `tide` come to one state and one digest (I7, I32, I34)."""
    url = f"sqlite:///{tmp_path / 'db'}" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    with example("calendar", url, tmp_path) as server:
        async with Front(built, server) as front:
            one, two = await open_app(front, ada), await open_app(front, ada)
            tide = Tide(server, tmp_path / "tide", ada)
            same, gone = await one.js(
                "() => db.user_categories.bulkAdd([{name: 'same'}, {name: 'gone'}], {allKeys: true})"
            )
            await one.sent()
            await two.holds("gone", "same")
            tide.run("pull")
            for tab in (one, two):
                await tab.context.set_offline(True)
            await one.js("(id) => db.user_categories.update(id, {color: 'red', position: 1})", same)
            tide.run("patch", "user_categories", same, "color=green")
            await two.js("(id) => db.user_categories.update(id, {color: 'blue', archived: true})", same)
            await two.js("(id) => db.user_categories.update(id, {position: 9})", gone)
            tide.run("put", "user_categories", "name=by tide")
            await two.js("(id) => db.user_categories.delete(id)", gone)
            await one.js("(id) => db.user_categories.update(id, {color: 'grey'})", gone)
            await one.add("by one")
            for tab in (two, one):
                await tab.context.set_offline(False)
                await tab.sent()
            tide.run("sync")
            scope = f"user:{ada}"
            digest = next(check["ours"] for check in tide.json("verify") if check["scope"] == scope)
            # Whose colour is the latest, three clocks decide; that fields merge apart, nobody does.
            merged = tide.json("get", "user_categories", same)
            assert (merged["position"], merged["archived"]) == (1, True)
            for tab in (one, two):
                await tab.agrees(scope, digest)
                assert await tab.names() == ["by one", "by tide", "same"]
                row = await tab.js("(id) => db.user_categories.get(id)", same)
                assert {name: row[name] for name in merged} == merged
                await tab.page.close()


async def test_an_answer_cut_off_after_the_commit_has_its_effect_once(
    open_app: Opens, proxied: tuple[Front, Proxy], own: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """The push whose answer was lost is sent again, and changes nothing a second time (I8)."""
    front, proxy = proxied
    tab, other = await open_app(front, ada), peers(own, ada)
    await tab.live()
    proxy.hold(up=False, down=True)
    row = await tab.js("() => db.user_categories.add({name: 'Work'})")
    await answered(proxy)
    assert other.names() == ["Work"]
    assert await tab.js("db.status.value.pending") == 1
    pushes = front.asked["/sync/push"]
    proxy.cut()
    proxy.release()
    await tab.sent()
    assert front.asked["/sync/push"] > pushes
    assert [event["outcome"] for event in other.events(entity="user_categories", row=row)] == ["applied"]
    await tab.agrees(other.scope, other.digest())


async def test_a_service_that_dies_within_a_push_gets_the_rest_when_it_is_back(
    open_app: Opens, proxied: tuple[Front, Proxy], own: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """The process is killed while pushes are under way; nothing is lost and nothing doubled (I8, I25)."""
    front, proxy = proxied
    tab, other = await open_app(front, ada), peers(own, ada)
    await tab.live()
    proxy.hold(up=False, down=True)
    await tab.js(
        "async ([groups, each]) => { for (let n = 0; n < groups; n++) await db.user_categories.bulkAdd("
        "Array.from({length: each}, (_, i) => ({name: `${n}-${i}`}))) }",
        [GROUPS, EACH],
    )
    await answered(proxy)
    own.kill()
    proxy.cut()
    proxy.release()
    await tab.until('(all) => db.status.value.connection !== "live" && db.status.value.pending === all', GROUPS * EACH)
    own.start()
    await tab.sent()
    assert await tab.js("db.user_categories.count()") == GROUPS * EACH
    assert len(other.docs("user_categories")) == GROUPS * EACH
    await tab.agrees(other.scope, other.digest())


async def test_a_tab_that_dies_between_write_and_push_loses_nothing(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """A page that crashed after a write finds it again, on the screen and in the outbox, and sends it (I25)."""
    tab = await open_app(front, ada)
    await tab.live()
    await front.stop()
    await tab.add("Work")
    async with tab.page.expect_event("crash"):
        crashing = asyncio.ensure_future((await tab.cdp()).send("Page.crash"))
    crashing.cancel()
    await asyncio.gather(crashing, return_exceptions=True)
    assert peers(calendar, ada).names() == []
    await front.start()
    again = await open_app(front, ada, beside=tab)
    await again.shows("categories", "Work")
    await again.sent()
    assert peers(calendar, ada).names() == ["Work"]


async def test_a_browser_that_is_killed_between_write_and_push_loses_nothing(
    playwright: Playwright, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str, tmp_path: Path
) -> None:
    """The whole browser is killed right after a write; started again, it sends it (I25)."""
    async with Chromium(playwright, tmp_path) as chromium:
        await sign_in(chromium.context, front, ada)
        tab = Tab(await chromium.context.new_page(), front)
        await tab.load()
        await tab.live()
        await front.stop()
        await tab.add("Work")
        chromium.kill()
    assert peers(calendar, ada).names() == []
    await front.start()
    async with Chromium(playwright, tmp_path) as chromium:
        await sign_in(chromium.context, front, ada)
        again = Tab(await chromium.context.new_page(), front)
        await again.load()
        await again.shows("categories", "Work")
        await again.sent()
        assert await again.js("reports") == [] == again.faults
    assert peers(calendar, ada).names() == ["Work"]
