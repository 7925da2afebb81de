"""The tables: six of ours, and those of the declared entities (SPEC 10), as SQLAlchemy metadata.

Names of rows, scopes and clocks are compared byte by byte on every database. SQLite keeps decimals, dates, times, UUIDs
and JSON as text: its numeric types round decimals, and its affinities would turn some texts into numbers.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import UNSET
from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    Index,
    Integer,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    Time,
    event,
    false,
    literal,
    text,
    true,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import JSON, Uuid

from tidemark_protocol.model import STAMPS, ColumnType, Declaration, Entity, Field

from .mysql_types import ID_MAX, INNODB, ascii_text, prefixes, text_length, unique_rooms, varied

OWN_VERSIONS: Final = "alembic_sync_version"
"""Where Alembic keeps which revision of our own tables a database is at."""
DECLARED_VERSIONS: Final = "alembic_schema_version"
"""The same of the declared tables."""
ADVISORY_CLASS: Final = 0x7469_6465
"""Marks our advisory locks of PostgreSQL among those of other programs."""
NAME_MAX: Final = 63
"""PostgreSQL cuts longer names."""
COLUMN: Final = "tidemark_column"
"""By it the `info` of a check tells which column it is of."""
_INBOX_ON_POSTGRESQL: Final = (
    "ALTER TABLE sync_inbox DROP CONSTRAINT sync_inbox_pkey",
    "ALTER TABLE sync_inbox ALTER id SET DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    "DROP SEQUENCE sync_inbox_id_seq",
    "ALTER TABLE sync_inbox REPLICA IDENTITY FULL",
    "CREATE INDEX ix_sync_inbox_id ON sync_inbox (id)",
)
"""There an id is a time, which need not be unique: a sequence's number would be what the other program finds in
`lastval()`. Where deletions are published, rows without a key want an identity.
"""
Type = Any
"""A SQLAlchemy type: `TypeEngine` of whatever."""


class Outright(Grouping[str]):
    """A text as a column's default, in brackets: MySQL takes no other for texts of any length."""

    inherit_cache = True

    def __init__(self, value: str) -> None:
        super().__init__(literal(value, String()))
        self.value = value


def name_type(length: int) -> Type:
    """Text of ASCII names and readings, in byte order."""
    return (
        String(length)
        .with_variant(Text(), "sqlite")
        .with_variant(postgresql.TEXT(collation="C"), "postgresql")
        .with_variant(ascii_text(length), "mysql", "mariadb")
    )


def long_type() -> Type:
    """Text of any length."""
    return varied(Text(), None)


def metadata_for(declaration: Declaration) -> MetaData:
    """Our tables and those that migrations make for the declaration; adopted tables belong to others."""
    return declared_metadata(declaration, own_metadata())


def declared_metadata(declaration: Declaration, metadata: MetaData | None = None) -> MetaData:
    """The tables that migrations make for the declaration, in `metadata` or alone."""
    metadata = MetaData() if metadata is None else metadata
    for entity in declaration.entities.values():
        if not entity.adopted:
            _entity_table(metadata, entity)
    return metadata


def own_metadata() -> MetaData:
    """The six tables of ours."""
    metadata = MetaData()
    for table in (_meta_table, _scope_table, _feed_table, _journal_table, _inbox_table, _member_table):
        table(metadata)
    return metadata


def field_type(field: Field, room: int | None = None) -> Type:
    """The SQL type of a declared field; `room` is what unique indexes of MySQL leave it, in characters."""
    kind = field.type
    if kind == "text":
        length = field.max if isinstance(field.max, int) else None
        base = (String(length) if length else Text()).with_variant(Text(), "sqlite")
        return varied(base, text_length(field, room))
    if kind == "enum":
        length = max(map(len, field.values))
        return varied(String(length).with_variant(Text(), "sqlite").with_variant(String(), "postgresql"), length)
    if kind == "decimal":
        return Numeric(field.precision, field.scale).with_variant(Text(), "sqlite")
    if kind in {"json", "map"}:
        return JSON().with_variant(postgresql.JSONB(), "postgresql").with_variant(Text(), "sqlite")
    if kind == "datetime":
        return _moment_type()
    if kind == "date":
        return Date().with_variant(Text(), "sqlite")
    if kind == "time":
        return Time().with_variant(Text(), "sqlite").with_variant(mysql.TIME(fsp=6), "mysql", "mariadb")
    if kind == "uuid":
        return _uuid_type()
    return {"integer": BigInteger, "number": Double, "boolean": Boolean}[kind]()


def field_column(field: Field, room: int | None = None) -> Column[Any]:
    """The column of a declared field; `room` as in `field_type`."""
    return Column(field.name, field_type(field, room), nullable=field.nullable, server_default=_server_default(field))


def index_name(prefix: str, table: str, columns: tuple[str, ...]) -> str:
    """A name that fits every database, the same at every start."""
    name = "_".join((prefix, table, *columns))
    if len(name) <= NAME_MAX:
        return name
    return f"{name[: NAME_MAX - 9]}_{blake2b(name.encode(), digest_size=4).hexdigest()}"


def _meta_table(metadata: MetaData) -> None:
    Table(
        "sync_meta",
        metadata,
        Column("name", name_type(128), primary_key=True),
        Column("value", long_type(), nullable=False),
        **INNODB,
    )


def _scope_table(metadata: MetaData) -> None:
    Table(
        "sync_scope",
        metadata,
        Column("scope", name_type(450), primary_key=True),
        _counter("head"),
        _counter("floor"),
        Column("clock", name_type(34), nullable=False, server_default=""),
        _counter("live"),
        _counter("total"),
        _counter("members"),
        _counter("horizon"),
        **INNODB,
    )


def _feed_table(metadata: MetaData) -> None:
    table = Table(
        "sync_feed",
        metadata,
        Column("entity", name_type(NAME_MAX)),
        Column("row", name_type(128)),
        Column("scope", name_type(450)),
        Column("version", BigInteger, nullable=False),
        Column("deleted", Boolean, nullable=False),
        Column("doc", long_type(), nullable=False),
        Column("root", name_type(34), nullable=False),
        Column("clocks", long_type(), nullable=False),
        Column("arrived", BigInteger, nullable=False),
        Column("residue", Boolean, nullable=False),
        PrimaryKeyConstraint("entity", "row", "scope"),
        Index("ix_sync_feed_version", "scope", "version"),
        **INNODB,
    )
    residue, name = table.c.residue, "ix_sync_feed_residue"
    Index(name, table.c.arrived, postgresql_where=residue, sqlite_where=residue).ddl_if(("postgresql", "sqlite"))  # type: ignore[arg-type]  # several dialects are taken as well
    Index(name, residue, table.c.arrived).ddl_if(("mysql", "mariadb"))  # type: ignore[arg-type]  # several dialects are taken as well


def _journal_table(metadata: MetaData) -> None:
    table = Table(
        "sync_journal",
        metadata,
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("scope", name_type(450), nullable=False),
        Column("arrived", BigInteger, nullable=False),
        Column("events", long_type(), nullable=False),
        Column("rows", long_type().with_variant(postgresql.ARRAY(BigInteger), "postgresql"), nullable=False),
        Column("spent", BigInteger),
        Index("ix_sync_journal_scope", "scope", "id"),
        Index("ix_sync_journal_arrived", "arrived"),
        Index(
            "ix_sync_journal_spent",
            "spent",
            postgresql_where=text("spent IS NOT NULL"),
            sqlite_where=text("spent IS NOT NULL"),
        ),
        # A number is never given again, even after everything was forgotten: readers page by it.
        sqlite_autoincrement=True,
        **INNODB,
    )
    # Its pending list is short: with the default of 4 MB, one commit now and then waits a quarter of a second for it.
    Index(
        "ix_sync_journal_rows",
        table.c.rows,
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": 128},
    ).ddl_if("postgresql")


def _inbox_table(metadata: MetaData) -> None:
    table = Table(
        "sync_inbox",
        metadata,
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("entity", name_type(NAME_MAX), nullable=False),
        Column("identity", long_type(), nullable=False),
        Column("captured_at", BigInteger, nullable=False),
        Column("who", long_type()),
        sqlite_autoincrement=True,
        **INNODB,
    )
    # Of texts of any length: an index that refused one would fail the other program's write.
    Index("ix_sync_inbox_identity", table.c.identity, postgresql_using="hash", mysql_length=190, mariadb_length=190)
    for statement in _INBOX_ON_POSTGRESQL:
        event.listen(table, "after_create", DDL(statement).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]


def _member_table(metadata: MetaData) -> None:
    Table(
        "sync_member",
        metadata,
        Column("scope", name_type(450)),
        Column("user", _user_type()),
        Column("role", name_type(64), nullable=False),
        PrimaryKeyConstraint("scope", "user"),
        Index("ix_sync_member_user", "user"),
        **INNODB,
    )


def _enum_check(table: str, field: Field) -> CheckConstraint:
    """Holds an enum's column to its values; the name tells them, so that other values are another constraint."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in field.values)
    digest = blake2b(quoted.encode(), digest_size=4).hexdigest()
    return CheckConstraint(
        text(f'"{field.name}" IN ({quoted})'.replace(":", "\\:")),
        index_name("ck", table, (field.name, digest)),
        info={COLUMN: field.name},
    )


def _entity_table(metadata: MetaData, entity: Entity) -> Table:
    scope = entity.scope.column
    key = [
        Column(name, column_type(kind), autoincrement=False)
        for name, kind in zip(entity.key.columns, entity.key.types, strict=True)
    ]
    primary = ((scope,) if entity.key.per_scope else ()) + entity.key.columns
    rooms = unique_rooms(entity)
    table = Table(
        entity.table,
        metadata,
        *key,
        Column(scope, column_type(entity.scope.type), nullable=False, autoincrement=False),
        *[field_column(field, rooms.get(field.name)) for field in entity.fields.values()],
        *[Column(name, _moment_type(), nullable=False, server_default=_stamp_default(entity)) for name in STAMPS],
        PrimaryKeyConstraint(*primary),
        **INNODB,
    )
    for field in entity.fields.values():
        if field.type == "enum":
            table.append_constraint(_enum_check(entity.table, field))
    for columns, unique in _indexes(entity):
        lengths = None if unique else prefixes(entity, columns, rooms) or None
        Index(
            index_name("uq" if unique else "ix", entity.table, columns),
            *(table.c[name] for name in columns),
            unique=unique,
            mysql_length=lengths,
            mariadb_length=lengths,
        )
    return table


def _indexes(entity: Entity) -> list[tuple[tuple[str, ...], bool]]:
    """Columns and uniqueness of each index, none of them made for nothing; the scope column leads them all."""
    scope = entity.scope.column
    unique = list(dict.fromkeys((scope, *fields) for fields in entity.unique))
    wanted = [(scope, *fields) for fields in entity.index]
    wanted += [(scope, field.name) for field in entity.refs if field.on_delete != "keep"]
    if not entity.key.per_scope:
        wanted.append((scope,))
    plain = [
        columns
        for columns in dict.fromkeys(wanted)
        if not any(columns == other[: len(columns)] for other in (*unique, *(w for w in wanted if w != columns)))
    ]
    return [(columns, True) for columns in unique] + [(columns, False) for columns in plain]


def column_type(kind: ColumnType) -> Type:
    """The SQL type of a key or scope column."""
    if kind == "uuid":
        return _uuid_type()
    return BigInteger() if kind == "integer" else _user_type()


def _user_type() -> Type:
    """Text in byte order that may hold any character: users, and the decoded ids of scopes."""
    base = String(ID_MAX).with_variant(Text(), "sqlite").with_variant(postgresql.TEXT(collation="C"), "postgresql")
    return varied(base, ID_MAX)


def _uuid_type() -> Type:
    return (
        Uuid(as_uuid=False)
        .with_variant(Text(), "sqlite")
        .with_variant(mysql.CHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
    )


class CurrentMoment(FunctionElement[Any]):
    """The present time, as the column of a datetime holds it."""

    inherit_cache = True


@compiles(CurrentMoment)
def _current_moment(_: CurrentMoment, compiler: SQLCompiler, **__: Any) -> str:
    spelled = {"sqlite": "(strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000Z')", "postgresql": "now()"}
    return spelled.get(compiler.dialect.name, "(utc_timestamp(6))")


def _stamp_default(entity: Entity) -> CurrentMoment | None:
    """Other programs write captured tables, and need not know of stamps."""
    return CurrentMoment() if entity.capture else None


def _moment_type() -> Type:
    return (
        DateTime(timezone=True).with_variant(Text(), "sqlite").with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    )


def _counter(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _server_default(field: Field) -> Any:
    value = field.default
    if value is UNSET or value is None:
        return None
    if field.type == "boolean":
        return true() if value else false()
    if field.type in {"integer", "number"}:
        return text(repr(value))
    if field.type in {"json", "map"}:
        return Outright(msgspec.json.encode(value).decode())
    return Outright(value) if field.type == "text" else str(value)
