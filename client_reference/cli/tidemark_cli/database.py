"""The file that holds a store: SQLite, one transaction at a time, durable when it returns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from .errors import Temporary, TideError

FORMAT: Final = 1
BUSY_SECONDS: Final = 30
_WAL_IS_SOUND: Final = (3, 51, 3)
"""Before, several processes writing to one WAL database could corrupt it."""

_TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- One row for each scope held. version: what the replica has everything up to; head: the highest head applied since the
-- last reset; live, total: the digest's parts; digest: the server's at `version`, where it was told.
CREATE TABLE scope (
  scope TEXT PRIMARY KEY, watermark TEXT, version INTEGER NOT NULL, head INTEGER NOT NULL,
  live INTEGER NOT NULL, total INTEGER NOT NULL, digest TEXT
) WITHOUT ROWID;

-- The server's state of each live row, under the scope that it came from.
CREATE TABLE base (
  scope TEXT NOT NULL, entity TEXT NOT NULL, row TEXT NOT NULL, version INTEGER NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (scope, entity, row)
) WITHOUT ROWID;
CREATE INDEX base_row ON base (entity, row);

-- Mutations in the order they were made. awaits: applied at this version, shown until the replica has reached it.
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT NOT NULL, scope TEXT NOT NULL, entity TEXT NOT NULL, row TEXT NOT NULL,
  at TEXT NOT NULL, fields TEXT, schema INTEGER NOT NULL, wall INTEGER NOT NULL, "group" TEXT,
  handed INTEGER NOT NULL DEFAULT 0, awaits INTEGER
);
CREATE INDEX outbox_row ON outbox (entity, row, scope);
CREATE INDEX outbox_pending ON outbox (seq) WHERE awaits IS NULL;
CREATE INDEX outbox_awaits ON outbox (scope, awaits) WHERE awaits IS NOT NULL;

-- Dead letters: mutations that were rejected, or leaned on one that was (cause: its seq).
CREATE TABLE dead_letter (
  seq INTEGER PRIMARY KEY, op TEXT NOT NULL, scope TEXT NOT NULL, entity TEXT NOT NULL, row TEXT NOT NULL,
  at TEXT NOT NULL, fields TEXT, schema INTEGER NOT NULL, wall INTEGER NOT NULL, "group" TEXT,
  code TEXT NOT NULL, message TEXT NOT NULL, field TEXT, cause INTEGER, parked INTEGER NOT NULL
);
"""


class Database:
    """An open store. `folder` holds `tide.db`, the token and the lock of whoever synchronises."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        file = folder / "tide.db"
        if not create and not file.exists():
            raise TideError(f"There is no store in {folder}. Make one with: tide init URL")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.sql = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)
        self._inside = False
        self.sql.execute(f"PRAGMA journal_mode={'WAL' if sqlite3.sqlite_version_info >= _WAL_IS_SOUND else 'DELETE'}")
        self.sql.execute("PRAGMA synchronous=FULL")
        with self.transaction():
            self._prepare()

    def _prepare(self) -> None:
        (found,) = self.sql.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise TideError(f"{self.folder} was written by a newer tide. Upgrade this one.")
        if found == 0:
            for statement in _TABLES.split(";\n"):
                self.sql.execute(statement)
            self.sql.execute(f"PRAGMA user_version={FORMAT}")

    def close(self) -> None:
        self.sql.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside happens or nothing; one inside another belongs to the outer one."""
        if self._inside:
            yield
            return
        try:
            self.sql.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as busy:
            raise Temporary(f"The store is busy: {busy}") from busy
        self._inside = True
        try:
            yield
            self.sql.execute("COMMIT")
        except BaseException:
            if self.sql.in_transaction:
                self.sql.execute("ROLLBACK")
            raise
        finally:
            self._inside = False

    @contextmanager
    def synchronising(self) -> Iterator[None]:
        """The right to talk to the service for this store, held by one process at a time and freed by its death."""
        lock = sqlite3.connect(self.folder / "sync.lock", timeout=0, isolation_level=None)
        try:
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as held:
                raise Temporary("Another tide is synchronising this store at the moment.") from held
            yield
        finally:
            with suppress(sqlite3.Error):
                lock.execute("ROLLBACK")
            lock.close()

    def get(self, name: str) -> str | None:
        found = self.sql.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def set(self, name: str, value: str | None) -> None:
        if value is None:
            self.sql.execute("DELETE FROM meta WHERE name = ?", (name,))
        else:
            self.sql.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def one(self, sql: str, *values: Any) -> Any:
        """The first column of the first row, or None."""
        found = self.sql.execute(sql, values).fetchone()
        return None if found is None else found[0]
