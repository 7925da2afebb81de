"""Real devices: `tide` as its users run it, each command a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from tests.servers import TidemarkServer

TIDE = str(Path(sys.executable).with_name("tide"))
SCOPE = "workspace:1"


class Tide:
    """One store of one user; every command is a process of its own."""

    def __init__(self, service: TidemarkServer, folder: Path, user: str) -> None:
        self.service = service
        self.folder = folder
        self.user = user
        self.run("init", service.url)
        self.run("login", stdin=service.token(user))

    def command(self, *words: str) -> list[str]:
        """The command line."""
        return [TIDE, "--store", str(self.folder), *words]

    def run(self, *words: str, code: int = 0, stdin: str = "") -> str:
        """Run a command that must end with `code`; what it answered."""
        return self._done(*words, code=code, stdin=stdin).stdout

    def said(self, *words: str, code: int = 0) -> str:
        """What a command that ends with `code` says to the person."""
        return self._done(*words, code=code).stderr

    def _done(self, *words: str, code: int, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words), input=stdin, capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        """What a command answers to a script."""
        return json.loads(self.run(*words, "--json", code=code))

    def start(self, *words: str, stdin: int | None = None) -> subprocess.Popen[str]:
        """Run a command without waiting for its end."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*words), stdin=stdin, stdout=pipe, stderr=pipe, text=True, env=environment()
        )

    def digest(self) -> str:
        """The proven digest of the workspace."""
        return next(str(check["ours"]) for check in self.json("verify") if check["scope"] == SCOPE)


def environment() -> dict[str, str]:
    """The machine's, without what would change what `tide` does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDE_")}
    return kept | {"NO_PROXY": "127.0.0.1"}


def grant(server: TidemarkServer, user: str, role: str | None) -> None:
    """Give a role in the workspace, or take it away."""
    url = f"{server.url}/sync/scopes/{SCOPE}/members/{user}"
    headers = server.headers("op", "admin")
    response = httpx2.put(url, headers=headers, json={"role": role}) if role else httpx2.delete(url, headers=headers)
    response.raise_for_status()
