"""The service's routes in this process, over a store of plain dictionaries."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from tidemark.plugin import SyncConfig, SyncPlugin
from tidemark.settings import Settings
from tidemark.store.memory import MemoryStore
from tidemark_protocol.schema import Declaration, parse

SECRET = "a secret of tests, 32 bytes or more"
CLIENT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
DECLARATION: Declaration = parse(
    (Path(__file__).resolve().parents[1] / "contract" / "schema.yaml").read_text(encoding="utf-8")
)
PUSH = {"client": CLIENT, "schema": 3, "mutations": []}
PULL = {"client": CLIENT, "schema": 3}


def bearer(user: str = "ada", **claims: Any) -> dict[str, str]:
    """The header of a user."""
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 600} | claims, SECRET, algorithm="HS256")
    return {"Authorization": f"Bearer {token}"}


def note(number: int, user: str = "ada", title: str = "a note") -> dict[str, Any]:
    """A put of the note of that number."""
    return {
        "seq": number,
        "op": "put",
        "entity": "notes",
        "row": f"00000000-0000-4000-8000-{number:012d}",
        "at": f"{time.time_ns() // 1_000_000:012x}-{number:04x}-00000000000000aa",
        "fields": {"title": title},
    }


def plugin_of(store: MemoryStore | None = None, path: str = "", **settings: Any) -> SyncPlugin:
    """A plugin over plain dictionaries."""
    return SyncPlugin(
        SyncConfig(
            Settings(jwt_secret=SECRET, **settings),
            path=path,
            declaration=DECLARATION,
            store=store or MemoryStore(DECLARATION, chance=os.urandom),
        )
    )


def app_of(plugin: SyncPlugin) -> Litestar:
    """An application with nothing but the plugin."""
    return Litestar(plugins=[plugin], openapi_config=None, logging_config=None)


@pytest.fixture
def plugin() -> SyncPlugin:
    """A plugin without a rate limit."""
    return plugin_of(rate_limit=0)


@pytest.fixture
def client(plugin: SyncPlugin) -> Iterator[TestClient[Litestar]]:
    """Speaks to the plugin's routes."""
    with TestClient(app_of(plugin)) as client:
        yield client
