"""`tidemark doctor`: whether a database keeps what the service promises, and what to do where it does not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import click
import msgspec
from msgspec import Struct

from tidemark import plugin
from tidemark.settings import Settings, read_duration
from tidemark.store import health, settings_health
from tidemark.store.base import Identity, Unavailable, Unfit
from tidemark.store.health import Finding, Limits
from tidemark.store.schema import migrate as migrations
from tidemark.store.schema import triggers
from tidemark.sync.capture import identity_of
from tidemark.sync.sweep import Difference, Page, Sweep
from tidemark_protocol.model import Declaration, Entity

from .adoption import install
from .options import Faults, database_option, schema_option, settings_of
from .work import Work, drained, log_to_stderr, opened, progress, shown

_CODES: Final = {"note": 0, "warning": 1, "fault": 2}
"""Exit codes."""
_NAMED: Final = 20
"""Rows named in a finding for people; JSON names them all."""
_WHAT: Final = {"missing": "the feed lacks it", "surplus": "the feed holds what the table does not", "values": ""}


class Order(Struct, frozen=True):
    """What is asked for: the settings, the declaration, how many rows of each entity to compare (None: all of them),
    and whether to mend.
    """

    settings: Settings
    declaration: Declaration
    limits: Limits
    sample: int | None
    repair: bool

    @property
    def url(self) -> str:
        return self.settings.database_url


class Counts(Struct):
    """What the comparison of an entity came to."""

    rows: int = 0
    different: int = 0
    unfit: int = 0
    waiting: int = 0
    repaired: int = 0


class Report(Struct):
    """Everything found; `entities` counts rows compared."""

    findings: list[Finding] = []
    entities: dict[str, Counts] = {}

    @property
    def code(self) -> int:
        """The exit code."""
        return max((_CODES[finding.level] for finding in self.findings), default=0)


def _duration(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    try:
        return read_duration(text)
    except ValueError as fault:
        raise click.BadParameter(str(fault)) from fault


@click.command()
@schema_option
@database_option
@click.option("--repair", is_flag=True, help="Mend triggers, digests, and rows that differ.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document, naming every row.")
@click.option("--sample", type=click.IntRange(0), metavar="N", help="Compare N rows of each entity by chance, not all.")
@click.option("--long-transaction", default="60s", callback=_duration, show_default=True, help="Longer ones are told.")
@click.option("--inbox-lag", default="60s", callback=_duration, show_default=True, help="A longer wait is told.")
@click.option("--scope-rows", default=1_000_000, show_default=True, help="Scopes with more rows are told.")
@click.option("--scope-members", default=10_000, show_default=True, help="Scopes with more members are told.")
def doctor(
    repair: bool,
    as_json: bool,
    sample: int | None,
    long_transaction: int,
    inbox_lag: int,
    scope_rows: int,
    scope_members: int,
    **given: Any,
) -> None:
    """Look for whatever endangers what the service promises.

    Exits with 0 when all is well, 1 with warnings, 2 with faults. It may run beside the service.
    """
    settings = settings_of(**given)
    log_to_stderr(settings)
    with Faults():
        declaration = plugin.read_declaration(settings)
        limits = Limits(long_transaction, inbox_lag, scope_rows, scope_members, settings.max_drift, settings.workers)
        report = examine(Order(settings, declaration, limits, sample, repair))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        for line in _lines(report):
            click.echo(line)
    raise SystemExit(report.code)


def examine(order: Order) -> Report:
    """Look at everything that can be looked at."""
    report = Report()
    try:
        report.findings += migrations.beside(order.url, partial(_settings, order))
        if not migrations.beside(order.url, health.made):
            report.findings.append(_not_migrated("the tables of ours are missing"))
            return report
        if order.repair:
            captured = {name: entity for name, entity in order.declaration.entities.items() if entity.capture}
            install(order.url, order.declaration, captured)
        report.findings += migrations.beside(order.url, partial(_cheap, order))
        asyncio.run(_compare(order, report))
        report.findings += _digests(order)
    except Unavailable as away:
        report.findings.append(_away(order, str(away)))
    except Unfit as why:
        report.findings.append(Finding("unfit", "fault", f"{why}", "mend what it says, then look again"))
    return report


def _settings(order: Order, connection: Any) -> list[Finding]:
    return settings_health.look(connection, order.declaration, order.limits)


def _cheap(order: Order, connection: Any) -> list[Finding]:
    return [
        *(_not_migrated(why) for why in migrations.lacks(connection, order.declaration)),
        *health.look(connection, order.limits),
        *health.homeless(connection),
        *(_trigger(problem) for problem in triggers.problems(connection, order.declaration)),
        *(_unreported(name) for name in triggers.unreported(connection, order.declaration)),
    ]


def _away(order: Order, why: str) -> Finding:
    if plugin.is_sqlite(order.settings) and "locked" in why:
        message = "another program has had the file's lock for seconds, and keeps everyone from writing"
        return Finding("long_transaction", "fault", message, "end its transaction: SQLite has one writer at a time")
    return Finding("unavailable", "fault", f"the database cannot be read: {why}", "see whether it runs and is free")


def _not_migrated(why: str) -> Finding:
    return Finding("not_migrated", "fault", why, "tidemark migrate")


def _trigger(problem: triggers.Problem) -> Finding:
    soft = problem.kind in {"partition", "leftover"}
    return Finding(
        f"trigger_{problem.kind}",
        "warning" if soft else "fault",
        problem.message,
        "let its owner truncate the whole table instead" if problem.kind == "partition" else "tidemark doctor --repair",
    )


def _unreported(entity: str) -> Finding:
    return Finding(
        "rows_unreported",
        "warning",
        f"rows of {entity} that were there before its triggers are not all reported yet",
        f"tidemark adopt {entity}",
    )


def _digests(order: Order) -> Iterator[Finding]:
    """Scopes whose digest or head is not what their rows say."""
    after = ""
    while found := migrations.beside(order.url, health.contents(after)):
        after = found[-1].scope
        for content in found:
            if content.sound:
                continue
            if order.repair:
                migrations.beside(order.url, health.mend(content.scope), reading=False)
            yield Finding(
                "digest_differs",
                "note" if order.repair else "fault",
                f"the digest of {content.scope} is not the one of its rows{', and was mended' * order.repair}",
                "something else wrote into our tables; tidemark doctor --repair",
            )


async def _compare(order: Order, report: Report) -> None:
    """Hold tables against the feed."""
    async with opened(order.settings, order.declaration, draining=order.repair) as work:
        if order.repair:
            await drained(work, order.url, lambda _: None)
        sweep = Sweep(work.store, order.declaration, order.settings.max_doc)
        with progress() as bars:
            for entity in order.declaration.entities.values():
                bar = bars.add_task(f"comparing {entity.name}", total=order.sample)
                found = Page()
                if order.sample is None:
                    async for page in sweep.pages(entity):
                        found.add(page)
                        bars.advance(bar, page.rows)
                else:
                    found = await sweep.among(entity, await _sampled(order, entity, order.sample))
                counts = Counts(found.rows, len(found.different), len(found.unfit), found.waiting)
                report.entities[entity.name] = counts
                report.findings += _unfit(entity, found)
                if found.different:
                    report.findings += await _different(order, work, sweep, entity, found, counts)


async def _sampled(order: Order, entity: Entity, size: int) -> set[Identity]:
    held = await asyncio.to_thread(migrations.beside, order.url, health.sample(entity, size))
    live = await asyncio.to_thread(migrations.beside, order.url, health.sample_feed(entity, size))
    return {*held, *(identity_of(entity, key) for key in live)}


def _unfit(entity: Entity, found: Page) -> Iterator[Finding]:
    if found.unfit:
        yield Finding(
            "rows_unfit",
            "warning",
            f"{len(found.unfit):,} rows of {entity.table} cannot be represented in {entity.name}",
            "correct them in SQL: they are taken in as soon as they fit the declaration",
            [
                {
                    "row": shown(one.identity),
                    "scope": one.scope or "",
                    "code": one.why.code,
                    "reason": one.why.message,
                }
                for one in found.unfit
            ],
        )
    if found.undecided:
        yield Finding(
            "rows_undecided",
            "note",
            f"{found.undecided:,} rows of {entity.name} were never free to be compared",
            "look again when less is written",
        )


async def _different(
    order: Order, work: Work, sweep: Sweep, entity: Entity, found: Page, counts: Counts
) -> list[Finding]:
    """What to say of rows that differ, once they are mended if they are to be."""
    left, findings = found.different, []
    foreign = entity.adopted and not entity.capture
    if order.repair and not foreign:
        identities = [difference.identity for difference in left]
        if entity.capture:
            await work.store.report(identities, time.time_ns() // 1_000_000)
            await drained(work, order.url, lambda _: None)
        else:
            await sweep.restore(entity, identities)
        again = await sweep.among(entity, identities)
        left, counts.repaired = again.different, len(left) - len(again.different) - again.waiting
        findings.append(
            Finding(
                "rows_repaired",
                "note",
                f"{counts.repaired:,} rows of {entity.name} differed and were mended",
                "see what wrote past the triggers" if entity.capture else "declare `capture: true` if others write it",
            )
        )
    if left:
        of = Counter(difference.what for difference in left)
        told = ", ".join(f"{number:,} {what}" for what, number in sorted(of.items()))
        findings.append(
            Finding(
                "rows_differ",
                "warning" if foreign else "fault",
                f"{len(left):,} rows of {entity.name} differ between table {entity.table} and the feed ({told})",
                f"declare `capture: true`, then tidemark adopt {entity.name}"
                if foreign
                else "tidemark doctor --repair",
                [{"row": shown(one.identity), "reason": _reason(one)} for one in left],
            )
        )
    return findings


def _reason(difference: Difference) -> str:
    return _WHAT[difference.what] or f"other values of {', '.join(difference.fields)}"


def _lines(report: Report) -> Iterator[str]:
    """The report for people, the worst first."""
    for finding in sorted(report.findings, key=lambda finding: -_CODES[finding.level]):
        yield f"{finding.level:8}{finding.code}: {finding.message}"
        for row in finding.rows[:_NAMED]:
            scope = f" in {row['scope']}" if row.get("scope") else ""
            yield f"        - {row['row']}{scope}: {row['reason']}"
        if len(finding.rows) > _NAMED:
            yield f"        - and {len(finding.rows) - _NAMED:,} more: --json names them all"
        yield f"        {finding.remedy}"
    for name, counts in report.entities.items():
        waiting = f", {counts.waiting:,} wait in the inbox" if counts.waiting else ""
        yield f"{name}: {counts.rows:,} rows compared, {counts.different:,} differ{waiting}"
    if not report.code:
        yield "healthy"
