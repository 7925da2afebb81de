"""What a store holds of the server's state: rows by the scope they came from, watermarks, digests (SPEC 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, assert_never

import msgspec
from msgspec import Struct

from tidemark_protocol import clock, digest
from tidemark_protocol.messages import Change, Changes, Run
from tidemark_protocol.replica import Apply, Copy, Ignore, Pull, judge

from .database import Database
from .outbox import Outbox
from .values import millis_of_time

_ANY_NODE: Final = "f" * 16


class Applied(Struct, frozen=True):
    """What became of a run. `must_pull`: something before it is missing. `faulty`: the digest was not the server's,
    and the scope's watermark has been dropped.
    """

    changes: int = 0
    must_pull: bool = False
    faulty: bool = False


class Standing(Struct, frozen=True):
    """One scope as the store holds it; `digest` is the server's at `version`, if it was told one."""

    scope: str
    version: int
    head: int
    live: int
    digest: str | None


class Replica:
    """Each method that writes is one transaction of its own."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._sql = database.sql
        self._outbox = outbox
        self._encoder = msgspec.json.Encoder()

    def watermark(self) -> dict[str, str]:
        """What to tell the server that this replica holds."""
        return dict(self._sql.execute("SELECT scope, watermark FROM scope WHERE watermark IS NOT NULL ORDER BY scope"))

    def standings(self) -> list[Standing]:
        rows = self._sql.execute("SELECT scope, version, head, live, digest FROM scope ORDER BY scope")
        return [Standing(*row) for row in rows]

    def apply(self, run: Run | Changes, *, asked: bool) -> Applied:
        """Apply a run by the rules of SPEC 5: rows, watermark and what is awaited in one transaction."""
        scope = run.scope
        with self._database.transaction():
            held = self._sql.execute(
                "SELECT version, head, watermark, live, total FROM scope WHERE scope = ?", (scope,)
            ).fetchone() or (0, 0, None, 0, 0)
            step = judge(Copy(*held[:3]), run, asked=asked)
            match step:
                case Ignore():
                    return Applied()
                case Pull():
                    return Applied(must_pull=True)
                case Apply():
                    return self._carry_out(scope, step, held[3], held[4])
                case _:
                    assert_never(step)

    def _carry_out(self, scope: str, step: Apply, live: int, total: int) -> Applied:
        if step.replace:
            self._sql.execute("DELETE FROM base WHERE scope = ?", (scope,))
            live = total = 0
        if step.reset:
            self._outbox.lapse(scope)
        more, sum_ = self._write(scope, step.changes, replaced=step.replace)
        live, total = live + more, (total + sum_) % digest.MODULUS
        copy, proof = step.copy, step.digest
        faulty = proof is not None and proof != digest.text(live, total)
        if faulty:
            copy, proof = Copy(0, copy.highest, None), None
        self._sql.execute(
            "INSERT OR REPLACE INTO scope VALUES (?, ?, ?, ?, ?, ?, ?)",
            (scope, copy.watermark, copy.to, copy.highest, live, total, proof),
        )
        self._outbox.release(scope, step.copy.to)
        return Applied(len(step.changes), faulty=faulty)

    def _write(self, scope: str, changes: Iterable[Change], *, replaced: bool) -> tuple[int, int]:
        """Write row states; what they add to the digest's count and sum."""
        live = total = 0
        latest = ""
        puts: list[tuple[str, str, str, int, str]] = []
        deletes: list[tuple[str, str, str]] = []
        find = "SELECT version FROM base WHERE scope = ? AND entity = ? AND row = ?"
        for change in changes:
            held = None if replaced else self._sql.execute(find, (scope, change.entity, change.row)).fetchone()
            if held is not None:
                live -= 1
                total -= digest.term(change.entity, change.row, held[0])
            if change.doc is None:
                deletes.append((scope, change.entity, change.row))
                continue
            live += 1
            total += digest.term(change.entity, change.row, change.version)
            latest = max(latest, str(change.doc.get("updated_at", "")))
            text = self._encoder.encode(change.doc).decode()
            puts.append((scope, change.entity, change.row, change.version, text))
        self._sql.executemany("DELETE FROM base WHERE scope = ? AND entity = ? AND row = ?", deletes)
        self._sql.executemany("INSERT OR REPLACE INTO base VALUES (?, ?, ?, ?, ?)", puts)
        if latest:
            self._see(latest)
        return live, total

    def _see(self, updated_at: str) -> None:
        """Writes made after these rows are seen win over them, even if the answer is cut off before its `clock`."""
        self._outbox.observe(clock.reading(millis_of_time(updated_at), clock.MAX_COUNTER, _ANY_NODE))

    def forget(self, scope: str) -> None:
        """Drop a scope's watermark: the next pull brings it anew, and replaces its rows."""
        with self._database.transaction():
            self._sql.execute("UPDATE scope SET watermark = NULL, version = 0, digest = NULL WHERE scope = ?", (scope,))

    def revoke(self, scope: str) -> int:
        """Delete what came from a scope that may not be read any more (its mutations are parked apart); rows gone."""
        with self._database.transaction():
            gone = self._sql.execute("DELETE FROM base WHERE scope = ?", (scope,)).rowcount
            self._sql.execute("DELETE FROM scope WHERE scope = ?", (scope,))
            self._outbox.lapse(scope)
        return gone

    def computed(self, scope: str) -> str:
        """The digest of the rows as they lie on the disk."""
        return digest.of_rows(self._sql.execute("SELECT entity, row, version FROM base WHERE scope = ?", (scope,)))

    def documents(self, where: str, *values: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
        """(scope, entity, row) → the server's document."""
        rows = self._sql.execute(f"SELECT scope, entity, row, doc FROM base WHERE {where}", values)
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        return {(scope, entity, row): decode(doc) for scope, entity, row, doc in rows}
