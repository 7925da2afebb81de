"""The arithmetic of the outbox (SPEC 2, 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol import merge
from tidemark_protocol.clock import Clock, reading
from tidemark_protocol.errors import MUTATION_CODES, Remedy
from tidemark_protocol.messages import Result, Verdict, VerdictError
from tidemark_protocol.model import Entity, Field, ScopeColumn
from tidemark_protocol.outbox import (
    ENVELOPE_BYTES,
    Pending,
    RowName,
    batch,
    changed,
    dependents,
    halved,
    on_top,
    restamp,
    settle,
    units,
    wire,
)

SCOPE = "workspace:7"
REF = Field("parent", "text", nullable=True, ref="things")
THINGS = Entity(
    "things",
    "things",
    ScopeColumn("workspace", "workspace_id"),
    {"name": Field("name", "text"), "labels": Field("labels", "map", default={}), "parent": REF},
)
STAMPS = ("created_at", "updated_at")
TIME = "1970-01-01T00:00:00.000000Z"
KEYS = tuple(f"{n:08x}-0000-4000-8000-000000000000" for n in range(4))


def pending(
    seq: int,
    op: merge.Op = "put",
    row: str = KEYS[0],
    fields: dict[str, Any] | None = None,
    *,
    group: str | None = None,
    schema: int = 1,
) -> Pending:
    """A mutation of a thing, made `seq` ms after the beginning."""
    values = None if op == "delete" else {"name": "x", "labels": {}, "parent": None} if fields is None else fields
    return Pending(seq, op, SCOPE, "things", row, reading(seq, 0, "a" * 16), values, schema, seq, group)


def document(fields: dict[str, Any]) -> dict[str, Any]:
    """A thing as the server sends it, made in 1970."""
    return {"id": KEYS[0], **fields} | dict.fromkeys(STAMPS, TIME)


def refs(_: str) -> Iterable[Field]:
    """The `ref` fields of every entity here."""
    return (REF,)


values = st.sampled_from(["a", "b", "c"])
whole_fields = st.fixed_dictionaries(
    {
        "name": values,
        "labels": st.dictionaries(st.sampled_from(["k", "a/b", "t~"]), values),
        "parent": st.none() | st.sampled_from(KEYS),
    }
)
patch_fields = st.one_of(
    st.fixed_dictionaries({"name": values}),
    st.fixed_dictionaries({"parent": st.none() | st.sampled_from(KEYS)}),
    st.dictionaries(st.sampled_from(["labels/k", "labels/a~1b", "labels/t~0"]), st.none() | values, min_size=1),
    st.fixed_dictionaries({"labels": st.dictionaries(st.sampled_from(["k", "a/b"]), values)}),
)


@st.composite
def outboxes(draw: st.DrawFn) -> list[Pending]:
    """Mutations of few rows, some in groups, some under another schema number."""
    made = []
    for seq in range(1, draw(st.integers(0, 14)) + 1):
        op: merge.Op = draw(st.sampled_from(("put", "patch", "delete")))
        fields = None if op == "delete" else draw(whole_fields if op == "put" else patch_fields)
        group = draw(st.sampled_from([None, None, "g", "h"]))
        made.append(pending(seq, op, draw(st.sampled_from(KEYS)), fields, group=group, schema=1 + (seq > 10)))
    return made


@given(outboxes(), st.integers(1, 8), st.integers(ENVELOPE_BYTES, ENVELOPE_BYTES + 1200))
def test_batches_follow_the_order_and_the_limits_and_split_no_group(
    outbox: list[Pending], most: int, size: int
) -> None:
    """Batches, one after the other, are the outbox: whole units, one schema number, within the limits if divisible."""
    rest = outbox
    while rest:
        taken = batch(rest, max_mutations=most, max_bytes=size)
        assert taken
        assert taken == rest[: len(taken)]
        assert len({mutation.schema for mutation in taken}) == 1
        parts = list(units(taken))
        assert parts == list(units(rest))[: len(parts)]
        if len(parts) > 1:
            assert len(taken) <= most
            assert ENVELOPE_BYTES + sum(len(msgspec.json.encode(wire(m))) + 1 for m in taken) <= size
        rest = rest[len(taken) :]


def test_a_mutation_travels_with_what_it_sets_and_nothing_more() -> None:
    """On the wire a delete has no fields, and what belongs to no group names none."""
    assert wire(pending(3, "delete")) == {
        "seq": 3,
        "op": "delete",
        "entity": "things",
        "scope": SCOPE,
        "row": KEYS[0],
        "at": reading(3, 0, "a" * 16),
    }
    assert wire(pending(4, group="g"))["group"] == "g"


@pytest.mark.parametrize(
    ("refused", "less"),
    [
        ([pending(1), pending(2), pending(3), pending(4)], 2),
        ([pending(1), pending(2)], 1),
        ([pending(1)], None),
        ([pending(1, group="g"), pending(2, group="g")], None),
        ([pending(1, group="g"), pending(2, group="g"), pending(3)], 1),
    ],
)
def test_a_push_refused_whole_is_halved_until_one_unit_stands_alone(refused: list[Pending], less: int | None) -> None:
    """After 400 or 413 half is sent; a lone mutation, or a lone group, cannot be divided."""
    assert halved(refused) == less


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def answers(draw: st.DrawFn, sent: list[Pending]) -> list[Result]:
    """Any answer to a batch: verdicts missing, doubled, of other mutations, in any order."""
    known = [mutation.seq for mutation in sent] + [999]
    results = []
    for seq in draw(st.lists(st.sampled_from(known), max_size=2 * len(known))):
        status: Verdict = draw(st.sampled_from(("applied", "superseded", "rejected", "retry")))
        error = VerdictError(draw(st.sampled_from([*MUTATION_CODES, "unheard_of"])), "because")
        if status == "applied":
            results.append(Result(seq, "applied", scope=SCOPE, version=draw(st.integers(0, 9))))
        else:
            results.append(Result(seq, status, error=error))
    return results


@given(st.data(), outboxes())
def test_no_sequence_of_verdicts_loses_a_mutation(data: st.DataObject, outbox: list[Pending]) -> None:
    """Whatever is answered, each mutation is pending, awaited, done or parked, in one place, and the order is kept."""
    # Invariant (I25).
    waiting, awaited, done, parked = list(outbox), [], [], []
    for _ in range(8):
        sent = batch(waiting, max_mutations=data.draw(st.integers(1, 5)))
        if not sent:
            break
        settled = settle(sent, data.draw(answers(sent)))
        rejected = [mutation for mutation, _ in settled.rejected]
        awaited += [mutation for mutation, version in settled.applied if version]
        done += [*settled.superseded, *(mutation for mutation, version in settled.applied if not version)]
        gone = {m.seq for m in [*rejected, *settled.superseded, *(m for m, _ in settled.applied)]}
        waiting = [mutation for mutation in waiting if mutation.seq not in gone]
        leaning = dependents(rejected, waiting, refs=refs, stands=lambda _: False)
        parked += [*rejected, *(mutation for mutation in waiting if mutation.seq in leaning)]
        waiting = [mutation for mutation in waiting if mutation.seq not in leaning]
        assert all(a.seq < b.seq for a, b in pairwise(waiting))
        everywhere = [*waiting, *awaited, *done, *parked]
        assert sorted(m.seq for m in everywhere) == [m.seq for m in outbox]
        assert (settled.obstacle is not None) == bool(settled.kept)


def test_the_first_verdict_on_a_mutation_counts_and_silence_keeps_it() -> None:
    """A second verdict on the same mutation is not listened to; one without any is kept."""
    sent = [pending(1), pending(2)]
    settled = settle(sent, [Result(1, "applied", version=7), Result(1, "rejected")])
    assert settled.applied == ((sent[0], 7),)
    assert settled.kept == (sent[1],)
    assert settled.remedy is Remedy.RETRY


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("clock_ahead", Remedy.RESTAMP),
        ("schema_mismatch", Remedy.UPGRADE),
        ("unavailable", Remedy.RETRY),
        ("from_the_future", Remedy.RETRY),
    ],
)
def test_what_holds_up_a_push_names_its_remedy(code: str, remedy: Remedy) -> None:
    """The obstacle is the reason beyond `unavailable`, wherever in a group or batch it stands."""
    sent = [pending(1, group="g"), pending(2, group="g"), pending(3)]
    errors = [VerdictError("unavailable", ""), VerdictError(code, ""), VerdictError("unavailable", "")]
    settled = settle(sent, [Result(m.seq, "retry", error=error) for m, error in zip(sent, errors, strict=True)])
    assert settled.kept == tuple(sent)
    assert settled.obstacle is not None
    assert settled.obstacle.code == code
    assert settled.remedy is remedy


@given(outboxes(), st.data())
def test_what_leans_on_a_rejected_put_goes_with_it(outbox: list[Pending], data: st.DataObject) -> None:
    """After parking, no mutation left needs a row that only a parked one made, and no group is torn apart (I26)."""
    parked = [mutation for mutation in outbox if data.draw(st.booleans())]
    standing = data.draw(st.sets(st.sampled_from(KEYS)))
    causes = dependents(parked, outbox, refs=refs, stands=lambda name: name[2] in standing)
    gone = {mutation.seq for mutation in parked} | causes.keys()
    for unit in units(outbox):
        if unit[0].group and any(m.op == "put" or m.group for m in parked):
            assert len({mutation.seq in gone for mutation in unit}) == 1
    visible = {key: key in standing for key in KEYS}
    unmade: set[str] = set()
    for mutation in outbox:
        if mutation.seq in gone:
            unmade |= {mutation.row} if mutation.op == "put" else set()
            continue
        needed = {mutation.row} if mutation.op != "put" else set()
        needed |= {mutation.fields["parent"]} if mutation.fields and mutation.fields.get("parent") else set()
        assert all(visible[key] for key in needed & unmade)
        if mutation.op != "patch":
            visible[mutation.row] = mutation.op == "put"
    for cause in causes.values():
        assert cause in gone


@given(outboxes(), st.data())
def test_a_rejected_mutation_leans_on_an_earlier_put_or_on_nothing(outbox: list[Pending], data: st.DataObject) -> None:
    """If all are rejected, a unit has a cause just if it needs a row that only earlier ones put: such a put (I26)."""
    standing = data.draw(st.sets(st.sampled_from(KEYS)))
    causes = dependents(outbox, [], refs=refs, stands=lambda name: name[2] in standing)
    put: dict[str, set[int]] = {}
    for unit in units(outbox):
        made: dict[str, bool] = {}
        expected: set[int] = set()
        for mutation in unit:
            needed = {mutation.row} if mutation.op != "put" else set()
            needed |= {mutation.fields["parent"]} if mutation.fields and mutation.fields.get("parent") else set()
            for key in needed:
                expected |= set() if made.get(key, key in standing) else put.get(key, set())
            if mutation.op != "patch":
                made[mutation.row] = mutation.op == "put"
        found = {causes.get(mutation.seq) for mutation in unit}
        assert len(found) == 1
        assert found <= expected if expected else found == {None}
        for mutation in unit:
            if mutation.op == "put":
                put.setdefault(mutation.row, set()).add(mutation.seq)


def test_a_row_that_stands_without_the_rejected_put_holds_its_patches() -> None:
    """A patch stays when the server has the row anyway; it goes when the row was only ever put here."""
    put, patch = pending(1), pending(2, "patch", fields={"name": "y"})
    assert dependents([put], [patch], refs=refs, stands=lambda _: False) == {2: 1}
    assert dependents([put], [patch], refs=refs, stands=lambda _: True) == {}


def test_rows_that_refer_to_a_rejected_one_go_with_it_link_by_link() -> None:
    """A chain of references falls from its rejected end; a put that makes the row again stops it."""
    chain = [
        pending(1, row=KEYS[0]),
        pending(2, row=KEYS[1], fields={"name": "x", "labels": {}, "parent": KEYS[0]}),
        pending(3, row=KEYS[2], fields={"name": "x", "labels": {}, "parent": KEYS[1]}),
        pending(4, row=KEYS[3]),
    ]
    assert dependents(chain[:1], chain, refs=refs, stands=lambda _: False) == {2: 1, 3: 2}
    again = [chain[0], pending(2, row=KEYS[0]), pending(3, "patch", KEYS[0], {"name": "y"})]
    assert dependents(again[:1], again, refs=refs, stands=lambda _: False) == {}


def test_a_rejected_patch_takes_nothing_with_it() -> None:
    """Later edits of the row do not lean on an edit that was rejected."""

    def never(_: RowName) -> bool:
        raise AssertionError("not needed")

    rejected, later = pending(1, "patch", fields={"name": "y"}), pending(2, "patch", fields={"name": "z"})
    assert dependents([rejected], [later], refs=refs, stands=never) == {}


# ── readings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(outboxes(), st.integers(0, 20), st.integers(-30, 30), st.integers(0, 40))
def test_stamping_anew_keeps_the_order_and_corrects_the_time(
    outbox: list[Pending], held: int, offset: int, now: int
) -> None:
    """New readings rise strictly, lie above what the clock holds, and name no time that has not come yet (I6)."""
    own = Clock("b" * 16, reading(held, 3, "c" * 16))
    stamped = restamp(outbox, own, offset=offset, now=now)
    assert [m.seq for m in stamped] == [m.seq for m in outbox]
    readings = [reading(held, 3, "b" * 16), *(m.at for m in stamped)]
    assert all(a < b for a, b in pairwise(readings))
    for mutation in stamped:
        assert int(mutation.at[:12], 16) <= max(now, held)
        assert not mutation.handed


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.none() | whole_fields.map(document), outboxes())
def test_pending_edits_on_top_are_the_merge_of_later_writes(doc: dict[str, Any] | None, outbox: list[Pending]) -> None:
    """A row with its pending edits on top is what the server would make of them if nobody else wrote (SPEC 3) (I35)."""
    fields = {name: value for name, value in (doc or {}).items() if name in THINGS.fields}
    state = merge.RowState(reading(0, 0, "0" * 16), doc is None, fields, {}, TIME if doc else "")
    for mutation in outbox:
        write = merge.Write(mutation.op, mutation.at, mutation.fields or {})
        state = merge.apply(state, write).state
    shown = on_top(doc, [msgspec.structs.replace(m, row=KEYS[0]) for m in outbox], THINGS)
    assert (shown is None) == state.deleted
    if shown is not None:
        assert {name: shown[name] for name in THINGS.fields} == state.fields
        assert shown["created_at"] == state.created_at
        assert shown["id"] == KEYS[0]


@given(whole_fields, whole_fields)
def test_a_patch_of_what_changed_changes_just_that(held: dict[str, Any], wanted: dict[str, Any]) -> None:
    """What `changed` says turns the one document into the other, is empty when they are equal, and repeats nothing."""
    doc = document(held)
    patch = changed(doc, wanted, THINGS.maps)
    shown = on_top(doc, [pending(1, "patch", fields=patch)], THINGS)
    assert shown is not None
    assert {name: shown[name] for name in wanted} == wanted
    assert bool(patch) == (held != wanted)
    for path, value in patch.items():
        field, key = merge.split(path)
        before = held[field].get(key) if key is not None else held[field]
        assert before != value
        assert key is not None or field not in THINGS.maps
