"""Write the files that are made from others and committed (`make generate`); tests say when they are stale."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tidemark.admin.codegen.command import typescript_files
from tidemark_protocol import schema, typescript

ROOT: Final = Path(__file__).parent.parent
WIRE: Final = ROOT / "client_reference" / "typescript" / "src" / "generated"


def wire_types() -> dict[Path, str]:
    """The files of the TypeScript client that say what travels, by their paths."""
    return {WIRE / "messages.ts": typescript.messages_module(), WIRE / "codes.ts": typescript.codes_module()}


def examples() -> dict[Path, str]:
    """What `tidemark codegen typescript` makes of the examples, by their paths."""
    return {
        file.parent / "generated" / name: content
        for file in sorted((ROOT / "examples").glob("*/schema.yaml"))
        for name, content in typescript_files(schema.parse(file.read_text(encoding="utf-8"))).items()
    }


def main() -> None:
    """Write them all."""
    for path, content in {**wire_types(), **examples()}.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
