"""The arithmetic of a client's outbox (SPEC 2, 3 and 4).

A client keeps its mutations in the order it made them. Here is what to send next, what a verdict means, who depends on
whom, when readings are corrected, and what a row looks like with the pending edits on top. Keeping it all, in one
transaction with the rows, is the client's own part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, structs

from . import clock
from .errors import MUTATION_CODES, Remedy
from .merge import Op, escape, same_value, split
from .messages import Result, VerdictError
from .model import Entity, Field
from .rows import key_texts

MAX_MUTATIONS: Final = 1_000
MAX_BYTES: Final = 1 << 20
"""Of one push, as sent (SPEC 4)."""
ENVELOPE_BYTES: Final = 128
"""Room for a push without its mutations."""

RowName = tuple[str, str, str]
"""Scope, entity and key of a row."""


class Pending(Struct, frozen=True):
    """One mutation in the outbox.

    `seq` is its place in the order; `schema` the number it was written under; `wall` the device's own time when it was
    made, uncorrected (ms); `handed`: it has been given to the transport; `awaits`: it was applied, and its effect stays
    on top of its row until the scope's replica has reached this version.
    """

    seq: int
    op: Op
    scope: str
    entity: str
    row: str
    at: str
    fields: dict[str, Any] | None
    schema: int
    wall: int
    group: str | None = None
    handed: bool = False
    awaits: int | None = None

    @property
    def name(self) -> RowName:
        return self.scope, self.entity, self.row


# ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def wire(mutation: Pending) -> dict[str, Any]:
    """A mutation as it travels."""
    sent = {name: getattr(mutation, name) for name in ("seq", "op", "entity", "scope", "row", "at")}
    if mutation.op != "delete":
        sent["fields"] = mutation.fields
    if mutation.group is not None:
        sent["group"] = mutation.group
    return sent


def units(pending: Iterable[Pending]) -> Iterator[list[Pending]]:
    """What stands or falls together: neighbours of one group and one schema number, any other mutation alone."""
    unit: list[Pending] = []
    for mutation in pending:
        last = unit[-1] if unit else None
        if last and not (mutation.group and (mutation.group, mutation.schema) == (last.group, last.schema)):
            yield unit
            unit = []
        unit.append(mutation)
    if unit:
        yield unit


def batch(
    pending: Iterable[Pending], *, max_mutations: int = MAX_MUTATIONS, max_bytes: int = MAX_BYTES
) -> list[Pending]:
    """The mutations of the next push: from the front, of one schema number, no group split.

    The first unit is taken even beyond the limits: only the server can say that it is too much.
    """
    taken: list[Pending] = []
    size = ENVELOPE_BYTES
    for unit in units(pending):
        size += sum(len(msgspec.json.encode(wire(mutation))) + 1 for mutation in unit)
        fits = len(taken) + len(unit) <= max_mutations and size <= max_bytes
        if taken and not (fits and unit[0].schema == taken[0].schema):
            break
        taken += unit
    return taken


def halved(refused: Sequence[Pending]) -> int | None:
    """How many mutations to send after a push was refused whole with 400 or 413; None: it cannot be divided."""
    first = next(units(refused), [])
    return None if len(first) == len(refused) else max(1, len(refused) // 2)


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Settled(Struct, frozen=True):
    """What the verdicts on a push mean: every mutation sent is in exactly one of these, in order.

    `applied` come with the version to await (0: nothing to wait for). `obstacle` says why `kept` are kept: the first
    reason that is more than `unavailable`, which those behind it and the rest of its group answer.
    """

    applied: tuple[tuple[Pending, int], ...]
    superseded: tuple[Pending, ...]
    rejected: tuple[tuple[Pending, VerdictError], ...]
    kept: tuple[Pending, ...]
    obstacle: VerdictError | None

    @property
    def remedy(self) -> Remedy:
        """What to do about the obstacle; a code from a later version of the protocol is waited for."""
        return Remedy.RETRY if self.obstacle is None else MUTATION_CODES.get(self.obstacle.code, Remedy.RETRY)


def settle(sent: Sequence[Pending], results: Iterable[Result]) -> Settled:
    """Read the verdicts by `seq`; what was not answered is kept."""
    verdicts: dict[int, Result] = {}
    for result in results:
        verdicts.setdefault(result.seq, result)
    applied: list[tuple[Pending, int]] = []
    superseded: list[Pending] = []
    rejected: list[tuple[Pending, VerdictError]] = []
    kept: list[Pending] = []
    obstacle: VerdictError | None = None
    for mutation in sent:
        verdict = verdicts.get(mutation.seq)
        if verdict is None or verdict.status == "retry":
            kept.append(mutation)
            if obstacle is None or obstacle.code == "unavailable":
                why = _error(verdict, "unavailable", "the answer said nothing about it")
                obstacle = why if obstacle is None or why.code != "unavailable" else obstacle
        elif verdict.status == "applied":
            applied.append((mutation, 0 if verdict.version is UNSET else verdict.version))
        elif verdict.status == "superseded":
            superseded.append(mutation)
        else:
            rejected.append((mutation, _error(verdict, "rejected", "the service gave no reason")))
    return Settled(tuple(applied), tuple(superseded), tuple(rejected), tuple(kept), obstacle)


def _error(verdict: Result | None, code: str, message: str) -> VerdictError:
    return verdict.error if verdict is not None and verdict.error is not UNSET else VerdictError(code, message)


def dependents(
    parked: Iterable[Pending],
    pending: Iterable[Pending],
    *,
    refs: Callable[[str], Iterable[Field]],
    stands: Callable[[RowName], bool],
) -> dict[int, int]:
    """Mutations, pending or `parked`, that make no sense without a parked one: their seq → the seq they lean on.

    A patch or delete leans on the put that made its row, a value of a `ref` field on the put that made the row it
    names, and a group on each of its members' needs: the first of these counts. What else is pending of a parked
    mutation's group leans on that. `refs` gives an entity's `ref` fields; `stands` says whether a row is visible
    without any mutation of the outbox.
    """
    gone = {mutation.seq: mutation for mutation in parked}
    everything = gone | {mutation.seq: mutation for mutation in pending if mutation.seq not in gone}
    missing: dict[RowName, int] = {}
    visible: dict[RowName, bool] = {}
    causes: dict[int, int] = {}
    for unit in units(everything[seq] for seq in sorted(everything)):
        fallen = next((mutation.seq for mutation in unit if mutation.seq in gone), None)
        lost: int | None = None
        within: dict[RowName, bool] = {}
        for mutation in unit:
            for name in _needs(mutation, refs):
                if lost is None and name in missing and not _shown(name, within, visible, stands):
                    lost = missing[name]
            if mutation.op != "patch":
                within[mutation.name] = mutation.op == "put"
        if lost is None and fallen is None:
            visible |= within
            continue
        for mutation in unit:
            cause = fallen if lost is None and mutation.seq not in gone else lost
            if cause is not None:
                causes[mutation.seq] = cause
            if mutation.op == "put":
                missing[mutation.name] = mutation.seq
    return causes


def _shown(
    name: RowName, within: dict[RowName, bool], visible: dict[RowName, bool], stands: Callable[[RowName], bool]
) -> bool:
    """Whether a row is visible: by its own unit, else by those before, else without the outbox."""
    for known in (within, visible):
        if name in known:
            return known[name]
    return stands(name)


def _needs(mutation: Pending, refs: Callable[[str], Iterable[Field]]) -> Iterator[RowName]:
    """The rows that must be visible for a mutation to make sense."""
    if mutation.op != "put":
        yield mutation.name
    for field in refs(mutation.entity) if mutation.fields else ():
        target = (mutation.fields or {}).get(field.name)
        if field.ref is not None and target is not None:
            yield mutation.scope, field.ref, str(target)


# ── readings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def restamp(pending: Iterable[Pending], own: clock.Clock, *, offset: int, now: int) -> list[Pending]:
    """New readings, in the same order, by a corrected clock (SPEC 2).

    `offset` is the server's time less the device's, `now` the server's time (ms): nothing was made later than now.
    `own` stands at the highest reading that was received or keeps its place.
    """
    return [
        structs.replace(mutation, at=own.issue(min(mutation.wall + offset, now)), handed=False) for mutation in pending
    ]


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def on_top(doc: dict[str, Any] | None, mutations: Iterable[Pending], entity: Entity) -> dict[str, Any] | None:
    """A row as its device shows it: the server's document (None: no row) with the outbox's mutations of it on top."""
    for mutation in mutations:
        fields = mutation.fields or {}
        if mutation.op == "delete":
            doc = None
        elif mutation.op == "put":
            key = dict(zip(entity.key.columns, key_texts(entity, mutation.row), strict=True))
            made = doc["created_at"] if doc else clock.instant(mutation.at)
            doc = {**key, **fields, "created_at": made, "updated_at": clock.instant(mutation.at)}
        elif doc is not None:
            doc = {**_patched(doc, fields), "updated_at": clock.instant(mutation.at)}
    return doc


def _patched(doc: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    after = dict(doc)
    for path, value in fields.items():
        field, key = split(path)
        if key is None:
            after[field] = value
        else:
            entries = {k: v for k, v in (after.get(field) or {}).items() if k != key}
            after[field] = entries if value is None else {**entries, key: value}
    return after


def changed(doc: Mapping[str, Any], wanted: Mapping[str, Any], maps: frozenset[str]) -> dict[str, Any]:
    """The patch that turns what `doc` holds into `wanted` (field → value), maps key by key; empty if none is needed."""
    patch: dict[str, Any] = {}
    for field, value in wanted.items():
        held = doc.get(field)
        if field in maps:
            entries = held or {}
            patch |= {f"{field}/{escape(key)}": None for key in entries if key not in value}
            for key, entry in value.items():
                if key not in entries or not same_value(entries[key], entry):
                    patch[f"{field}/{escape(key)}"] = entry
        elif field not in doc or not same_value(held, value):
            patch[field] = value
    return patch
