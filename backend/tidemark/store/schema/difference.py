"""How the declared tables of a database differ from the declaration, as Alembic operations (SPEC 10)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, renderers
from alembic.autogenerate.api import AutogenContext
from alembic.migration import MigrationContext
from alembic.operations import ops
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateIndex, CreateTable

from tidemark.store.entities import quote
from tidemark_protocol.model import Declaration

from .moves import Move, as_before, moves
from .tables import COLUMN, NAME_MAX, CurrentMoment, declared_metadata

_PLUGINS: Final = ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"]


class Difference(NamedTuple):
    """What would make the tables as declared; `losses` says of which operations why they may lose or lack data."""

    operations: list[ops.MigrateOperation]
    tables: list[str]
    """The tables that they are of."""
    losses: list[str]
    undeclared: list[str]
    """Columns that no field stands for, and that rows can be written without."""


class RebuildOp(ops.ExecuteSQLOp):
    """A statement that makes the table `remade` of SQLite anew, whose triggers go with the old one."""

    def __init__(self, statement: str, remade: str) -> None:
        super().__init__(statement)
        self.remade = remade


class RenameColumnOp(ops.MigrateOperation):
    """A column of a revision that gets another name, and keeps all else."""

    def __init__(self, table_name: str, old: str, new: str) -> None:
        self.table_name = table_name
        self.old = old
        self.new = new

    def reverse(self) -> RenameColumnOp:
        return RenameColumnOp(self.table_name, self.new, self.old)


@renderers.dispatch_for(RenameColumnOp)
def _renamed(_: AutogenContext, operation: RenameColumnOp) -> list[str]:
    names = f"{quote(operation.old)} TO {quote(operation.new)}"
    return [f"op.execute({f'ALTER TABLE {quote(operation.table_name)} RENAME COLUMN {names}'!r})"]


class MissingIndexOp(ops.CreateIndexOp):
    """An index of a revision that is made unless it is there: MySQL, unlike MariaDB, has no statement for that."""


@renderers.dispatch_for(MissingIndexOp)
def _rendered(context: AutogenContext, operation: MissingIndexOp) -> list[str]:
    index = ops.CreateIndexOp.from_index(operation.to_index())
    held = f'{{held["name"] for held in sa.inspect(op.get_bind()).get_indexes({operation.table_name!r})}}'
    line = renderers.dispatch(index)(context, index)
    return [f"if {operation.index_name!r} not in {held}:", f"    {line}"]


def difference(connection: Connection, declaration: Declaration, number: int | None = None) -> Difference:
    """Compare a database with the declaration; indexes, checks and tables that others made are left alone.

    `number` is the schema number that its tables are at: what is declared to have changed since is carried out.
    """
    metadata = declared_metadata(declaration)
    moved = moves(connection, declaration, number)
    before = declared_metadata(as_before(declaration, moved))
    script = produce_migrations(migration_context(connection, before), before)
    changed = _by_table(script.upgrade_ops)
    for change in _lacking_defaults(connection, before):
        changed.setdefault(change.table_name, []).append(change)
    found = Difference([], [], [], [])
    for table in dict.fromkeys((*changed, *moved)):
        move = moved.get(table)
        ours = [change for change in changed.get(table, ()) if _is_ours(change, table)]
        if move is not None:
            held = [column["name"] for column in sa.inspect(connection).get_columns(table)]
            found.losses.extend(move.reasons(connection, held))
        for change in ours:
            if isinstance(change, ops.DropColumnOp) and _may_stay(change):
                found.undeclared.append(f"column {table}.{change.column_name} is not declared any more")
            elif (reason := _loss(connection, change, move)) is not None:
                found.losses.append(reason)
        if connection.dialect.name == "sqlite" and (move is not None or not all(map(_sqlite_can, ours))):
            ours = _rebuilt(connection, metadata.tables[table], move)
        elif move is not None:
            ours = _carried_out(connection, ours, move, before.tables[table], metadata.tables[table])
        if ours:
            found.operations.extend(ours)
            found.tables.append(table)
    return found


def migration_context(connection: Connection, metadata: sa.MetaData) -> MigrationContext:
    """What Alembic compares and renders with; it sees the tables of `metadata` alone."""
    return MigrationContext.configure(
        connection,
        opts={
            "target_metadata": metadata,
            "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
            "autogenerate_plugins": _PLUGINS,
            "compare_server_default": False,
        },
    )


def as_it_was(
    connection: Connection, declaration: Declaration, number: int | None = None
) -> list[ops.MigrateOperation]:
    """What makes the declared tables that a database has, with the columns that it has; `number` as in `difference`."""
    found: list[ops.MigrateOperation] = []
    inspector = sa.inspect(connection)
    held = {name: {c["name"] for c in columns} for (_, name), columns in inspector.get_multi_columns().items()}
    declaration = as_before(declaration, moves(connection, declaration, number))
    for table in declared_metadata(declaration).sorted_tables:
        if table.name not in held:
            continue
        _add_undeclared(inspector, table)
        checks = [
            check for check in inspector.get_check_constraints(table.name) if _is_named(check["name"], table.name)
        ]
        indexes = {index["name"] for index in inspector.get_indexes(table.name)}
        columns = [column for column in table.columns if column.name in held[table.name]]
        constraints = [sa.CheckConstraint(sa.text(_literal(check["sqltext"])), check["name"]) for check in checks]
        found.append(ops.CreateTableOp(table.name, [*columns, table.primary_key, *constraints], if_not_exists=True))
        for index in table.indexes:
            if index.name in indexes:
                kind = MissingIndexOp if connection.dialect.name == "mysql" else ops.CreateIndexOp
                made = kind.from_index(index)
                made.if_not_exists = True
                found.append(made)
    return found


def _add_undeclared(inspector: sa.Inspector, table: sa.Table) -> None:
    """The columns that are not declared any more, and the indexes of ours: the change that is to follow drops them."""
    for column in inspector.get_columns(table.name):
        if column["name"] not in table.columns:
            default = column["default"]
            table.append_column(
                sa.Column(
                    column["name"],
                    column["type"],
                    nullable=column["nullable"],
                    server_default=None if default is None else sa.text(_literal(default)),
                )
            )
    declared = {index.name for index in table.indexes}
    for index in inspector.get_indexes(table.name):
        if index["name"] not in declared and _is_named(index["name"], table.name):
            options = {key: value for key, value in index.get("dialect_options", {}).items() if key.endswith("_length")}
            columns = [table.columns[str(name)] for name in index["column_names"]]
            sa.Index(index["name"], *columns, unique=bool(index["unique"]), **options)


def _by_table(upgrade: ops.UpgradeOps | None) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for operation in upgrade.ops if upgrade else []:
        inner: Sequence[Any] = operation.ops if isinstance(operation, ops.ModifyTableOps) else [operation]
        found.setdefault(str(getattr(operation, "table_name", "")), []).extend(inner)
    return found


def _lacking_defaults(connection: Connection, metadata: sa.MetaData) -> Iterator[ops.AlterColumnOp]:
    """The stamps of tables that became captured: other programs leave them out."""
    held = {name: columns for (_, name), columns in sa.inspect(connection).get_multi_columns().items()}
    for table in metadata.sorted_tables:
        bare = {column["name"] for column in held.get(table.name, ()) if column["default"] is None}
        for column in table.columns:
            if column.name not in bare or not _is_stamp(column):
                continue
            yield ops.AlterColumnOp(
                table.name,
                column.name,
                existing_type=column.type,
                existing_nullable=column.nullable,
                existing_server_default=None,
                modify_server_default=column.server_default,
            )


def _is_stamp(column: sa.Column[Any]) -> bool:
    default = column.server_default
    return isinstance(default, sa.DefaultClause) and isinstance(default.arg, CurrentMoment)


def _is_ours(change: Any, table: str) -> bool:
    """Whether an operation concerns what we made: names of our indexes and checks begin with the table's."""
    if isinstance(change, ops.DropIndexOp | ops.DropConstraintOp):
        return _is_named(change.index_name if isinstance(change, ops.DropIndexOp) else change.constraint_name, table)
    return not isinstance(change, ops.DropTableOp)


def _is_named(name: object, table: str) -> bool:
    return str(name).startswith(tuple(f"{kind}_{table}_"[: NAME_MAX - 9] for kind in ("ix", "uq", "ck")))


def plain(condition: Any) -> str:
    """The SQL of a check, colons unescaped."""
    return str(condition.text if isinstance(condition, sa.TextClause) else condition).replace("\\:", ":")


def _literal(condition: str) -> str:
    """SQL text in which a colon marks no parameter."""
    return condition.replace(":", "\\:")


def _may_stay(change: ops.DropColumnOp) -> bool:
    column = change.to_column()
    return bool(column.nullable) or column.server_default is not None


def _loss(connection: Connection, change: Any, move: Move | None = None) -> str | None:
    """Why an operation wants a person to look at it, or None."""
    if isinstance(change, ops.DropColumnOp):
        return f"column {change.table_name}.{change.column_name} is not declared any more, and rows need it"
    if isinstance(change, ops.AddColumnOp):
        required = not change.column.nullable and change.column.server_default is None
        if required and _has_rows(connection, change.table_name):
            return f"field {change.table_name}.{change.column.name} needs a default or nullable: there are rows"
    if isinstance(change, ops.AlterColumnOp):
        place = f"{change.table_name}.{change.column_name}"
        if change.modify_nullable is False and _has_rows(connection, change.table_name):
            return f"column {place} becomes required: there are rows"
        if not _is_wider(connection, change):
            return f"column {place} changes from {change.existing_type} to {change.modify_type}"
    if isinstance(change, ops.CreateCheckConstraintOp):
        condition = judged = plain(change.condition)
        for column in move.texts if move is not None else ():
            if condition.startswith(f"{quote(column)} IN ") and move is not None:
                judged = move.spelled(column) + condition.removeprefix(quote(column))
        rows = f"SELECT 1 FROM {quote(change.table_name)} WHERE NOT ({judged}) LIMIT 1"
        if connection.execute(sa.text(_literal(rows))).first():
            return f"rows of {change.table_name} hold values that are not declared any more: {condition}"
    return None


def _has_rows(connection: Connection, table: str) -> bool:
    return connection.execute(sa.select(1).select_from(sa.table(table)).limit(1)).first() is not None


def _is_wider(connection: Connection, change: Any) -> bool:
    """Whether a column holds, changed, whatever it holds now."""
    wanted = getattr(change, "modify_type", None)
    return wanted is None or _holds(wanted.dialect_impl(connection.dialect), change.existing_type)


def _holds(new: Any, old: Any) -> bool:
    """Whether every value of type `old` is one of `new`."""
    if isinstance(old, sa.String) and isinstance(new, sa.String):
        return new.length is None or (old.length is not None and old.length <= new.length)
    if isinstance(old, sa.Numeric) and isinstance(new, sa.Numeric) and not isinstance(new, sa.Float):
        old_scale, new_scale = old.scale or 0, new.scale or 0
        return (
            old.precision is not None
            and new.precision is not None
            and old_scale <= new_scale
            and old.precision - old_scale <= new.precision - new_scale
        )
    return False


def _sqlite_can(change: Any) -> bool:
    """Whether SQLite can do it without making the table anew."""
    if isinstance(change, ops.AddColumnOp):
        return bool(change.column.nullable) or change.column.server_default is not None
    return isinstance(change, ops.CreateTableOp | ops.CreateIndexOp | ops.DropIndexOp) or (
        isinstance(change, ops.DropColumnOp) and _may_stay(change)
    )


def _carried_out(
    connection: Connection, changes: list[Any], move: Move, before: sa.Table, after: sa.Table
) -> list[ops.MigrateOperation]:
    """The changes of a table in which columns move, and the moves: indexes and checks of such a column go before and
    come after; its texts are changed while its type, and its name, are as they were.
    """
    inspector = sa.inspect(connection)
    held = {index["name"] for index in inspector.get_indexes(before.name)}
    held |= {check["name"] for check in inspector.get_check_constraints(before.name)}
    standing = {str(one.name): one for one in _standing(before, move.columns)}
    gone: list[Any] = [one for one in changes if isinstance(one, ops.DropIndexOp | ops.DropConstraintOp)]
    held -= {_name(one) for one in gone}
    gone += [_created(one).reverse() for name, one in standing.items() if name in held]
    made: list[Any] = [one for one in changes if _name(one) not in standing]
    made = [one for one in made if isinstance(one, ops.CreateIndexOp | ops.CreateCheckConstraintOp)]
    made += [_created(one) for one in _standing(after, {move.names.get(name, name) for name in move.columns})]
    columns = [one for one in changes if isinstance(one, ops.AddColumnOp | ops.AlterColumnOp | ops.DropColumnOp)]
    altered = (one for one in columns if isinstance(one, ops.AlterColumnOp))
    narrowed = [one for one in altered if one.column_name in move.texts and not _is_wider(connection, one)]
    return [
        *gone,
        *(one for one in columns if one not in narrowed),
        *(ops.ExecuteSQLOp(_literal(statement)) for statement in move.updates()),
        *narrowed,
        *(ops.ExecuteSQLOp(_literal(statement)) for statement in move.defaults()),
        *(RenameColumnOp(before.name, old, new) for old, new in move.renames()),
        *made,
    ]


def _standing(table: sa.Table, columns: Collection[str]) -> list[sa.Index | sa.CheckConstraint]:
    """The indexes and checks of a table that some of these columns are in."""
    found: list[sa.Index | sa.CheckConstraint] = []
    found += [one for one in table.constraints if isinstance(one, sa.CheckConstraint) and one.info[COLUMN] in columns]
    found += [one for one in table.indexes if not set(columns).isdisjoint(one.columns.keys())]
    return sorted(found, key=lambda one: str(one.name))


def _created(one: sa.Index | sa.CheckConstraint) -> Any:
    return ops.CreateIndexOp.from_index(one) if isinstance(one, sa.Index) else ops.AddConstraintOp.from_constraint(one)


def _name(change: Any) -> str:
    """The index or check that an operation is of."""
    return str(getattr(change, "index_name", None) or getattr(change, "constraint_name", None))


def _rebuilt(connection: Connection, table: sa.Table, move: Move | None) -> list[ops.MigrateOperation]:
    """Statements that make a table of SQLite anew, with the values of the columns that stay or move."""
    held = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    olds = {} if move is None else {new: old for old, new in move.names.items()}
    kept = {column.name: olds.get(column.name, column.name) for column in table.columns}
    values = {quote(new): quote(old) if move is None else move.spelled(old) for new, old in kept.items() if old in held}
    return [RebuildOp(_literal(statement), table.name) for statement in _statements(connection, table, values)]


def _statements(connection: Connection, table: sa.Table, values: dict[str, str]) -> Iterator[str]:
    old = f"{table.name}__old"[-NAME_MAX:]
    for held in sa.inspect(connection).get_indexes(table.name):
        yield f'DROP INDEX "{held["name"]}"'
    yield f'ALTER TABLE "{table.name}" RENAME TO "{old}"'
    yield str(CreateTable(table).compile(dialect=connection.dialect)).strip()
    yield f'INSERT INTO "{table.name}" ({", ".join(values)}) SELECT {", ".join(values.values())} FROM "{old}"'
    yield f'DROP TABLE "{old}"'
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        yield str(CreateIndex(index).compile(dialect=connection.dialect))
