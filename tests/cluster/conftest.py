"""Several processes of the service on one PostgreSQL database, joined by a broker, behind a plain TCP balancer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.balancer import Balancer
from tests.cluster.brokers import PostgresBroker
from tests.conftest import need
from tests.contract.client import SECRET, Device, Service
from tests.servers import NatsServer, PostgresServer, RedisServer, TidemarkServer

DECLARATION = Path(__file__).parents[1] / "contract" / "schema.yaml"
SETTINGS = {"TIDEMARK_RATE_LIMIT": "0", "TIDEMARK_LOG_FORMAT": "json"}
PROCESSES = 3


@dataclass
class Cluster:
    """Processes of the service, each with a way to speak to it alone; `through` speaks to them by the balancer."""

    servers: list[TidemarkServer]
    services: list[Service]
    balancer: Balancer
    through: Service

    @property
    def ports(self) -> list[int]:
        """Where the processes listen."""
        return [server.port for server in self.servers]

    def devices(self, user: Device) -> list[Device]:
        """A device of the user for each process, which speaks to that one."""
        return [user.again().on(service) for service in self.services]

    def wait_joined(self, seconds: float = 30) -> None:
        """Wait until every process has a connection to what joins them."""
        deadline = time.monotonic() + seconds
        for service in self.services:
            while "tidemark_wake_connected 1.0" not in service.http.get("/metrics").text:
                assert time.monotonic() < deadline, f"{service.url} is not joined within {seconds:g} s"
                time.sleep(0.05)

    def log(self) -> list[str]:
        """All lines of all processes' logs."""
        return [line for server in self.servers for line in server.log.read_text(errors="replace").splitlines()]

    def errors(self) -> list[str]:
        """Lines that somebody should look at."""
        return [line[:2_000] for line in self.log() if '"level":"error"' in line or "Traceback" in line]


@contextmanager
def start_cluster(
    database: str, folder: Path, env: dict[str, str], *, processes: int = PROCESSES, workers: int = 1
) -> Iterator[Cluster]:
    """So many commands on one database, each of so many workers."""
    with ExitStack() as stack:
        servers = []
        for number in range(processes):
            own = folder / f"server{number}"
            own.mkdir()
            servers.append(
                TidemarkServer(
                    DECLARATION, database, env=SETTINGS | env, secret=SECRET, folder=own, workers=workers,
                    migrate=number == 0,
                )
            )  # fmt: skip
        # The first one makes the tables that the others want to find.
        for server in servers:
            stack.callback(server.kill)
        servers[0].start()
        for server in servers[1:]:
            server.launch()
        for server in servers[1:]:
            server.wait_ready()
        services = [Service(server.url) for server in servers]
        balancer = stack.enter_context(Balancer([server.port for server in servers]))
        through = Service(balancer.url)
        for service in (*services, through):
            stack.callback(service.close)
        yield Cluster(servers, services, balancer, through)
        ended = [server.stop() for server in servers]
        assert ended == [0] * processes


@pytest.fixture(scope="module")
def cluster(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three processes joined by their database; tests leave all of them running."""
    with start_cluster(postgres_server.create_database(), tmp_path_factory.mktemp("cluster"), {}) as cluster:
        yield cluster


BROKERS: dict[str, type[PostgresBroker | RedisServer | NatsServer]] = {
    "postgresql": PostgresBroker,
    "redis": RedisServer,
    "nats": NatsServer,
}


@dataclass
class Joined:
    """A cluster and what joins its processes."""

    cluster: Cluster
    broker: PostgresBroker | RedisServer | NatsServer
    kind: str


@pytest.fixture(scope="session", params=BROKERS)
def joined(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Joined]:
    """Three processes, once for each kind of broker; tests leave all of them running."""
    kind = BROKERS[request.param]
    need(kind.missing())
    database = postgres_server.create_database()
    with (
        kind() as broker,
        start_cluster(database, tmp_path_factory.mktemp("cluster"), {"TIDEMARK_WAKE": broker.wake}) as cluster,
    ):
        cluster.wait_joined()
        yield Joined(cluster, broker, request.param)
