"""`tidemark codegen typescript`: an app's tables, as its compiler knows them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tidemark.admin.codegen.command import OURS, typescript_files
from tidemark.admin.codegen.names import name_entities
from tidemark.cli import main
from tidemark.settings import PREFIX
from tidemark_protocol.errors import DeclarationError
from tidemark_protocol.schema import parse, to_wire
from tools import generate

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "client_reference" / "typescript"

ODD = r"""
schema: 7
oldest: 5
scopes:
  workspace:
    roles: {viewer: read}
entities:
  news:
    scope: user
    fields:
      class:      {type: text, pattern: "(?:\\*/ ?|a){1,3}", default: "*/"}
      function:   {type: enum, values: ["it's", 'say "hi"', "both ' and \"", "back\\slash", "*/"], nullable: true}
      interface:  {type: json, default: {__proto__: {"10m": true}, plain: [1, 2.0, "x"]}}
      anything:   {type: json}
      delete:     {type: map}
      long:
        type: enum
        values: ["a very long value of an enum", "another such value, which is longer", "the third one of them all", x]
  data:
    scope: workspace
    key: {column: code, type: text, per_scope: true}
    fields:
      flag:       {type: boolean, nullable: true}
      count:      {type: integer, min: -5, default: 0}
      share:      {type: number, max: 1}
    index: [[flag], [count, flag], [count, share], [share]]
    unique: [[count, share], [share, count]]
  status:
    scope: {kind: workspace, column: new}
    key: {columns: [default, line], type: [text, integer], per_scope: true}
    fields:
      value:      {type: text, ref: data, nullable: true, on_delete: set_null}
  series:
    scope: {kind: workspace, column: Org}
    key: {columns: [a, b]}
    fields:
      at:         {type: datetime}
      day:        {type: date, nullable: true}
      clock:      {type: time, default: "09:00:00"}
      price:      {type: decimal, precision: 20, default: "0"}
      number:     {type: integer, ref: records, on_delete: keep}
  records:
    scope: workspace
    key: {column: number, type: integer}
    fields:
      self:       {type: text, max: 3}
  states:
    scope: user
    fields:
      queries:    {type: uuid}
  queries:
    scope: user
    fields:
      rows:       {type: uuid, ref: rows, on_delete: cascade}
  rows:
    scope: user
    fields:
      text:       {type: text, min: 1}
"""


@pytest.fixture(autouse=True)
def on_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the caller, a folder of its own with a declaration in it."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schema.yaml").write_text(ODD)


def run(*arguments: str, schema: str = "schema.yaml", out: str = "made") -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, ["codegen", "typescript", "--schema", schema, "--out", out, *arguments])


def one(fields: str, **more: str) -> str:
    """The `schema.ts` of one entity `tasks` of the user's scope."""
    given = "".join(f"\n    {option}: {value}" for option, value in {"scope": "user", **more}.items())
    scopes = "scopes: {team: {roles: {a: write}}}\n"
    text = f"schema: 1\n{scopes}entities:\n  tasks:{given}\n    fields: {{{fields}}}"
    return typescript_files(parse(text))["schema.ts"]


def interface(text: str, name: str) -> dict[str, str]:
    """Member, with its question mark → type."""
    body = re.search(rf"^export interface {name} \{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    assert body is not None
    return dict(re.findall(r"^  (?! *[/*])(\[path: .*?\]|[^:\n]+): (.*);$", body[1], re.MULTILINE))


# ── types ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ("type: text", "string"),
        ("type: text, nullable: true", "string | null"),
        ("type: integer", "number"),
        ("type: number", "number"),
        ("type: decimal, precision: 5", "string"),
        ("type: boolean", "boolean"),
        ("type: date", "string"),
        ("type: time", "string"),
        ("type: datetime", "string"),
        ("type: uuid", "string"),
        ("type: enum, values: [a, b]", '"a" | "b"'),
        ("type: enum, values: [a], nullable: true", '"a" | null'),
        ("type: json", "Json"),
        ("type: json, nullable: true", "Json"),
        ("type: map", "Record<string, Json>"),
    ],
)
def test_each_type_of_field_has_its_own(declared: str, written: str) -> None:
    """In a row, and in what makes and changes one."""
    text = one(f"x: {{{declared}}}")
    optional = {"", "?"} & ({"?"} if "nullable" in declared or "map" in declared else {""})
    assert interface(text, "Task")["x"] == written
    assert interface(text, "TaskInsert")[f"x{optional.pop()}"] == written
    assert interface(text, "TaskUpdate")["x?"] == written


def test_a_row_has_every_column() -> None:
    """Key, scope, fields and times, none of them optional."""
    assert list(interface(one("x: {type: text}"), "Task")) == ["id", "user_id", "x", "created_at", "updated_at"]


def test_what_makes_a_row_leaves_out_what_is_known() -> None:
    """A key that is one UUID, the user's own scope, what has a default or may be null, and the times."""
    fields = "a: {type: text}, b: {type: text, default: x}, c: {type: date, nullable: true}, d: {type: map}"
    stamps = ["created_at?", "updated_at?"]
    own = one(fields)
    assert list(interface(own, "TaskInsert")) == ["id?", "user_id?", "a", "b?", "c?", "d?", *stamps]
    shared = one(fields, scope="team", key="{column: code, type: text}")
    assert list(interface(shared, "TaskInsert")) == ["code", "team_id", "a", "b?", "c?", "d?", *stamps]


def test_what_changes_a_row_leaves_key_scope_and_times() -> None:
    """A map's keys can be named one by one."""
    text = one("a: {type: text}, m: {type: map}")
    assert list(interface(text, "TaskUpdate")) == ["a?", "m?", "[path: `m.${string}`]"]


@pytest.mark.parametrize(
    ("more", "key", "store"),
    [
        ({}, "string", "id, user_id"),
        ({"key": "{column: code, type: integer}"}, "string", "code, user_id"),
        ({"key": "{columns: [a, b]}"}, "[a: string, b: string]", "[a+b], user_id"),
        (
            {"key": "{column: iata, type: text, per_scope: true}", "scope": "team"},
            "[team_id: string, iata: string]",
            "[team_id+iata], team_id",
        ),
        (
            {"key": "{columns: [a, b], per_scope: true}", "scope": "{kind: team, column: org}"},
            "[org: string, a: string, b: string]",
            "[org+a+b], org",
        ),
        ({"index": "[[x], [x, y]]", "unique": "[[x, y], [y]]"}, "string", "id, user_id, x, [x+y], y"),
        ({"index": "[[on], [x, on], [x]]", "unique": "[[x]]"}, "string", "id, user_id, x"),
    ],
)
def test_each_store_has_its_key_and_indexes(more: dict[str, str], key: str, store: str) -> None:
    """The scope leads the key where keys hold within it; each index once, none of them over a boolean."""
    text = one("x: {type: text}, y: {type: text}, on: {type: boolean}", **more)
    assert f"    key: {key};\n" in text
    assert f'    tasks: "{store}",\n' in text
    assert text.count("IndexedDB takes no booleans") == sum(
        "on" in columns for columns in more.get("index", "").split("]")
    )


def test_references_are_indexed() -> None:
    """So that what refers to a row is found."""
    assert 'tasks: "id, user_id, parent"' in one("parent: {type: uuid, ref: tasks, nullable: true}")


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("entity", "names"),
    [
        ("user_categories", ("UserCategory", "useUserCategories", "useUserCategory")),
        ("order_line_items", ("OrderLineItem", "useOrderLineItems", "useOrderLineItem")),
        ("people", ("Person", "usePeople", "usePerson")),
        ("data", ("Datum", "useData", "useDatum")),
        ("news", ("News", "useNewsRows", "useNewsRow")),
        ("status", ("Status", "useStatusRows", "useStatusRow")),
        ("class_series", ("ClassSeries", "useClassSeriesRows", "useClassSeriesRow")),
        ("states", ("State", "useStatesRows", "useStateRow")),
        ("records", ("RecordRow", "useRecords", "useRecord")),
        ("queries", ("QueryRow", "useQueries", "useQuery")),
        ("rows", ("Row", "useRowsRows", "useRowRow")),
        ("tasks_2", ("Tasks2", "useTasks2Rows", "useTasks2Row")),
    ],
)
def test_an_entity_is_called_by_rule(entity: str, names: tuple[str, str, str]) -> None:
    """Singular for a row, plural for many; never as something that is there already."""
    named = name_entities([entity], {})[entity]
    assert (named.row, named.many, named.one) == names


@pytest.mark.parametrize("entities", [["person", "people"], ["people", "person"]])
def test_names_that_would_meet_stay_as_declared(entities: list[str]) -> None:
    """Whichever comes first."""
    named = name_entities(entities, {})
    assert {name: named[name].row for name in named} == {"person": "Person", "people": "People"}


def test_the_name_of_one_row_may_be_that_of_another_insert() -> None:
    """That meets too: `orders` makes `OrderInsert`."""
    named = name_entities(["orders", "order_inserts"], {})
    assert (named["orders"].row, named["order_inserts"].row) == ("Orders", "OrderInserts")


def test_names_that_meet_all_the_same_are_a_fault() -> None:
    """Of both, by path; a name that is given settles it."""
    with pytest.raises(DeclarationError) as caught:
        name_entities(["a_1", "a1", "b"], {})
    assert [fault.path for fault in caught.value.faults] == ["entities.a_1", "entities.a1"]
    named = name_entities(["a_1", "a1"], {"a1": "First"})
    assert (named["a1"].row, named["a1"].many, named["a1"].one) == ("First", "useFirsts", "useFirst")


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", generate.examples(), ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_the_examples_are_up_to_date(path: Path) -> None:
    """What is committed is what `make generate` writes."""
    assert path.read_text(encoding="utf-8") == generate.examples()[path]


def test_files_are_written_and_then_up_to_date(tmp_path: Path) -> None:
    """Twice the same, and the second time no file is touched."""
    assert run().exit_code == 0
    before = {path.name: (path.read_text(), path.stat().st_mtime_ns) for path in (tmp_path / "made").iterdir()}
    assert before.keys() == {"schema.ts", "hooks.ts"}
    assert run().exit_code == 0
    assert {path.name: (path.read_text(), path.stat().st_mtime_ns) for path in (tmp_path / "made").iterdir()} == before
    assert run("--check").exit_code == 0


def test_a_stale_file_is_named(tmp_path: Path) -> None:
    """By `--check`, which writes nothing: neither what is stale nor what is missing."""
    missing = run("--check")
    assert missing.exit_code == 1
    assert "schema.ts" in missing.output and "hooks.ts" in missing.output
    assert not (tmp_path / "made").exists()
    run()
    file = tmp_path / "made" / "schema.ts"
    file.write_text(file.read_text() + "\n")
    stale = run("--check")
    assert stale.exit_code == 1
    assert "schema.ts: is stale" in stale.output and "hooks.ts" not in stale.output
    assert file.read_text().endswith("\n\n")
    assert run().exit_code == 0
    assert run("--check").exit_code == 0


@pytest.mark.parametrize("content", [b"export const mine = 1;\n", b"", b"\xff\xfe"])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """Named, and nothing beside it is written either."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "hooks.ts").write_bytes(content)
    done = run()
    assert done.exit_code == 1
    assert "hooks.ts: was not written by" in done.output
    assert (tmp_path / "made" / "hooks.ts").read_bytes() == content
    assert not (tmp_path / "made" / "schema.ts").exists()


def test_without_hooks_there_are_none(tmp_path: Path) -> None:
    """For apps without React."""
    assert run("--no-hooks").exit_code == 0
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["schema.ts"]


def test_a_name_that_is_given_is_taken(tmp_path: Path) -> None:
    """And stands in the header, so that the file says how to make it again."""
    assert run("--name", "news=Article").exit_code == 0
    text = (tmp_path / "made" / "hooks.ts").read_text()
    assert "export function useArticles(" in text and "export function useArticle(" in text
    assert text.startswith(f"{OURS} --name news=Article`")


@pytest.mark.parametrize("name", ["nothing=X", "news", "news=lower", "news=A-B", "=X"])
def test_a_name_is_given_to_an_entity(name: str) -> None:
    """Anything else is a fault."""
    done = run("--name", name)
    assert done.exit_code == 1
    assert f"--name {name}" in done.output


def test_faults_of_the_declaration_are_named(tmp_path: Path) -> None:
    """As by `tidemark schema check`; nothing is written."""
    (tmp_path / "schema.yaml").write_text("schema: 1\nentities:\n  a: {scope: nowhere, fields: {x: {type: strange}}}\n")
    done = run()
    assert done.exit_code == 1
    assert "entities.a.scope" in done.output and "entities.a.fields.x" in done.output
    assert not (tmp_path / "made").exists()
    assert "none.yaml" in run(schema="none.yaml").output


def test_entities_that_cannot_be_told_apart_are_a_fault(tmp_path: Path) -> None:
    """By their paths, with the way out."""
    entity = "{scope: user, fields: {x: {type: text}}}"
    (tmp_path / "schema.yaml").write_text(f"schema: 1\nentities:\n  a_1: {entity}\n  a1: {entity}\n")
    done = run()
    assert done.exit_code == 1
    assert "entities.a_1: A1 would mean two things" in done.output and "--name" in done.output


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    """Named, without a traceback."""
    (tmp_path / "made").write_text("a file")
    done = run()
    assert done.exit_code == 1
    assert done.output.startswith("tidemark: ") and "made" in done.output


def test_a_header_bears_no_time_and_no_version(tmp_path: Path) -> None:
    """So that a file changes with its declaration alone."""
    run()
    for path in (tmp_path / "made").iterdir():
        assert path.read_text().splitlines()[0] == f"{OURS}`: not to be edited."


def test_every_option_is_described() -> None:
    """docs/codegen.md has each option of the command, and no other."""
    text = (ROOT / "docs" / "codegen.md").read_text(encoding="utf-8")
    said = set(re.findall(r"^\| `(--[a-z-]+)", text, re.MULTILINE))
    shown = {found for found in re.findall(r"--[a-z-]+", run("--help").output) if found not in ("--help", "--hooks")}
    assert said == shown


# ── the compiler's view ──────────────────────────────────────────────────────────────────────────────────────────────

needs_compiler = pytest.mark.skipif(
    shutil.which("node") is None or not (CLIENT / "node_modules" / "typescript").exists(),
    reason="the TypeScript client's packages are not installed",
)


def node(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A program of the client's packages, run."""
    return subprocess.run(["node", *arguments], capture_output=True, text=True, check=False)


@needs_compiler
def test_odd_declarations_compile(tmp_path: Path) -> None:
    """Words of the language, quotes, comments' ends, keys of every kind: and the constant is the wire declaration."""
    assert run().exit_code == 0
    config = {
        "extends": str(CLIENT / "tsconfig.json"),
        "compilerOptions": {"types": []},
        "include": ["made"],
    }
    (tmp_path / "tsconfig.json").write_text(json.dumps(config))
    compiled = node(CLIENT / "node_modules" / "typescript" / "bin" / "tsc", "--noEmit", "-p", tmp_path)
    assert (compiled.stdout, compiled.returncode) == ("", 0)
    script = (
        f'const ts = require("{CLIENT}/node_modules/typescript");'
        'const text = require("node:fs").readFileSync("made/schema.ts", "utf8");'
        "const module = { exports: {} };"
        "new Function('exports', ts.transpile(text, { module: ts.ModuleKind.CommonJS }))(module.exports);"
        "console.log(JSON.stringify(module.exports.schema));"
    )
    shown = json.loads(node("-e", script).stdout)
    declaration = parse(ODD)
    assert shown["declaration"] == to_wire(declaration)
    assert shown["stores"].keys() == declaration.entities.keys()


@needs_compiler
def test_odd_declarations_are_formatted(tmp_path: Path) -> None:
    """The formatter of the client has nothing to change, so that an app's need not leave the folder out."""
    assert run().exit_code == 0
    formatter = json.loads((CLIENT / "biome.json").read_text())["formatter"]
    (tmp_path / "biome.json").write_text(json.dumps({"formatter": formatter}))
    checked = node(CLIENT / "node_modules" / "@biomejs" / "biome" / "bin" / "biome", "check", "made")
    assert checked.returncode == 0, checked.stdout + checked.stderr
