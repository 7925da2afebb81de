"""The triggers of captured tables, as each database says them.

They append to the inbox which row was changed, when and by whom, and nothing else: they take no lock of ours and notify
nobody. On PostgreSQL they run with our rights in sessions of others, so that every name in them is qualified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from tidemark.store.entities import EntityTable, quote
from tidemark_protocol.model import Entity

PREFIX: Final = "tidemark_"
OWN: Final = "tidemark.own"
"""The setting by which triggers of PostgreSQL know our sessions."""
ROW_EVENTS: Final = ("insert", "update", "delete")
EVENTS: Final = (*ROW_EVENTS, "truncate", "partition", "replace", "displace")
"""`partition` is a TRUNCATE of one partition alone. The last two are of SQLite: an INSERT or UPDATE with OR REPLACE
removes the rows in its way.
"""
_LABEL_MAX: Final = 36
"""With it no name is longer than PostgreSQL keeps."""

_MYSQL_NOW: Final = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000"
NOW: Final = {
    "postgresql": "pg_catalog.floor(EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000)::bigint",
    "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
    "mysql": _MYSQL_NOW,
    "mariadb": _MYSQL_NOW,
}
"""The database's clock in Unix milliseconds."""
COLUMNS: Final = "(entity, identity, captured_at, who)"
"""What is written of an entry."""


class Trigger(NamedTuple):
    """A trigger that a captured table is to have; `table` is spelled as in the statements that create and drop it.

    Its name tells the fingerprint of its definition: one that is defined otherwise has another name.
    """

    name: str
    entity: str
    event: str
    table: str
    create: tuple[str, ...]
    drop: tuple[str, ...]
    fingerprint: str


class Relation(NamedTuple):
    """A table of PostgreSQL: its qualified name, whether it has partitions, and whether we may act as its owner."""

    name: str
    partitioned: bool
    owned: bool


def label(entity: str) -> str:
    """What stands for an entity in the names of its triggers."""
    return entity if len(entity) <= _LABEL_MAX else f"{entity[: _LABEL_MAX - 9]}_{_digest(entity)}"


def postgresql(entity: Entity, schema: str, table: Relation, partitions: Sequence[Relation]) -> Iterator[Trigger]:
    """Those of a table on PostgreSQL; the inbox stands in `schema`.

    One call for each statement, with its rows as transition tables. These do not hold what is written to a partition
    by its own name: a table with partitions gets triggers of rows, which all partitions share, later ones too.
    """
    for event in ROW_EVENTS:
        body = _report_changed(entity, schema, event, of_rows=table.partitioned)
        how = "FOR EACH ROW" if table.partitioned else f"{_TRANSITION[event]} FOR EACH STATEMENT"
        yield _postgresql(entity, schema, event, body, f"AFTER {event.upper()}", how, table, table)
    body = _report_present(entity, schema)
    for relation in (table, *partitions):
        event = "truncate" if relation == table else "partition"
        yield _postgresql(entity, schema, event, body, "BEFORE TRUNCATE", "FOR EACH STATEMENT", table, relation)


_TRANSITION: Final = {
    "insert": "REFERENCING NEW TABLE AS new_rows",
    "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "REFERENCING OLD TABLE AS old_rows",
}


def _report_changed(entity: Entity, schema: str, event: str, *, of_rows: bool) -> str:
    spell = EntityTable(entity).identity_text
    sources = (
        (("OLD.", ""), ("NEW.", "")) if of_rows else (("o.", " FROM old_rows AS o"), ("n.", " FROM new_rows AS n"))
    )
    # The columns may differ in their collations, and two keys be equal by one of them.
    old, new = (f'SELECT {spell("postgresql", prefix)} COLLATE pg_catalog."C"{source}' for prefix, source in sources)
    found = {"insert": new, "delete": old, "update": f"{old} UNION {new}"}[event]
    return f"{_append(entity, schema)} FROM ({found}) AS changed (identity);"


def _report_present(entity: Entity, schema: str) -> str:
    identity = EntityTable(entity).identity_text("postgresql", "present.")
    append = _append(entity, schema, identity)
    return f"EXECUTE $sql${append} FROM $sql$ || TG_RELID::pg_catalog.regclass::text || ' AS present';"


def _append(entity: Entity, schema: str, identity: str = "changed.identity") -> str:
    return (
        f"INSERT INTO {schema}.sync_inbox {COLUMNS}\n"
        f"    SELECT '{entity.name}', {identity}, {NOW['postgresql']}, session_user"
    )


def _postgresql(
    entity: Entity, schema: str, event: str, body: str, moment: str, how: str, root: Relation, table: Relation
) -> Trigger:
    def create(name: str, on: str) -> tuple[str, ...]:
        function = f"{schema}.{quote(name)}()"
        return (
            f"""CREATE OR REPLACE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF pg_catalog.current_setting('{OWN}', true) = 'on' AND pg_catalog.pg_trigger_depth() = 1 THEN
    RETURN NULL;
  END IF;
  {body}
  RETURN NULL;
END $$""",
            f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC",
            f"CREATE OR REPLACE TRIGGER {quote(name)} {moment} ON {on}\n{how} EXECUTE FUNCTION {function}",
        )

    made = _made(entity, event, table.name, create, fingerprint_of=root.name)
    # Sessions that load data often switch ordinary triggers off (session_replication_role).
    always = (f"ALTER TABLE {table.name} ENABLE ALWAYS TRIGGER {quote(made.name)}",) if table.owned else ()
    return made._replace(create=made.create + always, drop=(drop_postgresql(schema, made.name),))


def drop_postgresql(schema: str, name: str) -> str:
    """The statement that removes a trigger from every table of PostgreSQL, and its function."""
    return f"DROP FUNCTION IF EXISTS {schema}.{quote(name)}() CASCADE"


def sqlite(entity: Entity, uniques: Sequence[Sequence[str]]) -> Iterator[Trigger]:
    """Those of a table on SQLite; `uniques` are the columns of further unique indexes.

    A statement with OR REPLACE removes the rows in its way without their triggers: they are reported before it does.
    """
    spell = EntityTable(entity).identity_text
    old, new, found = (spell("sqlite", prefix) for prefix in ("OLD.", "NEW.", "found."))
    report_old, report_new, report_found = (
        f"INSERT INTO sync_inbox {COLUMNS} SELECT '{entity.name}', {identity}, {NOW['sqlite']}, NULL"
        for identity in (old, new, found)
    )
    bodies = {
        "insert": report_new,
        "update": f"{report_old};\n  {report_new} WHERE {new} <> {old}",
        "delete": report_old,
    }
    for event in ROW_EVENTS:
        yield _sqlite(entity, event, f"AFTER {event.upper()}", bodies[event])
    if not uniques:
        return
    equal = (" AND ".join(f"found.{quote(name)} = NEW.{quote(name)}" for name in columns) for columns in uniques)
    rows = f"FROM {quote(entity.table)} AS found WHERE ({' OR '.join(f'({one})' for one in equal)})"
    for event, moment, itself in (("replace", "BEFORE INSERT", new), ("displace", "BEFORE UPDATE", old)):
        yield _sqlite(entity, event, moment, f"{report_found} {rows} AND {found} <> {itself}")


def _sqlite(entity: Entity, event: str, moment: str, body: str) -> Trigger:
    def create(name: str, on: str) -> tuple[str, ...]:
        head = f"CREATE TRIGGER IF NOT EXISTS {quote(name)} {moment} ON {on}"
        return (f"{head} BEGIN\n  {body};\nEND",)

    made = _made(entity, event, quote(entity.table), create)
    return made._replace(drop=(f"DROP TRIGGER IF EXISTS {quote(made.name)}",))


def mysql(entity: Entity) -> Iterator[Trigger]:
    """Those of a table on MySQL or MariaDB, which run with the rights of whoever made them, and in the mode that they
    were made in: in one that is not strict nothing that an inbox cannot hold makes a write fail.
    """
    spell = EntityTable(entity).identity_text
    old, new = spell("mysql", "OLD."), spell("mysql", "NEW.")
    report_old, report_new = (
        f"INSERT INTO sync_inbox {COLUMNS} VALUES ('{entity.name}', {identity}, {_MYSQL_NOW}, USER())"
        for identity in (old, new)
    )
    report_both = f"""BEGIN
  {report_old};
  IF CAST({old} AS BINARY) <> CAST({new} AS BINARY) THEN
    {report_new};
  END IF;
END"""
    bodies = {"insert": report_new, "update": report_both, "delete": report_old}
    for event in ROW_EVENTS:
        yield _mysql(entity, event, bodies[event].replace('"', "`"))


def _mysql(entity: Entity, event: str, body: str) -> Trigger:
    def create(name: str, on: str) -> tuple[str, ...]:
        return (
            "SET @tidemark_sql_mode = @@SESSION.sql_mode, SESSION sql_mode = ''",
            f"DROP TRIGGER IF EXISTS `{name}`",
            f"CREATE TRIGGER `{name}` AFTER {event.upper()} ON {on} FOR EACH ROW\n{body}",
            "SET SESSION sql_mode = @tidemark_sql_mode",
        )

    made = _made(entity, event, f"`{entity.table}`", create)
    return made._replace(drop=(f"DROP TRIGGER IF EXISTS `{made.name}`",))


def _made(
    entity: Entity, event: str, table: str, create: Callable[[str, str], tuple[str, ...]], fingerprint_of: str = ""
) -> Trigger:
    """A trigger of `table`; its fingerprint is that of the definition on `fingerprint_of`, where that is another."""
    fingerprint = _digest("\n".join(create("", fingerprint_of or table)))
    name = f"{PREFIX}{label(entity.name)}_{event}_{fingerprint}"
    return Trigger(name, entity.name, event, table, create(name, table), (), fingerprint)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()
