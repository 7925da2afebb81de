"""What every command is given: the store's place, the terminal, and how to open what it needs."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console

from .errors import LoginNeeded, Temporary, TideError
from .peer import Peer
from .render import progress_on
from .server import Server
from .sync import Progress, Synchroniser
from .values import plural

INTERRUPTED = 130
F = TypeVar("F", bound=Callable[..., Any])


class App:
    """One call of `tide`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=False)
        self.err = Console(stderr=True, highlight=False)

    @cached_property
    def peer(self) -> Peer:
        return Peer(self.folder)

    def make(self) -> Peer:
        """The store, made if there is none yet."""
        peer = Peer(self.folder, create=True)
        self.__dict__["peer"] = peer
        return peer

    @property
    def opened(self) -> bool:
        """Whether the store has been opened."""
        return "peer" in self.__dict__

    def close(self) -> None:
        if self.opened:
            self.peer.close()

    def say(self, text: str) -> None:
        """A note for the person, beside what the command answers."""
        self.err.print(text, markup=False, soft_wrap=True)

    def answer(self, data: Any) -> None:
        """What a script reads."""
        click.echo(msgspec.json.format(msgspec.json.encode(data)).decode())

    @contextmanager
    def server(self) -> Iterator[Server]:
        self.peer.token()  # without one there is nothing to say
        server = Server(self.peer.url, self.peer.token, now=self.peer.now)
        try:
            yield server
        finally:
            server.close()

    @contextmanager
    def synchroniser(self) -> Iterator[Synchroniser]:
        """The right and the means to talk to the service."""
        if self.peer.user is None:
            raise LoginNeeded("Nobody is logged in. Run: tide login")
        with self.progress() as progress, self.server() as server, self.peer.database.synchronising():
            yield Synchroniser(self.peer, server, sleep=time.sleep, progress=progress)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        with progress_on(self.err) as progress:
            yield progress


class Commands(click.Group):
    """Turns what can go wrong into a short message and an exit code."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Ctrl-C while the words are still being read is Ctrl-C, too; click would say 1."""
        try:
            return super().make_context(*args, **extra)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TideError as fault:
            _say(ctx, f"{fault}{_waiting(ctx.obj) if isinstance(fault, Temporary) else ''}")
            ctx.exit(fault.exit_code)
        except sqlite3.Error as fault:
            _say(ctx, f"The store cannot be used: {fault}")
            ctx.exit(1)
        except KeyboardInterrupt:
            _say(ctx, "Stopped. Nothing is lost.")
            ctx.exit(INTERRUPTED)
        finally:
            if isinstance(ctx.obj, App):
                ctx.obj.close()


def _say(ctx: click.Context, text: str) -> None:
    (ctx.obj or App(Path())).say(text)


def _waiting(app: App) -> str:
    """What is kept for later, where there is a store to ask."""
    count = app.peer.outbox.count() if app.opened else 0
    return f" {plural(count, 'change')} of yours wait{'s' if count == 1 else ''} for it." if count else ""


pass_app = click.pass_obj
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
scope_option = click.option(
    "--scope", metavar="SCOPE", envvar="TIDE_SCOPE", help="Where shared rows live: workspace:7, or 7."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def complete_entity(ctx: click.Context, _: click.Parameter, typed: str) -> list[str]:
    """Names of entities, for the shell."""
    return [name for name in _declared(ctx) if name.startswith(typed)]


def complete_field(ctx: click.Context, _: click.Parameter, typed: str) -> list[str]:
    """`field=` for the shell, of the entity named before."""
    entity = _declared(ctx).get(ctx.params.get("entity", ""))
    return [f"{name}=" for name in entity.fields if name.startswith(typed)] if entity else []


def _declared(ctx: click.Context) -> Any:
    folder = Path(ctx.find_root().params.get("store") or ".tide")
    if not (folder / "tide.db").exists():
        return {}
    peer = Peer(folder)
    try:
        return peer.declaration.entities
    except TideError:
        return {}
    finally:
        peer.close()


entity_argument = click.argument("entity", shell_complete=complete_entity)
