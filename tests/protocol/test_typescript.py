"""The protocol as TypeScript: what a browser client is compiled against."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol import errors, messages, stream_server
from tidemark_protocol.typescript import WIDTH, assigned, codes_module, doc, key, literal, messages_module, value_lines
from tools import generate


def interfaces() -> dict[str, dict[str, str]]:
    """Interface → member, with its question mark → type."""
    found = re.findall(r"^export interface (\w+) \{\n(.*?)^\}", messages_module(), re.MULTILINE | re.DOTALL)
    return {name: dict(re.findall(r"^  ([\w?]+): (.*);$", body, re.MULTILINE)) for name, body in found}


@pytest.mark.parametrize("path", generate.wire_types(), ids=lambda path: path.name)
def test_the_wire_types_are_up_to_date(path: Any) -> None:
    """What is committed is what `make generate` writes."""
    assert path.read_text(encoding="utf-8") == generate.wire_types()[path]


def test_every_message_has_an_interface_of_its_name() -> None:
    """With all that travels under its name on the wire, and no member besides."""
    found = interfaces()
    structs = [
        value for value in vars(messages).values() if isinstance(value, type) and issubclass(value, msgspec.Struct)
    ]
    ours = [struct for struct in structs if struct.__module__ == messages.__name__]
    assert found.keys() == {struct.__name__ for struct in ours} | {"Member"}
    for struct in ours:
        config = struct.__struct_config__
        names = {*struct.__struct_encode_fields__, *([config.tag_field] if config.tag_field else [])}
        assert {name.rstrip("?") for name in found[struct.__name__]} == names


@pytest.mark.parametrize("union", ["ClientFrame", "ServerFrame"])
def test_frames_are_told_apart_by_their_tag(union: str) -> None:
    """Each union holds its frames, and each frame its own literal `t`."""
    frames = get_args(getattr(messages, union))
    text = re.search(rf"^export type {union} =([^;]*);", messages_module(), re.MULTILINE)
    assert text is not None
    assert re.findall(r"\w+", text[1]) == [frame.__name__ for frame in frames]
    tags = [interfaces()[frame.__name__]["t"] for frame in frames]
    assert tags == [f'"{frame.__struct_config__.tag}"' for frame in frames]


def test_members_say_whether_they_may_be_missing_or_null() -> None:
    """`?` where the other side may leave one out, null where null may come; a mutation as clients mean it."""
    found = interfaces()
    assert found["Run"]["digest?"] == "string | null"
    assert found["Run"]["reset?"] == "boolean"
    assert found["Change"]["doc"] == "Record<string, Json> | null"
    assert found["Result"]["version?"] == "number"
    assert found["Result"]["status"] == "Verdict"
    assert found["Presence"]["members?"] == "Record<string, Member>"
    assert found["Broadcast"]["payload?"] == "Json"
    assert found["Broadcasted"]["payload"] == "Json"
    assert found["Mutation"] == {
        "seq": "number",
        "op": '"put" | "patch" | "delete"',
        "entity": "string",
        "row": "string",
        "at": "string",
        "scope?": "string | null",
        "fields?": "Fields | null",
        "group?": "string | null",
    }


def test_every_code_is_known() -> None:
    """Codes of mutations, requests and rooms are types, and those that a stream closes with have names."""
    text = codes_module()
    kinds: dict[str, Iterable[str]] = {
        "MutationCode": errors.MUTATION_CODES,
        "RequestCode": errors.REQUEST_CODES,
        "RoomCode": errors.ROOM_CODES,
    }
    for name, codes in kinds.items():
        union = "".join(f'\n  | "{code}"' for code in codes)
        assert f"export type {name} ={union};" in text
    for close in stream_server.CloseCode:
        assert f"export const CLOSE_{close.name} = {close.value};" in text


def test_every_code_with_a_remedy_of_its_own_has_it() -> None:
    """What is neither parked nor simply sent again says so, and no other code says anything."""
    mutations, requests = (part.partition("};")[0] for part in codes_module().split("]?: Remedy } = {")[1:])
    said = {code: remedy for code, remedy in errors.MUTATION_CODES.items() if remedy != "park"}
    assert dict(re.findall(r'  (\w+): "(\w+)",', mutations)) == said
    said = {code: remedy for code, (_, remedy) in errors.REQUEST_CODES.items() if remedy != "retry"}
    assert dict(re.findall(r'  (\w+): "(\w+)",', requests)) == said


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Colour(StrEnum):
    """Some words."""

    RED = "red"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", '"plain"'),
        ('say "hi"', "'say \"hi\"'"),
        ("it's", '"it\'s"'),
        ('"it\'s"', "'\"it\\'s\"'"),
        ('\\"', "'\\\\\"'"),
        ("a\nb", '"a\\nb"'),
        (Colour.RED, '"red"'),
        (2.0, "2"),
        (0.7, "0.7"),
        ([], "[]"),
        ({}, "{}"),
        ({"a": 1, "a b": [True, None], "__proto__": 1}, '{ a: 1, "a b": [true, null], ["__proto__"]: 1 }'),
    ],
)
def test_a_value_is_written_as_a_literal(value: Any, written: str) -> None:
    """In the quotes that need fewer escapes; a member that would set the prototype is written as a member."""
    assert literal(value) == written


def test_what_does_not_fit_on_a_line_is_split() -> None:
    """Objects, lists and unions, and nothing else: each part on a line of its own."""
    long = ["x" * 70, "y" * 70]
    assert list(value_lines("  a: ", {"b": long, "c": 1})) == [
        "  a: {",
        "    b: [",
        f'      "{long[0]}",',
        f'      "{long[1]}",',
        "    ],",
        "    c: 1,",
        "  },",
    ]
    assert list(value_lines("  a: ", "x" * 200)) == [f'  a: "{"x" * 200}",']
    assert list(assigned("  a:", long)) == ["  a:", f"    | {long[0]}", f"    | {long[1]};"]
    assert list(assigned("  a:", ["b", "null"])) == ["  a: b | null;"]


@given(st.text())
def test_a_comment_ends_where_it_ends(about: str) -> None:
    """No words of a declaration close a comment early."""
    text = "\n".join(doc(about))
    assert text.count("*/") == bool(text)
    assert not text or text.endswith("*/")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_name_is_quoted_where_it_is_no_identifier(name: str) -> None:
    """Else it stands for itself."""
    plain = re.fullmatch(r"[A-Za-z_$][\w$]*", name, re.ASCII) and name != "__proto__"
    assert (key(name) == name) == bool(plain)


def test_lines_keep_to_the_width() -> None:
    """As far as the formatter can break them."""
    assert max(map(len, f"{messages_module()}\n{codes_module()}".splitlines())) <= WIDTH
