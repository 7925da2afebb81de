"""Between the shapes of two schema numbers: what clients of an older one send, and what they are sent (SPEC 10).

A `Translation` is compiled from what was declared between two numbers, one `Conversion` for each, oldest first. It does
at once what those do one after the other, and it does nothing to fields and texts that they do not name.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

from msgspec import Struct

from .model import Conversion, Declaration


class Upward(Struct, frozen=True):
    """The `fields` of a mutation in the newer shape.

    `dropped` are the paths, as sent, of fields that were removed since. `strange` is the first path, if any, of a field
    that only a later number has: the older one's clients cannot mean it, and the mutation is `unknown_field`.
    """

    fields: dict[str, Any]
    dropped: tuple[str, ...] = ()
    strange: str | None = None


class Translation:
    """What became of one entity's fields from an older number to a newer one. Fields keep their order.

    `newer` maps older names to newer ones and `older` maps them back, as far as they differ; `removed` are older names.
    `texts` maps, by newer name, older texts to newer ones; `texts_back` the other way: of several that became one it
    gives the one declared first.
    """

    __slots__ = ("_strange", "newer", "older", "removed", "texts", "texts_back")

    def __init__(self, steps: Sequence[Conversion]) -> None:
        self.newer: dict[str, str] = {}
        self.texts: dict[str, Mapping[str, str]] = {}
        self.texts_back: dict[str, Mapping[str, str]] = {}
        removed: set[str] = set()
        strange: set[str] = set()
        for name in _named(steps):
            match _follow(name, steps):
                case _Gone():
                    removed.add(name)
                case _NotYet():
                    strange.add(name)
                case _Now(name=now, texts=texts):
                    self.newer[name] = now
                    self.texts[now] = _composed(texts)
                    self.texts_back[now] = _composed([_inverse(pairs) for pairs in reversed(texts)])
        self.newer = {old: new for old, new in self.newer.items() if old != new}
        self.older = {new: old for old, new in self.newer.items()}
        self.texts = {name: pairs for name, pairs in self.texts.items() if pairs}
        self.texts_back = {name: pairs for name, pairs in self.texts_back.items() if pairs}
        self.removed = frozenset(removed)
        self._strange = frozenset(strange)

    def __bool__(self) -> bool:
        """Whether it does anything."""
        return bool(self.newer or self.removed or self.texts or self.texts_back)

    def upward(self, fields: Mapping[str, Any]) -> Upward:
        """What a client of the older number set, by field or by `field/key`."""
        found: dict[str, Any] = {}
        dropped: list[str] = []
        for path, value in fields.items():
            name, slash, key = path.partition("/")
            if name in self._strange:
                return Upward(dict(fields), strange=path)
            if name in self.removed:
                dropped.append(path)
                continue
            now = self.newer.get(name, name)
            found[now + slash + key] = value if slash else _mapped(self.texts.get(now), value)
        return Upward(found, tuple(dropped))

    def downward(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A document, or what a mutation set, as the older number names and spells it; what was removed is not there.

        Fields and texts that the older number did not have stay as they are.
        """
        return {
            self.as_older(path): value if "/" in path else _mapped(self.texts_back.get(path), value)
            for path, value in fields.items()
        }

    def goal(self, name: str) -> str | None:
        """The newer number's name of a field of the older one; None if there is none."""
        return None if name in self.removed or name in self._strange else self.newer.get(name, name)

    def as_older(self, path: str) -> str:
        """The older number's name of a path of the newer one."""
        name, slash, key = path.partition("/")
        return self.older.get(name, name) + slash + key


class Conversions:
    """All translations that a declaration makes; each is compiled once."""

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration
        self._numbers = sorted(declaration.changes)
        self.entities = frozenset(name for step in declaration.changes.values() for name in step)
        """Those that some number changed."""
        self._compiled: dict[tuple[str, int, int], Translation | None] = {}

    def translation(self, entity: str, number: int) -> Translation | None:
        """From `number` to the present one; None where nothing that it says of the entity was changed."""
        at = bisect_right(self._numbers, number)
        return None if at == len(self._numbers) else self._between(entity, at, len(self._numbers))

    def changed_since(self, number: int) -> bool:
        """Whether documents of some entity had another shape at `number`."""
        return bool(self._numbers) and number < self._numbers[-1]

    def shapes(self, entity: str, number: int, fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What a mutation's `fields`, written at `number`, are at every number that may tell them apart."""
        yield dict(fields)
        at = bisect_right(self._numbers, number)
        for older in range(at):
            translation = self._between(entity, older, at)
            if translation is not None:
                yield translation.downward(fields)
        for newer in range(at + 1, len(self._numbers) + 1):
            translation = self._between(entity, at, newer)
            if translation is not None:
                yield translation.upward(fields).fields

    def _between(self, entity: str, start: int, end: int) -> Translation | None:
        if entity not in self._declaration.entities:
            return None
        named = entity, start, end
        if named not in self._compiled:
            numbers = self._numbers[start:end]
            steps = [self._declaration.changes[n][entity] for n in numbers if entity in self._declaration.changes[n]]
            self._compiled[named] = Translation(steps) or None
        return self._compiled[named]


class _Gone(Struct, frozen=True):
    """A later number has removed it."""


class _NotYet(Struct, frozen=True):
    """A later number has given its name to another field; the older one had none of it."""


class _Now(Struct, frozen=True):
    """What it is called by the end, and what became of its texts, step by step."""

    name: str
    texts: list[Mapping[str, str]]


def _named(steps: Iterable[Conversion]) -> set[str]:
    """Every name that the steps say anything of."""
    return {name for step in steps for name in (*step.rename, *step.rename.values(), *step.remove, *step.values)}


def _follow(name: str, steps: Iterable[Conversion]) -> _Gone | _NotYet | _Now:
    texts: list[Mapping[str, str]] = []
    for step in steps:
        if name in step.remove:
            return _Gone()
        if name not in step.rename and name in step.rename.values():
            return _NotYet()
        name = step.rename.get(name, name)
        if name in step.values:
            texts.append(step.values[name])
    return _Now(name, texts)


def _inverse(pairs: Mapping[str, str]) -> dict[str, str]:
    """New → old; of several old ones the first."""
    found: dict[str, str] = {}
    for old, new in pairs.items():
        found.setdefault(new, old)
    return found


def _composed(steps: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """One mapping that does what these do one after the other."""
    every = dict.fromkeys(text for pairs in steps for text in pairs)
    ends = {text: reduce(lambda now, pairs: pairs.get(now, now), steps, text) for text in every}
    return {text: end for text, end in ends.items() if text != end}


def _mapped(pairs: Mapping[str, str] | None, value: Any) -> Any:
    return value if pairs is None or not isinstance(value, str) else pairs.get(value, value)
