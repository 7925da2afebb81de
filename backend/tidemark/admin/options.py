"""What all commands share: the options that name a declaration and a database, and how a fault ends a program."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import click

from tidemark.settings import Settings, SettingsError
from tidemark.store.base import Unavailable, Unfit
from tidemark_protocol.errors import DeclarationError

schema_option = click.option("--schema", metavar="FILE", help="The declaration.  [TIDEMARK_SCHEMA]")
database_option = click.option(
    "--database",
    "database_url",
    metavar="URL",
    help="sqlite:////path, postgresql://… or mysql://…  [TIDEMARK_DATABASE_URL]",
)


def settings_of(**given: Any) -> Settings:
    """The environment's settings with what the command line says on top; ends the program where they are faulty."""
    with Faults():
        return Settings.from_environ(os.environ, **given)


class Faults:
    """Ends the program with what is wrong, one line each, where a configuration or a database cannot be used."""

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        match error:
            case SettingsError():
                end(error.faults)
            case DeclarationError():
                end([f"{fault.path}: {fault.message}" if fault.path else fault.message for fault in error.faults])
            case OSError(filename=str(name)):
                end([f"{name}: {error.strerror}"])
            case Unfit() | Unavailable():
                end([str(error)])


def end(faults: list[str]) -> NoReturn:
    """End the program with these lines."""
    for fault in faults:
        click.echo(f"tidemark: {fault}", err=True)
    raise SystemExit(1)
