"""The outbox and the dead letters as tables: every mutation is in exactly one place until it is done (SPEC 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from tidemark_protocol.clock import Clock
from tidemark_protocol.messages import VerdictError
from tidemark_protocol.model import Field
from tidemark_protocol.outbox import Pending, RowName, Settled, dependents, restamp

from .database import Database

_COLUMNS: Final = 'seq, op, scope, entity, row, at, fields, schema, wall, "group", handed, awaits'
_CLOCK: Final = "clock"
"""The highest reading received, or handed to the transport and gone from the outbox since."""


class DeadLetter(Struct, frozen=True):
    """A mutation that will not be sent again as it is; `cause` is the seq of the one it leaned on, `parked` ms."""

    mutation: Pending
    error: VerdictError
    cause: int | None
    parked: int


class Outbox:
    """Reads at any time; writes belong into the caller's transaction, except where they open their own."""

    def __init__(self, database: Database, node: Callable[[], str]) -> None:
        self._database = database
        self._sql = database.sql
        self._node = node
        self._clock = Clock(node())

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def pending(self, where: str = "TRUE", *values: Any) -> Iterator[Pending]:
        """What the server has not answered yet, in order."""
        yield from map(
            _pending,
            self._sql.execute(
                f"SELECT {_COLUMNS} FROM outbox WHERE awaits IS NULL AND {where} ORDER BY seq", values
            ).fetchall(),
        )

    def upcoming(self, count: int) -> list[Pending]:
        """The first `count` pending mutations, and the rest of the last one's group."""
        first = self._sql.execute(
            f"SELECT {_COLUMNS} FROM outbox WHERE awaits IS NULL ORDER BY seq LIMIT ?", (count,)
        ).fetchall()
        found = [_pending(row) for row in first]
        if found and found[-1].group is not None:
            for mutation in self.pending("seq > ?", found[-1].seq):
                if mutation.group != found[-1].group:
                    break
                found.append(mutation)
        return found

    def of_rows(self, where: str, *values: Any) -> dict[RowName, list[Pending]]:
        """The mutations that stand on top of rows, in order, by row."""
        found: dict[RowName, list[Pending]] = {}
        for row in self._sql.execute(f"SELECT {_COLUMNS} FROM outbox WHERE {where} ORDER BY seq", values):
            mutation = _pending(row)
            found.setdefault(mutation.name, []).append(mutation)
        return found

    def count(self) -> int:
        """How many mutations wait to be sent or answered."""
        return int(self._database.one("SELECT count(*) FROM outbox WHERE awaits IS NULL"))

    def awaited(self) -> int:
        """How many were applied and wait for the pull that brings them back."""
        return int(self._database.one("SELECT count(*) FROM outbox WHERE awaits IS NOT NULL"))

    def dead_letters(self, where: str = "TRUE", *values: Any) -> list[DeadLetter]:
        rows = self._sql.execute(
            'SELECT seq, op, scope, entity, row, at, fields, schema, wall, "group", code, message, field, cause, parked'
            f" FROM dead_letter WHERE {where} ORDER BY seq",
            values,
        )
        return [
            DeadLetter(_pending((*row[:10], 0, None)), VerdictError(row[10], row[11], row[12]), row[13], row[14])
            for row in rows
        ]

    # ── readings of the clock ────────────────────────────────────────────────────────────────────────────────────────

    def issue(self, now: int) -> str:
        """A new reading at the corrected time `now` (ms), above all that were issued, sent or received."""
        self._observe_into(self._clock, "TRUE")
        return self._clock.issue(now)

    def observe(self, reading: str) -> None:
        """Keep a reading that was received or has left the outbox, so that later ones are above it."""
        held = self._database.get(_CLOCK)
        if held is None or reading > held:
            self._database.set(_CLOCK, reading)

    def correct(self, mutations: Iterable[Pending], *, offset: int, now: int) -> None:
        """Stamp the last `mutations` of the outbox anew by a corrected clock; `now` is the server's time (ms)."""
        changed = list(mutations)
        if not changed:
            return
        own = Clock(self._node())
        self._observe_into(own, "seq < ?", changed[0].seq)
        self._sql.executemany(
            "UPDATE outbox SET at = ?, handed = 0 WHERE seq = ?",
            [(mutation.at, mutation.seq) for mutation in restamp(changed, own, offset=offset, now=now)],
        )
        self._clock = Clock(self._node())

    def _observe_into(self, own: Clock, where: str, *values: Any) -> None:
        last = f"SELECT at FROM outbox WHERE {where} ORDER BY seq DESC LIMIT 1"
        for reading in (self._database.get(_CLOCK), self._database.one(last, *values)):
            if reading is not None:
                own.observe(reading)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, mutations: Sequence[Pending]) -> None:
        """Append mutations; their `seq` is drawn here."""
        self._sql.executemany(
            'INSERT INTO outbox (op, scope, entity, row, at, fields, schema, wall, "group")'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(m.op, m.scope, m.entity, m.row, m.at, _text(m.fields), m.schema, m.wall, m.group) for m in mutations],
        )

    def hand_over(self, batch: Sequence[Pending]) -> None:
        """Note, before it happens, that these are given to the transport: their readings stand from now on."""
        with self._database.transaction():
            self._sql.executemany("UPDATE outbox SET handed = 1 WHERE seq = ?", [(m.seq,) for m in batch])

    def settle(self, settled: Settled) -> None:
        """Carry out what the verdicts on applied and superseded mutations mean; rejected ones are parked apart."""
        done = list(settled.superseded)
        for mutation, version in settled.applied:
            held = self._database.one("SELECT version FROM scope WHERE scope = ?", mutation.scope)
            if version <= (held or 0):
                done.append(mutation)
            else:
                self.observe(mutation.at)
                self._sql.execute("UPDATE outbox SET awaits = ? WHERE seq = ?", (version, mutation.seq))
        self.remove(done)

    def remove(self, mutations: Iterable[Pending]) -> None:
        gone = list(mutations)
        for mutation in gone:
            if mutation.handed:
                self.observe(mutation.at)
        self._sql.executemany("DELETE FROM outbox WHERE seq = ?", [(mutation.seq,) for mutation in gone])

    def park(
        self,
        rejected: Sequence[tuple[Pending, VerdictError]],
        *,
        now: int,
        refs: Callable[[str], Iterable[Field]],
    ) -> int:
        """Take rejected mutations out, with those pending that depend on them, and keep them all; how many."""
        if not rejected:
            return 0
        parked = {mutation.seq: DeadLetter(mutation, error, None, now) for mutation, error in rejected}
        gone = [mutation for mutation, _ in rejected]
        causes = self.dependents(gone, refs=refs)
        for mutation in self.pending() if causes else ():
            if mutation.seq in causes:
                cause = causes[mutation.seq]
                depends = VerdictError("depends", f"it builds on change {cause}, which was not accepted")
                reason = parked[mutation.seq].error if mutation.seq in parked else depends
                parked[mutation.seq] = DeadLetter(mutation, reason, cause, now)
        self._sql.executemany(
            "INSERT OR REPLACE INTO dead_letter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [_letter_row(letter) for letter in parked.values()],
        )
        self.remove(letter.mutation for letter in parked.values())
        return len(parked)

    def dependents(self, gone: Sequence[Pending], *, refs: Callable[[str], Iterable[Field]]) -> Mapping[int, int]:
        """Mutations, pending or `gone`, that lean on one `gone`: their seq → the seq of the one they lean on."""
        return dependents(gone, self.pending(), refs=refs, stands=self._stands)

    def _stands(self, name: RowName) -> bool:
        awaited = self._database.one(
            "SELECT op FROM outbox WHERE awaits IS NOT NULL AND scope = ? AND entity = ? AND row = ?"
            " ORDER BY seq DESC LIMIT 1",
            *name,
        )
        if awaited is not None:
            return bool(awaited != "delete")
        return self._database.one("SELECT 1 FROM base WHERE scope = ? AND entity = ? AND row = ?", *name) is not None

    def release(self, scope: str, version: int) -> None:
        """The replica has reached `version`: what was applied up to it need not stay on top any longer."""
        self._sql.execute("DELETE FROM outbox WHERE scope = ? AND awaits <= ?", (scope, version))

    def lapse(self, scope: str) -> None:
        """After a reset or revocation versions awaited mean nothing any more."""
        self._sql.execute("DELETE FROM outbox WHERE scope = ? AND awaits IS NOT NULL", (scope,))

    def lapse_beyond(self, readable: Iterable[str]) -> None:
        """What was applied in a scope that may not be read is never brought back by a pull."""
        known = set(readable)
        for (scope,) in self._sql.execute("SELECT DISTINCT scope FROM outbox WHERE awaits IS NOT NULL").fetchall():
            if scope not in known:
                self.lapse(scope)

    def discard_letters(self, letters: Iterable[DeadLetter]) -> None:
        self._sql.executemany("DELETE FROM dead_letter WHERE seq = ?", [(letter.mutation.seq,) for letter in letters])


def _text(fields: dict[str, Any] | None) -> str | None:
    return None if fields is None else msgspec.json.encode(fields).decode()


def _pending(row: tuple[Any, ...]) -> Pending:
    seq, op, scope, entity, key, at, fields, schema, wall, group, handed, awaits = row
    values = None if fields is None else msgspec.json.decode(fields)
    return Pending(seq, op, scope, entity, key, at, values, schema, wall, group, bool(handed), awaits)


def _letter_row(letter: DeadLetter) -> tuple[Any, ...]:
    m, error = letter.mutation, letter.error
    sent = (m.seq, m.op, m.scope, m.entity, m.row, m.at, _text(m.fields), m.schema, m.wall, m.group)
    return (*sent, error.code, error.message, error.field, letter.cause, letter.parked)
