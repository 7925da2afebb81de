"""Whole tables, in and out: CSV and NDJSON."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

import click
import msgspec

from tidemark_cli.app import App, entity_argument, json_option, pass_app, scope_option
from tidemark_cli.errors import TideError
from tidemark_cli.sync import Progress
from tidemark_cli.values import from_text, plural, to_text
from tidemark_cli.writes import Item, Writer
from tidemark_protocol.model import Entity

FORMATS: Final = ("csv", "ndjson")
_MANY: Final = 500
"""Rows between two looks at the progress bar."""

format_option = click.option(
    "--format", "given_format", type=click.Choice(FORMATS), help="If the file's name does not say."
)


@click.command("import")
@entity_argument
@click.argument("file", type=click.File(encoding="utf-8-sig"))
@click.option(
    "--key", "key_column", metavar="COLUMN", help="The column with the rows' keys (if it is named otherwise)."
)
@format_option
@scope_option
@json_option
@pass_app
def import_(
    app: App,
    entity: str,
    file: TextIO,
    key_column: str | None,
    given_format: str | None,
    scope: str | None,
    as_json: bool,
) -> None:
    """Take in the rows of a CSV or NDJSON file: new ones are made, of known ones what differs is changed.

    All of the file is taken in or nothing. Taking it in again changes nothing, if its rows have keys.
    """
    found = app.peer.entity(entity)
    where = app.peer.scope_of(found, scope)
    kind = _format(file.name, given_format)
    records = _csv_records(found, file) if kind == "csv" else _json_records(file)
    items = _items(app, found, records, key_column)
    with app.progress() as progress:
        written = Writer(app.peer, found, where).take_in(_counted(items, progress))
    counts = Counter(one.op for one in written)
    if as_json:
        app.answer(
            {"scope": where, "made": counts["put"], "changed": counts["patch"], "unchanged": counts["unchanged"]}
        )
        return
    made = plural(counts["put"], "row")
    app.out.print(
        f"{made} made, {counts['patch']} changed, {counts['unchanged']} as they were, in {where}", markup=False
    )


@click.command()
@entity_argument
@click.argument("file", type=click.File("w", encoding="utf-8", lazy=True), default="-")
@format_option
@scope_option
@pass_app
def export(app: App, entity: str, file: TextIO, given_format: str | None, scope: str | None) -> None:
    """Write the rows of a table to FILE (standard output if left out) as CSV or NDJSON."""
    found = app.peer.entity(entity)
    within = None if scope is None else app.peer.scope_of(found, scope)
    documents = app.peer.visible(found, scope=within)
    if _format(file.name, given_format or ("ndjson" if file.name == "-" else None)) == "csv":
        columns = [*found.key.columns, *found.fields, "created_at", "updated_at"]
        out = csv.writer(file, lineterminator="\n")
        out.writerow(columns)
        out.writerows([to_text(document.get(column)) for column in columns] for document in documents.values())
    else:
        file.writelines(msgspec.json.encode(document).decode() + "\n" for document in documents.values())
    app.say(plural(len(documents), "row"))


def _format(name: str, given: str | None) -> str:
    ending = Path(name).suffix.lstrip(".").lower()
    kind = given or {"jsonl": "ndjson"}.get(ending, ending)
    if kind not in FORMATS:
        raise click.UsageError("Is it CSV or NDJSON? Say so with --format.")
    return kind


def _csv_records(entity: Entity, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line → column → value; text becomes the declared types. An empty cell of a field with a default is left out."""
    reader = csv.DictReader(file, strict=True)
    try:
        for record in reader:
            if None in record or None in record.values():
                raise TideError(f"line {reader.line_num} has another number of cells than the first line")
            yield (
                reader.line_num,
                {
                    name: from_text(entity.fields[name], cell) if name in entity.fields else cell
                    for name, cell in record.items()
                    if cell != "" or not _defaulted(entity, name)
                },
            )
    except (csv.Error, UnicodeDecodeError) as fault:
        raise TideError(f"line {reader.line_num}: {fault}") from fault


def _defaulted(entity: Entity, name: str) -> bool:
    field = entity.fields.get(name)
    return field is not None and field.type != "text" and not field.nullable and not field.required


def _json_records(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number in itertools.count(1):
        line = file.readline()
        if not line:
            return
        if line.strip():
            try:
                yield number, decode(line)
            except (msgspec.MsgspecError, UnicodeError) as fault:
                raise TideError(f"line {number} is no JSON object: {fault}") from fault


def _items(
    app: App, entity: Entity, records: Iterator[tuple[int, dict[str, Any]]], key_column: str | None
) -> Iterator[Item]:
    """Records as rows; columns that are no fields are left out, and named once."""
    keys = (key_column,) if key_column else entity.key.columns
    left_out: set[str] = set()
    for number, record in records:
        missing = [column for column in keys if column not in record]
        if missing and (key_column or entity.key.types != ("uuid",)):
            raise TideError(f"line {number}: there is no column {', '.join(missing)}. Name the key's with --key.")
        row = None if missing else ":".join(str(record[column]) for column in keys)
        fields = {name: value for name, value in record.items() if name in entity.fields}
        left_out |= record.keys() - fields.keys() - set(keys) - entity.read_only
        yield Item(row, fields)
    if left_out:
        app.say(f"Left out, since {entity.name} has no such fields: {', '.join(sorted(left_out))}")


def _counted(items: Iterator[Item], progress: Progress) -> Iterator[Item]:
    for number, item in enumerate(items, 1):
        if number % _MANY == 0:
            progress("Reading rows", number, number)
        yield item


COMMANDS = (import_, export)
