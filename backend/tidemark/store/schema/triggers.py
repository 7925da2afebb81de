"""Triggers of captured tables: which a database is to have, has and lacks; and the rows that were there before them.

Everything here works on a synchronous connection, in the transaction that it is in. On MySQL and MariaDB each statement
that makes or drops a trigger ends a transaction.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from time import monotonic, sleep
from typing import Any, Final, Literal, NamedTuple

import sqlalchemy as sa
from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from sqlalchemy.engine import Connection

from tidemark.store.base import UNIT, Unavailable
from tidemark.store.entities import EntityTable, quote
from tidemark_protocol.model import Declaration, Entity

from . import triggers_sql
from .tables import declared_metadata, own_metadata
from .triggers_sql import COLUMNS, EVENTS, NOW, PREFIX, ROW_EVENTS, Relation, Trigger, label

Kind = Literal["missing", "stale", "disabled", "partition", "leftover"]

_NAME: Final = re.compile(rf"{PREFIX}(.+)_({'|'.join(EVENTS)})_[0-9a-f]{{8}}")
_META: Final = own_metadata().tables["sync_meta"]
_INBOX: Final = own_metadata().tables["sync_inbox"]
_MARK: Final = "report:"
"""Begins the names of rows in `sync_meta` that hold up to which identity an entity's earlier rows are reported."""
_QUOTES: Final = re.compile('["`]')
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_MARKING: Final = (
    "INSERT INTO sync_meta (name, value) SELECT '{0}', '' WHERE NOT EXISTS (SELECT 1 FROM sync_meta WHERE name = '{0}')"
)
_PATIENCE: Final = {
    "postgresql": "SET LOCAL lock_timeout = '5s'",
    "mysql": "SET SESSION lock_wait_timeout = 5",
    "mariadb": "SET SESSION lock_wait_timeout = 0",
}
"""How long making a trigger waits for a table: whoever wants to write it meanwhile waits behind.

On MariaDB not at all: a transaction that has read the table and then writes it would be ended, as a deadlock with who
waits. It is tried again and again instead.
"""
_TRIED_FOR: Final = 5.0
_PAUSE: Final = 0.02
_LOCK_NOT_AVAILABLE: Final = "55P03"
_LOCK_WAIT_TIMEOUT: Final = 1205
_FAULTS: Final[dict[Kind, str]] = {
    "missing": "has no triggers that report {}",
    "stale": "has outdated triggers for {}",
    "disabled": "has triggers that are switched off, for {}",
    "partition": "is a partition of which a TRUNCATE by its own name is not reported ({})",
    "leftover": "has triggers that are not wanted any more, for {}",
}


class TriggerOp(ops.MigrateOperation):
    """Statements of a revision, and those that undo them."""

    def __init__(self, statements: Sequence[str], back: Sequence[str]) -> None:
        self.statements = statements
        self.back = back

    def reverse(self) -> TriggerOp:
        return TriggerOp(self.back, self.statements)


@renderers.dispatch_for(TriggerOp)
def _rendered(_: AutogenContext, operation: TriggerOp) -> list[str]:
    spelled = (f'"""{one}"""' if "\n" in one else repr(one) for one in operation.statements)
    return [f"op.execute({one})" for one in spelled]


class Problem(NamedTuple):
    """What is wrong with the triggers of one table (as SQL spells its name); the message is a sentence."""

    kind: Kind
    table: str
    message: str


class Reported(NamedTuple):
    """How many rows were reported, and the identity of the last one; None when none are left behind it."""

    rows: int
    last: str | None


class _Held(NamedTuple):
    """A trigger of ours that a database has; `table` is None for a function left without."""

    name: str
    table: str | None
    enabled: bool


def wanted(connection: Connection, declaration: Declaration) -> list[Trigger]:
    """The triggers that the captured tables are to have; one that belongs to another program may be missing itself."""
    found: list[Trigger] = []
    for entity in declaration.entities.values():
        if not entity.capture or (entity.adopted and not sa.inspect(connection).has_table(entity.table)):
            continue
        match connection.dialect.name:
            case "postgresql":
                found += triggers_sql.postgresql(entity, _schema(connection), *_relations(connection, entity))
            case "sqlite":
                found += triggers_sql.sqlite(entity, _further_uniques(connection, declaration, entity))
            case _:
                found += triggers_sql.mysql(entity)
    return found


def install_next(connection: Connection, declaration: Declaration) -> bool:
    """Make the triggers of one table as declared, by difference: those defined otherwise, or of what is no longer
    captured, go. Whether there was anything to do.

    A table for each transaction: one that waited for a table while it held another could make a deadlock with
    programs that write both. Tables whose writes were not all reported before are marked: `report_next` reports the
    rows there.
    """
    held, plan = _held(connection), wanted(connection, declaration)
    sound = {(one.name, one.table) for one in held if one.enabled}
    covered = {_place(one) for one in held if one.enabled}
    planned, names = {(one.name, one.table) for one in plan}, {one.name for one in plan}
    tables = [one.table for one in plan if (one.name, one.table) not in sound]
    tables += [one.table for one in held if (one.name, one.table) not in planned and one.table is not None]
    table = next(iter(tables), None)
    lacking = [one for one in plan if (one.name, one.table) not in sound and one.table == table]
    new = dict.fromkeys(one.entity for one in lacking if one.event in ROW_EVENTS and _place(one) not in covered)
    _mark(connection, new, {one.entity for one in plan})
    off = [one for one in held if not one.enabled and table is not None and one.table == table and one.name in names]
    # A function without a table is what is left of one that is no more.
    gone = _unwanted(connection, [one for one in held if one.table in {table, None}], plan)
    _carry_out(connection, [_drop(connection, one, names) for one in off])
    _carry_out(connection, [statement for one in lacking for statement in one.create])
    _carry_out(connection, gone)
    return bool(off or lacking or gone)


def remove(connection: Connection, entity: str) -> None:
    """Every trace of an entity's capture: its triggers, its mark, its entries of the inbox."""
    gone = [_drop(connection, one, ()) for one in _held(connection) if _place(one)[0] == label(entity)]
    _carry_out(connection, list(dict.fromkeys(gone)))
    connection.execute(sa.delete(_META).where(_META.c.name == _MARK + entity))
    connection.execute(sa.delete(_INBOX).where(_INBOX.c.entity == entity))


def problems(connection: Connection, declaration: Declaration) -> list[Problem]:
    """What is wrong with the triggers of a database."""
    held, plan = _held(connection), wanted(connection, declaration)
    sound = {(one.name, one.table): one.enabled for one in held}
    places = {_place(one) for one in held}
    found: dict[tuple[str, Kind], list[str]] = {}
    for one in plan:
        kind: Kind = "partition" if one.event == "partition" else "missing"
        if (one.name, one.table) in sound:
            kind = "disabled"
        elif _place(one) in places:
            kind = "stale"
        if not sound.get((one.name, one.table), False):
            found.setdefault((one.table, kind), []).append(one.event)
    planned = {_place(one) for one in plan}
    for left in held:
        if left.table is not None and _place(left) not in planned:
            found.setdefault((left.table, "leftover"), []).append(_place(left)[1])
    return [
        Problem(kind, table, f"table {_QUOTES.sub('', table)} {_FAULTS[kind].format(', '.join(events))}")
        for (table, kind), events in found.items()
    ]


def operations(
    connection: Connection, declaration: Declaration, remade: Collection[str] = ()
) -> tuple[list[TriggerOp], list[TriggerOp]]:
    """The same as operations of a revision: those before it changes tables, and those behind.

    Triggers of a table that is `remade` in between go with it and are made again: no write goes by unreported.
    """
    held, plan = _held(connection), wanted(connection, declaration)
    there = {(one.name, one.table) for one in held}
    lacking = [one for one in plan if (one.name, one.table) not in there]
    lost = {quote(table) for table in remade}
    made = [TriggerOp(one.create, one.drop) for one in plan if one in lacking or one.table in lost]
    made += [
        TriggerOp((_MARKING.format(_MARK + entity),), ()) for entity in dict.fromkeys(one.entity for one in lacking)
    ]
    return [TriggerOp((statement,), ()) for statement in _unwanted(connection, held, plan)], made


def unreported(connection: Connection, declaration: Declaration) -> list[str]:
    """Captured entities of which rows written before the triggers are still to be reported."""
    marked = set(connection.scalars(sa.select(_META.c.name).where(_META.c.name.startswith(_MARK))))
    return [name for name, entity in declaration.entities.items() if entity.capture and _MARK + name in marked]


def report_next(connection: Connection, declaration: Declaration, limit: int = 10_000) -> bool:
    """Report the next rows written before the triggers were there; False when all are."""
    waiting = unreported(connection, declaration)
    if waiting:
        after = connection.scalar(sa.select(_META.c.value).where(_META.c.name == _MARK + waiting[0]))
        report_all(connection, declaration.entities[waiting[0]], after or None, limit)
    return bool(waiting)


def report_all(connection: Connection, entity: Entity, after: str | None, limit: int) -> Reported:
    """Append to the inbox the first `limit` rows behind the identity `after`, in the order of its columns.

    Rows that no identity can name (a NULL in it, or bytes) are left out.
    """
    rows = _Rows(connection, entity)
    last = rows.last(after, limit)
    count = rows.report(after, last)
    mark = _META.c.name == _MARK + entity.name
    connection.execute(
        sa.delete(_META).where(mark) if last is None else sa.update(_META).where(mark).values(value=last)
    )
    return Reported(count, last)


class _Rows:
    """Statements over the rows of a table behind an identity."""

    def __init__(self, connection: Connection, entity: Entity) -> None:
        self._connection = connection
        self._dialect = connection.dialect.name
        table = EntityTable(entity)
        self._columns = [f"t.{column.name}" for column in table.identity]
        self._kinds = [column.kind for column in table.identity]
        self._identity = table.identity_text(self._dialect, "t.")
        self._entity = entity.name
        self._from = f"FROM {table.name} AS t WHERE {self._nameable()}"
        self._casts = _casts(connection, table) if self._dialect == "postgresql" else [":{0}"] * len(self._columns)

    def last(self, after: str | None, limit: int) -> str | None:
        """The identity of the last of `limit` rows; None if there are not as many."""
        order = f"ORDER BY {', '.join(self._columns)} LIMIT 1 OFFSET {limit - 1}"
        found = self._run(f"SELECT {self._identity} {self._from}{self._bounds(after, None)} {order}", after, None)
        identity: str | None = found.scalar()
        return identity

    def report(self, after: str | None, last: str | None) -> int:
        """Report those behind `after`, up to `last`; how many."""
        entry = f"'{self._entity}', {self._identity}, {NOW[self._dialect]}, NULL"
        statement = f"INSERT INTO sync_inbox {COLUMNS} SELECT {entry} {self._from}{self._bounds(after, last)}"
        return self._run(statement, after, last).rowcount

    def _bounds(self, after: str | None, last: str | None) -> str:
        behind = "" if after is None else f" AND {self._compared('>', 'a')}"
        return behind if last is None else f"{behind} AND {self._compared('<=', 'b')}"

    def _compared(self, operator: str, prefix: str) -> str:
        values = [cast.format(f"{prefix}{number}") for number, cast in enumerate(self._casts)]
        if self._dialect in {"postgresql", "sqlite"}:
            return f"({', '.join(self._columns)}) {operator} ({', '.join(values)})"
        # MySQL finds no place in an index by a comparison of rows.
        *leading, (column, value) = zip(self._columns, values, strict=True)
        found = f"{column} {operator} {value}"
        for column, value in reversed(leading):
            found = f"({column} {operator[0]}= {value} AND ({column} {operator[0]} {value} OR {found}))"
        return found

    def _nameable(self) -> str:
        """SQLite keeps anything in any column."""
        if self._dialect != "sqlite":
            return "1 = 1"
        return " AND ".join(f"typeof({column}) IN ('integer', 'text')" for column in self._columns)

    def _run(self, statement: str, after: str | None, last: str | None) -> sa.CursorResult[Any]:
        values: dict[str, Any] = {}
        for prefix, identity in (("a", after), ("b", last)):
            parts = [] if identity is None else identity.split(UNIT)
            for number, (part, kind) in enumerate(zip(parts, self._kinds, strict=False)):
                whole = kind == "integer" and self._dialect != "postgresql" and _INTEGER.fullmatch(part) is not None
                values[f"{prefix}{number}"] = int(part) if whole else part
        return self._connection.execute(sa.text(statement), values)


def _casts(connection: Connection, table: EntityTable) -> list[str]:
    """How a text becomes a value of each identity column's own type."""
    found = connection.execute(
        sa.text(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass(:name)"
        ),
        {"name": table.name},
    )
    types = {quote(name): kind for name, kind in found}
    return [f"CAST(CAST(:{{0}} AS text) AS {types[column.name]})" for column in table.identity]


def _place(one: Trigger | _Held) -> tuple[str, str, str | None]:
    """The label of a trigger's entity, its event and its table."""
    match = _NAME.fullmatch(one.name)
    if match is None:
        raise ValueError(f"{one.name} is no trigger of ours")
    return match[1], match[2], one.table


def _held(connection: Connection) -> list[_Held]:
    match connection.dialect.name:
        case "postgresql":
            found = connection.exec_driver_sql(_HELD_POSTGRESQL).all()
            held = [_Held(name, table and f"{quote(schema)}.{quote(table)}", on) for name, schema, table, on in found]
        case "sqlite":
            found = connection.exec_driver_sql(_HELD_SQLITE).all()
            held = [_Held(name, quote(table), enabled=True) for name, table in found]
        case _:
            found = connection.exec_driver_sql(_HELD_MYSQL).all()
            held = [_Held(name, f"`{table}`", enabled=True) for name, table in found]
    return [one for one in held if _NAME.fullmatch(one.name)]


_SCHEMA: Final = """
    SELECT coalesce((
        SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = to_regclass('sync_inbox')), current_schema())"""
_HELD_POSTGRESQL: Final = f"""
    SELECT p.proname, n.nspname, c.relname, coalesce(bool_and(every.tgenabled IN ('O', 'A')), false)
    FROM pg_proc AS p
    LEFT JOIN pg_trigger AS t ON t.tgfoid = p.oid AND t.tgparentid = 0
    LEFT JOIN pg_class AS c ON c.oid = t.tgrelid
    LEFT JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_trigger AS every ON every.tgfoid = p.oid
    WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = ({_SCHEMA}))
    GROUP BY p.oid, t.oid, n.nspname, c.relname ORDER BY p.proname, c.relname"""
"""A trigger counts as switched off if that of any partition is."""
_HELD_SQLITE: Final = "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
_HELD_MYSQL: Final = """
    SELECT trigger_name, event_object_table FROM information_schema.triggers
    WHERE trigger_schema = database() ORDER BY trigger_name"""


def _carry_out(connection: Connection, statements: Collection[str]) -> None:
    """Make or drop triggers; Unavailable when a table is in use for too long."""
    patience = _PATIENCE.get(connection.dialect.name)
    if patience is not None and statements:
        connection.exec_driver_sql(patience)
    for statement in statements:
        give_up = monotonic() + (_TRIED_FOR if connection.dialect.name == "mariadb" else 0)
        while not _tried(connection, statement, last=monotonic() >= give_up):
            sleep(_PAUSE)


def _tried(connection: Connection, statement: str, *, last: bool) -> bool:
    """Whether a statement got its table, for which it may be tried again unless this is the `last` time."""
    try:
        connection.exec_driver_sql(statement)
    except sa.exc.DBAPIError as error:
        number = error.orig.args[0] if error.orig is not None and error.orig.args else None
        if str(getattr(error.orig, "sqlstate", "")) != _LOCK_NOT_AVAILABLE and number != _LOCK_WAIT_TIMEOUT:
            raise
        if last:
            raise Unavailable(f"a transaction of another program holds a captured table: {error.orig}") from error
        return False
    return True


def _unwanted(connection: Connection, held: Collection[_Held], plan: Collection[Trigger]) -> list[str]:
    """Statements that remove what is not in the plan."""
    planned = {(one.name, one.table) for one in plan}
    names = {one.name for one in plan}
    gone = [
        one for one in held if (one.name, one.table) not in planned and (one.table is not None or one.name not in names)
    ]
    return list(dict.fromkeys(_drop(connection, one, names) for one in gone))


def _drop(connection: Connection, one: _Held, names: Collection[str]) -> str:
    """What removes a trigger; its function too, unless others of `names` need it."""
    match connection.dialect.name:
        case "postgresql" if one.name in names:
            return f"DROP TRIGGER {quote(one.name)} ON {one.table}"
        case "postgresql":
            return triggers_sql.drop_postgresql(_schema(connection), one.name)
        case "sqlite":
            return f"DROP TRIGGER IF EXISTS {quote(one.name)}"
        case _:
            return f"DROP TRIGGER IF EXISTS `{one.name}`"


def _mark(connection: Connection, new: Collection[str], captured: Collection[str]) -> None:
    """Mark the new entities as yet to be reported; marks of what is not captured go."""
    marked = connection.scalars(sa.select(_META.c.name).where(_META.c.name.startswith(_MARK))).all()
    gone = [name for name in marked if name.removeprefix(_MARK) in new or name.removeprefix(_MARK) not in captured]
    if gone:
        connection.execute(sa.delete(_META).where(_META.c.name.in_(gone)))
    if new:
        connection.execute(sa.insert(_META), [{"name": _MARK + entity, "value": ""} for entity in new])


def _schema(connection: Connection) -> str:
    """The schema of PostgreSQL that our tables are in, or will be made in."""
    return quote(str(connection.exec_driver_sql(_SCHEMA).scalar()))


def _relations(connection: Connection, entity: Entity) -> tuple[Relation, list[Relation]]:
    """A table of PostgreSQL and its partitions; one that is yet to be made is going to be ours."""
    found = connection.execute(sa.text(_RELATIONS), {"name": quote(entity.table)}).all()
    if not found:
        return Relation(f"{_schema(connection)}.{quote(entity.table)}", partitioned=False, owned=True), []
    table, *partitions = (Relation(f"{quote(schema)}.{quote(name)}", *more) for schema, name, *more in found)
    return table, partitions


_RELATIONS: Final = """
    SELECT n.nspname, c.relname, c.relkind = 'p', pg_has_role(c.relowner, 'USAGE')
    FROM (SELECT to_regclass(CAST(:name AS text))) AS named (root)
    JOIN pg_class AS c ON c.oid = root OR c.oid IN (SELECT relid FROM pg_partition_tree(root))
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    ORDER BY c.oid <> root, n.nspname, c.relname"""


def _further_uniques(connection: Connection, declaration: Declaration, entity: Entity) -> list[list[str]]:
    """Columns of the unique indexes of a table of SQLite, but for one that tells rows apart just as identities do."""
    if not entity.adopted:
        table = declared_metadata(declaration).tables[entity.table]
        return [
            list(index.columns.keys())
            for index in sorted(table.indexes, key=lambda index: str(index.name))
            if index.unique
        ]
    found = connection.execute(sa.text(_UNIQUES_SQLITE), {"table": entity.table})
    indexes: dict[str, list[tuple[str | None, str]]] = {}
    for index, column, collation in found:
        indexes.setdefault(index, []).append((column, collation))
    identity = {(column.name.strip('"'), "BINARY") for column in EntityTable(entity).identity}
    # An index of an expression names no column.
    return [
        [str(column) for column, _ in columns]
        for columns in indexes.values()
        if set(columns) != identity and all(column for column, _ in columns)
    ]


_UNIQUES_SQLITE: Final = """
    SELECT i.name, c.name, c.coll FROM pragma_index_list(:table) AS i, pragma_index_xinfo(i.name) AS c
    WHERE i."unique" AND c."key"
    UNION ALL
    SELECT '', name, 'BINARY' FROM pragma_table_info(:table)
    WHERE pk AND NOT EXISTS (SELECT 1 FROM pragma_index_list(:table) WHERE origin = 'pk')"""
"""The primary key has no index when it is the table's own number of a row."""
