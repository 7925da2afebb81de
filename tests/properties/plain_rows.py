"""What a history of mutations comes to in plain words: rows by the fold of section 3, and what restricts a delete."""

from __future__ import annotations

from collections import defaultdict

from tests.backend.engine_world import DECLARATION, Json
from tests.properties.fold import Folded, fold
from tidemark_protocol import clock
from tidemark_protocol.merge import Write
from tidemark_protocol.messages import Mutation

REFERRING = {"nodes": ["parent"], "pins": ["node", "owner"], "hints": ["node"], "traces": ["node"], "links": ["number"]}
CASCADES = [("nodes", "parent"), ("pins", "owner"), ("links", "number")]

Name = tuple[str, str, str]
"""(scope, entity, row)."""


class Model:
    """What was accepted, row by row, and the plain fold of it."""

    def __init__(self) -> None:
        self.writes: dict[Name, dict[str, Write]] = defaultdict(dict)
        self._folded: dict[Name, Folded] = {}

    def accept(self, name: Name, write: Write) -> None:
        """Take in a write, whenever it comes and however often."""
        self.writes[name].setdefault(write.at, write)
        self._folded.pop(name, None)

    def doc(self, name: Name) -> Json | None:
        """What a row shows; None when it shows nothing."""
        folded = self.folded(name)
        return None if folded is None else folded.doc

    def folded(self, name: Name) -> Folded | None:
        """What a row comes to; None when nobody ever wrote it."""
        if name not in self.writes:
            return None
        if name not in self._folded:
            self._folded[name] = fold(self.writes[name].values())
        return self._folded[name]

    def visible(self, scope: str) -> dict[tuple[str, str], Json]:
        """Every document of a scope, without key and times."""
        found = {name: self.doc(name) for name in self.writes if name[0] == scope}
        return {(entity, row): doc for (_, entity, row), doc in found.items() if doc is not None}

    def latest(self, name: Name) -> str:
        """The time of a row's latest write."""
        folded = self.folded(name)
        assert folded is not None
        return clock.instant(folded.updated_at)


def restricted(before: dict[tuple[str, str], Json], name: tuple[str, str]) -> bool:
    """Whether a pin refers to a row that would go with this one, and would not go with it."""
    gone = {name}
    while True:
        drawn = {
            (entity, row)
            for entity, field in CASCADES
            for (kind, row), doc in before.items()
            if kind == entity and (target_of(entity), str(doc[field])) in gone
        }
        if drawn <= gone:
            break
        gone |= drawn
    pins = {row: doc["node"] for (entity, row), doc in before.items() if entity == "pins" and ("pins", row) not in gone}
    return any(("nodes", node) in gone for node in pins.values())


def target_of(entity: str) -> str:
    """The entity that an entity's references name."""
    return "numbers" if entity == "links" else "nodes"


def write_of(mutation: Mutation) -> Write:
    """What a mutation says, absent fields of a put with their defaults."""
    if mutation.op != "put":
        return Write(mutation.op, mutation.at, mutation.fields or {})
    fields = DECLARATION.entities[mutation.entity].fields
    return Write("put", mutation.at, {name: mutation.fields.get(name, field.initial) for name, field in fields.items()})
