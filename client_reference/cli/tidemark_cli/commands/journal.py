"""The service's journal: who wrote what, what it overwrote, what won (SPEC 7)."""

from __future__ import annotations

import textwrap
from typing import Any

import click
from rich.text import Text

from tidemark_cli.app import App, entity_argument, json_option, pass_app, scope_option
from tidemark_cli.errors import TideError
from tidemark_cli.history import Story, tell
from tidemark_cli.render import describe, table

_STYLES = {"applied": "green", "superseded": "yellow", "rejected": "red"}


@click.command()
@click.argument("entity", required=False)
@click.argument("row", required=False)
@click.option("--user", help="Only what this user wrote.")
@click.option("--client", metavar="UUID", help="Only what this device wrote.")
@click.option("--outcome", type=click.Choice(("applied", "superseded", "rejected", "member")))
@click.option(
    "--by", type=click.Choice(("sql", "cascade", "set_null")), help="Only what SQL wrote, or the service by itself."
)
@click.option("--order", type=click.Choice(("desc", "asc")), help="Newest first (desc), or oldest first.")
@click.option("--after", metavar="TIME", help="Only what arrived after this RFC 3339 time (or cursor).")
@click.option("--before", metavar="TIME", help="Only what arrived before.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@scope_option
@json_option
@pass_app
def log(app: App, /, as_json: bool, **filters: Any) -> None:
    """Show the journal, newest first unless asked otherwise: the fate of every write in the scopes you may read."""
    with app.server() as server:
        page = server.events(filters)
    if as_json:
        app.answer(page)
        return
    rows = [
        (
            event["time"][:19].replace("T", " "),
            event["user"],
            event["op"],
            event["entity"],
            event["row"],
            _outcome(event),
            textwrap.shorten(describe(event.get("overwrote")), 60, placeholder=" …"),
        )
        for event in page["events"]
    ]
    app.out.print(table(("arrived", "by", "change", "table", "row", "outcome", "overwrote"), rows))
    if page.get("next"):
        app.say(f"There is more: --{'after' if filters['order'] == 'asc' else 'before'} {page['next']}")


def _outcome(event: dict[str, Any]) -> Text:
    error = event.get("error")
    return Text(event["outcome"] + (f" ({error['code']})" if error else ""), _STYLES.get(event["outcome"], ""))


@click.command()
@entity_argument
@click.argument("row")
@scope_option
@json_option
@pass_app
def why(app: App, entity: str, row: str, scope: str | None, as_json: bool) -> None:
    """Tell how a row came to be what it is: who won, and what was overwritten."""
    peer = app.peer
    found = peer.entity(entity)
    within = None if scope is None else peer.scope_of(found, scope)
    with app.server() as server:
        events = list(server.row_events(entity, row, within))
    documents = peer.visible(found, scope=within, row=row)
    stories = tell(events, documents, own=peer.client)
    if as_json:
        app.answer(stories)
        return
    if not stories:
        raise TideError(f"The journal knows nothing about {entity} {row} (any more).")
    for story in stories:
        app.out.print(_line(story), soft_wrap=True)


def _line(story: Story) -> Text:
    text = Text.assemble((story.written[:23].replace("T", " "), "dim"), " ", (story.by, "bold"), " ", story.did)
    if story.outcome != "applied":
        reason = f": {story.because}" if story.because else ""
        text.append(f" · {story.outcome}{reason}", _STYLES.get(story.outcome, ""))
    if story.overwrote:
        held = ", ".join(f"{path} = {value}" for path, value in story.overwrote.items())
        text.append("\n    overwrote ", "dim").append(held)
    for path, winner in story.lost.items():
        text.append(f"\n    {path} lost to ", "dim").append(winner)
    return text


COMMANDS = (log, why)
