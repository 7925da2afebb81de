"""Nothing that SQL or a client writes is lost, skipped or doubled while both write the same rows (SPEC 10)."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import WebSocketException

from tests.contract.client import SECRET, Device, Service
from tests.contract.replica import Replica
from tests.contract.stream import Follower, Stream
from tests.outside import Program
from tests.race import sql_storm as storm
from tests.servers import TidemarkServer
from tidemark.store.schema.migrate import migrate
from tidemark_protocol.schema import parse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = float(os.environ.get("CAPTURE_RACE_SECONDS", "6"))
SEED = int(os.environ.get("CAPTURE_RACE_SEED", "0")) or time.time_ns()


@dataclass
class Shop:
    """A running service on adopted tables, the programs and clients that write, and those who follow."""

    url: str
    servers: list[TidemarkServer]
    services: list[Service]
    admin: Device
    programs: list[storm.SqlWriter]
    clients: list[storm.Client]
    replicas: list[Replica] = field(default_factory=list)

    def follow(self, service: Service, over: threading.Event) -> None:
        """A replica by stream; after an interruption it goes on by a new one."""
        device = storm.device(service, f"reader{len(self.replicas)}", self.admin)
        replica = Replica()
        self.replicas.append(replica)
        while not over.is_set():
            with (
                suppress(WebSocketException, OSError, EOFError, httpx2.TransportError),
                Stream(device, replica.watermark) as stream,
            ):
                follower = Follower(stream)
                follower.replica = replica
                stream.welcome()
                while not over.is_set():
                    for frame in stream.incoming(0.3):
                        follower.take(frame)
                        if over.is_set():
                            break
        replica.pull(device)

    def pull(self, service: Service, over: threading.Event) -> None:
        """A replica by pulls."""
        device = storm.device(service, f"puller{len(self.replicas)}", self.admin)
        replica = Replica()
        self.replicas.append(replica)
        while not over.is_set():
            with suppress(httpx2.TransportError):
                replica.pull(device, limit=20)

    def empty(self, within: float = 60.0) -> None:
        """Wait until nothing is left in the inbox."""
        until = time.monotonic() + within
        while asyncio.run(storm.backlog(self.url)):
            assert time.monotonic() < until, "the inbox is never empty"

    def verify(self) -> None:
        """Feed, tables and replicas agree, and every write shows or was followed by another."""
        for client in self.clients:
            client.settle(time.time() + 30)
        self.empty()
        table = asyncio.run(storm.rows_of(self.url))
        device, fresh = storm.device(self.services[0], "fresh", self.admin), Replica()
        fresh.pull(device)
        feed = {}
        for tenant in storm.TENANTS:
            for (entity, row), doc in fresh.docs(f"workspace:{tenant}").items():
                names = ("parent", "price") if entity == "lines" else ("mark", "total", "word")
                feed[tenant, entity, row] = {name: doc[name] for name in names if name in doc}
        assert feed == table
        for replica in self.replicas:
            replica.pull(device)
            assert {scope: copy.rows for scope, copy in replica.scopes.items()} == {
                scope: copy.rows for scope, copy in fresh.scopes.items()
            }
        self._verify_writes(table)

    def _verify_writes(self, table: dict[tuple[str, str, str], dict[str, object]]) -> None:
        left = {
            (entity, f"{tenant}/{row}" if entity == "tags" else row): str(values["mark"])
            for (tenant, entity, row), values in table.items()
            if entity != "lines" and not row.startswith("new")
        }
        written = [one for each in self.programs for one in each.written]
        written += [one for client in self.clients for one in client.written]
        known = {one.mark for one in written} | {mark for client in self.clients for mark in client.maybe} | {""}
        assert {mark for mark in left.values() if mark not in known} == set()
        assert storm.lost(written, left) == []
        refused = sum((client.refused for client in self.clients), Counter())
        assert set(refused) <= storm.REFUSALS, refused
        assert [answer for client in self.clients for answer in client.failed] == []

    def errors(self) -> list[str]:
        """Lines of the services' logs that somebody should look at."""
        lines = [line for server in self.servers for line in server.log.read_text().splitlines()]
        return [line[:2000] for line in lines if '"error"' in line or " error " in line or "Traceback" in line]

    def figures(self) -> str:
        """What happened, for the reader of a long run."""
        faults = sum((program.faults for program in self.programs), Counter())
        refused = sum((client.refused for client in self.clients), Counter())
        return (
            f"{sum(p.commits for p in self.programs)} commits in SQL, {dict(faults)} failed; "
            f"{sum(c.serial for c in self.clients)} mutations, {dict(refused)} refused, "
            f"{sum(c.retries for c in self.clients)} retries, slowest {max(c.slowest for c in self.clients):.2f} s; "
            f"{sum(r.proved for r in self.replicas)} digests proved"
        )


async def _adopt(url: str) -> None:
    async with Program(url) as program:
        if program.dialect == "sqlite":
            await program.run("PRAGMA journal_mode = wal")
        await program.run(*storm.TABLES.format(key=storm.KEY[program.dialect]).split(";"))
        await program.run(*storm.owners_triggers(program.dialect))
    await asyncio.to_thread(migrate, url, parse(storm.DECLARATION))


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Iterator[Shop]:
    """Two processes of the service, one on SQLite."""
    asyncio.run(_adopt(database_url))
    schema = tmp_path / "schema.yaml"
    schema.write_text(storm.DECLARATION)
    sqlite = database_url.startswith("sqlite")
    env = {"TIDEMARK_RATE_LIMIT": "0", "TIDEMARK_LOG_FORMAT": "json"}
    with ExitStack() as stack:
        servers = []
        for number in range(1 if sqlite else 2):
            folder = tmp_path / f"server{number}"
            folder.mkdir()
            server = TidemarkServer(schema, database_url, env=env, secret=SECRET, folder=folder, migrate=False)
            servers.append(stack.enter_context(server))
        services = [Service(server.url) for server in servers]
        for service in services:
            stack.callback(service.close)
        admin = services[0].admin()
        chance = random.Random(SEED)
        programs = [
            storm.SqlWriter(database_url, n, random.Random(chance.random()), 0.5 if sqlite else SECONDS / 4)
            for n in range(2 if sqlite else 4)
        ]
        clients = [
            storm.Client(storm.device(services[n % len(services)], f"u{n}", admin), random.Random(chance.random()))
            for n in range(4)
        ]
        yield Shop(database_url, servers, services, admin, programs, clients)


def rage(shop: Shop, seconds: float, interrupt: bool) -> None:
    """Everybody writes and follows for so long; `interrupt` ends the first process in the middle, and starts it."""

    def meanwhile() -> None:
        end = time.monotonic() + seconds
        if interrupt:
            time.sleep(seconds / 3)
            shop.servers[0].kill()
            time.sleep(min(1.0, seconds / 6))
            shop.servers[0].start()
        while time.monotonic() < end:
            time.sleep(0.05)

    works = [*(program.work for program in shop.programs), *(client.work for client in shop.clients)]
    followers = [partial(how, service) for service in shop.services for how in (shop.follow, shop.pull)]

    def rest() -> None:
        assert storm.at_once(works, meanwhile) == []
        shop.empty()

    raised = storm.at_once(followers, rest)
    print(shop.figures())  # noqa: T201 - what a long run is for
    assert raised == []


def test_writers_in_sql_and_clients_race_for_the_same_rows(shop: Shop) -> None:
    """Feed, tables and all replicas agree afterwards; every write shows, or a later one does (I27, I53, I54)."""
    rage(shop, SECONDS, interrupt=False)
    shop.verify()
    assert shop.errors() == []


def test_a_service_killed_in_the_middle_loses_nothing(shop: Shop) -> None:
    """The same, a process of the service being ended and started again while everybody writes (I14, I53)."""
    rage(shop, SECONDS, interrupt=True)
    shop.verify()
    assert shop.errors() == []
