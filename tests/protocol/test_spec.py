"""SPEC.md and the code say the same, both ways: codes, remedies, messages, invariants."""

from __future__ import annotations

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidemark_protocol import messages
from tidemark_protocol.errors import MUTATION_CODES, REQUEST_CODES, ROOM_CODES, DeclarationError, Remedy
from tidemark_protocol.schema import parse
from tidemark_protocol.stream_server import SUBPROTOCOL, CloseCode

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "sync_protocol" / "SPEC.md").read_text(encoding="utf-8")
STRUCTS: dict[str, Any] = {
    name: value
    for name, value in vars(messages).items()
    if inspect.isclass(value) and issubclass(value, msgspec.Struct) and value.__module__ == messages.__name__
}

FINGERPRINTS = {"tidemark.v1": "e03971b68f0e7de967024824a7fcf738fc1bfed5fb4eb0fff8b0c7b1f7a2ca5e"}
"""What travels under each version. A change that an older peer cannot ignore needs another version; one that it can
(a new member with a default, a new code with a known remedy) needs the new fingerprint here."""


def table(*header: str) -> list[list[str]]:
    """The rows, cell by cell without code marks, of the table of SPEC.md whose header begins with these cells."""
    start = f"| {' | '.join(header)} |"
    after = SPEC.split(start, 1)[1].splitlines()[2:]
    rows = []
    for line in after:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


def test_the_codes_of_a_mutation_stand_in_their_order_with_their_remedies() -> None:
    """The table of section 4 is MUTATION_CODES: the same codes, order and remedies (I19)."""
    said = [(code, remedy) for code, remedy, _ in table("code", "remedy", "when")]
    assert said == [(code, remedy.value) for code, remedy in MUTATION_CODES.items()]


def test_the_codes_that_put_off_are_marked() -> None:
    """Exactly the codes whose remedy keeps the outbox as it is are verdicts `retry` in section 4."""
    marked = {code for code, _, when in table("code", "remedy", "when") if when.startswith("(retry)")}
    assert marked == {code for code, remedy in MUTATION_CODES.items() if remedy is not Remedy.PARK}


def test_the_codes_of_a_request_stand_with_status_and_remedy() -> None:
    """The table of section 7 is REQUEST_CODES: the same codes, statuses and remedies (I47)."""
    said = [(code, int(status), remedy) for code, status, remedy, _ in table("code", "status", "remedy")]
    assert said == [(code, status, remedy.value) for code, (status, remedy) in REQUEST_CODES.items()]


def test_the_codes_of_rooms_stand_with_their_remedies() -> None:
    """The table of section 6 is ROOM_CODES: the same codes and remedies."""
    said = [(code, remedy) for code, remedy, _ in table("code", "remedy", "about a room")]
    assert said == [(code, remedy.value) for code, remedy in ROOM_CODES.items()]


def test_every_remedy_is_explained() -> None:
    """The table of remedies is the enumeration."""
    assert [remedy for remedy, _ in table("remedy", "the client")] == [remedy.value for remedy in Remedy]


def test_every_close_code_is_explained() -> None:
    """The table of section 6 names the close codes that the stream uses, and no others."""
    said = {int(number) for codes, *_ in table("close code", "why") for number in re.findall(r"\d{4}", codes)}
    assert said == {code.value for code in CloseCode}


def test_every_message_stands_with_its_members() -> None:
    """Appendix A is messages.py: the same messages, tags and members, in order."""
    said = {name: (travels, members) for name, travels, members in table("message", "travels as", "members")}
    assert said.keys() == STRUCTS.keys()
    for name, struct in STRUCTS.items():
        travels, members = said[name]
        fields = msgspec.structs.fields(struct)
        assert members == ", ".join(field.encode_name + ("" if field.required else "?") for field in fields), name
        tag = struct.__struct_config__.tag
        assert travels.startswith(f"t = {tag}, ") if tag else not travels.startswith("t ="), name


@pytest.mark.parametrize(
    ("direction", "union"), [("to the server", messages.ClientFrame), ("to the client", messages.ServerFrame)]
)
def test_every_frame_travels_its_way(direction: str, union: Any) -> None:
    """The unions of frames hold what appendix A sends each way."""
    said = {name for name, travels, _ in table("message", "travels as", "members") if travels.endswith(direction)}
    assert said == {struct.__name__ for struct in union.__args__}


@pytest.mark.parametrize(
    ("said", "number", "field"),
    [
        (r"schema: 3 +# 1 to ([\d,]+);", "%d", "type: text"),
        (r"`precision` \(1 to (\d+)", "1", "type: decimal, precision: %d"),
        (r"`scale` \(0 to (\d+)", "1", "type: decimal, precision: 65, scale: %d"),
        (r"code points, up to ([\d,]+)", "1", "type: text, max: %d"),
    ],
)
def test_the_numbers_of_a_declaration_end_where_section_10_says(said: str, number: str, field: str) -> None:
    """The greatest number that section 10 names is taken, the next one is refused."""
    found = re.search(said, SPEC)
    assert found is not None
    limit = int(found[1].replace(",", ""))
    text = f"schema: {number}\nentities: {{a: {{scope: user, fields: {{b: {{{field}}}}}}}}}"
    parse(text % limit)
    with pytest.raises(DeclarationError):
        parse(text % (limit + 1))


def test_the_wire_has_not_changed_unnoticed() -> None:
    """What travels under this version of the protocol is what its fingerprint says."""
    _, components = msgspec.json.schema_components(list(STRUCTS.values()))
    codes = [list(codes.items()) for codes in (MUTATION_CODES, REQUEST_CODES, ROOM_CODES)]
    shape = [without_descriptions(components), *codes]
    found = hashlib.sha256(msgspec.json.encode(shape, order="sorted")).hexdigest()
    assert found == FINGERPRINTS[SUBPROTOCOL]


def without_descriptions(tree: Any) -> Any:
    """A JSON Schema without its prose."""
    if isinstance(tree, dict):
        return {key: without_descriptions(value) for key, value in tree.items() if key != "description"}
    return [without_descriptions(value) for value in tree] if isinstance(tree, list) else tree


def test_every_number_cited_is_an_invariant() -> None:
    """What tests cite stands in SPEC.md, where each invariant is stated once and numbered without a gap."""
    stated = [int(number) for number in re.findall(r"^> \*\*I(\d+)\*\* ", SPEC, re.MULTILINE)]
    assert stated == list(range(1, len(stated) + 1))
    assert {number for numbers in citations().values() for number in numbers} <= set(stated)


def test_every_invariant_is_held() -> None:
    """Appendix B names every invariant, and tests that cite it."""
    rows = table("", "in short", "held by")
    stated = re.findall(r"^> \*\*I(\d+)\*\* ", SPEC, re.MULTILINE)
    assert [number for number, *_ in rows] == [f"I{number}" for number in stated]
    cited = citations()
    for number, _, files in rows:
        assert files, f"{number} is held by no test"
        for file in files.split(", "):
            assert int(number[1:]) in cited.get(f"tests/{file}.py", set()), f"{file} does not cite {number}"


def citations() -> dict[str, set[int]]:
    """For each file of tests the numbers it cites, in round brackets, with commas between them."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        groups = re.findall(r"\((I\d+(?:, I\d+)*)\)", path.read_text(encoding="utf-8"))
        found[path.relative_to(ROOT).as_posix()] = {int(n) for group in groups for n in re.findall(r"\d+", group)}
    return found
