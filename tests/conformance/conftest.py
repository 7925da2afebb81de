"""The shared suite runs on every store; tests of overlapping transactions on those that declare them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conformance.stores import KINDS, Database
from tidemark.store.base import Store


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on every kind of store that has what the test asks for."""
    if "kind" in metafunc.fixturenames:
        overlap = "overlapping" in metafunc.fixturenames
        metafunc.parametrize("kind", [name for name, kind in KINDS.items() if kind.overlapping or not overlap])


@pytest.fixture
async def database(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Database:
    """An empty database with its tables."""
    database = KINDS[kind](request, tmp_path)
    await database.prepare()
    return database


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    """An open store on an empty database."""
    store = database.store()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def overlapping(store: Store) -> Store:
    """The same, of a kind that runs transactions at the same time."""
    return store
