"""Reading schema files (SPEC 10)."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from tests.protocol.declarations import declarations
from tidemark_protocol.errors import DeclarationError
from tidemark_protocol.fields import compile_entity
from tidemark_protocol.schema import Conversion, Field, Key, Rule, ScopeColumn, parse

EXAMPLES = Path(__file__).parents[2] / "examples"

FILE = """
schema: 3
oldest: 2
scopes:
  workspace:
    roles: {viewer: read, editor: write, owner: manage}
entities:
  user_calendars:
    scope: user
    fields:
      name:       {type: text, max: 120}
      type:       {type: enum, values: [default, on, off], default: on}
      position:   {type: integer, default: 0x10}
      since:      {type: date, default: 2024-02-29}
      seen:       {type: datetime, default: "2024-02-29T12:00:00+02:00"}
      rate:       {type: decimal, precision: 8, scale: 2, default: "-0"}
      gone:       {type: text, nullable: true, default: null}
    rules:
      - {when: delete, refuse_if: {type: default, rate: "0", gone: null}, message: "kept"}
    display: {icon: "🏷", columns: [name, updated_at]}
  project_tasks:
    scope: workspace
    key: {per_scope: true}
    fields:
      parent_id:  {type: uuid, ref: project_tasks, on_delete: cascade, nullable: true}
      order:      {type: text, ref: order_lines, nullable: true}
      title:      {type: text, max: 300}
      status:     {type: enum, values: [todo, done], default: todo}
      labels:     {type: map, default: {}}
    index: [[status]]
    unique: [[parent_id, title]]
  order_lines:
    table: Orders
    key: {columns: [order_key, line_number], type: [text, integer]}
    scope: {kind: workspace, column: tenant_id, type: integer}
    capture: true
    fields: {price: {type: number}}
changes:
  2: {project_tasks: {rename: {label: name}, values: {status: {fresh: open}}}}
  3: {project_tasks: {rename: {name: title}, remove: [flag], values: {status: {open: todo, closed: done}}}}
"""


def test_a_file_says_what_it_says() -> None:
    """Every part of a file is found in the declaration, defaults and rules' values canonical."""
    read = parse(FILE)
    assert (read.number, read.oldest) == (3, 2)
    assert read.scopes == {"workspace": {"viewer": "read", "editor": "write", "owner": "manage"}}
    calendars, tasks, lines = read.entities.values()
    assert list(calendars.fields) == ["name", "type", "position", "since", "seen", "rate", "gone"]
    assert calendars.fields["type"] == Field("type", "enum", values=("default", "on", "off"), default="on")
    assert calendars.fields["position"].default == 16
    assert calendars.fields["since"].default == "2024-02-29"
    assert calendars.fields["seen"].default == "2024-02-29T10:00:00.000000Z"
    assert calendars.fields["rate"].default == "0.00"
    assert calendars.fields["gone"].default is UNSET
    assert calendars.rules == (Rule("delete", {"type": "default", "rate": "0.00", "gone": None}, "kept"),)
    assert calendars.display == {"icon": "🏷", "columns": ["name", "updated_at"]}
    assert (calendars.table, calendars.adopted, calendars.key) == ("user_calendars", False, Key())
    assert calendars.scope == ScopeColumn("user", "user_id")
    assert tasks.key == Key(per_scope=True)
    assert (tasks.index, tasks.unique) == ((("status",),), (("parent_id", "title"),))
    assert (lines.table, lines.adopted, lines.capture) == ("Orders", True, True)
    assert lines.key == Key(("order_key", "line_number"), ("text", "integer"))
    assert lines.scope == ScopeColumn("workspace", "tenant_id", "integer")
    assert read.changes[3]["project_tasks"] == Conversion(
        {"name": "title"}, ("flag",), {"status": {"open": "todo", "closed": "done"}}
    )


def test_what_is_asked_of_a_declaration_is_at_hand() -> None:
    """Maps, references in and out, and names that no mutation sets are known for each entity."""
    read = parse(FILE)
    tasks, lines = read.entities["project_tasks"], read.entities["order_lines"]
    assert tasks.maps == {"labels"}
    assert [field.name for field in tasks.refs] == ["parent_id", "order"]
    assert read.referrers["project_tasks"] == ((tasks, tasks.fields["parent_id"]),)
    assert read.referrers["order_lines"] == ((tasks, tasks.fields["order"]),)
    assert read.referrers["user_calendars"] == ()
    assert lines.read_only == {"order_key", "line_number", "tenant_id", "created_at", "updated_at"}


def test_what_a_put_must_give() -> None:
    """A field is required without default and without null; a map starts as {}."""
    fields = parse(FILE).entities["project_tasks"].fields
    assert [name for name, field in fields.items() if field.required] == ["title"]
    assert [field.initial for field in fields.values()] == [None, None, UNSET, "todo", {}]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("{type: text}", Key(("id",), ("text",))),
        ("{column: order_key, type: integer}", Key(("order_key",), ("integer",))),
        ("{column: order_key}", Key(("order_key",), ("uuid",))),
        ("{columns: [a, b]}", Key(("a", "b"), ("text", "text"))),
        ("{columns: [a, b], type: integer}", Key(("a", "b"), ("integer", "integer"))),
        ("{columns: [a]}", Key(("a",), ("text",))),
        ("{per_scope: true, type: text}", Key(("id",), ("text",), True)),
    ],
)
def test_keys(key: str, expected: Key) -> None:
    """A single key is a UUID named `id` unless said otherwise; the parts of a joined one are text."""
    read = parse(f"schema: 1\nentities: {{a: {{scope: user, key: {key}, fields: {{x: {{type: text}}}}}}}}")
    assert read.entities["a"].key == expected


@pytest.mark.parametrize(
    ("key", "types"),
    [
        ("uuid", ["uuid"]),
        ("text", ["text"]),
        ("integer", ["integer", "text"]),
    ],
)
def test_references_are_of_the_keys_type(key: str, types: list[str]) -> None:
    """A reference holds a key in the key's own type; an integer key also as its text."""
    for kind in ("uuid", "text", "integer"):
        text = f"""
schema: 1
entities:
  a: {{scope: user, key: {{type: {key}}}, fields: {{x: {{type: boolean}}}}}}
  b: {{scope: user, fields: {{a_id: {{type: {kind}, ref: a}}}}}}
"""
        with (
            contextlib.nullcontext()
            if kind in types
            else pytest.raises(DeclarationError, match=r"b\.fields\.a_id\.ref")
        ):
            parse(text)


def test_names_may_be_swapped_between_numbers() -> None:
    """Two fields may take each other's names in one change."""
    read = parse(
        "schema: 2\nentities: {e: {scope: user, fields: {a: {type: text}, b: {type: text}}}}\n"
        "changes: {2: {e: {rename: {a: b, b: a}}}}"
    )
    assert read.changes[2]["e"].rename == {"a": "b", "b": "a"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/schema.yaml")), ids=lambda path: path.parent.name)
def test_the_examples_are_declared_well(path: Path) -> None:
    """Each example's file has no fault, and its validators compile."""
    for entity in parse(path.read_text(encoding="utf-8")).entities.values():
        compile_entity(entity)


@given(declarations())
def test_what_is_declared_well_is_taken(tree: dict[str, Any]) -> None:
    """A file without fault is read, with its entities and fields in their order."""
    read = parse(json.dumps(tree))
    assert list(read.entities) == list(tree["entities"])
    for name, entity in read.entities.items():
        assert list(entity.fields) == list(tree["entities"][name]["fields"])
        compile_entity(entity)


strange: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 2**70, 1.5, "", "x", "text", "\0", [], [[]], {}, {"": None}, [None], {"type": []}]
)


@given(declarations(), st.data())
def test_any_file_is_taken_or_refused(tree: dict[str, Any], data: st.DataObject) -> None:
    """Whatever stands anywhere in a file, it is read or refused with faults, never anything else."""
    spoilt = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        node: Any = spoilt
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 4)):
                node = node[key]
                continue
            node[key] = copy.deepcopy(data.draw(strange))
            break
    with contextlib.suppress(DeclarationError):
        for entity in parse(json.dumps(spoilt)).entities.values():
            compile_entity(entity)
