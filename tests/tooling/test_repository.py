"""What holds for the repository as a whole: its files, its locks, its links, its sizes."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Taken apart, so that this file does not name them either.
REGISTRIES = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("pkg", "github", "com"),
        ("anaconda", "org"),
    ]
]
MACHINE_PATHS = [f"/{folder}/" for folder in ("work", "root", "home", "Users", "opt/pypi", "tmp/brief")]

LONGEST_FILE = 500
LONGEST_FUNCTION = 60
# Path (or path::function) and the reason why splitting it would serve the reader less.
LONG_FOR_A_REASON: dict[str, str] = {}


@cache
def tracked() -> list[Path]:
    """Every file under version control that exists in the work tree."""
    # The clone may belong to another user than the one who runs the tests.
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_files() -> list[tuple[Path, str]]:
    """The tracked files that are UTF-8 text, with their text."""
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data:
            found.append((path.relative_to(ROOT), data.decode()))
    return found


def naming(words: list[str]) -> list[str]:
    """`file: word` for each tracked file that holds one of the words."""
    return [f"{path}: {word}" for path, text in text_files() for word in words if word in text]


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the machine's affair: locks hold versions and hashes, no hosts."""
    assert naming(REGISTRIES) == []


def test_no_file_names_a_path_of_a_machine() -> None:
    """The repository works wherever it is cloned."""
    assert naming(MACHINE_PATHS) == []


@pytest.mark.parametrize("name", ["run.txt", "image.txt", "dev.txt"])
def test_every_locked_version_has_hashes(name: str) -> None:
    """Each requirement is pinned and hashed, and the lock sets no index of its own."""
    requirements = (ROOT / "requirements" / name).read_text().replace("\\\n", " ").splitlines()
    pins = [line for line in requirements if line.strip() and not line.lstrip().startswith("#")]
    assert len(pins) > 20
    assert [line for line in pins if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:", line)] == []


def test_all_locks_agree() -> None:
    """Tests run with the very versions that the service is shipped with."""

    def versions(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))

    image, dev = versions("image.txt"), versions("dev.txt")
    assert versions("run.txt").items() < image.items()
    assert {name: dev.get(name) for name in image} == image


def test_the_migrations_folder_is_no_package() -> None:
    """With an `__init__.py` it would shadow the library of the same name."""
    assert not (ROOT / "alembic" / "__init__.py").exists()


def test_relative_links_resolve() -> None:
    """Every relative link in a Markdown file leads to a file of the repository."""
    broken = []
    for path, text in text_files():
        if path.suffix != ".md":
            continue
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose):
            file = target.partition("#")[0]
            if file and not re.match(r"[a-z]+:", file) and not (ROOT / path.parent / file).exists():
                broken.append(f"{path}: {target}")
    assert broken == []


def test_files_and_functions_stay_short() -> None:
    """What grows beyond the limit is split, or stands in the list with its reason; generated files may be long."""
    long = set()
    for path, text in text_files():
        if path.suffix not in (".py", ".ts", ".tsx", ".js") or "generated" in path.parts:
            continue
        if len(text.splitlines()) > LONGEST_FILE:
            long.add(str(path))
        if path.suffix == ".py" and path.parts[0] not in ("tests", "bench", "alembic"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > LONGEST_FUNCTION:
                        long.add(f"{path}::{node.name}")
    assert long == set(LONG_FOR_A_REASON)
