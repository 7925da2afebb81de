"""The oracle: section 3 as a plain fold. A dictionary, a sorted list of accepted writes, no cleverness at all."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.contract.client import Json, timestamp

NOTES_DEFAULTS: Json = {"body": "", "color": "blue", "position": 0, "labels": {}, "extra": None}
TASKS_DEFAULTS: Json = {"status": "todo", "amount": None, "labels": {}, "body": ""}


def digest(rows: Mapping[tuple[str, str], int]) -> str:
    """The digest of live rows, given as {(entity, row): version} (SPEC section 5)."""
    total = sum(zlib.crc32(f"{entity}/{row}@{version}".encode()) for (entity, row), version in rows.items())
    return f"{len(rows)}-{total % 2**48:012x}"


@dataclass
class History:
    """Everything accepted for one row, in the order of arrival."""

    defaults: Json
    accepted: dict[str, Json] = field(default_factory=dict)
    spent: dict[str, str] = field(default_factory=dict)

    def fold(self) -> Json | None:
        """The row's document without its key and `created_at`, or None while it is not visible."""
        doc: Json | None = None
        for at in sorted(self.accepted):
            write = self.accepted[at]
            if write["op"] == "put":
                doc = {name: dict(value) if isinstance(value, dict) else value for name, value in self.defaults.items()}
                for name, value in write["fields"].items():
                    doc[name] = dict(value) if isinstance(value, dict) else value
            elif write["op"] == "delete":
                doc = None
            elif doc is not None:
                for path, value in write["fields"].items():
                    _set(doc, path, value)
        return None if doc is None else doc | {"updated_at": timestamp(max(self.accepted))}

    def expect(self, mutation: Json) -> set[str]:
        """The statuses that the protocol allows for `mutation` if it arrives now."""
        at = mutation["at"]
        if at in self.spent:
            return {"rejected"}
        if at in self.accepted:
            return {"applied", "superseded"}
        if mutation["op"] == "patch" and not self.accepted:
            return {"rejected"}
        if all(self._overwritten(path, at) for path in _paths(mutation)):
            return {"superseded"}
        after = History(self.defaults, self.accepted | {at: mutation})
        return {"superseded"} if mutation["op"] == "patch" and after.fold() is None else {"applied"}

    def overwritten_fields(self, mutation: Json) -> set[str]:
        """The paths of a patch that later writes have won."""
        return {path for path in _paths(mutation) if self._overwritten(path, mutation["at"])}

    def record(self, mutation: Json, status: str) -> None:
        """Take in what the service answered."""
        if status == "rejected":
            self.spent[mutation["at"]] = status
        else:
            self.accepted.setdefault(mutation["at"], mutation)

    def _overwritten(self, path: str, at: str) -> bool:
        later = (write for when, write in self.accepted.items() if when > at)
        return any(path == other or _above(other, path) for write in later for other in _paths(write))


def _paths(mutation: Json) -> list[str]:
    return list(mutation["fields"]) if mutation["op"] == "patch" else [""]


def _above(upper: str, lower: str) -> bool:
    return upper != lower and (upper == "" or lower.startswith(upper + "/"))


def _set(doc: Json, path: str, value: Any) -> None:
    name, slash, rest = path.partition("/")
    if not slash:
        doc[name] = dict(value) if isinstance(value, dict) else value
        return
    inner = rest.replace("~1", "/").replace("~0", "~")
    doc[name] = {kept: held for kept, held in doc[name].items() if kept != inner}
    if value is not None:
        doc[name][inner] = value


class Model:
    """All rows of one scope."""

    def __init__(self, defaults: Mapping[str, Json]) -> None:
        self.defaults = defaults
        self.rows: dict[tuple[str, str], History] = {}

    def history(self, mutation: Json) -> History:
        """The history of the row that `mutation` writes."""
        name = mutation["entity"], mutation["row"]
        return self.rows.setdefault(name, History(self.defaults[mutation["entity"]]))

    def check(self, mutation: Json, result: Json) -> None:
        """Hold a verdict against the protocol, and take it in."""
        history = self.history(mutation)
        assert result["status"] in history.expect(mutation), (mutation, result)
        new = mutation["at"] not in history.accepted
        if new and result["status"] == "applied" and mutation["op"] == "patch":
            assert set(result.get("superseded_fields") or ()) == history.overwritten_fields(mutation), (
                mutation,
                result,
            )
        history.record(mutation, result["status"])

    def docs(self) -> dict[tuple[str, str], Json]:
        """Every visible row's document, without key and `created_at`."""
        folded = {name: history.fold() for name, history in self.rows.items()}
        return {name: doc for name, doc in folded.items() if doc is not None}
