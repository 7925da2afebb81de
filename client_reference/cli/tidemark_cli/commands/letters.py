"""What has not been sent, and what was rejected: list, retry, discard, save."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click
import msgspec

from tidemark_cli.app import App, json_option, pass_app, yes_option
from tidemark_cli.errors import TideError
from tidemark_cli.outbox import DeadLetter
from tidemark_cli.render import ago, describe, show_rows
from tidemark_cli.values import plural
from tidemark_cli.writes import Writer, Written
from tidemark_protocol.outbox import Pending, wire

from .synchronise import push

all_option = click.option("--all", "everything", is_flag=True, help="All of them.")
seqs_argument = click.argument("seqs", nargs=-1, type=int, metavar="NUMBER...")
file_argument = click.argument("file", type=click.File("w", encoding="utf-8", lazy=True), default="-")


@click.group(invoke_without_command=True)
@click.pass_context
def outbox(ctx: click.Context) -> None:
    """What was written here and has not been answered yet."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_outbox)


@outbox.command("list")
@json_option
@pass_app
def list_outbox(app: App, as_json: bool) -> None:
    """List unsent changes, in the order they will be sent."""
    pending = list(app.peer.outbox.pending())
    if as_json:
        app.answer([wire(mutation) for mutation in pending])
        return
    if pending:
        show_rows(app.out, ("#", "change", "table", "row", "scope", "", "made"), [_cells(app, m) for m in pending])
    app.say(f"{plural(len(pending), 'change')} to send")


@outbox.command("retry")
@json_option
@click.pass_context
def retry_outbox(ctx: click.Context, as_json: bool) -> None:
    """Try to send them now (the same as tide push)."""
    ctx.invoke(push, as_json=as_json)


@outbox.command("discard")
@seqs_argument
@all_option
@yes_option
@pass_app
def discard_outbox(app: App, seqs: tuple[int, ...], everything: bool, yes: bool) -> None:
    """Drop unsent changes for good, with those that build on them."""
    peer = app.peer
    with peer.database.synchronising(), peer.database.transaction():
        pending = list(peer.outbox.pending())
        chosen = _chosen(pending, seqs, everything=everything)
        leaning = peer.outbox.dependents(chosen, refs=peer.refs).keys() - {mutation.seq for mutation in chosen}
        gone = [*chosen, *(mutation for mutation in pending if mutation.seq in leaning)]
        handed = sum(mutation.handed for mutation in gone)
        warning = (
            f" {handed} of them may have reached the service already, which no discarding undoes." if handed else ""
        )
        more = f" ({len(leaning)} of them because they build on others)" if leaning else ""
        _confirm(f"Drop {plural(len(gone), 'unsent change')}{more}?{warning}", yes=yes)
        peer.outbox.remove(gone)
    app.say(f"{plural(len(gone), 'change')} dropped.")


@outbox.command("export")
@file_argument
@pass_app
def export_outbox(app: App, file: TextIO) -> None:
    """Write unsent changes to FILE as NDJSON."""
    _write(file, (wire(mutation) for mutation in app.peer.outbox.pending()))


@click.group(invoke_without_command=True)
@click.pass_context
def rejected(ctx: click.Context) -> None:
    """Changes that the service rejected, and those that built on them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_rejected)


@rejected.command("list")
@json_option
@pass_app
def list_rejected(app: App, as_json: bool) -> None:
    """List rejected changes with the reasons."""
    letters = app.peer.outbox.dead_letters()
    if as_json:
        app.answer([_letter(letter) for letter in letters])
        return
    if letters:
        rows = [
            (*_cells(app, letter.mutation)[:6], f"{letter.error.code}: {letter.error.message}") for letter in letters
        ]
        show_rows(app.out, ("#", "change", "table", "row", "scope", "", "reason"), rows)
        app.say("Then: tide rejected retry NUMBER, or tide rejected discard NUMBER")
    app.say(f"{plural(len(letters), 'rejected change')}")


@rejected.command("retry")
@seqs_argument
@all_option
@json_option
@pass_app
def retry_rejected(app: App, seqs: tuple[int, ...], everything: bool, as_json: bool) -> None:
    """Make rejected changes again, as of now, with those that built on them; the next push sends them."""
    peer = app.peer
    with peer.database.transaction():
        letters = peer.outbox.dead_letters()
        chosen = _with_followers(letters, _chosen([letter.mutation for letter in letters], seqs, everything=everything))
        written = [_again(app, letter.mutation) for letter in chosen]
        peer.outbox.discard_letters(chosen)
    if as_json:
        app.answer(written)
    else:
        app.say(f"{plural(len(written), 'change')} made again. They go out with the next push.")


@rejected.command("discard")
@seqs_argument
@all_option
@yes_option
@pass_app
def discard_rejected(app: App, seqs: tuple[int, ...], everything: bool, yes: bool) -> None:
    """Drop rejected changes for good."""
    with app.peer.database.transaction():
        letters = {letter.mutation.seq: letter for letter in app.peer.outbox.dead_letters()}
        chosen = _chosen([letter.mutation for letter in letters.values()], seqs, everything=everything)
        _confirm(f"Drop {plural(len(chosen), 'rejected change')}?", yes=yes)
        app.peer.outbox.discard_letters(letters[mutation.seq] for mutation in chosen)
    app.say(f"{plural(len(chosen), 'change')} dropped.")


@rejected.command("export")
@file_argument
@pass_app
def export_rejected(app: App, file: TextIO) -> None:
    """Write rejected changes to FILE as NDJSON, with the reasons."""
    _write(file, (_letter(letter) for letter in app.peer.outbox.dead_letters()))


def _again(app: App, mutation: Pending) -> Written:
    peer = app.peer
    entity = peer.entity(mutation.entity)
    writer = Writer(peer, entity, mutation.scope, group=mutation.group)
    try:
        match mutation.op:
            case "put":
                return writer.put(mutation.row, mutation.fields or {})
            case "patch":
                return writer.patch(mutation.row, mutation.fields or {})
            case _:
                return writer.delete(mutation.row)
    except TideError as fault:
        raise TideError(f"{mutation.seq} cannot be made again: {fault}") from fault


def _chosen(pending: Sequence[Pending], seqs: Sequence[int], *, everything: bool) -> list[Pending]:
    if everything == bool(seqs):
        raise click.UsageError("Name the changes by their numbers, or say --all.")
    unknown = set(seqs) - {mutation.seq for mutation in pending}
    if unknown:
        raise TideError(f"There is no change {', '.join(map(str, sorted(unknown)))} here.")
    return [mutation for mutation in pending if everything or mutation.seq in seqs]


def _with_followers(letters: Sequence[DeadLetter], chosen: Iterable[Pending]) -> list[DeadLetter]:
    """The chosen letters and those that were parked because of one of them, in order."""
    seqs = {mutation.seq for mutation in chosen}
    for letter in letters:
        if letter.cause in seqs:
            seqs.add(letter.mutation.seq)
    return [letter for letter in letters if letter.mutation.seq in seqs]


def _confirm(question: str, *, yes: bool) -> None:
    if not yes and not click.confirm(question, err=True):
        raise TideError("Nothing was dropped.")


def _cells(app: App, mutation: Pending) -> tuple[Any, ...]:
    made = ago(mutation.wall, app.peer.now())
    return mutation.seq, mutation.op, mutation.entity, mutation.row, mutation.scope, describe(mutation.fields), made


def _letter(letter: DeadLetter) -> dict[str, Any]:
    return {**wire(letter.mutation), "error": letter.error, "cause": letter.cause}


def _write(file: TextIO, records: Iterable[dict[str, Any]]) -> None:
    file.writelines(msgspec.json.encode(record).decode() + "\n" for record in records)


COMMANDS = (outbox, rejected)
