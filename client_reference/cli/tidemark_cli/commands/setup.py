"""Making a store, saying who one is, seeing where things stand."""

from __future__ import annotations

import sys
from typing import Any

import click

from tidemark_cli.app import App, json_option, pass_app
from tidemark_cli.errors import TideError
from tidemark_cli.render import ago, table
from tidemark_cli.sync import Synchroniser
from tidemark_cli.values import plural


@click.command()
@click.argument("url")
@click.option("--token", help="Log in at once with this token.")
@click.option(
    "--token-file", type=click.File(), help="Log in at once with the token in this file (- for standard input)."
)
@pass_app
def init(app: App, url: str, token: str | None, token_file: Any) -> None:
    """Make a store that is a replica of the service at URL."""
    if not url.startswith(("http://", "https://")):
        raise click.UsageError("The URL begins with http:// or https://")
    app.make().begin(url.rstrip("/"))
    app.say(f"The store in {app.folder} is a replica of {url}.")
    text = token or (token_file.read() if token_file else None)
    if text:
        _login(app, text.strip())
    else:
        app.say("Next: tide login")


@click.command()
@click.option("--token", help="The token itself (others on this machine may see it in the list of processes).")
@click.option("--token-file", type=click.File(), help="A file with the token (- for standard input).")
@pass_app
def login(app: App, token: str | None, token_file: Any) -> None:
    """Say who you are, with a token of the service (asked for, or read from standard input, if not given)."""
    text = token or (token_file.read() if token_file else None)
    if text is None:
        text = click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    if not text.strip():
        raise click.UsageError("No token was given.")
    _login(app, text.strip())


def _login(app: App, token: str) -> None:
    peer = app.peer
    with peer.database.synchronising():
        user = peer.login(token)
        with app.server() as server:
            synchroniser = Synchroniser(peer, server, sleep=_no_sleep, progress=_no_progress)
            synchroniser.measure()
            synchroniser.refresh()
    app.say(f"Logged in as {user}. Tables: {', '.join(peer.declaration.entities)}.")


def _no_sleep(_: float) -> None:
    """Logging in never waits."""


def _no_progress(_what: str, _done: int, _total: int) -> None:
    """Logging in is short."""


@click.command()
@click.option("--cached", is_flag=True, help="Show what the store knows, without asking the service.")
@json_option
@pass_app
def schema(app: App, cached: bool, as_json: bool) -> None:
    """Fetch the declaration of the tables, and show it."""
    if not cached:
        with app.synchroniser() as synchroniser:
            if synchroniser.refresh():
                app.say(f"The declaration is now number {app.peer.declaration.number}.")
    declaration = app.peer.declaration
    if as_json:
        click.echo(app.peer.database.get("schema") or "")
        return
    for entity in declaration.entities.values():
        rows = [(field.name, field.type, _traits(field)) for field in entity.fields.values()]
        app.out.print(table(("field", "type", ""), rows, title=f"{entity.name} ({entity.scope.kind})"))
        app.out.print()


def _traits(field: Any) -> str:
    traits = ["required"] if field.required else []
    traits += ["nullable"] if field.nullable else []
    traits += [f"of {', '.join(field.values)}"] if field.values else []
    traits += [f"names a row of {field.ref}"] if field.ref else []
    traits += [f"at most {field.max}"] if field.max is not None else []
    return ", ".join(traits)


@click.command()
@json_option
@pass_app
def status(app: App, as_json: bool) -> None:
    """Show whose store this is, what it holds, and what waits."""
    peer = app.peer
    standings = peer.replica.standings()
    pulled = peer.database.get("pulled")
    letters = len(peer.outbox.dead_letters())
    facts = {
        "url": peer.url,
        "user": peer.user,
        "client": peer.client,
        "schema": peer.declaration.number if peer.database.get("schema") else None,
        "pending": peer.outbox.count(),
        "awaited": peer.outbox.awaited(),
        "rejected": letters,
        "offset_ms": peer.offset,
        "pulled": None if pulled is None else int(pulled),
        "scopes": [
            {"scope": s.scope, "version": s.version, "head": s.head, "rows": s.live, "digest": s.digest}
            for s in standings
        ],
    }
    if as_json:
        app.answer(facts)
        return
    app.out.print(f"{peer.user or 'nobody'} at {peer.url}", markup=False)
    when = "never" if pulled is None else ago(int(pulled), peer.now())
    app.out.print(
        f"Last pulled {when}. {plural(peer.outbox.count(), 'change')} to send, {letters} rejected.", markup=False
    )
    if standings:
        app.out.print(table(("scope", "rows", "version"), [(s.scope, s.live, s.version) for s in standings]))


@click.command()
@pass_app
def logout(app: App) -> None:
    """Forget the token. Rows and unsent changes stay, and stay yours."""
    (app.folder / "token").unlink(missing_ok=True)
    if app.peer.user is None:
        raise TideError("Nobody is logged in.")
    app.say(f"Logged out. The store still belongs to {app.peer.user}.")


COMMANDS = (init, login, logout, schema, status)
