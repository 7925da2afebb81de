"""Runs revisions, for `tidemark migrate` (which hands over its connection) and for the `alembic` command."""

from __future__ import annotations

import asyncio
import os

from sqlalchemy import Connection

from alembic import context
from tidemark.store.schema.fit import is_mysql, sqlite_engine, sqlite_path, with_mysql, with_postgres
from tidemark.store.schema.tables import OWN_VERSIONS, own_metadata


def run(connection: Connection) -> None:
    """Run them on a connection, in the transaction that it is in."""
    metadata = own_metadata()
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_name=lambda name, kind, _: kind != "table" or name in metadata.tables,
        version_table=context.config.attributes.get("version_table", OWN_VERSIONS),
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """On the connection given, else on the database that TIDEMARK_DATABASE_URL names."""
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
        return
    url = os.environ["TIDEMARK_DATABASE_URL"]
    if context.is_offline_mode():
        context.configure(url=url, literal_binds=True, version_table=OWN_VERSIONS)
        with context.begin_transaction():
            context.run_migrations()
    elif url.startswith("sqlite"):
        with sqlite_engine(sqlite_path(url)).begin() as connection:
            run(connection)
    else:
        asyncio.run((with_mysql if is_mysql(url) else with_postgres)(url, run))


main()
