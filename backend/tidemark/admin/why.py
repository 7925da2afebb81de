"""`tidemark why`: a row's story, told to whoever may open the database."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidemark import plugin
from tidemark.settings import Settings
from tidemark.sync.story import Author, Chapter, Story, stories
from tidemark_protocol import rows
from tidemark_protocol.model import Entity

from .options import Faults, database_option, end, schema_option, settings_of
from .work import reading

_STYLES: Final = {"superseded": "yellow", "rejected": "red"}
_SHOWN: Final = 60
"""Characters shown of a value; JSON has all of it."""


@click.command()
@click.argument("entity")
@click.argument("row")
@click.option("--scope", metavar="SCOPE", help="In this scope alone: user:ada, workspace:7.")
@click.option("--limit", type=click.IntRange(1), default=500, show_default=True, help="At most so many latest writes.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@schema_option
@database_option
def why(entity: str, row: str, scope: str | None, limit: int, as_json: bool, **given: Any) -> None:
    """Tell a row's story from the journal: who wrote what and when, what it overwrote, what won and why.

    Reads the database itself and asks for nobody's rights. In SQL a row has the key that clients know it by; a key of
    several columns is joined with `:`.
    """
    settings = settings_of(**given)
    with Faults():
        told = asyncio.run(_told(settings, entity, row, scope, limit))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(told)).decode())
    elif not told:
        end([f"neither the feed nor the journal knows {entity} {row}" + (f" in {scope}" if scope else " (any more)")])
    else:
        console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
        for story in told:
            _show(console, story)


async def _told(settings: Settings, name: str, row: str, scope: str | None, limit: int) -> list[Story]:
    declaration = plugin.read_declaration(settings)
    entity = declaration.entities.get(name)
    if entity is None:
        end([f"there is no entity {name!r}; there are {', '.join(declaration.entities)}"])
    _check_names(entity, row, scope)
    async with reading(settings, declaration) as store:
        return await stories(store, entity, row, scope, limit)


def _check_names(entity: Entity, row: str, scope: str | None) -> None:
    problem = rows.row_problem(entity, row)
    if problem is not None:
        end([f"{row!r} is no key of {entity.name}: {problem}"])
    try:
        kind = None if scope is None else rows.parse_scope(scope)[0]
    except ValueError as fault:
        end([f"{scope!r} is no scope: {fault}"])
    if kind not in (None, entity.scope.kind):
        end([f"{entity.name} lives in scopes of kind {entity.scope.kind}, not {kind}"])


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _show(console: Console, story: Story) -> None:
    told = {
        "live": f"live, version {story.version}",
        "deleted": "deleted",
        "unknown": "not in the feed (any more)",
    }[story.state]
    console.print(Text.assemble((f"{story.entity} {story.row}", "bold"), f" in {story.scope}: {told}"), soft_wrap=True)
    console.print()
    if story.cut:
        console.print(Text("Earlier writes are left out; --limit shows more.", "dim"))
    if story.writes:
        console.print(_table(("arrived", "by the writer's clock", "who", "what"), map(_line, story.writes)))
    else:
        console.print("The journal does not know who wrote it: that is older than its retention.")
    console.print()
    if story.fields:
        title = "As it stands" if story.state == "live" else "Kept for a later put"
        console.print(_table(("field", "value", "since", "by"), map(_held_line, story.fields), title=title))
        console.print()
    if story.root is not None and story.state == "deleted":
        console.print(Text(f"Deleted at {_moment(story.root.written)} by {_whose(story.root)}."), soft_wrap=True)
        console.print()


def _table(columns: tuple[str, ...], lines: Any, *, title: str | None = None) -> Table:
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    for line in lines:
        made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in line))
    return made


def _held_line(held: Any) -> tuple[str, str, str, str]:
    return held.path, _value(held.value), _moment(held.author.written), _whose(held.author)


def _line(write: Chapter) -> tuple[str, str, str, Text]:
    return _moment(write.arrived), _moment(write.written), _who(write.user, write.client, write.by), _what(write)


def _what(write: Chapter) -> Text:
    """What a write did or wanted, and below it what it overwrote and to whom it lost."""
    text = Text(_did(write))
    if write.outcome != "applied":
        text.append(f"\n{write.outcome}{_because(write)}", _STYLES.get(write.outcome, ""))
    if write.overwrote:
        text.append(f"\nover {_values(write.overwrote)}", "dim")
    for path, winner in write.lost.items():
        text.append(
            f"\n{path or 'the row'} lost to the write of {_moment(winner.written)} by {_whose(winner)}", "yellow"
        )
    return text


def _did(write: Chapter) -> str:
    if write.op == "delete":
        return "deleted the row" if write.outcome == "applied" else "wanted to delete it"
    verb = {"put": "put the row", "patch": "set"}.get(write.op, write.op)
    if write.outcome != "applied":
        if write.wanted is None:
            return f"wanted to {verb}"
        return f"wanted to {verb}: " + (
            _values(write.wanted) if isinstance(write.wanted, dict) else _value(write.wanted)
        )
    gone = [f"{path} (its value is not known any more)" for path in write.unknown]
    lost = f"; wanted {_values(write.wanted)}" if isinstance(write.wanted, dict) else ""
    return f"{verb}: " + ", ".join(filter(None, [_values(write.set), *gone])) + lost


def _because(write: Chapter) -> str:
    if write.error is not None:
        return f" ({write.error['code']}): {write.error['message']}"
    return ": the row was deleted" if write.reason == "deleted" else ""


def _whose(author: Author) -> str:
    if author.event is None:
        return "a write older than the journal's retention"
    return _who(author.user, author.client, author.by)


def _who(user: str | None, client: str | None, by: str | None) -> str:
    name = user or "somebody"
    if by == "sql":
        return f"{name} in SQL"
    if by is not None:
        return f"the service ({by}) for {name}"
    return f"{name} (device {client[:8]})" if client else name


def _moment(instant: str | None) -> str:
    return "" if instant is None else instant[:23].replace("T", " ")


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} = {_value(value)}" for path, value in values.items())


def _value(value: Any) -> str:
    text = "nothing" if value is None else msgspec.json.encode(value).decode()
    return textwrap.shorten(text, _SHOWN, placeholder=" …") if len(text) > _SHOWN else text
