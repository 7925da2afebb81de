"""Hostile JSON: values nobody should send, and every place to put them. All of it is text, as it travels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.contract.client import Device, Json, fresh, key

HOLE = '"@@"'

STRINGS = [
    "",
    " ",
    "\\u0000",
    "a\\u0000b",
    "\\n",
    "a\\n",
    "\\ufeff",
    "\\u202eabc",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\udc00\\ud800",
    "a\\udfffb",
    "' OR '1'='1",
    "'; DROP TABLE notes; --",
    '\\"; DROP TABLE notes; --',
    "$1",
    ":name",
    "?",
    "%s%n%x{0}{}",
    "{{7*7}}",
    "${jndi:x}",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "%00",
    "user:%00",
    "user:%",
    "workspace:",
    "__proto__",
    "constructor",
    "sync_feed",
    "NaN",
    "null",
    "ffffffffffff-ffff-ffffffffffffffff",
    "000000000000-0000-0000000000000000",
    "00000000-0000-0000-0000-000000000000",
    "\u00e9" * 200,
    "A" * 129,
    "A" * 70_000,
    "\\\\" * 5_000,
]

VALUES = [
    *(f'"{text}"' for text in STRINGS),
    "null",
    "true",
    "false",
    "0",
    "-0",
    "-1",
    "1.0",
    "1.5",
    "-1e-400",
    "1e400",
    "-1e400",
    "1E+2",
    "9007199254740992",
    "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775809",
    "1" + "0" * 4_000,
    "0." + "1" * 4_000,
    "[]",
    "[[]]",
    "[null]",
    '["a", 1, null]',
    "[" * 25 + "]" * 25,
    "[" * 45 + "]" * 45,
    "[" * 70 + "]" * 70,
    "[" * 20_000 + "]" * 20_000,
    '{"a":' * 45 + "1" + "}" * 45,
    '{"a":' * 20_000 + "1" + "}" * 20_000,
    "{}",
    '{"": ""}',
    '{"a": 1, "a": 2}',
    '{"__proto__": {"x": 1}}',
    '{"\\u0000": 1}',
    '{"\\ud800": 1}',
    '{"$ne": null}',
    '{"a/b~c": {"d": [1, {"e": null}]}}',
    "NaN",
    "Infinity",
    "-Infinity",
    "01",
    ".5",
    "+1",
    "0x1F",
    "'x'",
    '"\\x41"',
    '"\t"',
    '"unclosed',
    "[1,]",
    '{"a":}',
    "/* x */ 1",
]

BODIES = [
    "",
    " ",
    "\x00",
    "{",
    "}",
    "[",
    '"',
    "nul",
    "{}{}",
    "{} x",
    "\ufeff{}",
    "a=b&c=d",
    "<xml/>",
    "--boundary",
    "[" * 500_000,
    '{"a":' * 100_000,
    *VALUES,
]

RAW = [
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b'{"client": "\xff"}',
    b"\x00" * 1000,
    "{}".encode("utf-16"),
    b'"\xf5\x80\x80\x80"',
]

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
"""Values that anybody may send."""


def filled(body: Any, values: list[str]) -> Iterator[str]:
    """The body with its hole filled by each value; the hole may be a key too, which takes the texts alone."""
    text = json.dumps(body)
    assert HOLE in text
    as_key = f"{HOLE}:" in text
    for value in values:
        if not as_key or value.startswith('"'):
            yield text.replace(HOLE, value)


def push_holes(device: Device, workspace: str) -> dict[str, Json]:
    """Pushes with one hole each, by where it is. The rest of each is good."""

    def push(entity: str = "notes", **change: Any) -> Json:
        good = device.put(entity, fields={"title": "t"} if entity == "notes" else {})
        return device.envelope([good | change])

    holes = {
        name: device.envelope([push()["mutations"][0] | {name: "@@"}])
        for name in ("seq", "op", "entity", "row", "at", "scope", "fields", "group", "odd")
    }
    holes |= {f"envelope {name}": push() | {name: "@@"} for name in ("client", "schema", "mutations", "odd")}
    holes["a mutation"] = push() | {"mutations": ["@@"]}
    holes["a second mutation"] = push() | {"mutations": [*push()["mutations"], "@@"]}
    samples = (
        "word",
        "code",
        "count",
        "ratio",
        "price",
        "open",
        "day",
        "hour",
        "moment",
        "token",
        "state",
        "data",
        "labels",
    )
    holes |= {f"field {name}": push("samples", fields={name: "@@"}) for name in samples}
    holes["a field's name"] = push("samples", fields={"@@": 1})
    holes["a map's value"] = push("samples", fields={"labels": {"k": "@@"}})
    holes["a map's key"] = push("samples", fields={"labels": {"@@": 1}})
    holes["within json"] = push("samples", fields={"data": {"a": ["@@"]}})
    holes["a json key"] = push("samples", fields={"data": {"@@": 1}})
    holes["a text key"] = push("slugs", row="@@")
    holes["a key per scope"] = push("tags", scope=workspace, row="@@")
    holes["a unique text"] = push("texts", fields={"value": "@@"})
    holes["a reference"] = push("hints", fields={"parent_id": "@@"})
    holes["an envelope's key"] = push() | {"@@": 1}
    holes["a mutation's key"] = device.envelope([push()["mutations"][0] | {"@@": 1}])
    return holes


def patch_holes(device: Device, row: str) -> dict[str, Json]:
    """Patches and deletes of a living sample with one hole each."""

    def push(kind: str = "patch", **change: Any) -> Json:
        return device.envelope([{"op": kind, "entity": "samples", "row": row, "at": device.clock.tick()} | change])

    return {
        "patch: a path": push(fields={"@@": 1}),
        "patch: a map's value": push(fields={"labels/k": "@@"}),
        "patch: a map": push(fields={"labels": "@@"}),
        "patch: json": push(fields={"data": "@@"}),
        "patch: a text": push(fields={"word": "@@"}),
        "patch: no fields": push(odd="@@"),
        "delete: with fields": push("delete", row=key(), fields="@@"),
        "group": push(fields={"word": "ab"}, group="@@"),
    }


def pull_holes(device: Device) -> dict[str, Json]:
    """Pulls with one hole each."""
    holes = {
        name: device.pull_body() | {name: "@@"}
        for name in ("client", "schema", "watermark", "scopes", "limit", "wait", "odd")
    }
    holes["a watermark"] = device.pull_body({device.scope: "@@"})
    holes["another watermark"] = device.pull_body({f"workspace:{fresh('none')}": "@@"})
    holes["a watermark's scope"] = device.pull_body({"@@": "x.1.0.3"})
    holes["a scope"] = device.pull_body(scopes=["@@"])
    return holes
