"""Every fault of a schema file is named by its path (SPEC 10)."""

from __future__ import annotations

import pytest

from tidemark_protocol.errors import DeclarationError, Fault
from tidemark_protocol.schema import parse

FILE = """\
schema: {number}
scopes:
  workspace: {{roles: {{editor: write}}}}
entities:
  things:
    scope: user
    fields:
      name: {{type: text}}
      kind: {{type: enum, values: [a, b]}}
      data: {{type: json}}
      tags: {{type: map}}
{body}
"""


def faults(text: str) -> list[Fault]:
    """The faults of a schema file."""
    with pytest.raises(DeclarationError) as caught:
        parse(text)
    return caught.value.faults


def field(declared: str) -> str:
    """A file whose only fault can be the field `x`."""
    return FILE.format(number=1, body=f"      x: {declared}")


def entity(options: str) -> str:
    """A file whose only fault can be what `things` says beside its fields."""
    return FILE.format(number=1, body="\n".join(f"    {line}" for line in options.splitlines()))


def changed(changes: str) -> str:
    """A file of number 3 whose only fault can be its changes."""
    return FILE.format(number=3, body=f"changes:\n  {changes}")


def whole(text: str) -> str:
    """A file with one small entity and `text` on top."""
    return f"{text}\nentities: {{things: {{scope: user, fields: {{name: {{type: text}}}}}}}}"


X = "entities.things.fields.x"
T = "entities.things"
BOARDS = "\n  boards: {scope: workspace, fields: {name: {type: text}}}"

FAULTS = [
    # one field
    (field("text"), X, "a field is a mapping, here stands 'text'"),
    (field("{}"), f"{X}.type", "is missing"),
    (field("{type: string}"), f"{X}.type", "must be one of text,"),
    (field("{type: intger}"), f"{X}.type", "did you mean integer?"),
    (field("{type: text, nulable: true}"), f"{X}.nulable", "did you mean nullable?"),
    (field("{type: text, nullable: yes}"), f"{X}.nullable", "must be true or false, here stands 'yes'"),
    (field("{type: text, values: [a]}"), f"{X}.values", "does not belong to the type text, only to enum"),
    (field("{type: boolean, max: 3}"), f"{X}.max", "only to text, integer, number"),
    (field("{type: decimal, precision: 5, min: 3}"), f"{X}.min", "does not belong to the type decimal"),
    (field("{type: text, min: 5, max: 3}"), f"{X}.min", "above max"),
    (field("{type: text, max: 0}"), f"{X}.max", "from 1 to"),
    (field("{type: text, max: '3'}"), f"{X}.max", "here stands '3'"),
    (field("{type: text, max: true}"), f"{X}.max", "here stands true"),
    (field("{type: text, min: -1}"), f"{X}.min", "from 0 to"),
    (field("{type: integer, max: 9007199254740992}"), f"{X}.max", "9007199254740991"),
    (field("{type: number, min: .inf}"), f"{X}.min", "number"),
    (field("{type: number, min: 2, max: 1.5}"), f"{X}.min", "above max"),
    (field("{type: text, pattern: '(?<n>a)'}"), f"{X}.pattern", "common to Python and ECMAScript"),
    (field("{type: text, pattern: '(a'}"), f"{X}.pattern", "not closed"),
    (field("{type: text, pattern: ''}"), f"{X}.pattern", "must be a text"),
    (field("{type: decimal}"), f"{X}.precision", "is missing"),
    (field("{type: decimal, precision: 0, scale: 0}"), f"{X}.precision", "from 1 to 65"),
    (field("{type: decimal, precision: 2, scale: 3}"), f"{X}.scale", "above precision"),
    (field("{type: enum}"), f"{X}.values", "at least one value"),
    (field("{type: enum, values: []}"), f"{X}.values", "at least one value"),
    (field("{type: enum, values: abc}"), f"{X}.values", "must be a list"),
    (field("{type: enum, values: [a, true]}"), f"{X}.values[1]", "put it in quotes"),
    (field("{type: enum, values: [a, '']}"), f"{X}.values[1]", "characters long"),
    (field("{type: enum, values: [a, b, a]}"), f"{X}.values[2]", "twice"),
    (field("{type: map, nullable: true}"), f"{X}.nullable", "never null"),
    (field("{type: map, default: {a: 1}}"), f"{X}.default", "starts as {}"),
    (field("{type: text, max: 3, default: blue}"), f"{X}.default", "characters long, here stands 'blue'"),
    (field("{type: text, default: null}"), f"{X}.default", "must be text"),
    (field("{type: integer, default: 1.0}"), f"{X}.default", "must be an integer"),
    (field("{type: decimal, precision: 5, scale: 2, default: 1.5}"), f"{X}.default", "written as text"),
    (field("{type: date, default: 2023-02-29}"), f"{X}.default", "day that exists"),
    (field("{type: enum, values: [on, off], default: 'no'}"), f"{X}.default", "one of on, off"),
    (field("{type: json, default: " + "[" * 31 + "]" * 31 + "}"), f"{X}.default", "nests more than 30 deep"),
    # references
    (field("{type: uuid, ref: thing}"), f"{X}.ref", "did you mean things?"),
    (field("{type: uuid, on_delete: cascade}"), f"{X}.on_delete", "needs a ref"),
    (field("{type: uuid, ref: things, on_delete: delete}"), f"{X}.on_delete", "restrict, cascade, set_null, keep"),
    (field("{type: uuid, ref: things, on_delete: set_null}"), f"{X}.on_delete", "needs nullable: true"),
    (field("{type: text, ref: things}"), f"{X}.ref", "type uuid, not text"),
    (field("{type: enum, values: [a], ref: things}"), f"{X}.ref", "does not belong"),
    (field("{type: uuid, ref: boards}" + BOARDS), f"{X}.ref", "lives in workspace scopes, not in user ones"),
    # names
    (field("{type: text}").replace(" x:", " Name:"), f"{T}.fields.Name", "is no name"),
    (field("{type: text}").replace(" x:", f" {'n' * 64}:"), f"{T}.fields.{'n' * 64}", "is no name"),
    (field("{type: text}").replace(" x:", " id:"), f"{T}.fields.id", "the name of the key"),
    (field("{type: text}").replace(" x:", " user_id:"), f"{T}.fields.user_id", "the scope column"),
    (field("{type: text}").replace(" x:", " created_at:"), f"{T}.fields.created_at", "the server keeps"),
    (field("{type: text}").replace(" x:", " sync_state:"), f"{T}.fields.sync_state", "reserved"),
    (field("{type: text}").replace(" x:", " xmin:"), f"{T}.fields.xmin", "a system column"),
    (field("{type: text}").replace(" things:", " sync_things:"), "entities.sync_things", "reserved"),
    (field("{type: text}").replace(" things:", " Things:"), "entities.Things", "is no name"),
    # one entity
    (whole("schema: 1").replace("scope: user, ", ""), f"{T}.scope", "is missing"),
    (whole("schema: 1").replace("scope: user", "scope: team"), f"{T}.scope", "must be one of user"),
    (whole("schema: 1").replace("user", "{kind: team}"), f"{T}.scope.kind", "must be one of user"),
    (whole("schema: 1").replace("user", "{kind: user, colum: a}"), f"{T}.scope.colum", "did you mean column?"),
    (whole("schema: 1").replace("user", "{kind: user, column: a b}"), f"{T}.scope.column", "is no SQL name"),
    (whole("schema: 1").replace("user", "{kind: user, type: float}"), f"{T}.scope.type", "text, uuid, integer"),
    (whole("schema: 1").replace("user", "{kind: user, column: id}"), f"{T}.scope", "part of the key"),
    (whole("schema: 1").replace("{name: {type: text}}", "{}"), f"{T}.fields", "at least one field"),
    (whole("schema: 1").replace("{name: {type: text}}", "[name]"), f"{T}.fields", "must be a mapping"),
    (entity("feilds: {}"), f"{T}.feilds", "did you mean fields?"),
    (entity("table: sync_feed"), f"{T}.table", "reserved"),
    (entity("table: a.b"), f"{T}.table", "is no SQL name"),
    (FILE.format(number=1, body="    table: Boards" + BOARDS), "entities.boards", "is that of things too"),
    (entity("capture: 1"), f"{T}.capture", "true or false"),
    (entity("key: order_key"), f"{T}.key", "a key is a mapping"),
    (entity("key: {colum: a}"), f"{T}.key.colum", "did you mean column?"),
    (entity("key: {column: name}"), f"{T}.fields.name", "the name of the key"),
    (entity("key: {column: updated_at}"), f"{T}.key.column", "reserved"),
    (entity("key: {type: decimal}"), f"{T}.key.type", "text, uuid, integer"),
    (entity("key: {column: a, columns: [a, b]}"), f"{T}.key.column", "either column or columns"),
    (entity("key: {columns: [a, A]}"), f"{T}.key.columns", "twice"),
    (entity("key: {columns: []}"), f"{T}.key.columns", "1 to 8"),
    (entity("key: {columns: [a, 1]}"), f"{T}.key.columns[1]", "column's name"),
    (entity("key: {columns: [a, b], type: [text]}"), f"{T}.key.type", "1 types for 2 columns"),
    (entity("key: {columns: [a, b], type: [text, date]}"), f"{T}.key.type[1]", "text, uuid, integer"),
    (entity("index: [name]"), f"{T}.index[0]", "like [name]"),
    (entity("index: [[nam]]"), f"{T}.index[0][0]", "did you mean name?"),
    (entity("index: [[created_at]]"), f"{T}.index[0][0]", "no field of this entity"),
    (entity("index: [[name], [kind], [name]]"), f"{T}.index[2]", "stands here twice"),
    (entity("unique: [[name, data]]"), f"{T}.unique[0][1]", "data is a json"),
    (entity("unique: [[tags]]"), f"{T}.unique[0][0]", "tags is a map"),
    (entity("unique: [[name, name]]"), f"{T}.unique[0]", "twice"),
    (entity("unique: [[]]"), f"{T}.unique[0]", "must be a list of fields"),
    (entity("rules: {when: put}"), f"{T}.rules", "must be a list"),
    (entity("rules: [put]"), f"{T}.rules[0]", "a rule is a mapping"),
    (entity("rules: [{when: insert, refuse_if: {}, message: m}]"), f"{T}.rules[0].when", "put, patch, delete"),
    (entity("rules: [{when: put, refuse_if: {}}]"), f"{T}.rules[0].message", "is missing"),
    (entity("rules: [{when: put, message: m}]"), f"{T}.rules[0].refuse_if", "is missing"),
    (
        entity("rules: [{when: put, message: m, refuse_if: {nam: a}}]"),
        f"{T}.rules[0].refuse_if.nam",
        "did you mean name?",
    ),
    (entity("rules: [{when: put, message: m, refuse_if: {kind: c}}]"), f"{T}.rules[0].refuse_if.kind", "one of a, b"),
    (
        entity("rules: [{when: put, message: m, refuse_if: {name: null}}]"),
        f"{T}.rules[0].refuse_if.name",
        "must be text",
    ),
    (entity("display: {icom: x}"), f"{T}.display.icom", "did you mean icon?"),
    (entity("display: {columns: [nmae]}"), f"{T}.display.columns[0]", "did you mean name?"),
    # the whole file
    ("", "", "here stands nothing"),
    ("[]", "", "here stands a list"),
    ("a: [", "", "not YAML"),
    ("a: b: c", "", "line 1"),
    ("--- 1\n--- 2", "", "not YAML"),
    ("\0", "", "not YAML"),
    ("[" * 1500, "", "nested too deep"),
    ("a: " + "[" * 60 + "]" * 60, "a" + "[0]" * 39, "nested more than 40 deep"),
    ("x" * (1 << 20) + "x", "", "longer than"),
    ("schema: 1", "entities", "at least one entity"),
    ("schema: 1\nentities: {}", "entities", "at least one entity"),
    ("schema: 1\nentities: []", "entities", "must be a mapping"),
    ("schema: 1\nentities: {things: user}", T, "an entity is a mapping"),
    (whole(""), "schema", "is missing"),
    (whole("schema: 0"), "schema", "from 1"),
    (whole("schema: '1'"), "schema", "must be an integer"),
    (whole("schema: 2\noldest: 3"), "oldest", "from 1 to 2"),
    (whole("schema: 2\noldest: 0"), "oldest", "from 1 to 2"),
    (whole("schema: 1\nscope: {}"), "scope", "did you mean scopes?"),
    (whole("schema: 1\nschema: 2"), "schema", "given twice (again in line 2)"),
    (whole("schema: 1\nscopes: {user: {roles: {a: read}}}"), "scopes.user", "built in"),
    (whole("schema: 1\nscopes: {Team: {roles: {a: read}}}"), "scopes.Team", "is no kind"),
    (whole("schema: 1\nscopes: {team: {}}"), "scopes.team.roles", "at least one role"),
    (whole("schema: 1\nscopes: {team: {role: {a: read}}}"), "scopes.team.role", "did you mean roles?"),
    (whole("schema: 1\nscopes: {team: {roles: {a: admin}}}"), "scopes.team.roles.a", "read, write, manage"),
    (whole("schema: 1\nscopes: {team: {roles: {A: read}}}"), "scopes.team.roles.A", "is no name"),
    (field('{type: text, default: "\\ud83c"}'), f"{X}.default", "half a surrogate pair"),
    (whole("schema: !number 1"), "schema", "has no meaning here"),
    (whole("schema: 1\n? [a]\n: 1"), "", "a key is not a word (line 2)"),
    # changes
    (changed("4: {}"), "changes.4", "from 2 to 3"),
    (changed("1: {}"), "changes.1", "from 2 to 3"),
    (changed("two: {}"), "changes.two", "from 2 to 3"),
    (changed("3: [things]"), "changes.3", "must be a mapping of entities"),
    (changed("3: {thing: {}}"), "changes.3.thing", "did you mean things?"),
    (changed("3: {things: {renames: {}}}"), "changes.3.things.renames", "did you mean rename?"),
    (changed("3: {things: {rename: {title: nmae}}}"), "changes.3.things.rename.title", "did you mean name?"),
    (changed("3: {things: {rename: {kind: name}}}"), "changes.3.things.rename.kind", "still a field kind"),
    (changed("3: {things: {rename: {a: name, b: name}}}"), "changes.3.things.rename.b", "becomes name too"),
    (changed("3: {things: {remove: [kind]}}"), "changes.3.things.remove", "still a field kind"),
    (changed("3: {things: {remove: [user_id]}}"), "changes.3.things.remove", "never was a field"),
    (changed("3: {things: {rename: {created_at: name}}}"), "changes.3.things.rename.created_at", "never was a field"),
    (changed("3: {things: {remove: [a, a]}}"), "changes.3.things.remove[1]", "once"),
    (changed("3: {things: {values: {kind: {open: c}}}}"), "changes.3.things.values.kind.open", "one of a, b"),
    (changed("3: {things: {values: {kin: {open: a}}}}"), "changes.3.things.values.kin", "did you mean kind?"),
    (changed("3: {things: {values: {tags: {a: b}}}}"), "changes.3.things.values.tags", "only values of enum and text"),
    (changed("3: {things: {values: {kind: [a]}}}"), "changes.3.things.values.kind", "old texts to new ones"),
    (
        changed("{2: {things: {rename: {a: title}}}, 3: {things: {rename: {titel: name}}}}"),
        "changes.2.things.rename.a",
        "no field title",
    ),
]


@pytest.mark.parametrize(
    ("text", "path", "message"), FAULTS, ids=[f"{path or 'file'}: {message}" for _, path, message in FAULTS]
)
def test_a_fault_is_named_by_its_path(text: str, path: str, message: str) -> None:
    """Each way to get something wrong gives a fault at its path that says what is meant (I50)."""
    named = faults(text)
    assert any(fault.path == path and message in fault.message for fault in named), named


@pytest.mark.parametrize(
    "text", [text for text, _, _ in FAULTS if "entities.things" in _][:0] or [field("{type: string}")]
)
def test_one_fault_makes_no_others(text: str) -> None:
    """A faulty type is not followed by faults of what leans on the field."""
    leaning = text.replace("scope: user", "scope: user\n    index: [[x]]\n    display: {columns: [x]}")
    assert [fault.path for fault in faults(leaning)] == [f"{X}.type"]


def test_every_fault_is_named_at_once() -> None:
    """A file with faults in every part names them all in one go, each once (I50)."""
    named = faults(
        """
schema: 0
scops: {}
scopes: {team: {roles: {a: all}}}
entities:
  a: {scope: team, table: t, fields: {x: {type: txt}, y: {type: uuid, ref: c}}, index: [[z]]}
  b:
    scope: team
    table: T
    fields: {x: {type: enum, values: [a, a]}}
    rules: [{when: put, message: m, refuse_if: {q: 1}}]
changes: {1: {}}
"""
    )
    assert len(set(named)) == len(named)
    assert {fault.path for fault in named} == {
        "schema",
        "scops",
        "scopes.team.roles.a",
        "entities.a.fields.x.type",
        "entities.a.fields.y.ref",
        "entities.a.index[0][0]",
        "entities.b.table",
        "entities.b.fields.x.values[1]",
        "entities.b.rules[0].refuse_if.q",
        "changes.1",
    }


def test_an_alias_bomb_is_refused() -> None:
    """Aliases that expand without end are refused before they fill the memory."""
    levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12))
    assert "aliases" in faults(f"l0: &l0 [x]\n{levels}")[-1].message
    assert "deep" in faults("a: &a [*a]")[-1].message
