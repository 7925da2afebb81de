"""`tidemark adopt` takes tables of other programs as they are; `tidemark release` lets go of them without a trace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import click
from msgspec import Struct
from msgspec.structs import replace
from rich.progress import Progress

from tidemark import plugin
from tidemark.settings import Settings
from tidemark.store.base import Unfit
from tidemark.store.health import made
from tidemark.store.schema import migrate as migrations
from tidemark.store.schema import release, triggers
from tidemark.store.schema.cautions import cautions
from tidemark.store.schema.fit import misfits
from tidemark.store.schema.migrate import beside
from tidemark.sync import journal
from tidemark.sync.sweep import Page, Sweep
from tidemark_protocol.model import Declaration, Entity
from tidemark_protocol.rows import ENTITY

from .options import Faults, database_option, end, schema_option, settings_of
from .work import Work, drained, log_to_stderr, opened, patiently, progress, shown

_NAMED: Final = 5
"""Rows that cannot be represented, named for each entity."""


class Taken(Struct):
    """What adopting came to: what the last look at each entity showed, how many rows were taken in how many seconds,
    and how many entries of the inbox nobody took. `served`: a service had the database alone.
    """

    pages: dict[str, Page]
    rows: int
    seconds: float
    left: int
    served: bool


@click.command()
@click.argument("entities", nargs=-1, metavar="[ENTITY]...")
@schema_option
@database_option
def adopt(entities: tuple[str, ...], **given: Any) -> None:
    """Take tables of other programs as they are: every entity with `capture: true`, or those named.

    Makes the tables of ours if there are none yet, installs triggers, and takes in the rows that are there, while other
    programs and the service go on. It may be interrupted and repeated at any time.
    """
    settings = settings_of(**given)
    log_to_stderr(settings)
    with Faults():
        declaration = plugin.read_declaration(settings)
        chosen = _chosen(declaration, entities)
        _prepare(settings, declaration, chosen)
        try:
            taken = asyncio.run(_adopt(settings, declaration, chosen))
        except KeyboardInterrupt:
            click.echo(
                "interrupted: what is not taken yet waits; a service goes on with it, and so does adopt", err=True
            )
            raise SystemExit(130) from None
    _tell(chosen, taken)


def install(url: str, declaration: Declaration, chosen: Mapping[str, Entity]) -> None:
    """Make the triggers of all captured tables, and report the rows that were in some of them before."""
    while beside(url, lambda connection: triggers.install_next(connection, declaration), reading=False):
        pass
    part = replace(declaration, entities=chosen)
    while beside(url, lambda connection: triggers.report_next(connection, part), reading=False):
        pass


def _chosen(declaration: Declaration, names: tuple[str, ...]) -> Mapping[str, Entity]:
    captured = {name: entity for name, entity in declaration.entities.items() if entity.capture}
    strange = [name for name in names if name not in captured]
    if strange:
        end([f"{name} is not declared with `capture: true`" for name in strange])
    if not captured:
        end(["no entity is declared with `capture: true`: there is nothing to adopt"])
    return {name: captured[name] for name in names or captured}


def _prepare(settings: Settings, declaration: Declaration, chosen: Mapping[str, Entity]) -> None:
    """Refuse tables that do not fit, warn of what may fail later, and make the tables of ours where there are none."""
    url = settings.database_url
    found = beside(url, lambda connection: misfits(connection, declaration))
    if not found and not beside(url, made):
        migrations.migrate(url, declaration, plugin.migrations_of(settings))
    found = found or beside(url, lambda connection: migrations.lacks(connection, declaration))
    if found:
        end(found)
    for caution in beside(url, lambda connection: [c for one in chosen.values() for c in cautions(connection, one)]):
        click.echo(f"warning: {caution}", err=True)


async def _adopt(settings: Settings, declaration: Declaration, chosen: Mapping[str, Entity]) -> Taken:
    url = settings.database_url
    await patiently(lambda: asyncio.to_thread(install, url, declaration, chosen))
    async with opened(settings, declaration, draining=True) as work:
        with progress() as bars:
            begun = time.monotonic()
            rows, left = await _drain(work, url, bars, "taking rows")
            seconds = time.monotonic() - begun
            sweep = Sweep(work.store, declaration, settings.max_doc)
            pages = await _looked(sweep, chosen, bars)
            again = [one.identity for page in pages.values() for one in page.different]
            if again and not left:
                # Rows that an earlier capture left behind, or that were written while there were no triggers.
                await work.store.report(again, time.time_ns() // 1_000_000)
                more, left = await _drain(work, url, bars, "taking rows that differ")
                rows, seconds = rows + more, time.monotonic() - begun
                pages = await _looked(sweep, chosen, bars)
    return Taken(pages, rows, seconds, left, work.engine is None)


async def _drain(work: Work, url: str, bars: Progress, what: str) -> tuple[int, int]:
    """Wait for the inbox to be taken; how many entries were, and how many nobody takes."""
    total = (await work.store.backlog()).entries
    bar = bars.add_task(what, total=total)
    left = await drained(work, url, lambda waiting: bars.update(bar, completed=max(0, total - waiting)))
    return max(0, total - left), left


async def _looked(sweep: Sweep, chosen: Mapping[str, Entity], bars: Progress) -> dict[str, Page]:
    return {name: await patiently(partial(_look, sweep, entity, bars)) for name, entity in chosen.items()}


async def _look(sweep: Sweep, entity: Entity, bars: Progress) -> Page:
    found = Page()
    bar = bars.add_task(f"comparing {entity.name}", total=None)
    async for page in sweep.pages(entity):
        found.add(page)
        bars.advance(bar, page.rows)
    return found


def _tell(chosen: Mapping[str, Entity], taken: Taken) -> None:
    for name, page in taken.pages.items():
        click.echo(f"{name}: {page.rows - len(page.unfit):,} of {page.rows:,} rows of {chosen[name].table} are taken")
        for one in page.unfit[:_NAMED]:
            click.echo(f"  cannot be represented: {shown(one.identity)}: {one.why.message}")
        if len(page.unfit) > _NAMED:
            click.echo(f"  and {len(page.unfit) - _NAMED:,} more: `tidemark doctor` names them all")
    rate = taken.rows / taken.seconds if taken.seconds else 0
    click.echo(f"{taken.rows:,} reported rows in {taken.seconds:.1f} s ({rate:,.0f} a second)")
    if taken.left:
        who = (
            "the running service takes none of them: does it run with this schema.yaml?"
            if taken.served
            else ("open transactions of other programs hold them; a service takes them as soon as these end")
        )
        end([f"{taken.left:,} reports wait in the inbox: {who}"])
    different = [
        f"{len(page.different):,} rows of {name} differ still" for name, page in taken.pages.items() if page.different
    ]
    if different:
        end([f"{text}: see `tidemark doctor`" for text in different])


# ── release ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@click.command(name="release")
@click.argument("entities", nargs=-1, required=True, metavar="ENTITY...")
@schema_option
@database_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def release_command(entities: tuple[str, ...], yes: bool, **given: Any) -> None:
    """Let go of entities that are not declared any more, or not with `capture: true`.

    Their tables stay as they are. Of an entity that is declared still, triggers go; of any other, everything that
    Tidemark keeps: triggers, rows of the feed, history. Replicas that held such rows copy the scope anew.
    """
    settings = settings_of(**given)
    with Faults():
        declaration = plugin.read_declaration(settings)
        _check_released(declaration, entities)
        url = settings.database_url
        with release.alone(url):
            if beside(url, release.services):
                raise Unfit("the service is running on this database: stop it first, for its streams would not notice")
            for name in entities:
                held = beside(url, release.holdings(name))
                kept = name in declaration.entities
                what = (
                    "its triggers" if kept else f"{held.rows:,} rows of {held.scopes:,} scopes in the feed, its history"
                )
                if not yes:
                    click.confirm(f"{name}: remove {what}, {held.entries:,} reports in the inbox?", abort=True)
                _release(url, name, capture_only=kept)
                click.echo(f"{name} is released")


def _check_released(declaration: Declaration, names: tuple[str, ...]) -> None:
    wrong = [f"{name} is no name of an entity" for name in names if ENTITY.fullmatch(name) is None]
    wrong += [
        f"{name} is declared with `capture: true` still: take it out of the schema file, or its capture, and raise the "
        "number; then `tidemark migrate` and release it"
        for name in names
        if name in declaration.entities and declaration.entities[name].capture
    ]
    if wrong:
        end(wrong)


def _release(url: str, entity: str, *, capture_only: bool) -> None:
    beside(url, release.drop_capture(entity), reading=False)
    if capture_only:
        return
    while beside(url, release.drop_rows(entity), reading=False):
        pass
    after = 0
    while page := beside(url, release.journal(entity, after)):
        after = page[-1].id
        gone: list[int] = []
        kept: list[release.Rewritten] = []
        for row in page:
            events = journal.decode(row)
            others = [event for event in events if event.entity != entity]
            if not others:
                gone.append(row.id)
            elif len(others) < len(events):
                entry = journal.commit_entry(row.scope, row.arrived, others)
                kept.append(release.Rewritten(row.id, entry.events, entry.rows))
        beside(url, release.rewrite_journal(gone, kept), reading=False)
