"""What is shipped: the wheel, the image's ingredients, the compose file, the order of imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["sync_protocol/tidemark_protocol", "backend/tidemark", "client_reference/cli/tidemark_cli"]


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program of this virtual environment."""
    program = str(Path(sys.executable).with_name(command[0]))
    return subprocess.run([program, *command[1:]], cwd=cwd, check=False, capture_output=True, text=True)


def test_the_wheel_holds_everything_the_service_needs(tmp_path: Path) -> None:
    """Three packages, the migrations and both commands are in the wheel; tests and examples are not."""
    built = run("hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        commands = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    metadata = {name for name in names if ".dist-info/" in name}
    assert {name.split("/")[0] for name in set(names) - metadata} == {"tidemark", "tidemark_cli", "tidemark_protocol"}
    assert "tidemark/alembic/env.py" in names
    assert [name for name in names if name.endswith(".pyc")] == []
    assert "tidemark = tidemark.cli:main" in commands
    assert "tide = tidemark_cli.main:main" in commands


@pytest.mark.parametrize("name", ["tidemark", "tide"])
def test_each_command_runs(name: str) -> None:
    """Both commands are installed and explain themselves."""
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_image_copies_what_exists() -> None:
    """Every path that the Dockerfile copies is there, and is let through by .dockerignore."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        source
        for line in (ROOT / "backend" / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists() or source not in allowed] == []


def test_the_compose_file_is_valid() -> None:
    """It follows the compose specification, and each service has a health check."""
    checked = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    compose = YAML(typ="safe").load(ROOT / "compose.yaml")
    assert [name for name, service in compose["services"].items() if "healthcheck" not in service] == []
    for service in compose["services"].values():
        assert set(service["secrets"]) <= set(compose["secrets"])


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """`tools/secrets` makes long secrets in a private folder, and keeps those it finds."""
    (tmp_path / "tools").mkdir()
    tool = shutil.copy(ROOT / "tools" / "secrets", tmp_path / "tools")
    subprocess.run([tool], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert len(made["jwt_secret"]) >= 32
    assert made["database_url"] == f"postgresql://tidemark:{made['database_password']}@database:5432/tidemark"
    subprocess.run([tool], check=True)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made


def test_arrows_go_down_only() -> None:
    """The import contracts of pyproject.toml are kept."""
    linted = run("lint-imports", "--no-logo")
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("module", "code", "contract"),
    [
        ("tidemark_protocol", "import time", "The protocol is pure"),
        ("tidemark_protocol", "import tidemark.store", "The protocol is pure"),
        ("tidemark_cli", "import tidemark", "Service and command-line peer share the protocol alone"),
        ("tidemark/store", "import tidemark.sync", "Arrows of the service go down only"),
        ("tidemark/sync", "import litestar", "Only web, plugin and app know Litestar"),
        ("tidemark/sync", "import sqlalchemy", "Only the store knows SQL"),
        ("tidemark/web", "import tidemark.wake.planted", "Use cases and routes know the ports"),
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, module: str, code: str, contract: str) -> None:
    """Each contract notices an import that it forbids."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tidemark" / "wake" / "planted.py").touch()
    (tmp_path / module / "planted.py").write_text(f"{code}\n")
    linted = run("lint-imports", "--no-logo", "--no-cache", "--config", str(ROOT / "pyproject.toml"), cwd=tmp_path)
    assert linted.returncode != 0
    broken = " ".join(linted.stdout.partition("Broken contracts")[2].split())
    assert contract in broken
    assert "planted" in broken


def test_make_lists_its_targets() -> None:
    """`make` alone says what can be done."""
    listed = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {"setup", "serve", "test", "demo", "bench", "lock"} <= {line.split()[0] for line in listed.splitlines()}
