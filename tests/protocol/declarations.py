"""Random schema files without fault, as trees."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = ["alpha", "beta", "gamma", "delta", "epsilon"]
FIELDS = ["a", "b_1", "name", "title", "position", "state", "note", "parent"]
KINDS = ["user", "workspace", "team"]

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "text": [{}, {"max": 10}, {"min": 1, "max": 3, "default": "ab"}, {"pattern": "[a-z]*", "default": ""}],
    "integer": [{}, {"min": -1}, {"min": 0, "max": 9, "default": 3}],
    "number": [{}, {"min": 0.5, "default": 1}, {"max": 2, "default": -1.5}],
    "decimal": [
        {"precision": 5, "scale": 2},
        {"precision": 4, "default": "-3"},
        {"precision": 2, "scale": 2, "default": "0.5"},
    ],
    "boolean": [{}, {"default": False}],
    "date": [{}, {"default": "2024-02-29"}],
    "time": [{}, {"default": "12:00:00.5"}],
    "datetime": [{}, {"default": "2024-02-29T12:00:00+01:00"}],
    "uuid": [{}, {"default": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"}],
    "enum": [{"values": ["a", "true", "no"]}, {"values": ["ä", "b"], "default": "b"}],
    "json": [{}, {"default": []}, {"default": {"a": [None, 1.5]}}],
    "map": [{}, {"default": {}}],
}


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of one entity."""
    declared: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(FIELDS), min_size=1, unique=True)):
        kind = draw(st.sampled_from(list(OPTIONS)))
        field = {"type": kind, **draw(st.sampled_from(OPTIONS[kind]))}
        if kind != "map" and draw(st.booleans()):
            field["nullable"] = draw(st.booleans())
        declared[name] = field
    return declared


@st.composite
def entities(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """One entity."""
    declared = draw(fields())
    entity: dict[str, Any] = {"scope": draw(st.sampled_from(KINDS)), "fields": declared}
    indexed = [field for field, options in declared.items() if options["type"] not in ("json", "map")]
    for option in ("index", "unique"):
        if draw(st.booleans()) and indexed:
            columns = st.lists(st.sampled_from(indexed), min_size=1, max_size=3, unique=True)
            entity[option] = draw(st.lists(columns, max_size=2, unique_by=tuple))
    if draw(st.booleans()):
        entity["key"] = draw(
            st.sampled_from(
                [
                    {},
                    {"type": "text"},
                    {"column": "key", "type": "integer"},
                    {"per_scope": True},
                    {"columns": ["key", "line"], "type": ["uuid", "integer"]},
                ]
            )
        )
    if draw(st.booleans()):
        entity |= {"table": f"T_{name}", "capture": draw(st.booleans())}
        entity["scope"] = {"kind": entity["scope"], "column": "owner", "type": "uuid"}
    nullable = [field for field, options in declared.items() if options.get("nullable")]
    if draw(st.booleans()) and nullable:
        entity["rules"] = [{"when": "put", "refuse_if": {nullable[0]: None}, "message": "no"}]
    if draw(st.booleans()):
        entity["display"] = {"icon": "🏷", "columns": [*declared, "updated_at"]}
    return entity


@st.composite
def declarations(draw: st.DrawFn) -> dict[str, Any]:
    """A whole file, references between entities of one kind of scope included."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    declared = {name: draw(entities(name)) for name in names}
    number = draw(st.integers(1, 5))
    tree: dict[str, Any] = {
        "schema": number,
        "oldest": draw(st.integers(1, number)),
        "scopes": {kind: {"roles": {"viewer": "read", "owner": "manage"}} for kind in KINDS if kind != "user"},
        "entities": declared,
    }
    for entity in declared.values():
        target = draw(st.sampled_from(names))
        if _kind(declared[target]) == _kind(entity) and draw(st.booleans()):
            entity["fields"]["target"] = {
                "type": _ref_type(declared[target].get("key", {})),
                "ref": target,
                "nullable": True,
                "on_delete": draw(st.sampled_from(["restrict", "cascade", "set_null", "keep"])),
            }
    if number > 1:
        name = names[0]
        conversion: dict[str, Any] = {"rename": {"former": next(iter(declared[name]["fields"]))}, "remove": ["legacy"]}
        enums = [field for field, options in declared[name]["fields"].items() if options["type"] == "enum"]
        conversion["values"] = {field: {"old": declared[name]["fields"][field]["values"][0]} for field in enums}
        tree["changes"] = {str(number): {name: conversion}}
    return tree


def _kind(entity: dict[str, Any]) -> str:
    scope = entity["scope"]
    return str(scope["kind"] if isinstance(scope, dict) else scope)


def _ref_type(key: dict[str, Any]) -> str:
    return "text" if "columns" in key else str(key.get("type", "uuid"))
