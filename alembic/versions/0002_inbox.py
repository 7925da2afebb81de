"""The inbox names each row by the texts of the columns that identify it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LONG = (
    sa.Text()
    .with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_0900_bin"), "mysql")
    .with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mariadb")
)
NAME = (
    sa.String(63)
    .with_variant(sa.Text(), "sqlite")
    .with_variant(postgresql.TEXT(collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(63, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)


def upgrade() -> None:
    # Nothing has filled it before this revision. On MySQL an attempt that was cut off may have dropped it.
    op.drop_table("sync_inbox", if_exists=op.get_context().dialect.name in {"mysql", "mariadb"})
    op.create_table(
        "sync_inbox",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("entity", NAME, nullable=False),
        sa.Column("identity", LONG, nullable=False),
        sa.Column("captured_at", sa.BigInteger(), nullable=False),
        sa.Column("who", LONG),
        sqlite_autoincrement=True,
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
    if op.get_context().dialect.name == "postgresql":
        # A sequence's number would be what the other program finds in `lastval()`. Times need not be unique; where
        # deletions are published, rows without a key want an identity.
        op.drop_constraint("sync_inbox_pkey", "sync_inbox")
        now = sa.text("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        op.alter_column("sync_inbox", "id", server_default=now)
        op.execute("DROP SEQUENCE sync_inbox_id_seq")
        op.execute("ALTER TABLE sync_inbox REPLICA IDENTITY FULL")
        op.create_index("ix_sync_inbox_id", "sync_inbox", ["id"])
    op.create_index(
        "ix_sync_inbox_identity",
        "sync_inbox",
        ["identity"],
        postgresql_using="hash",
        mysql_length=190,
        mariadb_length=190,
    )


def downgrade() -> None:
    op.drop_table("sync_inbox")
    op.create_table(
        "sync_inbox",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("entity", NAME, nullable=False),
        sa.Column("old_key", LONG),
        sa.Column("new_key", LONG),
        sa.Column("captured_at", sa.BigInteger(), nullable=False),
        sa.Column("who", LONG),
        sqlite_autoincrement=True,
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
