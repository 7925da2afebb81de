"""What belongs to the database as a whole: its epoch and its leases."""

from __future__ import annotations

import asyncio
import re
from uuid import uuid4

import pytest

from tests.conformance.stores import Database
from tests.conformance.writing import put, read, uuid, write
from tidemark.store.base import Store

W = "workspace:7"


@pytest.fixture
def name() -> str:
    """The name of a lease that nobody ever held."""
    return f"lease-{uuid4()}"


async def test_the_epoch_fits_into_a_watermark(store: Store) -> None:
    """It is a name as SPEC 1 has it."""
    assert re.fullmatch(r"[0-9a-z]{1,32}", store.epoch)


async def test_contents_and_epoch_outlive_a_restart(database: Database) -> None:
    """A store opened again, on the same database, goes on where the last one ended (I2)."""
    first = database.store()
    await first.open()
    epoch = first.epoch
    await write(first, put(W, "names", uuid(1), name="one"))
    await first.close()
    second = database.store()
    await second.open()
    assert second.epoch == epoch
    assert [change.row for change in read(await second.run(W, 0, 0, 10, 1 << 20))] == [uuid(1)]
    assert (await write(second, put(W, "names", uuid(2), name="two")))[W].head == 2
    await second.close()


async def test_a_lease_has_one_owner(store: Store, name: str) -> None:
    """Others get it when it has run out."""
    assert await store.lease(name, "a", now=1_000, until=2_000)
    assert not await store.lease(name, "b", now=1_500, until=2_500)
    assert not await store.lease(name, "b", now=1_999, until=2_500)
    assert await store.lease(name, "b", now=2_000, until=3_000)
    assert not await store.lease(name, "a", now=2_001, until=9_000)


async def test_an_owner_keeps_its_lease(store: Store, name: str) -> None:
    """Taking it again moves its end."""
    assert await store.lease(name, "a", now=1_000, until=2_000)
    assert await store.lease(name, "a", now=1_900, until=3_000)
    assert not await store.lease(name, "b", now=2_500, until=9_000)


async def test_leases_do_not_touch_each_other(store: Store, name: str) -> None:
    """Each name is a lease of its own."""
    assert await store.lease(f"{name}-one", "a", now=1_000, until=2_000)
    assert await store.lease(f"{name}-two", "b", now=1_000, until=2_000)


async def test_one_of_many_gets_a_lease(store: Store, name: str) -> None:
    """However they come at once."""
    got = await asyncio.gather(*(store.lease(name, f"owner-{n}", now=1_000, until=2_000) for n in range(10)))
    assert sum(got) == 1
