"""Versions and settings of a database that endanger what the service promises, one function for each dialect."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tidemark_protocol.model import Declaration

from .health import Finding, Limits, age
from .schema.fit import OLDEST, sqlite_path
from .schema.tables import own_metadata
from .sqlite.store import FAULTY_WAL

_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.s3fs"}
)
_CONNECTIONS: Final = 7
"""Connections of one process: two that write, four that read, one that listens."""
_DEAD: Final = 100_000
_MOUNTS: Final = Path("/proc/self/mounts")


def look(connection: Connection, declaration: Declaration, limits: Limits) -> list[Finding]:
    """What the database's own dialect can tell."""
    kinds = {"postgresql": _postgresql, "sqlite": _sqlite, "mysql": _mysql, "mariadb": _mysql}
    return list(kinds[connection.dialect.name](connection, declaration, limits))


def _postgresql(connection: Connection, _declaration: Declaration, limits: Limits) -> Iterator[Finding]:
    settings = connection.exec_driver_sql("SELECT name, setting FROM pg_catalog.pg_settings")
    held: dict[str, str] = dict(settings.all())
    version = int(held["server_version_num"])
    if version < 140_000:
        yield _old("PostgreSQL", held["server_version"], "14")
    for name, why in _DURABLE.items():
        if held[name] == "off":
            yield Finding(
                f"{name}_off", "fault", f"{name} is off: {why}", f"set it to on: ALTER SYSTEM SET {name} = on"
            )
    if held["server_encoding"] != "UTF8":
        yield Finding(
            "encoding_not_utf8",
            "fault",
            f"the database's encoding is {held['server_encoding']}",
            "create the database with ENCODING 'UTF8'",
        )
    if connection.exec_driver_sql("SELECT pg_catalog.pg_is_in_recovery()").scalar():
        yield Finding("standby", "fault", "the server is a standby: it takes no writes", "name the primary's URL")
    if held["autovacuum"] == "off":
        yield Finding(
            "autovacuum_off",
            "warning",
            "autovacuum is off: tables of ours grow with every write",
            "set autovacuum = on",
        )
    yield from _postgresql_connections(connection, held, limits)
    yield from _postgresql_transactions(connection, limits)
    yield from _postgresql_tables(connection)


_DURABLE: Final = {
    "fsync": "a crash of the machine can lose or damage what was committed",
    "synchronous_commit": "a crash loses commits that clients were told of",
    "full_page_writes": "a crash in the midst of a write can damage a page",
}


def _postgresql_connections(connection: Connection, held: Mapping[str, str], limits: Limits) -> Iterator[Finding]:
    reserved = int(held["superuser_reserved_connections"]) + int(held.get("reserved_connections", 0))
    free, wanted = int(held["max_connections"]) - reserved, limits.workers * _CONNECTIONS
    if wanted > free:
        yield Finding(
            "connections_few",
            "warning",
            f"{limits.workers} workers take up to {wanted} connections, the server gives {free} to all programs",
            "raise max_connections, or run fewer workers",
        )
    own = connection.exec_driver_sql("SELECT pg_catalog.pg_backend_pid()").scalar()
    driver: Any = connection.connection.driver_connection
    if driver.get_server_pid() != own:
        yield Finding(
            "pooler_between",
            "warning",
            "a pooler such as PgBouncer stands between this program and the database",
            "let it pool sessions or track prepared statements (PgBouncer 1.21, max_prepared_statements), and give "
            "TIDEMARK_WAKE a connection past it",
        )


def _postgresql_transactions(connection: Connection, limits: Limits) -> Iterator[Finding]:
    """Transactions of whichever database of the server hold back vacuum; those of this one hold rows too."""
    found = connection.exec_driver_sql(
        """
        SELECT a.pid::text, coalesce(a.usename, ''), coalesce(a.application_name, ''), a.state,
            (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::bigint
        FROM pg_catalog.pg_stat_activity AS a
        WHERE a.xact_start IS NOT NULL AND a.pid <> pg_catalog.pg_backend_pid() AND a.backend_type = 'client backend'
            AND a.datname = pg_catalog.current_database()
        UNION ALL
        SELECT 'gid ' || p.gid, p.owner, '', 'prepared',
            (extract(epoch FROM clock_timestamp() - p.prepared) * 1000)::bigint
        FROM pg_catalog.pg_prepared_xacts AS p WHERE p.database = pg_catalog.current_database()
        """
    )
    if not connection.exec_driver_sql("SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')").scalar():
        yield _unseen("GRANT pg_read_all_stats TO CURRENT_USER")
    for pid, user, program, state, lasting in found:
        if lasting > limits.long_transaction:
            ending = f"ROLLBACK PREPARED '{pid[4:]}'" if state == "prepared" else f"SELECT pg_terminate_backend({pid})"
            yield _long(lasting, user, program, pid, state or "", ending)


def _postgresql_tables(connection: Connection) -> Iterator[Finding]:
    names = [*own_metadata().tables]
    marks = ", ".join(f"${number}" for number in range(1, len(names) + 1))
    found = connection.exec_driver_sql(
        f"""
        SELECT c.relname, coalesce(c.reloptions::text LIKE '%autovacuum_enabled=%', false)
            AND c.reloptions::text NOT LIKE '%autovacuum_enabled=true%'
            AND c.reloptions::text NOT LIKE '%autovacuum_enabled=on%',
            coalesce(s.n_dead_tup, 0), coalesce(s.n_live_tup, 0)
        FROM pg_catalog.pg_class AS c LEFT JOIN pg_catalog.pg_stat_user_tables AS s ON s.relid = c.oid
        WHERE c.relkind = 'r' AND pg_catalog.pg_table_is_visible(c.oid) AND c.relname IN ({marks})
        """,
        tuple(names),
    )
    for name, off, dead, live in found:
        if off:
            yield Finding(
                "vacuum_off",
                "warning",
                f"autovacuum is switched off for {name}",
                f"ALTER TABLE {name} RESET (autovacuum_enabled)",
            )
        if dead > _DEAD and dead > live:
            yield Finding(
                "dead_rows",
                "warning",
                f"{name} holds {dead:,} dead rows beside {live:,} live ones",
                f"end transactions that stay open for long, then VACUUM {name}",
            )


def _mysql(connection: Connection, declaration: Declaration, limits: Limits) -> Iterator[Finding]:
    held = {name.lower(): value for name, value in connection.exec_driver_sql("SHOW GLOBAL VARIABLES").all()}
    version = held["version"]
    maria = "mariadb" in version.lower()
    number = tuple(int(part) for part in version.partition("-")[0].split(".")[:3])
    least = OLDEST["mariadb" if maria else "mysql"]
    if number < least:
        yield _old("MariaDB" if maria else "MySQL", version, ".".join(map(str, least)))
    if held["innodb_flush_log_at_trx_commit"] != "1":
        yield Finding(
            "flush_log_off",
            "fault",
            f"innodb_flush_log_at_trx_commit is {held['innodb_flush_log_at_trx_commit']}: a crash loses commits that "
            "clients were told of",
            "SET GLOBAL innodb_flush_log_at_trx_commit = 1, and in the server's configuration",
        )
    if held.get("innodb_doublewrite", "ON").upper() in {"OFF", "0"}:
        yield Finding(
            "doublewrite_off",
            "fault",
            "innodb_doublewrite is off: a crash in the midst of a write can damage a page",
            "set innodb_doublewrite = ON in the server's configuration",
        )
    if held["log_bin"].upper() in {"ON", "1"} and held["sync_binlog"] != "1":
        yield Finding(
            "sync_binlog_off",
            "warning",
            f"sync_binlog is {held['sync_binlog']}: after a crash, servers that follow this one may lack commits",
            "SET GLOBAL sync_binlog = 1, and in the server's configuration",
        )
    if not {"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES"} & set(held["sql_mode"].upper().split(",")):
        yield Finding(
            "sql_mode_lax",
            "warning",
            "sql_mode is not strict: values of other programs that do not fit are changed without a word",
            "add STRICT_TRANS_TABLES to the server's sql_mode",
        )
    yield from _mysql_tables(connection, declaration)
    yield from _mysql_transactions(connection, limits)


def _mysql_tables(connection: Connection, declaration: Declaration) -> Iterator[Finding]:
    named = {entity.table: {entity.scope.column, *entity.key.columns} for entity in declaration.entities.values()} | {
        name: set(table.columns.keys()) for name, table in own_metadata().tables.items()
    }
    engines = connection.exec_driver_sql(
        "SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE()"
    )
    for table, engine in engines.all():
        if table in named and engine != "InnoDB":
            yield Finding(
                "not_innodb",
                "fault",
                f"table {table} is kept by {engine}, which has no transactions",
                f"ALTER TABLE {table} ENGINE = InnoDB",
            )
    columns = connection.exec_driver_sql(
        "SELECT table_name, column_name, collation_name FROM information_schema.columns "
        "WHERE table_schema = DATABASE() AND collation_name IS NOT NULL"
    )
    for table, column, collation in columns.all():
        if column in named.get(table, ()) and not collation.endswith("bin"):
            yield Finding(
                "collation_folds",
                "fault" if table.startswith("sync_") else "warning",
                f"column {table}.{column} has the collation {collation}, for which different keys may be the same",
                "give it a collation that compares bytes, such as utf8mb4_bin",
            )


def _mysql_transactions(connection: Connection, limits: Limits) -> Iterator[Finding]:
    try:
        found = connection.exec_driver_sql(_TRANSACTIONS).all()
    except sa.exc.DBAPIError:
        yield _unseen("GRANT PROCESS ON *.*")
        return
    for number, user, host, command, lasting in found:
        if lasting > limits.long_transaction:
            yield _long(lasting, user, host, str(number), command, f"KILL {number}")


_TRANSACTIONS: Final = """
    SELECT p.id, p.user, p.host, p.command, TIMESTAMPDIFF(MICROSECOND, t.trx_started, NOW(6)) DIV 1000
    FROM information_schema.innodb_trx AS t JOIN information_schema.processlist AS p ON p.id = t.trx_mysql_thread_id
    WHERE p.id <> CONNECTION_ID()"""


def _sqlite(connection: Connection, declaration: Declaration, _limits: Limits) -> Iterator[Finding]:
    captured = any(entity.capture for entity in declaration.entities.values())
    faulty = FAULTY_WAL[0] <= sqlite3.sqlite_version_info <= FAULTY_WAL[1]
    if captured and faulty and connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal":
        yield Finding(
            "sqlite_wal_fault",
            "warning",
            f"SQLite {sqlite3.sqlite_version} can damage a database in WAL mode when several programs write it",
            "use SQLite 3.51.3 or later in every program that writes the file; until then, start the service while "
            "nothing else has it open, so that another journal is used",
        )
    path = Path(sqlite_path(str(connection.exec_driver_sql("PRAGMA database_list").all()[0][2])))
    kind = _filesystem(path)
    if kind in _NETWORK:
        yield Finding(
            "network_filesystem",
            "fault",
            f"{path} is on a file system of the network ({kind}), whose locks and syncs cannot be relied on",
            "move the file to a local disk, or use PostgreSQL",
        )
    damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if damage != "ok":
        yield Finding(
            "file_damaged", "fault", f"the file is damaged: {damage}", "restore a backup, then `tidemark epoch renew`"
        )


def _filesystem(path: Path) -> str:
    """The kind of file system that holds a path; empty where that cannot be told."""
    if not _MOUNTS.exists():
        return ""
    mounts = [line.split()[1:3] for line in _MOUNTS.read_text().splitlines()]
    over = [(place, kind) for place, kind in mounts if path.is_relative_to(place.replace("\\040", " "))]
    return max(over, key=lambda mount: len(mount[0]), default=("", ""))[1]


def _old(product: str, version: str, least: str) -> Finding:
    return Finding(
        "version_too_old",
        "fault",
        f"{product} {version} is older than what Tidemark is made for",
        f"use {product} {least} or later",
    )


def _unseen(remedy: str) -> Finding:
    message = "this user of the database may not see what others have open: long transactions are not told"
    return Finding("transactions_unseen", "note", message, remedy)


def _long(lasting: int, user: str, program: str, number: str, state: str, ending: str) -> Finding:
    told = ", ".join(part for part in (program, f"process {number}", state) if part)
    return Finding(
        "long_transaction",
        "warning",
        f"a transaction of {user} has been open for {age(lasting)} ({told}): clients' writes of its rows wait for it",
        f"end it in its program, or: {ending}",
    )
