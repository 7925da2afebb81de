"""Bringing a database up to date: our revisions, the declared tables, and the documents in the feed (SPEC 10).

Everything here is synchronous and makes connections of its own; inside an event loop, call it in a thread.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import sqlalchemy as sa
from alembic.autogenerate import render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations, ops
from alembic.script import ScriptDirectory
from alembic.util import rev_id
from msgspec import structs
from sqlalchemy.engine import Connection

import tidemark
from alembic import command
from tidemark.store.base import Unavailable, Unfit
from tidemark_protocol.model import Declaration

from . import documents, triggers
from .difference import RebuildOp, as_it_was, difference, migration_context, plain
from .fit import claim, faults, is_mysql, once, refused, sqlite_engine, sqlite_path, with_mysql, with_postgres
from .mysql_types import BINARY, too_wide
from .tables import ADVISORY_CLASS, DECLARED_VERSIONS, OWN_VERSIONS, Outright, declared_metadata

T = TypeVar("T")

_MARK: Final = "\ue000"
_QUEUE: Final = 3600
"""Seconds that a migration of MySQL waits for another."""


def migrate(url: str, declaration: Declaration, migrations: Path | None = None) -> None:
    """Bring a database up to date: by the revisions in `migrations` where there are any, else by difference.

    Unfit, and nothing done, if that would lose data. Unfit too when the revisions, all applied by then, stop short of
    the declaration: the next one can be written.
    """
    left = _in_transaction(url, lambda connection: _migrate_tables(connection, declaration, migrations))
    if left:
        reasons = "; ".join(left)
        raise Unfit(
            f"the revisions in {migrations} are applied, but stop short of the declaration ({reasons}): write the next"
        )
    steps: list[Callable[[Connection], bool]] = [
        lambda connection: triggers.install_next(connection, declaration),
        documents.Reshaping(declaration).step,
        lambda connection: triggers.report_next(connection, declaration),
    ]
    for step in steps:
        _in_transaction(url, step, again=bool)


def check(url: str, declaration: Declaration) -> list[str]:
    """What keeps the service from starting on a database as it stands, each in a sentence."""
    if _is_sqlite(url) and not Path(sqlite_path(url)).exists():
        return [f"{sqlite_path(url)} does not exist: migrate first (--migrate)"]

    return _in_transaction(
        url,
        lambda connection: lacks(connection, declaration) or _uncaptured(connection, declaration),
        alone=False,
    )


def lacks(connection: Connection, declaration: Declaration) -> list[str]:
    """What is to be migrated yet, triggers aside, each in a sentence."""
    found = faults(connection, declaration)
    if not found:
        found = [f"{why}; migrate the database (--migrate)" for why in _pending(connection, declaration)]
    if not found and documents.pending(connection, declaration):
        found.append("the documents in the feed are not as declared yet, migrate them (--migrate)")
    return found


def _uncaptured(connection: Connection, declaration: Declaration) -> list[str]:
    """Why writes in SQL would not all reach clients."""
    cure = "migrate the database (--migrate)"
    found = [
        f"{problem.message}: {cure}"
        for problem in triggers.problems(connection, declaration)
        if problem.kind in {"missing", "stale", "disabled"}
    ]
    waiting = triggers.unreported(connection, declaration)
    if waiting and not found:
        found.append(f"rows of {', '.join(waiting)} that were there before the triggers are not reported yet: {cure}")
    return found


def revision(url: str, declaration: Declaration, migrations: Path, message: str) -> list[Path]:
    """Write what a database lacks as revisions to be reviewed; the files, none if it lacks nothing.

    The first revision of a database that has declared tables already is preceded by one that makes those as they are,
    so that an empty database comes to the same.
    """
    migrations.mkdir(parents=True, exist_ok=True)

    def write(connection: Connection) -> list[Path]:
        config = _config(connection, migrations, DECLARED_VERSIONS)
        scripts = ScriptDirectory.from_config(config)
        heads = set(scripts.get_heads())
        if _heads(connection) != heads:
            raise Unfit(f"the database is not at the latest revision of {migrations}: migrate it first")
        number = _number(connection, scripts)
        found = difference(connection, declaration, number)
        remade = {one.remade for one in found.operations if isinstance(one, RebuildOp)}
        dropped, made = triggers.operations(connection, declaration, remade)
        operations = [*dropped, *found.operations, *made]
        written: list[Path] = []
        if not heads and (before := as_it_was(connection, declaration, number)):
            then = declaration if number is None else structs.replace(declaration, number=number)
            written.append(_write(connection, then, migrations, "tables as they were", before, []))
        if operations:
            cautions = found.losses + found.undeclared
            written.append(_write(connection, declaration, migrations, message, operations, cautions))
        return written

    return _in_transaction(url, write)


def beside(url: str, work: Callable[[Connection], T], *, reading: bool = True) -> T:
    """Do `work` in one transaction, as any other program may beside a service that has the database."""
    if _is_sqlite(url) and not Path(sqlite_path(url)).exists():
        raise Unfit(f"{sqlite_path(url)} does not exist: migrate first (--migrate)")
    return _in_transaction(url, work, alone=False, begin="BEGIN" if reading else "BEGIN IMMEDIATE")


def _migrate_tables(connection: Connection, declaration: Declaration, migrations: Path | None) -> list[str]:
    """What of the declaration the revisions leave undone."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_CLASS}, 0)")
    if connection.dialect.name in BINARY:
        if wide := too_wide(declaration):
            raise Unfit("; ".join(wide))
        # Of the connection, not the transaction, which the first change of a table would end.
        lock = f"SELECT GET_LOCK(CONCAT('tidemark ', LEFT(SHA2(DATABASE(), 256), 32)), {_QUEUE})"
        if connection.exec_driver_sql(lock).scalar() != 1:
            raise Unavailable("another process has been migrating this database for an hour")
    command.upgrade(_config(connection, _alembic() / "versions", OWN_VERSIONS), "heads")
    if migrations is not None and any(migrations.glob("*.py")):
        config = _config(connection, migrations, DECLARED_VERSIONS)
        before = _heads(connection)
        command.upgrade(config, "heads")
        number = _number(connection, ScriptDirectory.from_config(config), risen=_heads(connection) != before)
        return _pending(connection, declaration, number)
    found = difference(connection, declaration, documents.number(connection))
    if found.losses or found.undeclared:
        reasons = "; ".join(found.losses + found.undeclared)
        raise Unfit(f"{reasons}. This wants a revision: `tidemark schema revision` writes one to be reviewed")
    operations = Operations(_version(connection, DECLARED_VERSIONS))
    for operation in found.operations:
        operations.invoke(operation)
    return []


def _number(connection: Connection, scripts: ScriptDirectory, *, risen: bool = False) -> int | None:
    """The schema number that the tables are at: that of the latest revision, or of the documents where that is higher.

    A revision that somebody wrote says none: where the database has just `risen` to one, this is taken to have done all
    that is declared.
    """
    said = [getattr(scripts.get_revision(head).module, "schema_number", None) for head in _heads(connection)]
    numbers = [one for one in said if one is not None]
    if risen and len(numbers) < len(said):
        return None
    held = documents.number(connection)
    return max([*numbers, *([] if held is None else [held])], default=None)


def _heads(connection: Connection) -> set[str]:
    """The revisions of the declared tables that a database is at."""
    return set(_version(connection, DECLARED_VERSIONS).get_current_heads())


def _pending(connection: Connection, declaration: Declaration, number: int | None = None) -> list[str]:
    found = difference(connection, declaration, number)
    if found.losses or len(found.operations) == len(found.undeclared):
        return found.losses
    return [f"not as declared: {', '.join(found.tables)}"]


def _write(
    connection: Connection,
    declaration: Declaration,
    migrations: Path,
    message: str,
    operations: list[ops.MigrateOperation],
    cautions: list[str],
) -> Path:
    config = _config(connection, migrations, DECLARED_VERSIONS)
    number = len(list(migrations.glob("*.py"))) + 1
    config.set_main_option("file_template", f"{number:04d}_%%(slug)s")
    scripts = ScriptDirectory.from_config(config)
    upgrade = ops.UpgradeOps(operations)
    code = _code(connection, declaration, upgrade)
    try:
        back = _code(connection, declaration, upgrade.reverse())
    except NotImplementedError:
        back = 'raise NotImplementedError("what this changed is not kept")'
    dialects = [name for name in ("mysql", "postgresql") if f"{name}." in code + back]
    imports = [f"from sqlalchemy.dialects import {', '.join(dialects)}"] if dialects else []
    # Alembic renders the type within a JSONB without its module.
    imports += ["from sqlalchemy import Text"] if "=Text(" in code + back else []
    made = scripts.generate_revision(
        rev_id(),
        message,
        head="head",
        version_path=str(migrations),
        upgrades="\n    ".join([*(f"# Look at this: {caution}." for caution in cautions), code]),
        downgrades=back,
        imports="".join(f"{line}\n" for line in imports),
        schema_number=declaration.number,
    )
    if made is None:
        raise RuntimeError("Alembic has written no revision")
    return Path(made.path)


def _code(connection: Connection, declaration: Declaration, operations: ops.UpgradeOps | ops.DowngradeOps) -> str:
    """Operations as Python; Alembic would take a colon in the SQL of a check for a parameter, so it goes by a mark."""
    for operation in operations.ops:
        if isinstance(operation, ops.CreateCheckConstraintOp):
            operation.condition = _marked(operation.condition)
        elif isinstance(operation, ops.AddColumnOp):
            _mark_default(operation.column)
        elif isinstance(operation, ops.CreateTableOp):
            for item in operation.columns:
                if isinstance(item, sa.CheckConstraint):
                    item.sqltext = _marked(item.sqltext)
                elif isinstance(item, sa.Column):
                    _mark_default(item)
    context = migration_context(connection, declared_metadata(declaration))
    return render_python_code(operations, migration_context=context).replace(ascii(_MARK)[1:-1], r"\\:")


def _marked(condition: Any) -> sa.TextClause:
    return sa.text(plain(condition).replace(":", _MARK))


def _mark_default(column: sa.Column[Any]) -> None:
    default = column.server_default
    if isinstance(default, sa.DefaultClause) and isinstance(default.arg, Outright):
        column.server_default = sa.DefaultClause(Outright(default.arg.value.replace(":", _MARK)))


def _version(connection: Connection, table: str) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": table})


def _config(connection: Connection, versions: Path, version_table: str) -> Config:
    config = Config(cmd_opts=Namespace(quiet=True))
    config.set_main_option("script_location", _escaped(_alembic()))
    config.set_main_option("version_locations", _escaped(versions))
    config.set_main_option("path_separator", "newline")
    config.attributes.update(connection=connection, version_table=version_table)
    return config


def _escaped(path: Path) -> str:
    return str(path.absolute()).replace("%", "%%")


def _alembic() -> Path:
    """The folder with env.py: beside the package's modules when installed, at the root of the sources otherwise."""
    package = Path(tidemark.__file__).parent
    installed = package / "alembic"
    return installed if installed.is_dir() else package.parent.parent / "alembic"


def _is_sqlite(url: str) -> bool:
    return "://" not in url or url.startswith("sqlite")


def _in_transaction(
    url: str,
    work: Callable[[Connection], T],
    *,
    again: Callable[[T], bool] = once,
    alone: bool = True,
    begin: str = "BEGIN IMMEDIATE",
) -> T:
    """Do `work` in one transaction, and in another `again` as its result says; on SQLite with the file claimed, unless
    it only looks.
    """
    try:
        if not _is_sqlite(url):
            connected = with_mysql if is_mysql(url) else with_postgres
            return asyncio.run(connected(url, work, again))
        path = Path(sqlite_path(url)).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = claim(path) if alone else None
        try:
            engine = sqlite_engine(str(path), begin)
            while True:
                with engine.begin() as connection:
                    result = work(connection)
                if not again(result):
                    return result
        finally:
            if lock is not None:
                lock.close()
    except (OSError, sa.exc.OperationalError, sa.exc.InterfaceError, asyncpg.InterfaceError) as error:
        raise (Unfit if is_mysql(url) and refused(error) else Unavailable)(str(error)) from error
    except (sa.exc.DBAPIError, asyncpg.PostgresError) as error:
        raise Unfit(str(error)) from error
