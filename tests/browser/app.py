"""The app in a browser: built once, opened in tabs that tests drive and read."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.async_api import BrowserContext, CDPSession, Page

from tests.browser.front import Front
from tests.contract.client import Device, Json

CLIENT = Path(__file__).parents[2] / "client_reference" / "typescript"
VITE = CLIENT / "node_modules" / "vite" / "bin" / "vite.js"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
UNTIL = """async ([expression, given, within]) => {
  const end = performance.now() + within;
  for (;;) {
    const found = (0, eval)(expression);
    if (await (typeof found === "function" ? found(given) : found)) return true;
    if (performance.now() > end) return false;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}"""
SCHEMA = 1
"""The number of both declarations."""


def missing() -> str | None:
    """Why there is no browser, or no app for it; None where all is there."""
    if chromium() is None:
        return "chromium is missing"
    if shutil.which("node") is None:
        return "Node.js is missing"
    return None if VITE.exists() else "the packages of client_reference/typescript are not installed"


def chromium() -> str | None:
    """The machine's own browser."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def build(folder: Path) -> None:
    """Build client_reference/typescript/test/app into a folder."""
    config = CLIENT / "test" / "app" / "vite.config.ts"
    command = ["node", str(VITE), "build", "--config", str(config), "--outDir", str(folder), "--emptyOutDir"]
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Peer(Device):
    """Another client of the same user, which speaks the number of the examples."""

    def envelope(self, mutations: Sequence[Json], **rest: Any) -> Json:
        """A push under that number."""
        return super().envelope(mutations, **{"schema": SCHEMA} | rest)

    def pull_body(self, watermark: Mapping[str, str] | None = None, **rest: Any) -> Json:
        """A pull under that number."""
        return super().pull_body(watermark, **{"schema": SCHEMA} | rest)

    def digest(self) -> str:
        """What all rows of the user's own scope come to."""
        (run,) = self.pull(scopes=[self.scope], limit=10_000)["scopes"]
        return str(run["digest"])

    def names(self, entity: str = "user_categories", scope: str | None = None) -> list[str]:
        """What rows the service holds, by their names or titles."""
        return sorted(str(doc.get("name", doc.get("title"))) for doc in self.docs(entity, scope).values())


class Tab:
    """One page of the app. `options` are those of test/app/options.ts and main.tsx, in the address."""

    def __init__(self, page: Page, front: Front, options: Mapping[str, str] | None = None) -> None:
        self.page = page
        self.front = front
        self.options = dict(options or {})
        self.faults: list[str] = []
        """What the page threw and nobody caught, and at last what was reported."""
        self.expects: tuple[str, ...] = ()
        """Words of what may be thrown or reported."""
        self.crashed = False
        self._tools: CDPSession | None = None
        page.on("crash", lambda _: setattr(self, "crashed", True))
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    @property
    def address(self) -> str:
        """Where the app is opened."""
        return f"{self.front.url}/?{urlencode(self.options)}"

    @property
    def context(self) -> BrowserContext:
        """The profile that the tab is of."""
        return self.page.context

    @property
    def gone(self) -> bool:
        """Whether the tab is closed, or its renderer has died."""
        return self.page.is_closed() or self.crashed

    def unexpected(self) -> list[str]:
        """The faults that the test did not provoke."""
        return [fault for fault in self.faults if not any(word in fault for word in self.expects)]

    async def load(self) -> None:
        """Go to the app, and wait until the database is open."""
        await self.page.goto(self.address)
        await self.until("window.db?.isOpen()")

    async def cdp(self) -> CDPSession:
        """The browser's own tools, for this page."""
        return await self.context.new_cdp_session(self.page)

    async def js(self, expression: str, given: Any = None) -> Any:
        """What an expression, or a function of `given`, comes to in the page."""
        return await self.page.evaluate(expression, given)

    async def allow(self, quota: int | None) -> None:
        """Let the origin store so many bytes; None: as many as the browser has it. A browser asks rarely."""
        tools = self._tools = self._tools or await self.cdp()
        size = {} if quota is None else {"quotaSize": quota}
        await tools.send("Storage.overrideQuotaForOrigin", {"origin": self.front.url} | size)

    async def until(self, expression: str, given: Any = None, within: float = 20) -> None:
        """Wait until an expression, or a function of `given`, is true in the page; promises are waited for."""
        try:
            # A page that hangs or is frozen does not even look at its clock.
            async with asyncio.timeout(within + 10):
                found = await self.page.evaluate(UNTIL, [expression, given, within * 1000])
        except TimeoutError:
            raise AssertionError(f"never: {expression} ({given}); the page does not answer") from None
        if not found:
            raise AssertionError(f"never: {expression} ({given}); {await self.standing()}")

    async def standing(self) -> Any:
        """The status, what was reported and thrown."""
        return await self.js(
            "async () => window.db && ({...db.status.value, reports, outgoing: await db.outgoing(),"
            " verify: await db.verify(), shown: document.body.innerText})"
        ), self.faults

    async def live(self) -> None:
        """Wait until the stream is open."""
        await self.until('db.status.value.connection === "live"')

    async def sent(self) -> None:
        """Wait until the service has answered everything."""
        await self.until("async () => db.status.value.pending === 0 && (await db.outgoing()).length === 0")

    async def add(self, *names: str) -> None:
        """Write categories, one transaction each."""
        await self.js(
            "async (names) => { for (const name of names) await db.user_categories.add({name}) }", list(names)
        )

    async def names(self) -> list[str]:
        """The categories that the database holds."""
        found = await self.js("async () => (await db.user_categories.toArray()).map(({name}) => name)")
        return sorted(found)

    async def holds(self, *names: str) -> None:
        """Wait until the database holds these categories and no others."""
        await self.until(
            "async (names) => (await db.user_categories.toArray()).map(({name}) => name).sort().join() === names",
            ",".join(sorted(names)),
        )

    async def agrees(self, scope: str, digest: str) -> None:
        """Wait until the rows of a scope, as they lie on the disk, come to this digest."""
        await self.until("async ([scope, digest]) => (await db.verify())[scope]?.computed === digest", [scope, digest])

    async def shows(self, place: str, *texts: str) -> None:
        """Wait until a list shows these lines and no others, in any order."""
        await self.until(
            "([place, texts]) => [...document.querySelectorAll(`#${place} li`)]"
            ".map((line) => line.textContent.trim()).sort().join('|') === texts",
            [place, "|".join(sorted(texts))],
        )
