"""What the PostgreSQL store says: parameters are whole columns as arrays, and canonical texts are cast in SQL.

Numbers, booleans and texts without special characters go as the text of one array literal: the driver takes far longer
to encode an array of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from tidemark.store import sql
from tidemark.store.base import Identity, RowImage, RowKey
from tidemark.store.entities import ColumnOf, EntityTable
from tidemark.store.schema.tables import ADVISORY_CLASS
from tidemark.store.sql import all_of, names, taken_over

_ARRAYS: Final = {"integer": "bigint", "number": "float8", "boolean": "boolean"}
_PLAIN: Final = frozenset({"name", "uuid", "decimal", "date", "time", "datetime"})
"""Kinds of canonical texts that need no escaping within a quoted element."""
_READ: Final = {"date": "::text", "time": "::text", "datetime": "::text"}
"""Casts of columns that may hold what the driver has no value for (`infinity`, dates before Christ)."""
_EQUAL: Final = {"json": "::jsonb", "map": "::jsonb"}
"""Casts of columns that may be of a type without equality."""
_REPORT: Final = "INSERT INTO sync_inbox (entity, identity, captured_at, who)"
_NOW: Final = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_CASTS: Final = {
    "decimal": "::numeric",
    "date": "::date",
    "time": "::time",
    "datetime": "::timestamptz",
    "uuid": "::uuid",
    "json": "::jsonb",
    "map": "::jsonb",
}


class PostgresTable:
    """The statements of one declared table for PostgreSQL; a parameter is a whole column, named by its number."""

    def __init__(self, table: EntityTable) -> None:
        self.table = table
        columns, name, scope = table.columns, table.name, table.scope.name
        keyed = [*table.key, table.scope]
        same = all_of(f"t.{c.name} = v.c{i}{_cast(c)}" for i, c in enumerate(keyed))
        self.upsert = (
            f"INSERT INTO {name} AS t ({names(columns)}) "
            f"SELECT {', '.join(f'v.c{i}{_cast(c)}' for i, c in enumerate(columns))} FROM {unnest(columns)} "
            f"ON CONFLICT ({names(table.identity)}) DO "
            # What another program has put there meanwhile is to be seen before it is written.
            + (
                "NOTHING"
                if table.entity.capture
                else f"UPDATE SET {taken_over(table)} WHERE t.{scope} = excluded.{scope}"
            )
        )
        assigned = ", ".join(f"{c.name} = v.c{i}{_cast(c)}" for i, c in enumerate(columns) if c in table.own)
        self.update = (
            f"UPDATE {name} AS t SET {assigned or f'{scope} = t.{scope}'} "
            f"FROM {unnest(columns, ordinal=True)} WHERE {same} RETURNING v.n"
        )
        self.delete = f"DELETE FROM {name} AS t USING {unnest(keyed)} WHERE {same}"
        self._row = table.row_text("{}::text", "t.")
        identity, unique = table.identity_text("postgresql", "t."), unnest(table.identity)
        there = all_of(f"t.{c.name} = v.c{i}{_cast(c)}" for i, c in enumerate(table.identity))
        values = "".join(f", t.{c.name}{_READ.get(c.kind, '')}" for c in table.fields.values())
        self._whole = f"SELECT {identity}, t.{scope}::text{values} FROM {name} AS t"
        self.lock = f"SELECT {identity} FROM {unique} JOIN {name} AS t ON {there} FOR NO KEY UPDATE OF t SKIP LOCKED"
        self.read = f"{self._whole} JOIN {unique} ON {there}"
        differs = (
            " OR ".join(
                f"t.{c.name}{_EQUAL.get(c.kind, '')} IS DISTINCT FROM v.c{i}{_cast(c)}"
                for i, c in enumerate(columns)
                if c in table.own
            )
            or "false"
        )
        self.report_changed = (
            f"{_REPORT} SELECT ${len(columns) + 1}::text, {identity}, {_NOW}, session_user "
            f"FROM {unnest(columns)} JOIN {name} AS t ON {same} WHERE {differs}"
        )
        self.report_kept = (
            f"{_REPORT} SELECT ${len(keyed) + 1}::text, {identity}, {_NOW}, session_user "
            f"FROM {unnest(keyed)} JOIN {name} AS t ON {same}"
        )

    def rows(self, images: Sequence[RowImage]) -> list[Any]:
        """The parameters of `upsert` and `update`."""
        return packed((column.kind for column in self.table.columns), self.table.arguments(images))

    def keys(self, keys: Sequence[RowKey]) -> list[Any]:
        """The parameters of `delete`."""
        return packed((column.kind for column in (*self.table.key, self.table.scope)), self.table.key_arguments(keys))

    def identities(self, identities: Sequence[Identity]) -> list[Any]:
        """The parameters of `lock` and `read`."""
        return packed((column.kind for column in self.table.identity), self.table.identity_arguments(identities))

    def sweep(self, behind: bool) -> str:
        """The texts of an identity's columns, unless from the beginning, and a limit: rows in the order of these."""
        columns = self.table.identity
        bounds = [
            f"${i}::text::{_ARRAYS.get(c.kind) or _cast(c).removeprefix('::') or 'text'}"
            for i, c in enumerate(columns, 1)
        ]
        names_of = ", ".join(f"t.{c.name}" for c in columns)
        where = f" WHERE ({names_of}) > ({', '.join(bounds)})" if behind else ""
        return f"{self._whole}{where} ORDER BY {names_of} LIMIT ${len(columns) + 1 if behind else 1}"

    def values(self, fields: Sequence[str], tuples: Collection[tuple[Any, ...]]) -> list[Any]:
        """The parameters of `holders` behind the scope's id."""
        kinds = (self.table.fields[name].kind for name in fields)
        return packed(kinds, self.table.encoded(fields, tuples))

    def referring(self, field: str) -> str:
        """$1 the scope's id, $2 the targets: (target, row)."""
        column = self.table.fields[field]
        elements = "bigint" if column.kind == "integer" else _cast(column).removeprefix("::") or "text"
        return (
            f"SELECT t.{column.name}::text, {self._row} FROM {self.table.name} AS t "
            f"WHERE {self._in_scope} AND t.{column.name} = ANY($2::text[]::{elements}[])"
        )

    def holders(self, fields: Sequence[str]) -> str:
        """$1 the scope's id, then one array for each field: (number of the tuple from 1, row)."""
        columns = [self.table.fields[name] for name in fields]
        same = all_of(f"t.{c.name} = v.c{i}{_cast(c)}" for i, c in enumerate(columns))
        return (
            f"SELECT v.n, {self._row} FROM {unnest(columns, first=2, ordinal=True)} "
            f"JOIN {self.table.name} AS t ON {same} WHERE {self._in_scope}"
        )

    @property
    def _in_scope(self) -> str:
        scope = self.table.scope
        return f"t.{scope.name} = $1::{_ARRAYS.get(scope.kind, 'text')}{_cast(scope)}"


def unnest(columns: Sequence[ColumnOf], *, first: int = 1, ordinal: bool = False) -> str:
    """Arrays as a table v(c0, c1, …[, n])."""
    arrays = _arrays((column.kind for column in columns), first)
    names = ", ".join(f"c{i}" for i in range(len(columns)))
    return f"unnest({arrays}) WITH ORDINALITY AS v({names}, n)" if ordinal else f"unnest({arrays}) AS v({names})"


def _cast(column: ColumnOf) -> str:
    return _CASTS.get(column.kind, "")


_NAME: Final = "name"
"""The kind of a column of our own that holds names, clocks or array literals: no quote, no backslash."""
FEED_KINDS: Final = [*[_NAME] * 3, "integer", "boolean", "text", _NAME, "text", "integer", "boolean"]
JOURNAL_KINDS: Final = [_NAME, "integer", "text", _NAME, "integer"]
STATE_KINDS: Final = [_NAME, "integer", "integer", _NAME, "integer", "integer", "integer", "integer"]


def packed(kinds: Iterable[str], columns: Iterable[Sequence[Any]]) -> list[Any]:
    """Columns as the parameters of `unnest` over columns of these kinds."""
    return [_packed(kind, column) for kind, column in zip(kinds, columns, strict=True)]


def _packed(kind: str, values: Sequence[Any]) -> Any:
    if kind in _PLAIN:
        if None not in values:
            return '{"' + '","'.join(values) + '"}' if values else "{}"
        texts = ("NULL" if value is None else f'"{value}"' for value in values)
    elif kind in _ARRAYS:
        texts = ("NULL" if value is None else str(value) for value in values)
    else:
        return values
    return f"{{{','.join(texts)}}}"


def _arrays(kinds: Iterable[str], first: int) -> str:
    literal = {**_ARRAYS, **dict.fromkeys(_PLAIN, "text")}
    elements = [literal.get(kind) for kind in kinds]
    return ", ".join(f"${i}::text::{e}[]" if e else f"${i}::text[]" for i, e in enumerate(elements, first))


def _unnest(kinds: Sequence[str], first: int) -> str:
    return f"unnest({_arrays(kinds, first)})"


AMONG: Final = "= ANY({}::text[])"
# First the few entries that name a row, by their index; a bare `&&` might read all of the scope's instead.
NAMING: Final = "id = ANY(ARRAY(SELECT id FROM sync_journal WHERE rows && {}::bigint[]))"
LOCK: Final = f"SELECT {sql.STATE} FROM sync_scope WHERE scope = ANY($1::text[]) ORDER BY scope FOR UPDATE SKIP LOCKED"
# Whoever makes a scope holds its advisory lock meanwhile, so that nobody waits for a row that is not committed yet;
# nor for one that is there, being changed.
CREATE: Final = f"""
    INSERT INTO sync_scope (scope)
    SELECT v.scope FROM unnest($1::text[]) AS v(scope)
    WHERE NOT EXISTS (SELECT FROM sync_scope AS s WHERE s.scope = v.scope)
        AND pg_try_advisory_xact_lock({ADVISORY_CLASS}, hashtext(v.scope))
    ON CONFLICT DO NOTHING RETURNING {sql.STATE}"""
ROLES: Final = """
    SELECT m.scope, m."user", m.role FROM sync_member AS m
    JOIN unnest($1::text[], $2::text[]) AS v(scope, "user") ON m.scope = v.scope AND m."user" = v."user" """
SET_ROLE: Final = """
    INSERT INTO sync_member (scope, "user", role) VALUES ($1, $2, $3)
    ON CONFLICT (scope, "user") DO UPDATE SET role = excluded.role"""
FEED_OF_F: Final = ", ".join(f'f."{name}"' for name in sql.FEED_COLUMNS)
LOAD: Final = f"""
    SELECT {FEED_OF_F} FROM unnest($1::text[], $2::text[]) AS v(entity, "row")
    JOIN sync_feed AS f ON f.entity = v.entity AND f."row" = v."row" """
LOAD_EXACT: Final = f"""
    SELECT {FEED_OF_F} FROM unnest($1::text[], $2::text[], $3::text[]) AS v(scope, entity, "row")
    JOIN sync_feed AS f ON f.entity = v.entity AND f."row" = v."row" AND f.scope = v.scope"""
SPENT: Final = f"SELECT {sql.JOURNAL} FROM sync_journal WHERE spent = ANY($1::bigint[])"
# The index of rows alone finds them: OFFSET 0 keeps out that of the scope, `+ 0` that of arrivals, which hold far more.
# Events are read only of the entries given.
ENTRIES: Final = f"""
    SELECT {sql.JOURNAL} FROM sync_journal WHERE id = ANY(ARRAY(
        SELECT id FROM (
            SELECT id, scope, spent FROM sync_journal
            WHERE rows && $2::bigint[] AND arrived + 0 >= $3::bigint OFFSET 0
        ) AS named WHERE scope = $1 AND spent IS NULL ORDER BY id LIMIT $4
    )) ORDER BY id"""
SAVE: Final = f"""
    WITH feed AS (
        INSERT INTO sync_feed ({sql.FEED}) SELECT * FROM {_unnest(FEED_KINDS, 1)} {sql.FEED_UPSERT}
    ), journal AS (
        INSERT INTO sync_journal (scope, arrived, events, rows, spent)
        SELECT v.scope, v.arrived, v.events, v.rows::bigint[], v.spent
        FROM {_unnest(JOURNAL_KINDS, 11)} AS v(scope, arrived, events, rows, spent)
    )
    UPDATE sync_scope AS s SET {", ".join(f"{n} = v.{n}" for n in sql.STATE_COLUMNS[1:])}
    FROM {_unnest(STATE_KINDS, 16)} AS v({sql.STATE}) WHERE s.scope = v.scope"""
_SIZE: Final = f"""
    {sql.WIRE_SIZE + 1} + octet_length(entity) + octet_length("row") + octet_length(version::text)
    + CASE WHEN deleted THEN 4 ELSE octet_length(doc) END"""
# A page that fits is assembled as it is; only one that may be too large is measured row by row. An octet_length does
# not fetch a long document.
RUN: Final = f"""
    WITH page AS MATERIALIZED (
        SELECT entity, "row", version, deleted, doc FROM sync_feed
        WHERE scope = $1 AND version > $2 AND (NOT deleted OR version > $3)
        ORDER BY version LIMIT $4::bigint + 1
    ), whole AS MATERIALIZED (
        SELECT count(*) AS seen, coalesce(sum({_SIZE}), 0) <= $5 AS fits FROM page
    )
    SELECT {", ".join(f"s.{name}" for name in sql.STATE_COLUMNS)}, w.seen, a.count + b.count,
        coalesce(a.last, b.last), convert_to(coalesce(a.body, b.body), 'UTF8')
    FROM sync_scope AS s, whole AS w, LATERAL (
        SELECT count(*), max(version) AS last, string_agg({sql.WIRE_TEXT}, ',') AS body
        FROM (SELECT * FROM page ORDER BY version LIMIT $4) AS f WHERE w.fits
    ) AS a, LATERAL (
        SELECT count(*), max(version) AS last, string_agg({sql.WIRE_TEXT}, ',') AS body
        FROM (
            SELECT *, row_number() OVER w AS number, sum({_SIZE}) OVER w AS size
            FROM page WHERE NOT w.fits WINDOW w AS (ORDER BY version ROWS UNBOUNDED PRECEDING)
        ) AS f WHERE number <= $4 AND (number = 1 OR size - 1 <= $5)
    ) AS b WHERE s.scope = $1"""
ROWS_OF: Final = f"SELECT {sql.FEED} FROM sync_feed WHERE scope = $1 ORDER BY version"
RESIDUES: Final = f"""
    SELECT {sql.FEED} FROM sync_feed WHERE residue AND arrived < $1 AND root < $2 ORDER BY arrived LIMIT $3"""
GIVEN: Final = f"""{_unnest(FEED_KINDS, 2)} AS v({sql.FEED})
    WHERE f.scope = $1 AND f.entity = v.entity AND f."row" = v."row" AND f.arrived = v.arrived"""
FORGET: Final = f"""
    DELETE FROM sync_feed AS f USING {GIVEN} AND f.root = v.root AND f.clocks = v.clocks RETURNING f.version"""
REWRITE: Final = f"""
    UPDATE sync_feed AS f SET doc = v.doc, root = v.root, clocks = v.clocks, residue = v.residue
    FROM {GIVEN} AND f.version = v.version"""
RAISE_FLOOR: Final = """
    UPDATE sync_scope SET floor = greatest(floor, $2), horizon = greatest(horizon, $3) WHERE scope = $1"""
FORGET_JOURNAL: Final = """
    DELETE FROM sync_journal WHERE id IN (
        SELECT id FROM sync_journal WHERE arrived < $1 ORDER BY arrived LIMIT $2 FOR UPDATE SKIP LOCKED)"""
_ENTRY: Final = "id, entity, identity, captured_at, who"
# A subquery is hashed; an array would be searched from end to end for each entry.
_WAITING: Final = f"""
    SELECT {_ENTRY} FROM sync_inbox WHERE entity = ANY($1::text[]) AND id NOT IN (SELECT unnest($2::bigint[]))"""
INBOX: Final = f"{_WAITING} ORDER BY id LIMIT $3"
NEWEST: Final = f"{_WAITING} ORDER BY id DESC LIMIT $3"
BACKLOG: Final = "SELECT count(*), min(captured_at) FROM sync_inbox"
REPORT: Final = f"{_REPORT} SELECT v.*, $3, session_user FROM unnest($1::text[], $2::text[]) AS v"
CAPTURED: Final = """
    SELECT DISTINCT ON (i.entity, i.identity) i.id, i.entity, i.identity, i.captured_at, i.who
    FROM unnest($1::text[], $2::text[]) AS v(entity, identity)
    JOIN sync_inbox AS i ON i.identity = v.identity AND i.entity = v.entity
    ORDER BY i.entity, i.identity, i.captured_at DESC, i.id DESC"""
DRAINED: Final = """
    DELETE FROM sync_inbox AS i USING unnest($1::bigint[], $2::text[], $3::text[]) AS v(id, entity, identity)
    WHERE i.id = v.id AND i.identity = v.identity AND i.entity = v.entity"""
# How long what we save may wait for a row, key or unique value that another program has not committed.
WAIT_BRIEFLY: Final = "SELECT set_config('lock_timeout', '250ms', true)"
LIVE: Final = f"""
    SELECT {sql.FEED} FROM sync_feed WHERE entity = $1 AND NOT deleted AND ("row", scope) > ($2, $3)
    ORDER BY "row", scope LIMIT $4"""
LEASE: Final = """
    INSERT INTO sync_meta AS m (name, value) VALUES ($1, $2)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value
    WHERE m.value::jsonb ->> 'owner' = $3 OR (m.value::jsonb ->> 'until')::bigint <= $4"""
META_LOCK: Final = "SELECT name, value FROM sync_meta WHERE name = ANY($1::text[]) ORDER BY name FOR UPDATE"
META_KEEP: Final = """
    INSERT INTO sync_meta (name, value) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT (name) DO NOTHING"""
META_SET: Final = """
    INSERT INTO sync_meta (name, value) SELECT * FROM unnest($1::text[], $2::text[])
    ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
# The timeline of the log being written: the control file learns of a promotion only at its next checkpoint.
PLACE: Final = """
    SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8), oid, datname
    FROM pg_database WHERE datname = current_database()"""
