"""The app, built once a run; a browser and services for each worker; a front and profiles for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio
from filelock import FileLock
from playwright.async_api import Browser, BrowserContext, Playwright, async_playwright

from tests.browser.app import FLAGS, Peer, Tab, build, chromium, missing
from tests.browser.front import COOKIE, Front
from tests.conftest import need
from tests.contract.client import SECRET, Service, fresh
from tests.servers import TidemarkServer

EXAMPLES = Path(__file__).parents[2] / "examples"
SETTINGS = {"TIDEMARK_RATE_LIMIT": "0"}


def example(name: str, database: str, folder: Path, **env: str) -> TidemarkServer:
    """A service of one of the examples."""
    schema = EXAMPLES / name / "schema.yaml"
    return TidemarkServer(schema, database, env=SETTINGS | env, secret=SECRET, folder=folder)


@pytest.fixture(scope="session")
def built(meeting: Path) -> Path:
    """The folder with the app's files, built by whichever worker comes first."""
    need(missing())
    folder = meeting / "browser-app"
    with FileLock(meeting / "browser-app.lock"):
        if not folder.exists():
            build(folder)
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def playwright(built: Path) -> AsyncIterator[Playwright]:
    """What drives browsers."""
    async with async_playwright() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(playwright: Playwright) -> AsyncIterator[Browser]:
    """One Chromium, which the tests of a worker share: each has profiles of its own."""
    running = await playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
    yield running
    await running.close()


@pytest.fixture(scope="session")
def calendar(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TidemarkServer]:
    """The service of users' calendars that most tests share; everyone has users of their own."""
    folder = tmp_path_factory.mktemp("calendar")
    with example("calendar", f"sqlite:///{folder / 'tidemark.db'}", folder) as server:
        yield server


@pytest.fixture(scope="session")
def productions(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TidemarkServer]:
    """The service of workspaces, shared in the same way."""
    folder = tmp_path_factory.mktemp("productions")
    with example("productions", f"sqlite:///{folder / 'tidemark.db'}", folder) as server:
        yield server


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Iterator[TidemarkServer]:
    """A service of calendars that a test may stop, start again and write to in SQL."""
    with example("calendar", f"sqlite:///{tmp_path / 'tidemark.db'}", tmp_path) as server:
        yield server


@pytest.fixture
def peers() -> Iterator[MakePeer]:
    """Makes other clients of a user."""
    with_services: list[Service] = []

    def make(server: TidemarkServer, user: str) -> Peer:
        service = Service(server.url)
        with_services.append(service)
        return Peer(service, user)

    yield make
    for service in with_services:
        service.close()


@pytest.fixture
def ada() -> str:
    """A user whom nobody else is."""
    return fresh("ada")


@pytest_asyncio.fixture(loop_scope="session")
async def front(built: Path, calendar: TidemarkServer) -> AsyncIterator[Front]:
    """The app's own server, before the shared service of calendars."""
    async with Front(built, calendar) as running:
        yield running


MakePeer = Callable[[TidemarkServer, str], Peer]


class Opens(Protocol):
    """Opens the app in a new profile of `user`, or in another tab beside one; `quota`: bytes that it may store."""

    def __call__(
        self, front: Front, user: str, *, beside: Tab | None = None, quota: int | None = None, **options: str
    ) -> Awaitable[Tab]:
        """Open it; `options` go into the address."""
        ...


@pytest_asyncio.fixture(loop_scope="session")
async def open_app(browser: Browser) -> AsyncIterator[Opens]:
    """Opens the app; profiles end with the test, and nothing may have been reported that it did not expect."""
    tabs: list[Tab] = []
    async with AsyncExitStack() as stack:

        async def profile(front: Front, user: str) -> BrowserContext:
            context = await stack.enter_async_context(await browser.new_context())
            await sign_in(context, front, user)
            return context

        async def open_tab(
            front: Front, user: str, *, beside: Tab | None = None, quota: int | None = None, **options: str
        ) -> Tab:
            context = beside.context if beside else await profile(front, user)
            tab = Tab(await context.new_page(), front, options or (beside.options if beside else {}))
            tabs.append(tab)
            if quota is not None:
                await tab.allow(quota)
            await tab.load()
            return tab

        yield open_tab
        for tab in tabs:
            if not tab.gone:
                tab.faults += [str(report) for report in await tab.js("reports")]
            assert tab.unexpected() == []


async def sign_in(context: BrowserContext, front: Front, user: str) -> None:
    """Let the app's server know who is there."""
    await context.add_cookies([{"name": COOKIE, "value": user, "url": front.url}])
