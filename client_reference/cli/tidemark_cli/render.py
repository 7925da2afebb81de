"""For the eyes: tables, rows, times, progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tidemark_protocol.model import Entity

from .sync import Progress as Tell
from .values import to_text

MANY: Final = 500
"""Rows that are laid out to fit the terminal."""


@contextmanager
def progress_on(console: Console) -> Iterator[Tell]:
    """A progress bar for each kind of long work, on a terminal; nothing elsewhere."""
    if not console.is_terminal:
        yield lambda _what, _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """A plain table; cells are shown as they are, never as markup."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="ellipsis", no_wrap=True)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(to_text(cell)) for cell in row))
    return made


def show_rows(console: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table that fits the terminal; of very many rows, which the fitting would hold up, plain aligned lines."""
    if len(rows) <= MANY:
        console.print(table(columns, rows))
        return
    lines = [
        list(columns),
        *([cell.plain if isinstance(cell, Text) else to_text(cell) for cell in row] for row in rows),
    ]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def columns_of(entity: Entity) -> list[str]:
    """What a table of rows shows: the columns the declaration asks for, else all fields."""
    wanted = [name for name in entity.display.get("columns", ()) if isinstance(name, str)]
    return [*entity.key.columns, *(name for name in wanted or entity.fields if name not in entity.key.columns)]


def ago(millis: int, now: int) -> str:
    """How long ago something was."""
    seconds = max(0, now - millis) // 1000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def local_time(millis: int) -> str:
    return datetime.fromtimestamp(millis / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def describe(values: Mapping[str, Any] | None) -> str:
    """Path → value in one line."""
    return ", ".join(f"{path}={'null' if value is None else to_text(value)}" for path, value in (values or {}).items())
