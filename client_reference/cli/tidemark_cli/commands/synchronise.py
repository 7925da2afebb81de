"""Talking to the service: push, pull, sync, watch, verify."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec
from rich.text import Text

from tidemark_cli.app import App, json_option, pass_app
from tidemark_cli.errors import Mismatch, Rejections, TideError, Upgrade
from tidemark_cli.render import describe, local_time
from tidemark_cli.sync import Pulled, Pushed, Synchroniser
from tidemark_cli.values import plural
from tidemark_cli.verify import verify_scopes
from tidemark_cli.watch import Follower, Seen
from tidemark_protocol.outbox import changed


@click.command()
@json_option
@pass_app
def push(app: App, as_json: bool) -> None:
    """Send what was written here."""
    with app.synchroniser() as synchroniser:
        pushed = synchroniser.push()
    _report(app, pushed, None, as_json=as_json)


@click.command()
@json_option
@pass_app
def pull(app: App, as_json: bool) -> None:
    """Fetch what others wrote."""
    with app.synchroniser() as synchroniser:
        pulled = _pull(app, synchroniser)
    _report(app, None, pulled, as_json=as_json)


@click.command()
@json_option
@pass_app
def sync(app: App, as_json: bool) -> None:
    """Push, then pull."""
    with app.synchroniser() as synchroniser:
        pushed, outdated = Pushed(), None
        try:
            pushed = synchroniser.push()
        except Upgrade as fault:
            outdated = fault
        pulled = _pull(app, synchroniser)
    _report(app, pushed, pulled, as_json=as_json)
    if outdated:
        raise outdated


def _pull(app: App, synchroniser: Synchroniser) -> Pulled:
    if synchroniser.refresh():
        app.say(f"The declaration is now number {app.peer.declaration.number}.")
    pulled = synchroniser.pull()
    app.peer.database.set("pulled", str(app.peer.now()))
    for scope in pulled.healed:
        app.say(f"The digest of {scope} was not the server's. It was pulled anew and is right now; please report this.")
    for scope in pulled.revoked:
        app.say(f"{scope} may not be read any more: its rows are gone from here.")
    return pulled


def _report(app: App, pushed: Pushed | None, pulled: Pulled | None, *, as_json: bool) -> None:
    rejected = pushed.rejected if pushed else 0
    if as_json:
        app.answer({"pushed": pushed, "pulled": pulled, "pending": app.peer.outbox.count()})
    else:
        parts = []
        if pushed:
            lost = f" ({pushed.superseded} lost to later ones)" if pushed.superseded else ""
            parts.append(f"{plural(pushed.applied + pushed.superseded, 'change')} sent{lost}")
        if pulled:
            parts.append(f"{plural(pulled.changes, 'change')} fetched")
        app.out.print(", ".join(parts), markup=False)
    if rejected:
        raise Rejections(f"{plural(rejected, 'change')} could not be accepted and were set aside: tide rejected")


@click.command()
@click.option("--seconds", type=float, help="Stop after so many seconds.")
@json_option
@pass_app
def watch(app: App, seconds: float | None, as_json: bool) -> None:
    """Follow live: show changes as they come, send what is written here (also by other commands) at once."""
    ends = None if seconds is None else time.monotonic() + seconds

    def show(seen: Seen) -> None:
        if as_json:
            fields = (seen.scope, seen.entity, seen.row, seen.version, seen.after)
            click.echo(_line(dict(zip(("scope", "entity", "row", "version", "doc"), fields, strict=True))))
        else:
            app.out.print(_seen(app, seen), soft_wrap=True)

    try:
        with app.synchroniser() as synchroniser:
            Follower(
                app.peer,
                synchroniser,
                on_change=show,
                say=app.say,
                sleep=time.sleep,
                until=lambda: ends is not None and time.monotonic() >= ends,
            ).run()
    except KeyboardInterrupt:
        app.say("Stopped following.")


def _line(data: Any) -> str:
    return msgspec.json.encode(data).decode()


def _seen(app: App, seen: Seen) -> Text:
    text = Text.assemble(
        (local_time(app.peer.now())[11:], "dim"), " ", seen.scope, " ", (f"{seen.entity} {seen.row}", "bold"), " "
    )
    if seen.after is None:
        return text.append("deleted", "red")
    if seen.before is None:
        return text.append("new", "green")
    entity = app.peer.entity(seen.entity)
    after = {name: seen.after.get(name) for name in entity.fields}
    return text.append(describe(changed(seen.before, after, entity.maps)) or "touched")


@click.command()
@click.option("--full", is_flag=True, help="Fetch every row again and compare, without keeping it.")
@json_option
@pass_app
def verify(app: App, full: bool, as_json: bool) -> None:
    """Prove by digest that this store holds exactly the server's rows. A scope that differs is pulled anew."""
    with app.synchroniser() as synchroniser, app.server() as server:
        pulled = _pull(app, synchroniser)
        checks = verify_scopes(app.peer, server, full=full)
        different = [check.scope for check in checks if not check.equal]
        for scope in different:
            app.peer.replica.forget(scope)
        if different:
            synchroniser.pull()
    if as_json:
        app.answer(checks)
    else:
        for check in checks:
            mark = Text("equal", "green") if check.equal else Text(f"DIFFERENT (the server: {check.theirs})", "red")
            app.out.print(Text.assemble(f"{check.scope} at {check.version}: {check.ours} ", mark), soft_wrap=True)
    wrong = sorted({*different, *pulled.healed})
    if wrong:
        raise Mismatch(f"{', '.join(wrong)} differed from the server and was pulled anew. Please report this.")
    if not checks:
        raise TideError("There is nothing to verify yet.")


COMMANDS = (push, pull, sync, watch, verify)
