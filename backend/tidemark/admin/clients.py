"""`tidemark clients`: which schema numbers are still in use, so that one knows when an old one can go."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from tidemark import plugin
from tidemark.settings import Settings, read_duration
from tidemark.store.health import age
from tidemark.sync.numbers import Usage, usage
from tidemark_protocol import clock
from tidemark_protocol.model import Declaration

from .options import Faults, database_option, end, schema_option, settings_of
from .work import reading


@click.command()
@click.option("--since", metavar="DURATION", help="Only what came within so long: 30m, 12h, 7d. [default: everything]")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@schema_option
@database_option
def clients(since: str | None, as_json: bool, **given: Any) -> None:
    """Count the clients of each schema number, by the writes that the journal remembers.

    Shows what old numbers are for still, and how far `oldest` may rise. A client that only reads leaves no trace.
    """
    settings = settings_of(**given)
    with Faults():
        declaration = plugin.read_declaration(settings)
        found = asyncio.run(_counted(settings, declaration, _start(since)))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_wire(declaration, found))).decode())
        return
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if found.numbers:
        console.print(_table(found))
    for line in _conclusions(declaration, found):
        console.print(line, soft_wrap=True)


def _start(since: str | None) -> int | None:
    if since is None:
        return None
    try:
        return time.time_ns() // 1_000_000 - read_duration(since)
    except ValueError as fault:
        end([f"--since: {fault}"])


async def _counted(settings: Settings, declaration: Declaration, since: int | None) -> Usage:
    async with reading(settings, declaration) as store:
        return await usage(store, since)


def _wire(declaration: Declaration, found: Usage) -> dict[str, Any]:
    """Times as RFC 3339, durations in ms, ranges with both ends."""
    return {
        "schema": declaration.number,
        "oldest": declaration.oldest,
        "since": None if found.since is None else clock.instant_of_millis(found.since),
        "numbers": [
            msgspec.structs.asdict(number) | {"last": clock.instant_of_millis(number.last)} for number in found.numbers
        ],
        "unused": found.unused(declaration),
        "unnumbered": found.unnumbered,
    }


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _table(found: Usage) -> Table:
    made = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("schema", "clients", "users", "writes"):
        made.add_column(column, justify="right")
    made.add_column("last seen")
    made.add_column("longest offline")
    for number in found.numbers:
        counts = (number.number, number.clients, number.users, number.mutations)
        made.add_row(*map(str, counts), _moment(number.last), age(number.waited))
    return made


def _conclusions(declaration: Declaration, found: Usage) -> Iterator[str]:
    """What follows from the figures, in sentences."""
    if found.since is None or not found.numbers:
        yield "The journal remembers no writes of clients that bear a number: nothing can be said."
        return
    yield f"The journal reaches back to {_moment(found.since)}. Clients that only read are not in it."
    if found.unnumbered:
        yield f"{found.unnumbered} writes bear no number: an earlier version of the service recorded them."
    unused = found.unused(declaration)
    if unused:
        yield f"Served, but no longer written under: {', '.join(map(_range, unused))}."
    first = next((n.number for n in found.numbers if n.number >= declaration.oldest), declaration.number)
    if first > declaration.oldest:
        yield f"`oldest` is {declaration.oldest} and may rise to {min(first, declaration.number)}."
    else:
        yield f"`oldest` is {declaration.oldest} and still in use."


def _range(ends: tuple[int, int]) -> str:
    low, high = ends
    return str(low) if low == high else f"{low} to {high}"


def _moment(millis: int) -> str:
    return clock.instant_of_millis(millis)[:16].replace("T", " ")
