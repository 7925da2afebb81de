"""What a declaration says, as values (SPEC 10): immutable, canonical, already found consistent."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import force_setattr

FieldType = Literal[
    "text", "integer", "number", "decimal", "boolean", "date", "time", "datetime", "uuid", "enum", "json", "map"
]
ColumnType = Literal["text", "uuid", "integer"]
"""Types of key and scope columns."""
OnDelete = Literal["restrict", "cascade", "set_null", "keep"]
Grant = Literal["read", "write", "manage"]
When = Literal["put", "patch", "delete"]

USER: Final = "user"
"""The scope kind that is built in: `user:<sub>`, read and written by that user alone."""
STAMPS: Final = ("created_at", "updated_at")
"""Datetimes that the server keeps in every document."""


class Field(Struct, frozen=True):
    """One declared field.

    `default` is canonical, UNSET where there is none (a map's is `{}`). `min` and `max` count code points of a text
    and bound a number. `ref` names the entity that the value is a key of.
    """

    name: str
    type: FieldType
    nullable: bool = False
    default: Any | UnsetType = UNSET
    min: int | float | None = None
    max: int | float | None = None
    pattern: str | None = None
    values: tuple[str, ...] = ()
    precision: int | None = None
    scale: int | None = None
    ref: str | None = None
    on_delete: OnDelete = "restrict"

    def __post_init__(self) -> None:
        if self.type == "map":
            force_setattr(self, "default", {})

    @property
    def required(self) -> bool:
        """Whether a put must give it."""
        return self.initial is UNSET

    @property
    def initial(self) -> Any:
        """What a put that leaves the field out sets: the default, else None; UNSET for a required field."""
        return None if self.default is UNSET and self.nullable else self.default


class Key(Struct, frozen=True):
    """The columns that hold a row's key; several are joined with `:`. `per_scope`: unique within a scope only."""

    columns: tuple[str, ...] = ("id",)
    types: tuple[ColumnType, ...] = ("uuid",)
    per_scope: bool = False


class ScopeColumn(Struct, frozen=True):
    """The kind of scope that an entity's rows live in, and the column that holds the decoded scope id."""

    kind: str
    column: str
    type: ColumnType = "text"


class Rule(Struct, frozen=True):
    """Refuses a write (`rule`, with `message`) of a row that holds every value of `refuse_if`; none: every row."""

    when: When
    refuse_if: Mapping[str, Any]
    message: str


class Entity(Struct, frozen=True, dict=True):
    """One declared table. `adopted`: it was named by `table:` and belongs to others too."""

    name: str
    table: str
    scope: ScopeColumn
    fields: Mapping[str, Field]
    adopted: bool = False
    key: Key = Key()
    capture: bool = False
    index: tuple[tuple[str, ...], ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    rules: tuple[Rule, ...] = ()
    display: Mapping[str, Any] = {}

    @cached_property
    def maps(self) -> frozenset[str]:
        """Names of the fields whose keys merge one by one."""
        return frozenset(field.name for field in self.fields.values() if field.type == "map")

    @cached_property
    def refs(self) -> tuple[Field, ...]:
        """Fields that name a row of an entity."""
        return tuple(field for field in self.fields.values() if field.ref is not None)

    @cached_property
    def read_only(self) -> frozenset[str]:
        """Names in a document that no mutation sets."""
        return frozenset((*self.key.columns, self.scope.column, *STAMPS))


class Conversion(Struct, frozen=True):
    """How an entity changed from one schema number to the next.

    `rename` maps old names to new ones, `remove` holds old names, `values` maps, by new name, old texts to new ones.
    """

    rename: Mapping[str, str] = {}
    remove: tuple[str, ...] = ()
    values: Mapping[str, Mapping[str, str]] = {}


class Declaration(Struct, frozen=True, dict=True):
    """A whole schema file. `scopes` maps kind → role → grant and never holds `user`.

    `number` is the schema number, `oldest` the lowest one still served; `changes` maps number → entity → what changed
    from the number before.
    """

    number: int
    oldest: int
    scopes: Mapping[str, Mapping[str, Grant]]
    entities: Mapping[str, Entity]
    changes: Mapping[int, Mapping[str, Conversion]] = {}

    @cached_property
    def referrers(self) -> Mapping[str, tuple[tuple[Entity, Field], ...]]:
        """For each entity's name the fields that refer to it, with the entities they stand in."""
        incoming: dict[str, list[tuple[Entity, Field]]] = {name: [] for name in self.entities}
        for entity in self.entities.values():
            for field in entity.refs:
                if field.ref is not None:
                    incoming[field.ref].append((entity, field))
        return {name: tuple(pairs) for name, pairs in incoming.items()}

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """A number for each entity: what is referred to comes before what refers to it, unless they form a circle."""
        ranks: dict[str, int] = {}

        def visit(entity: Entity, above: frozenset[str]) -> None:
            for field in entity.refs:
                if field.ref is not None and field.ref not in ranks and field.ref not in above:
                    visit(self.entities[field.ref], above | {field.ref})
            ranks.setdefault(entity.name, len(ranks))

        for name in sorted(self.entities):
            visit(self.entities[name], frozenset({name}))
        return ranks
