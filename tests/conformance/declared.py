"""The declaration that stores are held against: every field type and every kind of key, reference and uniqueness."""

from __future__ import annotations

from typing import Any

from tidemark_protocol.model import Declaration, Entity, Field, Key, ScopeColumn

USER = ScopeColumn("user", "user_id")
WORKSPACE = ScopeColumn("workspace", "workspace_id")
SHOP = ScopeColumn("shop", "shop_id", "integer")


def _entity(name: str, scope: ScopeColumn, *fields: Field, key: Key | None = None, **more: Any) -> Entity:
    return Entity(name, name, scope, {field.name: field for field in fields}, key=key or Key(), **more)


_ENTITIES = [
    _entity(
        "notes",
        USER,
        Field("title", "text", default=""),
        Field("position", "integer", default=0),
        Field("labels", "map", default={}),
        Field("extra", "json", nullable=True),
    ),
    _entity(
        "samples",
        WORKSPACE,
        Field("word", "text", nullable=True),
        Field("count", "integer", nullable=True),
        Field("ratio", "number", nullable=True),
        Field("price", "decimal", nullable=True, precision=14, scale=2),
        Field("open", "boolean", nullable=True),
        Field("day", "date", nullable=True),
        Field("hour", "time", nullable=True),
        Field("moment", "datetime", nullable=True),
        Field("token", "uuid", nullable=True),
        Field("state", "enum", nullable=True, values=("todo", "doing", "done")),
        Field("data", "json", nullable=True),
        Field("labels", "map", default={}),
    ),
    _entity(
        "names",
        WORKSPACE,
        Field("name", "text", default=""),
        Field("shelf", "uuid", nullable=True),
        Field("place", "integer", nullable=True),
        unique=(("name",), ("shelf", "place")),
    ),
    _entity("states", WORKSPACE, Field("state", "enum", values=("todo", "done"), default="todo")),
    _entity("slugs", SHOP, Field("title", "text", default=""), key=Key(("slug",), ("text",))),
    _entity("numbers", SHOP, Field("title", "text", default=""), key=Key(("number",), ("integer",))),
    _entity("lines", SHOP, Field("title", "text", default=""), key=Key(("order_key", "line"), ("text", "integer"))),
    _entity(
        "links",
        SHOP,
        Field("slug", "text", nullable=True, ref="slugs"),
        Field("number", "integer", nullable=True, ref="numbers"),
        Field("link", "uuid", nullable=True, ref="links"),
    ),
    _entity("tags", WORKSPACE, Field("color", "text", default="grey"), key=Key(("tag",), ("text",), per_scope=True)),
]

DECLARATION = Declaration(
    number=1,
    oldest=1,
    scopes={
        "workspace": {"viewer": "read", "editor": "write", "owner": "manage"},
        "shop": {"clerk": "write"},
    },
    entities={entity.name: entity for entity in _ENTITIES},
)


def complete(entity: str, **given: Any) -> dict[str, Any]:
    """A whole row of an entity: what is not given has its default."""
    return {name: given.get(name, field.initial) for name, field in DECLARATION.entities[entity].fields.items()}
