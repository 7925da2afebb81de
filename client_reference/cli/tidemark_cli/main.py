"""`tide`: an offline peer of a Tidemark service, on the command line."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import click

from .app import App, Commands
from .commands import files, journal, letters, restore, rooms, rows, setup, synchronise

GROUPS = (setup, rows, files, synchronise, rooms, letters, journal, restore)


EXIT_CODES = """\b
Exit codes:
  0  done
  1  refused; nothing has changed
  2  wrong use
  3  offline, or the service cannot answer now; everything is kept
  4  changes were rejected and set aside (tide rejected)
  5  a digest was not the server's
  6  the service no longer speaks this store's schema number; everything is kept
  7  log in first
  130  stopped by Ctrl-C; nothing is lost
"""


@click.group(cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TIDE_STORE",
    default=".tide",
    show_default=True,
    help="The folder of the store (TIDE_STORE).",
)
@click.version_option(version("tidemark"), prog_name="tide")
@click.pass_context
def main(ctx: click.Context, store: Path) -> None:
    """Work with synchronised tables, online or not.

    What you write is kept in a store on this machine at once, and sent when `tide sync` (or push, or watch) can reach
    the service. Nothing you wrote is ever lost on the way: what the service rejects is kept under `tide rejected`.
    """
    ctx.obj = App(store)


for group in GROUPS:
    for command in group.COMMANDS:
        main.add_command(command)
