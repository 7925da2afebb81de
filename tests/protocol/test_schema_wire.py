"""The declaration over the wire (SPEC 7)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given

from tests.protocol.declarations import declarations
from tidemark_protocol.errors import DeclarationError
from tidemark_protocol.schema import Declaration, from_wire, parse, to_wire


def as_a_client_knows_it(declaration: Declaration) -> Declaration:
    """The declaration without what stays on the server."""
    entities = {
        name: msgspec.structs.replace(entity, table=name, adopted=False, capture=False)
        for name, entity in declaration.entities.items()
    }
    return msgspec.structs.replace(declaration, entities=entities, changes={})


@given(declarations())
def test_the_wire_carries_all_that_concerns_a_client(tree: dict[str, Any]) -> None:
    """What a client reads from the wire is the parsed file, without table names, capture and changes."""
    declaration = parse(json.dumps(tree))
    wire = json.loads(msgspec.json.encode(to_wire(declaration)))
    read = from_wire(wire)
    assert read == as_a_client_knows_it(declaration)
    assert [list(entity.fields) for entity in read.entities.values()] == [
        list(entity.fields) for entity in declaration.entities.values()
    ]
    assert to_wire(read) == to_wire(declaration)


def test_the_wire_form() -> None:
    """Defaults of options are left out of fields; key and scope are spelled out."""
    declaration = parse(
        """
schema: 2
scopes: {team: {roles: {owner: manage}}}
entities:
  tasks:
    table: Tasks
    scope: team
    fields:
      title: {type: text, max: 3, default: a}
      done:  {type: boolean}
      tags:  {type: map}
    unique: [[title]]
    rules: [{when: delete, refuse_if: {done: true}, message: kept}]
    display: {icon: x}
changes: {2: {tasks: {remove: [old]}}}
"""
    )
    assert to_wire(declaration) == {
        "schema": 2,
        "oldest": 2,
        "scopes": {"team": {"roles": {"owner": "manage"}}},
        "entities": {
            "tasks": {
                "scope": {"kind": "team", "column": "team_id", "type": "text"},
                "key": {"columns": ["id"], "types": ["uuid"], "per_scope": False},
                "fields": {
                    "title": {"type": "text", "default": "a", "max": 3},
                    "done": {"type": "boolean"},
                    "tags": {"type": "map", "default": {}},
                },
                "index": [],
                "unique": [["title"]],
                "rules": [{"when": "delete", "refuse_if": {"done": True}, "message": "kept"}],
                "display": {"icon": "x"},
            }
        },
    }


GOOD: dict[str, Any] = {"schema": 1, "oldest": 1, "scopes": {}, "entities": {}}


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        {},
        GOOD | {"schema": "1"},
        GOOD | {"scopes": {"team": {"roles": {"a": "all"}}}},
        GOOD | {"entities": {"a": None}},
        GOOD | {"entities": {"a": {}}},
        GOOD | {"entities": {"a": {"scope": {"kind": "user", "column": "user_id"}, "fields": [1]}}},
        GOOD | {"entities": {"a": {"scope": {"kind": "user", "column": "user_id"}, "fields": {"x": 1}}}},
        GOOD | {"entities": {"a": {"scope": {"kind": "user", "column": "user_id"}, "fields": {"x": {"type": "txt"}}}}},
        GOOD
        | {
            "entities": {
                "a": {"scope": {"kind": "user", "column": "user_id"}, "fields": {"x": {"type": "uuid", "ref": "b"}}}
            }
        },
    ],
)
def test_what_is_no_declaration_is_refused(wire: object) -> None:
    """An answer that is no declaration is a DeclarationError with a fault."""
    with pytest.raises(DeclarationError) as caught:
        from_wire(wire)
    assert caught.value.faults
