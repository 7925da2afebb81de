"""The composition root: puts store, wake, engine and routes together, for a service alone or beside other routes.

    app = Litestar(route_handlers=[...], plugins=[SyncPlugin(SyncConfig(Settings.from_environ(os.environ)))])

Errors of our routes are answered by our routes; a host application's own handlers stay as they are.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import structlog
from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.handlers import BaseRouteHandler
from litestar.plugins import InitPluginProtocol
from msgspec import Struct

from tidemark_protocol.schema import Declaration, parse

from .log import OnRequest, request_line
from .meter import SILENT, Meter
from .settings import Settings, SettingsError, variable
from .store.base import Store, Unfit
from .store.postgresql import PostgresStore
from .store.schema.fit import is_mysql
from .store.sqlite import SqliteStore
from .sync.engine import Engine
from .tracer import UNTRACED, Tracer
from .wake.base import Wake
from .wake.local import LocalWake
from .wake.polling import PollingWake
from .wake.postgresql import PostgresWake
from .web.auth import Authenticator
from .web.events import events_endpoint
from .web.graceful import Graceful
from .web.journal import journal_route
from .web.keys import keys_of
from .web.limits import RateLimit
from .web.members import members_route
from .web.metrics import SHARED, Metrics
from .web.ops import docs_routes, health_routes, metrics_route, schema_route, time_route
from .web.pull import pull_route
from .web.push import push_route
from .web.routes import Frame, Route
from .web.shutdown import Shutdown
from .web.stream import stream_handler

if TYPE_CHECKING:
    from .store.mysql import MysqlStore
    from .wake.nats import NatsWake
    from .wake.redis import RedisWake

_POLL_WITHOUT_WAKE = 100
_JWKS_TIMEOUT = 5.0
_REDIS = ("redis", "rediss", "valkey", "valkeys")
_NATS = ("nats", "tls")

_log = structlog.get_logger(__name__)


def wall_milliseconds() -> int:
    return time.time_ns() // 1_000_000


class SyncConfig(Struct, frozen=True):
    """What the plugin is made from.

    `path` stands before all routes (`/api`); `declaration` is read from the settings' file when not given. `now` is
    wall time in Unix milliseconds, `monotonic` seconds, `chance(n)` n random bytes; `log` takes each request's line;
    `store` is the one that the database's URL names when not given; `tracer` (see `make_tracer`) is closed with the
    plugin.
    """

    settings: Settings
    path: str = ""
    declaration: Declaration | None = None
    now: Callable[[], int] = wall_milliseconds
    monotonic: Callable[[], float] = time.monotonic
    chance: Callable[[int], bytes] = os.urandom
    log: OnRequest = request_line
    store: Store | None = None
    tracer: Tracer = UNTRACED


class SyncPlugin(InitPluginProtocol):
    """Adds the synchronisation routes to a Litestar application and runs the engine for as long as it lives.

    Raises SettingsError and DeclarationError when made. As soon as a signal tells the process to end, streams and held
    requests end in order; then comes the server's own handler.
    """

    def __init__(self, config: SyncConfig) -> None:
        self.config = config
        settings = config.settings
        self.declaration = config.declaration or read_declaration(settings)
        load_rules(settings)
        self.shutdown = Shutdown()
        shared = os.environ.get(SHARED)
        self.metrics = Metrics(config.now, Path(shared) if shared else None)
        store = config.store or make_store(settings, self.declaration, chance=config.chance)
        self.engine = make_engine(
            settings,
            self.declaration,
            store,
            now=config.now,
            chance=config.chance,
            monotonic=config.monotonic,
            meter=self.metrics,
            tracer=config.tracer,
        )
        self._graceful = Graceful(self.shutdown, self.engine.end_streams, settings.shutdown_timeout / 1_000)
        self._jwks = httpx2.AsyncClient(timeout=_JWKS_TIMEOUT)
        limiter = RateLimit(settings.rate_limit, config.monotonic)
        self.frame = Frame(
            self._authenticator(),
            limiter,
            self.metrics,
            config.log,
            config.monotonic,
            settings.origins,
            config.tracer,
        )

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.route_handlers.extend(self.handlers())
        app_config.lifespan += [self._graceful.lifespan, self._running]
        return app_config

    def routes(self) -> list[Route]:
        """Every route."""
        engine, shutdown = self.engine, self.shutdown
        authenticate = self.frame.authenticator.authenticate
        names = (f"{engine.node}-{number}" for number in count(1))
        events = events_endpoint(engine, authenticate, names)
        stream = stream_handler(engine, authenticate, names)
        return [
            push_route(engine),
            pull_route(engine, shutdown),
            Route("/sync/stream", {"POST": events}, websocket=stream),
            journal_route(engine),
            members_route(engine),
            schema_route(engine),
            time_route(engine, self.config.now),
            *health_routes(engine, shutdown),
            metrics_route(self.metrics),
            *docs_routes(),
        ]

    def handlers(self) -> list[BaseRouteHandler]:
        prefix = self.config.path.rstrip("/")
        return [self.frame.handler(route, prefix) for route in self.routes()]

    @asynccontextmanager
    async def _running(self, _app: Litestar) -> AsyncIterator[None]:
        await self.engine.start()
        self.metrics.started(version("tidemark"), self.engine.store.epoch)
        refreshing = asyncio.create_task(self.metrics.keep_fresh())
        try:
            yield
        finally:
            refreshing.cancel()
            self.shutdown.begin()
            await self.engine.stop()
            await self._jwks.aclose()
            await asyncio.to_thread(self.config.tracer.close)

    def _authenticator(self) -> Authenticator:
        settings = self.config.settings
        try:
            keys = keys_of(settings, self._fetch, self.config.monotonic)
        except (OSError, ValueError) as fault:
            name = "jwt_public_key" if settings.jwt_public_key else "jwt_secret"
            raise SettingsError([f"{variable(name)}: {fault}"]) from fault
        return Authenticator(
            keys, lambda: self.config.now() / 1_000, settings.jwt_audience or None, settings.jwt_issuer or None
        )

    async def _fetch(self, url: str) -> bytes:
        try:
            response = await self._jwks.get(url)
            response.raise_for_status()
        except httpx2.HTTPError as error:
            raise OSError(f"{url}: {error!r}") from error
        return response.content


def read_declaration(settings: Settings) -> Declaration:
    """The declaration in the settings' file; DeclarationError with every fault of it, SettingsError without a file."""
    try:
        text = Path(settings.schema).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise SettingsError([f"{variable('schema')}: {fault}"]) from fault
    return parse(text)


def load_rules(settings: Settings) -> None:
    """Import the module that registers rules."""
    if settings.rules is None:
        return
    try:
        importlib.import_module(settings.rules)
    except ImportError as fault:
        raise SettingsError([f"{variable('rules')}: {fault}"]) from fault


def make_store(
    settings: Settings,
    declaration: Declaration,
    *,
    chance: Callable[[int], bytes] = os.urandom,
    shared: bool = False,
) -> SqliteStore | PostgresStore | MysqlStore:
    """The store that the database's URL names; `shared`: a service may have it too, even if it serves one process."""
    url = settings.database_url
    if is_sqlite(settings):
        if settings.workers > 1:
            why = "several connections that write can corrupt its log; use another database for more"
            raise SettingsError([f"{variable('workers')}: SQLite serves one process ({why})"])
        return SqliteStore(url, declaration, chance=chance, shared=shared)
    if is_postgresql(url):
        return PostgresStore(url, declaration, chance=chance)
    if is_mysql(url):
        return _mysql_store()(url, declaration, chance=chance)
    served, scheme = "sqlite:, postgresql:, mysql: and mariadb:", url.partition(":")[0]
    raise SettingsError([f"{variable('database_url')}: {served} are served, not {scheme}:"])


def _mysql_store() -> type[MysqlStore]:
    """Imported only where it is asked for: its driver is an extra."""
    try:
        from .store.mysql import MysqlStore  # noqa: PLC0415
    except Unfit as fault:
        raise SettingsError([f"{variable('database_url')}: {fault}"]) from fault
    return MysqlStore


def make_engine(
    settings: Settings,
    declaration: Declaration,
    store: Store,
    *,
    now: Callable[[], int] = wall_milliseconds,
    chance: Callable[[int], bytes] = os.urandom,
    monotonic: Callable[[], float] = time.monotonic,
    meter: Meter = SILENT,
    tracer: Tracer = UNTRACED,
) -> Engine:
    """The engine over a store, not started."""
    return Engine(
        store=store,
        declaration=declaration,
        settings=settings,
        wake=make_wake(settings, chance=chance, meter=meter),
        now=now,
        chance=chance,
        monotonic=monotonic,
        meter=meter,
        tracer=tracer,
    )


def make_tracer(environ: Mapping[str, str]) -> Tracer:
    """What hands spans to the collector that the variables OTEL_… name, if they do.

    Where that cannot be, a warning says so: the service is worth more than its traces.
    """
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if (
        not (environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
        or environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or "otlp" not in (environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")
    ):
        return UNTRACED
    if protocol not in {None, "", "http/protobuf"}:
        _log.warning("traces_off", reason=f"OTEL_EXPORTER_OTLP_PROTOCOL: http/protobuf is spoken, not {protocol}")
        return UNTRACED
    try:
        from .web.traces import Traces  # noqa: PLC0415  (its libraries are an extra)
    except ImportError:
        _log.warning("traces_off", reason="a collector is named, but the extra `opentelemetry` is not installed")
        return UNTRACED
    return Traces.to_collector(version("tidemark"))


def migrations_of(settings: Settings) -> Path:
    """The folder of the declaration's revisions, there or not."""
    return Path(settings.migrations) if settings.migrations else Path(settings.schema).parent / "migrations"


async def try_database(settings: Settings, declaration: Declaration) -> list[str]:
    """Open the database as the service will, and let go of it; what it warns of. Raises Unfit or Unavailable."""
    store = make_store(settings, declaration)
    try:
        await store.open()
        return store.warnings
    finally:
        await store.close()


async def renew_epoch(settings: Settings, declaration: Declaration) -> str:
    """Draw a new epoch and return it (SPEC 1). Raises Unfit or Unavailable."""
    store = make_store(settings, declaration)
    try:
        await store.open()
        return await store.renew_epoch()
    finally:
        await store.close()


def make_wake(settings: Settings, *, chance: Callable[[int], bytes] = os.urandom, meter: Meter = SILENT) -> Wake:
    """What joins the processes of one database."""
    wake = settings.wake
    if is_postgresql(wake):
        return PostgresWake(wake, chance=chance, meter=meter)
    if wake == "polling":
        return PollingWake(min(settings.poll_interval, _POLL_WITHOUT_WAKE))
    if wake != "auto":
        try:
            return _broker_wake(wake)(wake, chance=chance, meter=meter)
        except ValueError as fault:
            raise SettingsError([f"{variable('wake')}: {fault}"]) from None
    if is_sqlite(settings):
        return LocalWake()
    if is_mysql(settings.database_url):
        return PollingWake(min(settings.poll_interval, _POLL_WITHOUT_WAKE))
    return PostgresWake(settings.database_url, chance=chance, meter=meter)


def _broker_wake(url: str) -> type[RedisWake | NatsWake]:
    """Imported only where it is asked for: the clients of brokers are extras."""
    scheme = url.partition("://")[0] if "://" in url else ""
    try:
        if scheme in _REDIS:
            from .wake.redis import RedisWake  # noqa: PLC0415

            return RedisWake
        if scheme in _NATS:
            from .wake.nats import NatsWake  # noqa: PLC0415

            return NatsWake
    except ImportError as fault:
        extra = "redis" if scheme in _REDIS else "nats"
        why = f"{scheme}: needs its client, install tidemark[{extra}] ({fault})"
        raise SettingsError([f"{variable('wake')}: {why}"]) from fault
    served = ", ".join(f"{name}://" for name in ("postgresql", *_REDIS, *_NATS))
    raise SettingsError([f"{variable('wake')}: auto, polling or a URL is expected, {served}"])


def is_sqlite(settings: Settings) -> bool:
    return settings.database_url.startswith("sqlite:")


def is_postgresql(url: str) -> bool:
    return url.startswith(("postgresql:", "postgres:"))
