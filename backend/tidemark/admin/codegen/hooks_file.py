"""`hooks.ts`: for each entity a React hook that gives rows, and one that gives a row by its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tidemark_protocol.model import Declaration, Entity
from tidemark_protocol.typescript import WIDTH, doc

from .names import Names
from .schema_file import key_type


def hooks_lines(declaration: Declaration, names: Mapping[str, Names]) -> Iterator[str]:
    """The file below its header."""
    yield 'import { useRow, useRows } from "@tidemark/client/react";'
    yield 'import type { Collection, Table } from "dexie";'
    yield from _imported(sorted(names[name].row for name in declaration.entities))
    yield ""
    yield from doc("Which rows, and in which order.")
    yield "export type Query<Row, Key> = (table: Table<Row, Key>) => Collection<Row, Key> | Promise<Row[]>;"
    for entity in declaration.entities.values():
        yield from _many(entity, names[entity.name])
        yield from _one(entity, names[entity.name])


def _imported(rows: list[str]) -> Iterator[str]:
    # The extension that every way of resolving modules understands; types leave nothing of it behind.
    line = f'import type {{ {", ".join(rows)} }} from "./schema.js";'
    if len(line) <= WIDTH:
        yield line
        return
    yield "import type {"
    yield from (f"  {row}," for row in rows)
    yield '} from "./schema.js";'


def _many(entity: Entity, names: Names) -> Iterator[str]:
    about = (
        f"The rows of `{entity.name}`, all or those that `query` asks for, as they change; undefined while loading.\n"
        "`deps` name what `query` depends on besides, as for an effect."
    )
    parameters = [f"query?: Query<{names.row}, {key_type(entity)}>", "deps?: unknown[]"]
    yield from ("", *doc(about), *_signature(names.many, parameters, f"{names.row}[] | undefined"))
    yield from (f'  return useRows<{names.row}, {key_type(entity)}>("{entity.name}", query, deps);', "}")


def _one(entity: Entity, names: Names) -> Iterator[str]:
    about = f"The row of `{entity.name}` with this key, as it changes; undefined while loading, null if there is none."
    parameters = [f"key: {key_type(entity)} | null | undefined"]
    yield from ("", *doc(about), *_signature(names.one, parameters, f"{names.row} | null | undefined"))
    yield from (f'  return useRow<{names.row}, {key_type(entity)}>("{entity.name}", key);', "}")


def _signature(name: str, parameters: list[str], returns: str) -> Iterator[str]:
    line = f"export function {name}({', '.join(parameters)}): {returns} {{"
    if len(line) <= WIDTH:
        yield line
        return
    yield f"export function {name}("
    yield from (f"  {parameter}," for parameter in parameters)
    yield f"): {returns} {{"
