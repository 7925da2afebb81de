"""What becomes of the columns that a database has, as the changes between numbers declare it (SPEC 10)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import sqlalchemy as sa
from msgspec import structs
from sqlalchemy.engine import Connection

from tidemark.store.entities import quote
from tidemark_protocol.conversion import Conversions, Translation
from tidemark_protocol.model import Declaration, Entity

from .tables import NAME_MAX


class Move(NamedTuple):
    """What becomes of one table's columns. `before` is its entity with every field called as its column is now; `names`
    maps those names to the declared ones, as far as they differ; `texts` maps, by name of now, old texts to new ones.
    """

    before: Entity
    names: dict[str, str]
    texts: dict[str, Mapping[str, str]]

    @property
    def columns(self) -> set[str]:
        """The columns that are not what they are to be, by their names of now."""
        return {*self.names, *self.texts}

    def spelled(self, column: str) -> str:
        """A column of now, with the texts of tomorrow, in SQL."""
        pairs = self.texts.get(column)
        if pairs is None:
            return quote(column)
        cases = " ".join(f"WHEN {_text(old)} THEN {_text(new)}" for old, new in pairs.items())
        return f"CASE {quote(column)} {cases} ELSE {quote(column)} END"

    def updates(self) -> Iterator[str]:
        """Statements that change the texts, under the names of now."""
        for column in self.texts:
            changed = f"SET {quote(column)} = {self.spelled(column)}"
            yield f"UPDATE {quote(self.before.table)} {changed} WHERE {self._holding(column)}"

    def defaults(self) -> Iterator[str]:
        """Statements that give those columns the defaults of tomorrow: the old ones may be texts that are no more."""
        for column in self.texts:
            field = self.before.fields[column]
            if isinstance(field.default, str):
                value = _text(field.default) if field.type == "enum" else f"({_text(field.default)})"
                yield f"ALTER TABLE {quote(self.before.table)} ALTER COLUMN {quote(column)} SET DEFAULT {value}"

    def renames(self) -> list[tuple[str, str]]:
        """Old and new name, one after the other; of columns that change places one steps aside."""
        left, found = dict(self.names), []
        while left:
            old = next((old for old, new in left.items() if new not in left), None)
            if old is None:
                old, new = left.popitem()
                aside = _aside(old)
                found.append((old, aside))
                left[aside] = new
            else:
                found.append((old, left.pop(old)))
        return found

    def reasons(self, connection: Connection, held: Iterable[str]) -> Iterator[str]:
        """Why it wants a person to look at it: columns that get another name, and texts that rows hold."""
        table = self.before.table
        for old in held:
            if old in self.names:
                yield f"column {table}.{old} becomes {self.names[old]}"
        for column in self.texts:
            rows = f"SELECT 1 FROM {quote(table)} WHERE {self._holding(column)} LIMIT 1"
            if connection.execute(sa.text(rows.replace(":", "\\:"))).first() is not None:
                yield f"rows of {table} hold texts of {column} that become others"

    def _holding(self, column: str) -> str:
        return f"{quote(column)} IN ({', '.join(map(_text, self.texts[column]))})"


def moves(connection: Connection, declaration: Declaration, number: int | None) -> dict[str, Move]:
    """By table what is to be done with its columns, which are those of a schema number; None where nobody knows which.

    Columns that have their new names already, by a revision of somebody's own, are left as they are.
    """
    if not declaration.changes:
        return {}
    conversions = Conversions(declaration)
    held = {name: {c["name"] for c in columns} for (_, name), columns in _columns(connection).items()}
    found: dict[str, Move] = {}
    for entity in declaration.entities.values():
        if entity.adopted or entity.name not in conversions.entities or entity.table not in held:
            continue
        columns = held[entity.table] - entity.read_only
        names = _renamed(declaration, conversions, entity, columns, number)
        texts = _texts(conversions, entity, columns, names, number)
        if names or texts:
            found[entity.table] = _move(entity, names, texts)
    return found


def as_before(declaration: Declaration, moved: Mapping[str, Move]) -> Declaration:
    """A declaration whose fields are called as their columns are now."""
    entities = {
        name: moved[entity.table].before if not entity.adopted and entity.table in moved else entity
        for name, entity in declaration.entities.items()
    }
    return structs.replace(declaration, entities=entities)


def _columns(connection: Connection) -> Mapping[tuple[str | None, str], list[sa.engine.interfaces.ReflectedColumn]]:
    return sa.inspect(connection).get_multi_columns()


def _renamed(
    declaration: Declaration, conversions: Conversions, entity: Entity, columns: set[str], number: int | None
) -> dict[str, str]:
    """Old → new name of columns."""
    found: dict[str, str] = {}
    translation = None if number is None else conversions.translation(entity.name, number)
    if translation is not None:
        goals = ((old, translation.goal(old)) for old in sorted(columns))
        found = {old: new for old, new in goals if new is not None and new != old and new in entity.fields}
        # Where a column of the new name stays, it is the field already.
        while taken := [
            old for old, new in found.items() if new in columns and new not in found and new not in translation.removed
        ]:
            for old in taken:
                del found[old]
    # The number may not tell: what is missing under its declared name and there under an earlier one is the field.
    for later in sorted(declaration.changes):
        translation = conversions.translation(entity.name, later - 1) or Translation(())
        for old in sorted(columns - entity.fields.keys() - found.keys()):
            goal = translation.goal(old)
            if goal is not None and goal in entity.fields.keys() - columns - set(found.values()):
                found[old] = goal
    return found


def _texts(
    conversions: Conversions, entity: Entity, columns: set[str], names: Mapping[str, str], number: int | None
) -> dict[str, Mapping[str, str]]:
    """By name of now the texts that change."""
    translation = None if number is None else conversions.translation(entity.name, number)
    if translation is None:
        return {}
    olds = {name: name for name in columns if name not in names and name not in names.values()}
    olds |= {new: old for old, new in names.items()}
    return {olds[name]: pairs for name, pairs in translation.texts.items() if name in olds and name in entity.fields}


def _move(entity: Entity, names: dict[str, str], texts: dict[str, Mapping[str, str]]) -> Move:
    """Fields that come, and whose names other columns have yet, get theirs when those have gone."""
    olds = {new: old for old, new in names.items()}
    called = {name: olds.get(name, _aside(name) if name in names else name) for name in entity.fields}
    before = structs.replace(
        entity,
        fields={called[name]: structs.replace(field, name=called[name]) for name, field in entity.fields.items()},
        index=tuple(tuple(called[name] for name in fields) for fields in entity.index),
        unique=tuple(tuple(called[name] for name in fields) for fields in entity.unique),
    )
    return Move(before, {old: new for new, old in called.items() if old != new}, texts)


def _aside(name: str) -> str:
    """A name that no field has."""
    return f"_{name}"[:NAME_MAX]


def _text(value: str) -> str:
    doubled = value.replace("'", "''")
    return f"'{doubled}'"
