"""The browser client's sources: who may know whom, and what none of them does."""

from __future__ import annotations

import json
import re
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[2] / "client_reference" / "typescript"
SOURCES = CLIENT / "src"

# From the ground up; a file knows its own layer and those below.
LAYERS = [
    {"generated", "protocol"},
    {"errors", "schema"},
    {"store"},
    {"sync"},
    {"background", "page"},
    {"tidemark"},
    {"index"},
    {"react"},
    {"service-worker"},
]
PACKAGES = {
    "store": {"dexie"},
    "tidemark": {"dexie"},
    "react": {"dexie", "dexie-react-hooks", "react"},
}
IMPORT = re.compile(
    r"""^(?:import|export)\b[^"';]*?\bfrom\s*"([^"]+)"|^import\s*"([^"]+)"|\bimport\("([^"]+)"\)""", re.MULTILINE
)
OUTSIDE = re.compile(
    r"\b(Date\.now|Math\.random|crypto|fetch|setTimeout|setInterval|queueMicrotask|window|document|navigator|"
    r"localStorage|indexedDB|WebSocket|BroadcastChannel|console|process)\b(?=[.(])|\bnew Date\(\)"
)


def part(path: Path) -> str:
    """The layer's member that a source file belongs to: its folder, or its own name."""
    return path.relative_to(SOURCES).parts[0].removesuffix(".ts")


def code(path: Path) -> str:
    """A source file without its comments."""
    return re.sub(r"/\*.*?\*/|(?<!:)//[^\n]*", "", path.read_text(), flags=re.DOTALL)


def test_imports_go_down_only() -> None:
    """The protocol knows nothing, the store the protocol, sync both; the database stands on them, React on that."""
    level = {name: at for at, names in enumerate(LAYERS) for name in names}
    seen, wrong = 0, []
    for path in SOURCES.rglob("*.ts"):
        own = part(path)
        for found in IMPORT.finditer(code(path)):
            target = next(filter(None, found.groups()))
            seen += 1
            if target.startswith("."):
                allowed = level[part((path.parent / target).resolve())] <= level[own]
            else:
                allowed = target in PACKAGES.get(own, set())
            if not allowed:
                wrong.append(f"{path.relative_to(SOURCES)}: {target}")
    assert seen > 100
    assert wrong == []


def test_the_protocol_has_no_time_chance_or_network_of_its_own() -> None:
    """What is pure is given time and chance, and touches nothing outside."""
    found = [
        f"{path.name}: {match[0]}"
        for path in (SOURCES / "protocol").glob("*.ts")
        for match in OUTSIDE.finditer(code(path))
    ]
    assert found == []


def test_no_check_is_switched_off() -> None:
    """What the compiler and Biome refuse, `any` among it, stands in no source."""
    off = re.compile(r"biome-ignore|@ts-ignore|@ts-nocheck|@ts-expect-error|\bas any\b")
    assert [str(path) for path in SOURCES.rglob("*.ts") if off.search(path.read_text())] == []


def test_the_lock_names_no_host() -> None:
    """Packages come from where the machine takes them: the lock holds versions and hashes."""
    packages = json.loads((CLIENT / "package-lock.json").read_text())["packages"]
    assert len(packages) > 100
    assert [name for name, entry in packages.items() if "resolved" in entry] == []
    assert [
        name for name, entry in packages.items() if name and not entry.get("link") and "integrity" not in entry
    ] == []
