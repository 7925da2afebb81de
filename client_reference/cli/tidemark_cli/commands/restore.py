"""Values that were overwritten, deleted, or never won: put back as new writes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import click
from msgspec import Struct

from tidemark_cli.app import App, entity_argument, json_option, pass_app, scope_option
from tidemark_cli.errors import TideError
from tidemark_cli.peer import Document
from tidemark_cli.render import describe, show_rows, table
from tidemark_cli.restore import Event, Journal, Values, declared, laid, losses, millis_of
from tidemark_cli.values import find_field, to_text
from tidemark_cli.writes import Writer, Written
from tidemark_protocol.merge import split
from tidemark_protocol.model import Entity
from tidemark_protocol.outbox import changed


class Choice(Struct, frozen=True):
    """What of the journal to put back: the latest, unless one of `event`, `before` and `at` says otherwise."""

    fields: tuple[str, ...]
    event: str | None
    before: str | None
    at: str | None


@click.command()
@entity_argument
@click.argument("row")
@click.argument("fields", nargs=-1)
@click.option("--event", metavar="ID", help="What this event took away, or what its own write carried in vain.")
@click.option("--before", metavar="TIME", help="As it was before this time (of the service).")
@click.option("--at", metavar="ID", help="As this event left it.")
@click.option("--list", "listing", is_flag=True, help="Only list what could be put back.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@scope_option
@json_option
@pass_app
def restore(
    app: App, /, entity: str, row: str, scope: str | None, listing: bool, dry_run: bool, as_json: bool, **choice: Any
) -> None:
    """Put back what was overwritten or deleted, as a new write: what was lost last, or of FIELDS alone.

    The values come from the service's journal, which keeps them for a while. The write goes out with the next sync,
    like any other.
    """
    wanted = Choice(**choice)
    if sum(option is not None for option in (wanted.event, wanted.before, wanted.at)) > 1:
        raise click.UsageError("Give one of --event, --before and --at")
    found = app.peer.entity(entity)
    for path in wanted.fields:
        find_field(found, split(path)[0])
    where, events = _events(app, found, row, scope)
    if listing:
        _list(app, events, as_json=as_json)
        return
    document = app.peer.visible(found, scope=where, row=row).get((where, row))
    values, notes = _values(Journal(found, row, document, events), wanted, there=document is not None)
    values, undeclared = declared(found, values)
    if undeclared:
        notes.append(f"No longer declared, and left out: {', '.join(undeclared)}.")
    if document is None:
        values = laid({}, values)
        notes += [
            f"{name} is not known any more, and takes its default." for name in found.fields if name not in values
        ]
    changes = _changes(found, document, values)
    writer = Writer(app.peer, found, where)
    with app.peer.database.transaction():
        written = None if dry_run else writer.put(row, values) if document is None else writer.patch(row, values)
    _tell(app, found, row, written, changes, notes, as_json=as_json)


def _events(app: App, entity: Entity, row: str, scope: str | None) -> tuple[str, list[Event]]:
    """The scope meant, and the row's events there; the store is brought to where they are."""
    peer = app.peer
    within = peer.scope_of(entity, scope) if scope is not None or entity.scope.kind == "user" else None
    if within is None and peer.visible(entity, row=row):
        within, _ = peer.find(entity, row, None)
    with app.server() as server:
        events = list(server.row_events(entity.name, row, within))
    scopes = sorted({event["scope"] for event in events})
    if within is None and len(scopes) > 1:
        raise TideError(f"{entity.name} {row} was in {', '.join(scopes)}: say which with --scope")
    where = within or (scopes[0] if scopes else peer.scope_of(entity, None))
    known = max((event["version"] or 0 for event in events if event["scope"] == where), default=0)
    if known > max((held.version for held in peer.replica.standings() if held.scope == where), default=0):
        with app.synchroniser() as synchroniser:
            synchroniser.pull()
    return where, [event for event in events if event["scope"] == where]


def _values(journal: Journal, wanted: Choice, *, there: bool) -> tuple[Values, list[str]]:
    """Path → value to be written, and what there is to say about it."""
    if wanted.event is not None:
        values = journal.of_event(wanted.event, wanted.fields)
        return values if there else {**journal.beneath(wanted.event), **values}, []
    if wanted.before is None and wanted.at is None:
        return journal.latest(wanted.fields), []
    time = None if wanted.before is None else millis_of(wanted.before)
    values = journal.as_of(time=time, event=wanted.at, wanted=wanted.fields)
    if time is None or journal.reaches(time):
        return values, []
    return values, ["The journal knows no earlier write: this is what its first one met."]


def _changes(entity: Entity, document: Document | None, values: Values) -> dict[str, dict[str, Any]]:
    """Path → what is there and what will be."""
    held = document or {}
    after = laid(held, values)
    paths = changed(held, {field: after[field] for field in {split(path)[0] for path in values}}, entity.maps)
    return {path: {"from": _at(held, path), "to": value} for path, value in sorted(paths.items())}


def _at(document: Document, path: str) -> Any:
    field, key = split(path)
    return document.get(field) if key is None else (document.get(field) or {}).get(key)


def _tell(
    app: App,
    entity: Entity,
    row: str,
    written: Written | None,
    changes: dict[str, dict[str, Any]],
    notes: Sequence[str],
    *,
    as_json: bool,
) -> None:
    if as_json:
        app.answer({"written": written, "changes": changes, "notes": notes})
        return
    for note in notes:
        app.say(note)
    if changes:
        lines = [(path, _shown(change["from"]), _shown(change["to"])) for path, change in changes.items()]
        app.out.print(table(("field", "now", "put back"), lines))
    if written is None:
        app.say("Nothing was written.")
    elif written.op == "unchanged":
        app.say(f"{entity.name} {row} is like that already.")
    else:
        app.say(f"{entity.name} {row} restored; tide sync sends it.")


def _shown(value: Any) -> str:
    return textwrap.shorten(to_text(value), 60, placeholder=" …")


def _list(app: App, events: list[Event], *, as_json: bool) -> None:
    found = losses(events, own=app.peer.client)
    if as_json:
        app.answer(found)
        return
    lines = [
        (one.event, one.time[:19].replace("T", " "), one.by, one.how, textwrap.shorten(describe(one.values), 80))
        for one in found
    ]
    if lines:
        show_rows(app.out, ("event", "arrived", "by", "values", ""), lines)
    app.say(f"{len(found)} to choose from: tide restore … --event ID" if found else "There is nothing to put back.")


COMMANDS = (restore,)
