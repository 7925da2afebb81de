"""Import and export: text becomes the declared types, and comes back the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Desk
from tests.cli.test_commands import Shell

KEY = "11111111-1111-4111-8111-111111111111"
OTHER = "21111111-1111-4111-8111-111111111111"


@pytest.fixture
def shell(desk: Desk) -> Shell:
    """A shell at ann's desk."""
    return Shell(desk)


def imported(shell: Shell, tmp_path: Path, text: str, *options: str, name: str = "notes.csv") -> dict[str, int | str]:
    """Import a file with this text; what the command answers."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    answer: dict[str, int | str] = shell.json("import", "notes", str(tmp_path / name), *options)
    return answer


def test_columns_become_fields_of_their_types(shell: Shell, tmp_path: Path) -> None:
    """Numbers, booleans, decimals, days, JSON and maps are read; empty is null where allowed, else the default."""
    text = (
        "id,title,body,count,ratio,price,done,day,labels,extra\n"
        f'{KEY},"a ""b"", c",,12,1.5,3.20,yes,2026-11-20,"{{""k"": 1}}","[1, null]"\n'
        f"{OTHER},007,,,,,,,,\n"
    )
    assert imported(shell, tmp_path, text) == {"scope": "user:ann", "made": 2, "changed": 0, "unchanged": 0}
    first, second = (shell.json("get", "notes", key) for key in (KEY, OTHER))
    assert (first["title"], first["count"], first["ratio"], first["price"]) == ('a "b", c', 12, 1.5, "3.20")
    assert (first["done"], first["day"], first["labels"], first["extra"]) == (True, "2026-11-20", {"k": 1}, [1, None])
    assert (second["title"], second["body"], second["count"], second["done"]) == ("007", "", None, False)
    assert (second["labels"], second["extra"]) == ({}, None)


def test_a_second_import_changes_what_differs(shell: Shell, tmp_path: Path) -> None:
    """Rows already there are patched where the file differs, and columns it lacks are left alone."""
    imported(shell, tmp_path, f"id,title,count\n{KEY},a,1\n{OTHER},b,2\n")
    shell.run("patch", "notes", KEY, "body=kept")
    answer = imported(shell, tmp_path, f"id,title,count\n{KEY},a,9\n{OTHER},b,2\n")
    assert (answer["made"], answer["changed"], answer["unchanged"]) == (0, 1, 1)
    assert (shell.json("get", "notes", KEY)["body"], shell.json("get", "notes", KEY)["count"]) == ("kept", 9)


def test_the_key_may_stand_in_another_column(shell: Shell, tmp_path: Path) -> None:
    """`--key` names it; columns that are no fields are named and left out."""
    (tmp_path / "rows.ndjson").write_text(json.dumps({"uuid": KEY, "title": "a", "color": "red"}) + "\n\n")
    done = shell.run("import", "notes", str(tmp_path / "rows.ndjson"), "--key", "uuid")
    assert "color" in done.stderr
    assert shell.json("get", "notes", KEY)["title"] == "a"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("id,title\nx,a\n", (), "cannot be a key"),
        (f"id,title\n{KEY},{'x' * 30}\n", (), "characters"),
        (f"id,title\n{KEY}\n", (), "line 2"),
        (f"id,title,labels\n{KEY},a,{{\n", (), "labels is not JSON"),
        (f"id,title\n{KEY},a\n", ("--key", "code"), "no column code"),
        (f"id,count\n{KEY},1\n", (), "title is required"),
        (f'id,title\n{KEY},"a\n', (), "line"),
    ],
)
def test_a_faulty_file_is_refused_whole(
    shell: Shell, tmp_path: Path, text: str, options: tuple[str, ...], said: str
) -> None:
    """The first fault is said with its place, and no row is taken in."""
    file = tmp_path / "bad.csv"
    file.write_text(f"id,title\n{OTHER},fine\n" if "title\n" not in text else text)
    file.write_text(text)
    assert said in " ".join(shell.run("import", "notes", str(file), *options, code=1).stderr.split())
    assert shell.json("ls", "notes") == []


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_what_was_exported_is_imported_the_same(shell: Shell, tmp_path: Path, kind: str) -> None:
    """Export and import are each other's reverse: nothing differs afterwards."""
    shell.run("put", "notes", KEY, 'title=a, "b"\nc', "count=-4", "ratio=0.1", "price=1.10", "labels/k=v", "done=true")
    shell.run("put", "notes", OTHER, "title=007", 'extra:={"deep": [true]}')
    file = tmp_path / f"out.{kind}"
    shell.run("export", "notes", str(file))
    answer = shell.json("import", "notes", str(file))
    assert (answer["made"], answer["changed"], answer["unchanged"]) == (0, 0, 2)
    shell.run("rm", "notes", KEY, OTHER)
    before = shell.json("import", "notes", str(file))
    assert before["made"] == 2
    assert shell.json("get", "notes", KEY)["title"] == 'a, "b"\nc'
    assert shell.json("get", "notes", OTHER)["extra"] == {"deep": [True]}


def test_the_kind_of_file_must_be_known(shell: Shell, tmp_path: Path) -> None:
    """A name that says nothing needs `--format`."""
    file = tmp_path / "rows.txt"
    file.write_text(f"id,title\n{KEY},a\n")
    assert "--format" in shell.run("import", "notes", str(file), code=2).stderr
    shell.run("import", "notes", str(file), "--format", "csv")
