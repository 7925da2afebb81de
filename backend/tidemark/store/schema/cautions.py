"""What of another program's table may make clients' writes fail, though it fits its declaration (SPEC 10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tidemark_protocol.model import Entity, Field


def cautions(connection: Connection, entity: Entity) -> Iterator[str]:
    """Each in a sentence."""
    inspector = sa.inspect(connection)
    columns = {column["name"]: column for column in inspector.get_columns(entity.table)}
    keys = {*entity.key.columns, entity.scope.column}
    for name, column in columns.items():
        place = f"{entity.table}.{name}"
        field = entity.fields.get(name)
        if "computed" in column and (field is not None or name in keys):
            yield f"column {place} is computed by the database: clients' writes of {entity.name} will be refused"
        elif field is not None:
            yield from _narrower(place, field, column)
        elif name not in keys and _required(column):
            yield (
                f"column {place} needs a value, has no default and is not declared: clients' new rows of {entity.name} "
                "will be refused"
            )


def _required(column: Any) -> bool:
    filled = column["default"] is not None or column.get("autoincrement") is True
    return not column["nullable"] and not filled and "identity" not in column and "computed" not in column


def _narrower(place: str, field: Field, column: Any) -> Iterator[str]:
    """Values of a field that its column does not hold."""
    if field.nullable and not column["nullable"]:
        yield f"column {place} takes no NULL, but {field.name} is nullable: clients' writes of null will be refused"
    length = getattr(column["type"], "length", None)
    if field.type == "text" and length is not None and (field.max is None or field.max > length):
        most = "any number of" if field.max is None else f"up to {field.max}"
        yield f"column {place} holds {length} characters, {field.name} {most}: longer values of clients will be refused"
