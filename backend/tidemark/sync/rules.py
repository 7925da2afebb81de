"""Application rules: the declared ones, and Python functions for what a declaration cannot say (SPEC 10).

A module named by `TIDEMARK_RULES` registers functions:

    from tidemark.sync.rules import Deed, rule

    @rule("user_work_periods", when=("put", "patch"))
    def ends_after_start(deed: Deed) -> str | None:
        return "a work period ends after it starts" if deed.row["end"] <= deed.row["start"] else None

A text refuses the mutation (`rejected` / `rule`, with that text); None lets it pass. A rule is pure and quick: it runs
inside the merge, and may run again for the same mutation. One that raises, or gives anything else, has not judged: the
mutation is put off, and the error is logged (SPEC 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from tidemark_protocol.errors import Rejection
from tidemark_protocol.merge import same_value
from tidemark_protocol.schema import Entity

When = Literal["put", "patch", "delete"]


class Deed(Struct, frozen=True):
    """What a rule looks at: `row` as it would become (for a delete: as it is), `before` what is visible now, if any."""

    when: When
    scope: str
    entity: str
    key: str
    user: str
    row: Mapping[str, Any]
    before: Mapping[str, Any] | None


RuleFunction = Callable[[Deed], str | None]
_registered: dict[tuple[str, When], list[RuleFunction]] = {}
_ruled: set[str] = set()


def rule(entity: str, *, when: tuple[When, ...] = ("put", "patch")) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function for an entity: `put` a new or revived row, `patch` any change of a live one, `delete`."""

    def register(function: RuleFunction) -> RuleFunction:
        _ruled.add(entity)
        for moment in when:
            functions = _registered.setdefault((entity, moment), [])
            if function not in functions:
                functions.append(function)
        return function

    return register


def check(entity: Entity, deed: Deed) -> None:
    """Raise Rejection `rule` if a declared or registered rule refuses; what a function raises, or TypeError."""
    for declared in entity.rules:
        if declared.when == deed.when and all(
            same_value(deed.row.get(name), value) for name, value in declared.refuse_if.items()
        ):
            raise Rejection("rule", declared.message)
    for function in _registered.get((entity.name, deed.when), ()):
        message = function(deed)
        if message is not None and not isinstance(message, str):
            raise TypeError(f"a rule of {entity.name} gave {message!r}, neither a text nor None")
        if message is not None:
            raise Rejection("rule", message)


def has_rules(entity: Entity) -> bool:
    return bool(entity.rules) or entity.name in _ruled
