"""The device's storage: full, emptied under the open app, and filled for the first time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.app import Peer
from tests.browser.conftest import MakePeer, Opens, example
from tests.browser.front import Front
from tests.contract.client import Service, fresh
from tests.servers import TidemarkServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROWS = 20_000
QUOTA = 2_000_000
PERSONAS = 400
"""Each of 9,000 bytes: more than the quota."""
LONGEST_GAP = 1_500
"""Milliseconds between two frames, at most, on a machine that does much else; a frame is due every 17."""
WATCH = """() => {
  window.longest = 0;
  let last = performance.now();
  const frame = (now) => {
    window.longest = Math.max(window.longest, now - last);
    last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""


async def test_storage_that_is_full_is_said_and_loses_nothing(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """A write that finds no room fails as a whole, by its name; what had been written stays, and is sent."""
    tab = await open_app(front, ada, quota=QUOTA)
    await tab.live()
    await front.stop()
    await tab.add("Work")
    failed = await tab.js(
        "(count) => db.ai_personas.bulkAdd("
        "Array.from({length: count}, (_, n) => ({name: `${n}`, prompt: 'x'.repeat(9000)})))"
        ".then(() => null, (fault) => fault.inner?.name ?? fault.name)",
        PERSONAS,
    )
    assert failed == "QuotaExceededError"
    assert await tab.js("db.ai_personas.count()") == 0
    assert len(await tab.js("db.outgoing()")) == 1
    await tab.allow(None)
    await front.start()
    await tab.sent()
    assert peers(calendar, ada).names() == ["Work"]
    await tab.add("Play")
    await tab.sent()
    assert peers(calendar, ada).names() == ["Play", "Work"]


async def test_a_pull_that_finds_no_room_is_said_and_goes_on_when_there_is_some(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """The status names the quota while rows from the service do not fit, and all of them come once they do."""
    other = peers(calendar, ada)
    for start in range(0, PERSONAS, 100):
        other.apply(*(other.put("ai_personas", name=f"{start + n}", prompt="x" * 9000) for n in range(100)))
    tab = await open_app(front, ada, quota=QUOTA)
    await tab.until('db.status.value.problem?.code === "quota"')
    await tab.allow(None)
    await tab.until("async (count) => (await db.ai_personas.count()) === count", PERSONAS)
    await tab.live()
    await tab.agrees(other.scope, other.digest())


async def test_storage_that_is_cleared_under_the_open_app_is_fetched_anew(
    open_app: Opens, front: Front, calendar: TidemarkServer, peers: MakePeer, ada: str
) -> None:
    """The loss is reported, the rows come again, and the app goes on without a reload."""
    tab = await open_app(front, ada)
    # Until all is cleared, a database that was opened again may be closed again.
    tab.expects = ("storage_lost", "the database does not open: The connection was closed")
    await tab.add("Work")
    await tab.live()
    await tab.sent()
    tools = await tab.cdp()
    await tools.send("Storage.clearDataForOrigin", {"origin": front.url, "storageTypes": "indexeddb"})
    await tab.until('reports.some(({code}) => code === "storage_lost")')
    await tab.holds("Work")
    await tab.shows("categories", "Work")
    await tab.live()
    await tab.add("Play")
    await tab.shows("categories", "Play", "Work")
    await tab.sent()
    assert peers(calendar, ada).names() == ["Play", "Work"]


@pytest.fixture(scope="module")
def full(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TidemarkServer, str]]:
    """A service with many rows of one user."""
    folder, user = tmp_path_factory.mktemp("full"), fresh("ada")
    with example("calendar", f"sqlite:///{folder / 'tidemark.db'}", folder) as server:
        service = Service(server.url)
        peer = Peer(service, user)
        for start in range(0, ROWS, 1_000):
            peer.apply(*(peer.put("user_categories", name=f"{n:05}") for n in range(start, start + 1_000)))
        service.close()
        yield server, user


async def test_a_first_synchronisation_of_many_rows_lets_the_app_live(
    open_app: Opens, built: Path, full: tuple[TidemarkServer, str]
) -> None:
    """While 20,000 rows come, progress is shown, a live query draws what has come, and frames go on."""
    server, user = full
    async with Front(built, server) as front:
        front.token = lambda _: None
        tab = await open_app(front, user, signInPatience="0")
        await tab.js(WATCH)
        await tab.js(
            "() => { window.seen = []; db.status.subscribe(() => { const {firstSync} = db.status.value;"
            " if (firstSync?.total) seen.push([firstSync.done, firstSync.total]); }); }"
        )
        front.token = server.token
        await tab.js("db.signedIn()")
        await tab.until(
            "document.querySelector('#progress') && Number(document.querySelector('#count').textContent) > 0"
        )
        await tab.until("(rows) => document.querySelector('#count').textContent === String(rows)", ROWS)
        await tab.live()
        seen = await tab.js("seen")
        assert seen == sorted(seen) and len({done for done, _ in seen}) > 5
        assert seen[-1][0] == seen[-1][1] and seen[0][0] < seen[-1][0]
        assert await tab.js("longest") < LONGEST_GAP
        await tab.page.close()


async def test_a_first_synchronisation_goes_on_where_a_closed_tab_left_it(
    open_app: Opens, built: Path, full: tuple[TidemarkServer, str]
) -> None:
    """A tab closed in the middle leaves whole pages behind; the next one fetches the rest and proves it (I32)."""
    server, user = full
    async with Front(built, server) as front:
        tab = await open_app(front, user)
        await tab.until("async () => (await db.user_categories.count()) > 0")
        await tab.page.close()
        again = await open_app(front, user, beside=tab)
        found = await again.js("db.user_categories.count()")
        assert 0 < found < ROWS
        await again.until("async (rows) => (await db.user_categories.count()) === rows", ROWS)
        await again.live()
        proof = (await again.js("db.verify()"))[f"user:{user}"]
        assert proof["computed"] == proof["told"]
        assert proof["computed"].startswith(f"{ROWS}-")
        await again.page.close()
