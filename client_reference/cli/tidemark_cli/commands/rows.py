"""Rows, one at a time: put, patch, rm, get, ls."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from rich.text import Text

from tidemark_cli.app import App, complete_field, entity_argument, json_option, pass_app, scope_option
from tidemark_cli.peer import Document
from tidemark_cli.render import columns_of, show_rows, table
from tidemark_cli.values import assignments, plural
from tidemark_cli.writes import Writer, Written
from tidemark_protocol.merge import same_value
from tidemark_protocol.model import Entity
from tidemark_protocol.rows import parse_scope

fields_argument = click.argument("fields", nargs=-1, shell_complete=complete_field)
group_option = click.option(
    "--group", help="Changes made in a row with the same group take effect together or not at all."
)
values_option = click.option(
    "--values", metavar="JSON", help="The fields as a JSON object, beside or instead of field=value."
)


@click.command()
@entity_argument
@click.argument("row", required=False)
@fields_argument
@values_option
@scope_option
@group_option
@json_option
@pass_app
def put(
    app: App,
    entity: str,
    row: str | None,
    fields: tuple[str, ...],
    values: str | None,
    scope: str | None,
    group: str | None,
    as_json: bool,
) -> None:
    """Make a row, or make the whole of it what you say: FIELD=VALUE, LABELS/KEY=VALUE, FIELD:=JSON.

    Without ROW a new key is drawn. Fields you leave out take their default.
    """
    if row is not None and "=" in row:
        fields, row = (row, *fields), None
    found = app.peer.entity(entity)
    given = _given(found, fields, values)
    writer = Writer(app.peer, found, app.peer.scope_of(found, scope), group=group)
    _told(app, found, writer.put(row, given), as_json=as_json)


@click.command()
@entity_argument
@click.argument("row")
@fields_argument
@values_option
@scope_option
@group_option
@json_option
@pass_app
def patch(
    app: App,
    entity: str,
    row: str,
    fields: tuple[str, ...],
    values: str | None,
    scope: str | None,
    group: str | None,
    as_json: bool,
) -> None:
    """Change single fields of a row: FIELD=VALUE, LABELS/KEY=VALUE, FIELD:=JSON (LABELS/KEY:=null removes a key)."""
    found = app.peer.entity(entity)
    given = _given(found, fields, values)
    if not given:
        raise click.UsageError("Say what to change: field=value")
    where, _ = app.peer.find(found, row, scope)
    _told(app, found, Writer(app.peer, found, where, group=group).patch(row, given), as_json=as_json)


@click.command()
@entity_argument
@click.argument("row", nargs=-1, required=True)
@scope_option
@group_option
@json_option
@pass_app
def rm(app: App, entity: str, row: tuple[str, ...], scope: str | None, group: str | None, as_json: bool) -> None:
    """Delete rows."""
    found = app.peer.entity(entity)
    with app.peer.database.transaction():
        for key in row:
            where, _ = app.peer.find(found, key, scope)
            _told(app, found, Writer(app.peer, found, where, group=group).delete(key), as_json=as_json)


@click.command()
@entity_argument
@click.argument("row")
@scope_option
@json_option
@pass_app
def get(app: App, entity: str, row: str, scope: str | None, as_json: bool) -> None:
    """Show a row as it stands here, your unsent changes included."""
    found = app.peer.entity(entity)
    where, document = app.peer.find(found, row, scope)
    if as_json:
        app.answer(_with_scope(found, where, document))
        return
    app.out.print(table(("", where), list(document.items())))
    waiting = sum(1 for m in app.peer.outbox.pending("scope = ? AND entity = ? AND row = ?", where, entity, row))
    if waiting:
        app.say(f"{plural(waiting, 'change')} of it not sent yet.")


@click.command()
@entity_argument
@click.option(
    "--where", "conditions", multiple=True, metavar="FIELD=VALUE", help="Only rows with this value; repeatable."
)
@click.option("--limit", type=click.IntRange(1), help="At most so many rows.")
@scope_option
@json_option
@pass_app
def ls(app: App, entity: str, conditions: tuple[str, ...], limit: int | None, scope: str | None, as_json: bool) -> None:
    """List the rows of a table as they stand here, your unsent changes included."""
    found = app.peer.entity(entity)
    within = None if scope is None else app.peer.scope_of(found, scope)
    wanted = dict(_condition(found, condition) for condition in conditions)
    rows = [
        (where, key, document)
        for (where, key), document in app.peer.visible(found, scope=within).items()
        if all(same_value(_at(document, path), value) for path, value in wanted.items())
    ]
    shown = rows[:limit]
    if as_json:
        app.answer([_with_scope(found, where, document) for where, _, document in shown])
        return
    unsent = {mutation.name[::2] for mutation in app.peer.outbox.pending("entity = ?", entity)}
    columns = columns_of(found)
    several = len({where for where, _, _ in rows}) > 1
    cells = [
        [
            Text("●" if (where, key) in unsent else "", style="yellow"),
            *([where] if several else []),
            *(document.get(column) for column in columns),
        ]
        for where, key, document in shown
    ]
    show_rows(app.out, ["", *(["scope"] if several else []), *columns], cells)
    more = f" of {len(rows)}" if len(shown) < len(rows) else ""
    app.say(f"{len(shown)}{more} {'row' if len(rows) == 1 else 'rows'}")


def _given(entity: Entity, fields: tuple[str, ...], values: str | None) -> dict[str, Any]:
    given: Any = {}
    if values is not None:
        try:
            given = msgspec.json.decode(values)
        except msgspec.DecodeError as fault:
            raise click.UsageError(f"--values is not JSON: {fault}") from fault
        if not isinstance(given, dict):
            raise click.UsageError("--values is a JSON object")
    return {**given, **assignments(entity, fields)}


def _condition(entity: Entity, text: str) -> tuple[str, Any]:
    """A condition on a field, a map's key, the row's key or its times."""
    name, equals, value = text.partition("=")
    if equals and name in entity.read_only:
        return name, int(value) if name in integer_columns(entity) and value.lstrip("-").isdecimal() else value
    ((path, wanted),) = assignments(entity, [text]).items()
    return path, wanted


def integer_columns(entity: Entity) -> set[str]:
    """Key columns that documents hold as numbers."""
    return {name for name, kind in zip(entity.key.columns, entity.key.types, strict=True) if kind == "integer"}


def _told(app: App, entity: Entity, written: Written, *, as_json: bool) -> None:
    if as_json:
        app.answer(written)
    elif written.op == "unchanged":
        app.say(f"{entity.name} {written.row} is like that already.")
    else:
        done = {"put": "made", "patch": "changed", "delete": "deleted"}[written.op]
        app.out.print(f"{entity.name} {written.row} {done}", markup=False, soft_wrap=True)


def _at(document: Document, path: str) -> Any:
    field, slash, key = path.partition("/")
    return (document.get(field) or {}).get(key) if slash else document.get(field)


def _with_scope(entity: Entity, scope: str, document: Document) -> Document:
    """A row as clients keep it: with its scope column (SPEC 10)."""
    return {**document, entity.scope.column: parse_scope(scope)[1]}


COMMANDS = (put, patch, rm, get, ls)
