"""What is peculiar to wakes over LISTEN and NOTIFY: connections that the server ends, and what it shows of them."""

from __future__ import annotations

import asyncio

import asyncpg

from tests.backend.wake_world import IMPATIENT, SPACE, joined, reached
from tidemark.wake.channel import CHANNEL
from tidemark.wake.postgresql import APPLICATION

OURS = f"pg_stat_activity WHERE application_name = '{APPLICATION}' AND datname = current_database()"
KILL = f"SELECT count(pg_terminate_backend(pid)) FROM {OURS}"


async def ask(url: str, sql: str) -> object:
    """One value out of the database."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_a_killed_connection_comes_back_and_looks(postgresql_url: str) -> None:
    """When its backend is killed the listener connects again, says look, and hears on; and so do the others."""
    async with joined(postgresql_url) as (here, own), joined(postgresql_url) as (_, ear):
        assert await ask(postgresql_url, KILL) == 2
        await ear.until(lambda: ear.looks >= 2)
        await own.until(lambda: own.looks >= 2)
        await reached(here, ear)


async def test_a_silent_connection_is_pinged(postgresql_url: str) -> None:
    """On a connection where nothing happens something is said now and then, to hear whether it comes back."""
    async with joined(postgresql_url, timing=IMPATIENT._replace(answer_within=5.0)) as (_, ear):
        query = f"SELECT state_change FROM {OURS}"
        first = await ask(postgresql_url, query)
        async with asyncio.timeout(5):
            while await ask(postgresql_url, query) == first:
                pass
        assert ear.heard.count(None) == len(ear.heard)


async def test_a_strange_notification_says_look(postgresql_url: str) -> None:
    """What nobody of ours has written on the channel does no harm."""
    async with joined(postgresql_url) as (_, ear):
        await ask(postgresql_url, f"SELECT pg_notify('{CHANNEL}.{SPACE}', 'hello there, you')")
        await ear.until(lambda: ear.heard == [None, None])
