"""What generated code calls the things of an entity.

    user_categories  →  UserCategory, UserCategoryInsert, UserCategoryUpdate; useUserCategories, useUserCategory

The last word becomes singular. What must not be two things is resolved by rule, whatever the order in the file:

- where singular and plural are one word, or a hook would bear a name of React's, hooks end in `Rows` and `Row`
  (`news` → `useNewsRows`, `useNewsRow`);
- a type that generated code needs itself gets another name by `Row` (`records` → `RecordRow`);
- entities whose names would meet keep the word as it is declared (`person`, `people` → `Person`, `People`).

What still meets is a fault. A name that is given settles it, and takes the place of a singular that is none
(`canvas` → `Canva`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import inflection
from msgspec import Struct

from tidemark_protocol.errors import DeclarationError, Fault

GIVEN: Final = re.compile(r"[A-Z][A-Za-z0-9]*")

_TYPES: Final = frozenset({"Collection", "Json", "Promise", "Query", "Record", "Schema", "Table", "Tables"})
"""What generated files import, declare or find in the language."""
_HOOKS: Final = frozenset({
    "useActionState", "useCallback", "useContext", "useDebugValue", "useDeferredValue", "useEffect", "useEffectEvent",
    "useFormStatus", "useId", "useImperativeHandle", "useInsertionEffect", "useLayoutEffect", "useMemo",
    "useOptimistic", "useReducer", "useRef", "useRow", "useRows", "useState", "useSyncExternalStore", "useTransition",
})  # fmt: skip
"""Hooks of React, and those that generated ones are made of."""


class Names(Struct, frozen=True):
    """The types of an entity, and its hooks: `many` gives rows, `one` a row by its key."""

    row: str
    many: str
    one: str

    @property
    def insert(self) -> str:
        return f"{self.row}Insert"

    @property
    def update(self) -> str:
        return f"{self.row}Update"

    @property
    def all(self) -> tuple[str, ...]:
        return self.row, self.insert, self.update, self.many, self.one


def name_entities(entities: Iterable[str], given: Mapping[str, str]) -> dict[str, Names]:
    """The names of every entity, `given` (entity → type of its rows) first; DeclarationError where two would meet."""
    names = {
        entity: _names(given[entity], inflection.pluralize(given[entity]))
        if entity in given
        else _names(_pascal(_singular(entity)), _pascal(entity))
        for entity in entities
    }
    for entity in _meeting(names):
        if entity not in given:
            names[entity] = _names(_pascal(entity), _pascal(entity))
    if meeting := _meeting(names):
        hint = "another name is given by --name ENTITY=NAME"
        raise DeclarationError(
            [Fault(f"entities.{entity}", f"{names[entity].row} would mean two things: {hint}") for entity in meeting]
        )
    return names


def _names(one: str, many: str) -> Names:
    clear = one != many and not {f"use{one}", f"use{many}"} & _HOOKS
    return Names(
        row=f"{one}Row" if one in _TYPES else one,
        many=f"use{many}" if clear else f"use{many}Rows",
        one=f"use{one}" if clear else f"use{one}Row",
    )


def _meeting(names: Mapping[str, Names]) -> list[str]:
    """Entities that share a name with another one."""
    used = Counter(name for entity in names.values() for name in entity.all)
    return [entity for entity, of in names.items() if any(used[name] > 1 for name in of.all)]


def _singular(entity: str) -> str:
    stem, joint, word = entity.rpartition("_")
    return f"{stem}{joint}{inflection.singularize(word)}"


def _pascal(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))
