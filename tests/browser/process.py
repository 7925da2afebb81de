"""A browser as a user has it: a process of its own and a profile on the disk, of which nothing is emulated."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2
from playwright.async_api import Browser, BrowserContext, Playwright

from tests.browser.app import FLAGS, chromium


class Chromium:
    """Runs from `async with` to its end, or to `kill`; then another one may be started on the same profile."""

    def __init__(self, playwright: Playwright, profile: Path) -> None:
        self._playwright = playwright
        self._profile = profile
        self._process: subprocess.Popen[bytes] | None = None
        self._browser: Browser | None = None

    @property
    def context(self) -> BrowserContext:
        """Its profile."""
        assert self._browser is not None
        return self._browser.contexts[0]

    async def __aenter__(self) -> Self:
        program, port = chromium(), self._profile / "DevToolsActivePort"
        assert program is not None
        port.unlink(missing_ok=True)
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [
                program,
                *FLAGS,
                "--headless",
                f"--user-data-dir={self._profile}",
                "--remote-debugging-port=0",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(30):
                while not port.exists() or "\n" not in port.read_text():  # noqa: ASYNC110 - another process makes it
                    await asyncio.sleep(0.02)
                url = f"http://127.0.0.1:{port.read_text().split()[0]}"
                await _first_page(url)
            # Playwright's own wishes would keep every page in sight for ever, and never let one freeze.
            self._browser = await self._playwright.chromium.connect_over_cdp(url, no_defaults=True)
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End the browser with all its processes, at once."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def _first_page(url: str) -> None:
    """Wait until the browser has opened the page that it begins with: who connects earlier may wait for ever."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        while True:
            targets = (await http.get(f"{url}/json/list")).json()
            if any(target["type"] == "page" and target["url"] == "about:blank" for target in targets):
                return
            await asyncio.sleep(0.02)
