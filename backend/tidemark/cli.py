"""`tidemark`: runs the service and looks after its database (`tidemark --help`)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import jwt
import structlog
import uvicorn
from uvicorn.supervisors import Multiprocess

from tidemark_protocol.model import Declaration

from . import log, plugin
from .admin.adoption import adopt, release_command
from .admin.clients import clients
from .admin.codegen.command import codegen
from .admin.doctor import doctor
from .admin.options import Faults, database_option, end, schema_option, settings_of
from .admin.why import why
from .app import DATA, create_app, own_command
from .settings import (
    VARIABLES,
    Settings,
    SettingsError,
    development_secret,
    for_development,
    read_duration,
    unknown,
    variable,
)
from .store.schema import migrate as migrations
from .web.direct import WireProtocol
from .web.metrics import SHARED

_LISTEN_BACKLOG = 2048
_UNSENT = 128 * 1024
_KEEP_ALIVE = 75
"""Seconds; longer than proxies and clients keep an idle connection, so that it is never closed under a request."""

_log = structlog.get_logger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidemark")
def main() -> None:
    """A self-hosted offline-first sync engine.

    Every option is also a setting TIDEMARK_… of the environment; docs/settings.md lists them all.
    """


for _command in (adopt, clients, codegen, doctor, release_command, why):
    main.add_command(_command)


@main.command()
@schema_option
@database_option
@click.option("--host", help="Address to listen on.  [TIDEMARK_HOST]")
@click.option("--port", type=int, help="Port to listen on.  [TIDEMARK_PORT]")
@click.option("--workers", type=int, help="Processes; SQLite serves one.  [TIDEMARK_WORKERS]")
@click.option("--migrate", is_flag=True, help="Bring the database up to date first.")
def serve(migrate: bool, **given: Any) -> None:
    """Run the service."""
    settings = settings_of(**given)
    # Rules are modules of whoever runs the service: of the folder it runs in, as for `python -m`.
    sys.path.insert(0, str(Path.cwd()))
    log.configure(settings.log_level, settings.log_format, sys.stdout.buffer, terminal=sys.stdout.isatty())
    development = not settings.has_keys
    with Faults():
        if development:
            settings = for_development(settings, DATA, os.urandom)
        _prepare(settings, migrate=migrate)
    listener = _listen(settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    for name in unknown(os.environ):
        _log.warning("no such setting", variable=name)
    if development:
        _log.warning(
            "development mode: this machine only, with a secret of its own",
            secret=str(DATA / "dev-secret"),
            tokens=f"{own_command()} token --user ada",
        )
    _log.info("serving", url=address, database=settings.database_name, schema=settings.schema, workers=settings.workers)
    _run(settings, listener)


@main.command()
@schema_option
@database_option
def migrate(**given: Any) -> None:
    """Bring the service's tables and the declared ones up to date."""
    settings = settings_of(**given)
    with Faults():
        _migrate(settings, plugin.read_declaration(settings))
    click.echo(f"{settings.database_name} is up to date")


@main.command()
@click.option("--user", required=True, help="The token's `sub`.")
@click.option("--role", type=click.Choice(["admin"]), help="What an operator needs.")
@click.option("--ttl", default="1h", show_default=True, help="How long it is good.")
def token(user: str, role: str | None, ttl: str) -> None:
    """Write a token signed with the shared secret, or with that of development mode."""
    settings = settings_of()
    with Faults():
        if settings.has_keys and settings.jwt_secret is None:
            raise SettingsError([f"tokens are your identity provider's: {variable('jwt_secret')} is not set"])
        secret = settings.jwt_secret or development_secret(DATA, os.urandom)
        try:
            lifetime = read_duration(ttl)
        except ValueError as fault:
            raise SettingsError([f"--ttl: {fault}"]) from fault
    claims: dict[str, Any] = {"sub": user, "exp": int(time.time() + lifetime / 1_000)}
    claims |= {"role": role} if role else {}
    claims |= {"aud": settings.jwt_audience} if settings.jwt_audience else {}
    claims |= {"iss": settings.jwt_issuer} if settings.jwt_issuer else {}
    click.echo(jwt.encode(claims, secret, algorithm="HS256"))


@main.group()
def schema() -> None:
    """The declaration."""


@schema.command()
@click.argument("file", type=click.Path(dir_okay=False))
def check(file: str) -> None:
    """Name every fault of a schema file by its path in it."""
    with Faults():
        declaration = plugin.read_declaration(Settings(schema=file))
    click.echo(f"{file}: schema {declaration.number}, {len(declaration.entities)} entities, no faults")


@schema.command()
@schema_option
@database_option
@click.option("-m", "--message", required=True, metavar="TEXT", help="What changed.")
def revision(message: str, **given: Any) -> None:
    """Write a migration for what the declaration changed, to be read before it is run."""
    settings = settings_of(**given)
    with Faults():
        declaration, folder = plugin.read_declaration(settings), plugin.migrations_of(settings)
        written = migrations.revision(settings.database_url, declaration, folder, message)
    for file in written:
        click.echo(file)
    if not written:
        click.echo("the database is as declared: there is nothing to write", err=True)


@main.group()
def epoch() -> None:
    """The name of the database's contents."""


@epoch.command()
@schema_option
@database_option
def renew(**given: Any) -> None:
    """Draw a new epoch: after a restore or a roll-back, so that every replica starts anew."""
    settings = settings_of(**given)
    with Faults():
        click.echo(asyncio.run(plugin.renew_epoch(settings, plugin.read_declaration(settings))))


def _prepare(settings: Settings, *, migrate: bool) -> None:
    """Everything that can be found wrong before a process serves."""
    create_app(settings)
    declaration = plugin.read_declaration(settings)
    if migrate:
        _migrate(settings, declaration)
    faults = migrations.check(settings.database_url, declaration)
    if faults:
        end(faults)
    for warning in asyncio.run(plugin.try_database(settings, declaration)):
        _log.warning(warning)
    if not plugin.is_sqlite(settings) and not plugin.make_wake(settings).spans:
        _log.warning(
            "each process has rooms of its own: what joins processes here carries no presence and no broadcasts",
            hint=f"{variable('wake')}=redis://… or nats://… joins them",
        )


def _migrate(settings: Settings, declaration: Declaration) -> None:
    migrations.migrate(settings.database_url, declaration, plugin.migrations_of(settings))


def _listen(settings: Settings) -> socket.socket:
    """The listening socket, its options inherited by every connection."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_LISTEN_BACKLOG)
    except OSError as fault:
        end([f"cannot listen on {settings.host}:{settings.port}: {fault.strerror or fault}"])
    # A peer that acknowledges nothing is cut off; a heartbeat alone would not notice it while something is unsent.
    for option, value in (("TCP_USER_TIMEOUT", settings.stall_timeout), ("TCP_NOTSENT_LOWAT", _UNSENT)):
        if hasattr(socket, option):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return listener


def _run(settings: Settings, listener: socket.socket) -> None:
    # The application reads its settings in the process that serves; they are to be the ones decided here.
    for name in VARIABLES & os.environ.keys():
        del os.environ[name]
    os.environ.update(settings.to_environ())
    config = uvicorn.Config(
        "tidemark.app:factory",
        factory=True,
        workers=settings.workers,
        ws=WireProtocol,
        ws_max_size=2 * settings.max_frame,  # the stream looks at the limit itself, to answer 4413
        ws_per_message_deflate=False,
        # The websocket's own pings: any peer answers them by itself, so that only a dead one is closed.
        ws_ping_interval=settings.heartbeat / 1_000,
        ws_ping_timeout=settings.heartbeat / 1_000,
        http="httptools",
        loop="uvloop",
        backlog=_LISTEN_BACKLOG,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, settings.shutdown_timeout // 1_000),
    )
    if settings.workers > 1:
        # Figures of all processes in one place, so that any of them answers `/metrics` for all.
        with TemporaryDirectory(prefix="tidemark-metrics-") as folder:
            os.environ[SHARED] = folder
            Multiprocess(config, [listener]).run()
        return
    # uvicorn raises the signal again once it is done; ending as asked is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(1)
