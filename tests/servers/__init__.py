"""Servers that tests, the bench and the demo start for themselves, on free ports of the loopback interface.

`PostgresServer` is a private throw-away cluster, `MariadbServer` the same of MariaDB, `RedisServer` and `NatsServer`
join processes, `TidemarkServer` is the real `tidemark serve` in a process of its own:

    with PostgresServer() as postgres, TidemarkServer(SCHEMA, postgres.create_database()) as server:
        httpx2.post(f"{server.url}/sync/push", headers={"Authorization": f"Bearer {server.token('ada')}"}, json=...)

Inside tests take the fixtures of `tests/conftest.py` instead of servers of your own: `database_url` (runs the test on
SQLite, PostgreSQL and MariaDB), `postgresql_url` and `mariadb_url` (a fresh database), `postgres_server`,
`mariadb_server`, `redis_server` and `nats_server` (the server itself).
Everything here blocks; in an async test call the slow parts through `asyncio.to_thread`.
"""

from __future__ import annotations

from .brokers import NatsServer, RedisServer
from .common import READY_WITHIN, ServerError, free_port, log_tail
from .databases import MariadbServer, PostgresServer
from .service import TidemarkServer

__all__ = [
    "READY_WITHIN",
    "MariadbServer",
    "NatsServer",
    "PostgresServer",
    "RedisServer",
    "ServerError",
    "TidemarkServer",
    "free_port",
    "log_tail",
]
