"""The tables of the feed, the journal and the members."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger()
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LONG = (
    sa.Text()
    .with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_0900_bin"), "mysql")
    .with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mariadb")
)
HASHES = LONG.with_variant(postgresql.ARRAY(sa.BigInteger()), "postgresql")


USER = (
    sa.String(128)
    .with_variant(sa.Text(), "sqlite")
    .with_variant(postgresql.TEXT(collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(128, charset="utf8mb4", collation="utf8mb4_0900_bin"), "mysql")
    .with_variant(mysql.VARCHAR(128, charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mariadb")
)


def name(length: int) -> Any:
    """ASCII compared byte by byte."""
    return (
        sa.String(length)
        .with_variant(sa.Text(), "sqlite")
        .with_variant(postgresql.TEXT(collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
    )


def counter(column: str) -> sa.Column[int]:
    return sa.Column(column, BIG, nullable=False, server_default=sa.text("0"))


def create_table(table: str, *columns: Any, **options: Any) -> None:
    """Make a table; on MySQL, where DDL is no part of a transaction, unless an attempt that was cut off has made it."""
    again = op.get_context().dialect.name in {"mysql", "mariadb"}
    op.create_table(table, *columns, **options, if_not_exists=again, mysql_engine="InnoDB", mariadb_engine="InnoDB")


def create_index(index: str, table: str, columns: list[str], **options: Any) -> None:
    """Make an index, with the same exception."""
    context = op.get_context()
    again = context.dialect.name in {"mysql", "mariadb"} and not context.as_sql
    held = {one["name"] for one in sa.inspect(op.get_bind()).get_indexes(table)} if again else set()
    if index not in held:
        op.create_index(index, table, columns, **options)


def upgrade() -> None:
    create_table(
        "sync_meta",
        sa.Column("name", name(128), primary_key=True),
        sa.Column("value", LONG, nullable=False),
    )
    create_table(
        "sync_scope",
        sa.Column("scope", name(450), primary_key=True),
        counter("head"),
        counter("floor"),
        sa.Column("clock", name(34), nullable=False, server_default=""),
        counter("live"),
        counter("total"),
        counter("members"),
        counter("horizon"),
    )
    create_table(
        "sync_feed",
        sa.Column("entity", name(63)),
        sa.Column("row", name(128)),
        sa.Column("scope", name(450)),
        sa.Column("version", BIG, nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("doc", LONG, nullable=False),
        sa.Column("root", name(34), nullable=False),
        sa.Column("clocks", LONG, nullable=False),
        sa.Column("arrived", BIG, nullable=False),
        sa.Column("residue", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("entity", "row", "scope"),
    )
    create_index("ix_sync_feed_version", "sync_feed", ["scope", "version"])
    residue = sa.text("residue")
    # MySQL has no index of some rows alone.
    leading = ["residue"] if op.get_context().dialect.name in {"mysql", "mariadb"} else []
    create_index(
        "ix_sync_feed_residue",
        "sync_feed",
        [*leading, "arrived"],
        postgresql_where=residue,
        sqlite_where=residue,
    )
    create_table(
        "sync_journal",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("scope", name(450), nullable=False),
        sa.Column("arrived", BIG, nullable=False),
        sa.Column("events", LONG, nullable=False),
        sa.Column("rows", HASHES, nullable=False),
        sa.Column("spent", BIG),
        sqlite_autoincrement=True,
    )
    create_index("ix_sync_journal_scope", "sync_journal", ["scope", "id"])
    create_index("ix_sync_journal_arrived", "sync_journal", ["arrived"])
    spent = sa.text("spent IS NOT NULL")
    create_index("ix_sync_journal_spent", "sync_journal", ["spent"], postgresql_where=spent, sqlite_where=spent)
    if op.get_context().dialect.name == "postgresql":
        create_index(
            "ix_sync_journal_rows",
            "sync_journal",
            ["rows"],
            postgresql_using="gin",
            postgresql_with={"gin_pending_list_limit": 128},
        )
    create_table(
        "sync_inbox",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("entity", name(63), nullable=False),
        sa.Column("old_key", LONG),
        sa.Column("new_key", LONG),
        sa.Column("captured_at", BIG, nullable=False),
        sa.Column("who", LONG),
        sqlite_autoincrement=True,
    )
    create_table(
        "sync_member",
        sa.Column("scope", name(450)),
        sa.Column("user", USER),
        sa.Column("role", name(64), nullable=False),
        sa.PrimaryKeyConstraint("scope", "user"),
    )
    create_index("ix_sync_member_user", "sync_member", ["user"])


def downgrade() -> None:
    for table in ("sync_member", "sync_inbox", "sync_journal", "sync_feed", "sync_scope", "sync_meta"):
        op.drop_table(table)
