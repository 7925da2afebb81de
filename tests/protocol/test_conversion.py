"""Between the shapes of two schema numbers: the laws that hold for every chain of changes (SPEC 10)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol.conversion import Conversions, Translation
from tidemark_protocol.fields import compile_entity
from tidemark_protocol.merge import Write, apply, same_value
from tidemark_protocol.model import Conversion, Declaration, Entity, Field, Key, ScopeColumn

Chain = tuple[list[str], list[Conversion]]

NAMES = ["a", "b", "c", "d", "e"]
LATER = [f"n{i}" for i in range(6)]
TEXTS = ["open", "shut", "wait", "other"]
AT = "0192f3a4b5c6-0001-5f1c9a7e3d2b4a68"


@st.composite
def chains(draw: st.DrawFn, *, invertible: bool = False) -> Chain:
    """The names of the present, and the changes that led from NAMES to them; an invertible chain removes nothing, and
    lets texts change places alone.
    """
    names = list(NAMES)
    steps = []
    for _ in range(draw(st.integers(0, 4))):
        removed: list[str] = []
        if not invertible:
            removed = draw(st.lists(st.sampled_from(names), max_size=1)) if len(names) > 1 else []
        left = [name for name in names if name not in removed]
        moving = draw(st.lists(st.sampled_from(left), unique=True))
        free = [name for name in LATER if name not in names]
        goals = draw(st.permutations([*moving, *free]))[: len(moving)]
        rename = {old: new for old, new in zip(moving, goals, strict=True) if old != new}
        names = [rename.get(name, name) for name in left]
        values = {}
        for name in draw(st.lists(st.sampled_from(names), unique=True)):
            texts = draw(st.permutations(TEXTS)) if invertible else draw(st.lists(st.sampled_from(TEXTS), min_size=4))
            values[name] = dict(zip(TEXTS, texts, strict=False))
        steps.append(Conversion(rename, tuple(removed), values))
    return names, steps


VALUES = st.one_of(st.sampled_from(TEXTS), st.none(), st.integers(0, 3), st.just({"open": "shut"}))


def older_fields() -> st.SearchStrategy[dict[str, Any]]:
    """What an older client may set: fields and keys of maps."""
    paths = st.sampled_from(NAMES + [f"{name}/open" for name in NAMES])
    return st.dictionaries(paths, VALUES)


def entity(names: list[str]) -> Entity:
    """An entity of the present, all its fields nullable texts."""
    fields = {name: Field(name, "text", nullable=True) for name in names}
    return Entity("tasks", "tasks", ScopeColumn("user", "user_id"), fields, key=Key(("id",)))


def declaration(names: list[str], steps: list[Conversion]) -> Declaration:
    """A declaration whose number 2 is the first of the changes."""
    changes: dict[int, Mapping[str, Conversion]] = {n: {"tasks": step} for n, step in enumerate(steps, 2)}
    return Declaration(len(steps) + 1, 1, {}, {"tasks": entity(names)}, changes)


@given(chains(), older_fields())
def test_upward_is_one_number_after_the_other(chain: Chain, fields: dict[str, Any]) -> None:
    """What was set under an old number comes to the same in one step as number by number (I51)."""
    _, steps = chain
    one_by_one = reduce(lambda held, step: Translation([step]).upward(held).fields, steps, fields)
    at_once = Translation(steps).upward(fields)
    assert at_once.fields == one_by_one
    assert at_once.strange is None
    assert len(at_once.fields) + len(at_once.dropped) == len(fields)


@given(chains(), st.data())
def test_downward_is_one_number_after_the_other(chain: Chain, data: st.DataObject) -> None:
    """A document comes to the same old shape in one step as number by number, and keeps every value it has (I52)."""
    names, steps = chain
    doc = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys([*names, "id", "added"], VALUES)))
    one_by_one = reduce(lambda held, step: Translation([step]).downward(held), reversed(steps), doc)
    assert Translation(steps).downward(doc) == one_by_one
    assert len(one_by_one) == len(doc)


@given(chains(invertible=True), older_fields())
def test_what_loses_nothing_is_undone(chain: Chain, fields: dict[str, Any]) -> None:
    """Where changes lose nothing, what was converted upward comes back downward as it was sent (I52)."""
    translation = Translation(chain[1])
    assert translation.downward(translation.upward(fields).fields) == fields


@given(chains(invertible=True), st.fixed_dictionaries(dict.fromkeys(NAMES, st.sampled_from([*TEXTS, None]))))
def test_what_was_put_is_what_is_seen(chain: Chain, put: dict[str, Any]) -> None:
    """An old client sees the row that its put made as it put it, where changes lose nothing (I51, I52)."""
    names, steps = chain
    translation = Translation(steps)
    values = compile_entity(entity(names)).put(translation.upward(put).fields)
    seen = translation.downward(apply(None, Write("put", AT, values)).state.fields)
    assert same_value(seen, put)


@given(chains(), st.integers(0, 8))
def test_the_present_number_is_left_alone(chain: Chain, beyond: int) -> None:
    """Nothing is converted for the present number, or one that is not known yet, nor for entities without changes."""
    names, steps = chain
    conversions = Conversions(declaration(names, steps))
    assert conversions.translation("tasks", len(steps) + 1 + beyond) is None
    assert not conversions.changed_since(len(steps) + 1 + beyond)
    assert conversions.translation("nothing", 1) is None
    assert Translation([]).upward({"a": 1}).fields == {"a": 1}


@given(chains(), st.data())
def test_every_number_s_shape_of_a_mutation_is_known(chain: Chain, data: st.DataObject) -> None:
    """From whichever number a mutation is sent again, it is known by its shape at every later one (I51)."""
    names, steps = chain
    conversions = Conversions(declaration(names, steps))
    fields = data.draw(older_fields())
    shapes = [fields]
    for step in steps:
        shapes.append(Translation([step]).upward(shapes[-1]).fields)
    known = list(conversions.shapes("tasks", 1, fields))
    assert [shape for shape in shapes if shape not in known] == []


@given(chains(invertible=True), older_fields())
def test_an_upgraded_client_s_spelling_is_known(chain: Chain, fields: dict[str, Any]) -> None:
    """What was sent under the oldest number, sent again in the present shape, is known for the same (I51)."""
    names, steps = chain
    now = Translation(steps).upward(fields).fields
    assert fields in list(Conversions(declaration(names, steps)).shapes("tasks", len(steps) + 1, now))


def test_a_later_field_s_name_is_strange() -> None:
    """A name that a later number gave to another field is not the older client's to set, alone or with a key."""
    translation = Translation([Conversion({"name": "title"})])
    assert translation.upward({"title": 1}).strange == "title"
    assert translation.upward({"name/a": 1, "title/a": 1}).strange == "title/a"
