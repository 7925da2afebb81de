"""docs/tide.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

from tidemark_cli import errors
from tidemark_cli.app import INTERRUPTED
from tidemark_cli.main import EXIT_CODES, main

DOCUMENT = (Path(__file__).parents[2] / "docs" / "tide.md").read_text(encoding="utf-8")


def test_every_command_is_described() -> None:
    """Each command of `tide` stands in the document, and each command in the document exists."""
    said = set(re.findall(r"\btide ([a-z]+)\b", DOCUMENT))
    assert set(main.commands) <= said
    assert set(re.findall(r"`tide ([a-z]+)", DOCUMENT)) <= set(main.commands)


def test_every_exit_code_is_described() -> None:
    """The document's table, the help and the exceptions know the same exit codes."""
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.TideError)]
    codes = {one.exit_code for one in classes}
    said = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCUMENT, re.MULTILINE)}
    assert said == codes | {0, 2, INTERRUPTED}
    assert {int(code) for code in re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)} == said
