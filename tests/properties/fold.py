"""Section 3 of SPEC.md in its plainest words: a row is its accepted writes, sorted by clock and applied one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from tidemark_protocol.merge import Write


class Folded(NamedTuple):
    """A row after all its writes: `doc` is None while it is deleted, `kept` what patches later than the delete set."""

    doc: dict[str, Any] | None
    kept: dict[str, Any]
    root: str
    clocks: dict[str, str]
    updated_at: str


def fold(writes: Iterable[Write]) -> Folded:
    """The outcome of writes of one row, a put or delete among them, each of them accepted; repetitions count once."""
    doc: dict[str, Any] | None = None
    kept: dict[str, Any] = {}
    root, clocks, latest = "", dict[str, str](), ""
    for write in sorted({write.at: write for write in writes}.values(), key=lambda write: write.at):
        if write.op == "patch":
            if not root:
                continue  # a later put or delete takes every path of it
            held = kept if doc is None else doc
            for path, value in write.values.items():
                _set(held, path, value)
                clocks = {p: at for p, at in clocks.items() if not p.startswith(f"{path}/")}
                clocks[path] = write.at
        else:
            root, clocks, kept = write.at, {}, {}
            doc = _copy(write.values) if write.op == "put" else None
        latest = write.at
    return Folded(doc, kept, root, clocks, latest)


def _set(held: dict[str, Any], path: str, value: Any) -> None:
    field, slash, token = path.partition("/")
    if not slash:
        held[field] = dict(value) if isinstance(value, dict) else value
        return
    entries = held.setdefault(field, {})
    key = token.replace("~1", "/").replace("~0", "~")
    if value is None:
        entries.pop(key, None)
    else:
        entries[key] = value


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
