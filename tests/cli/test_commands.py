"""The commands, without a service: what they say, in which form, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result

from tests.cli.conftest import Desk, refused, token
from tidemark_cli.main import main

KEY = "11111111-1111-4111-8111-111111111111"
OTHER = "21111111-1111-4111-8111-111111111111"


class Shell:
    """Runs `tide` on a desk's store; nothing answers at the service's address."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.desk.peer.database.set("url", "http://127.0.0.1:9")

    def run(self, *command: str, code: int = 0, stdin: str | None = None) -> Result:
        """Run one command, which must end with `code`."""
        done = CliRunner().invoke(main, ["--store", str(self.desk.folder), *command], input=stdin)
        assert done.exit_code == code, (done.exit_code, done.output, done.exception)
        return done

    def json(self, *command: str) -> Any:
        """What a command answers to a script."""
        return json.loads(self.run(*command, "--json").stdout)


@pytest.fixture
def shell(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell at ann's desk, in which the machine's clock is used."""
    monkeypatch.delenv("TIDE_TOKEN", raising=False)
    return Shell(desk)


def test_a_row_is_made_shown_changed_and_deleted(shell: Shell) -> None:
    """put, get, patch, ls and rm work on the store alone."""
    made = shell.json("put", "notes", KEY, "title=Buy milk", "count=3", "labels/urgent=true", 'extra:={"a": [1]}')
    assert made == {"op": "put", "scope": "user:ann", "row": KEY}
    row = shell.json("get", "notes", KEY)
    assert (row["title"], row["count"], row["labels"], row["extra"]) == ("Buy milk", 3, {"urgent": True}, {"a": [1]})
    assert row["user_id"] == "ann"
    assert "changed" in shell.run("patch", "notes", KEY, "title=Bread", "count=", "labels/urgent:=null").stdout
    row = shell.json("get", "notes", KEY)
    assert (row["title"], row["count"], row["labels"]) == ("Bread", None, {})
    assert "Bread" in shell.run("ls", "notes").stdout
    shell.run("rm", "notes", KEY)
    assert shell.json("ls", "notes") == []


def test_a_row_without_a_key_gets_one(shell: Shell) -> None:
    """Where keys are UUIDs, one is drawn."""
    row = shell.json("put", "notes", "title=x")["row"]
    assert [one["id"] for one in shell.json("ls", "notes")] == [row]


def test_rows_are_found_by_their_values(shell: Shell) -> None:
    """`--where` compares typed values, keys of maps and the row's key."""
    shell.run("put", "notes", KEY, "title=a", "count=1", "labels/x=1")
    shell.run("put", "notes", OTHER, "title=b", "count=10")
    for condition, found in (("count=1", [KEY]), ("labels/x=1", [KEY]), (f"id={OTHER}", [OTHER]), ("title=z", [])):
        assert [one["id"] for one in shell.json("ls", "notes", "--where", condition)] == found
    assert len(shell.json("ls", "notes", "--limit", "1")) == 1


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("put", "nots", "title=x"), 1, "Did you mean notes?"),
        (("put", "notes", "titel=x"), 1, "Did you mean title?"),
        (("put", "notes", "count=many", "title=x"), 1, "count must be an integer"),
        (("put", "notes", "no-uuid", "title=x"), 1, "UUID"),
        (("put", "tasks", "title=x"), 1, "--scope workspace:ID"),
        (("put", "tasks", "title=x", "--scope", "team:1"), 1, "kind workspace"),
        (("put", "tags", "--scope", "1"), 1, "needs a key"),
        (("put", "notes", "title=x", "--scope", "user:bob"), 1, "leave --scope out"),
        (("patch", "notes", KEY, "title=x"), 1, "There is no notes"),
        (("patch", "notes", KEY), 2, "Say what to change"),
        (("put", "notes", "--values", "[]"), 2, "JSON object"),
        (("get", "notes"), 2, "Missing argument"),
        (("rejected", "retry"), 2, "--all"),
        (("rejected", "retry", "7"), 1, "no change 7"),
        (("outbox", "discard", "7", "--yes"), 1, "no change 7"),
        (("sync",), 3, "cannot be reached"),
        (("why", "notes", KEY), 3, "cannot be reached"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_exit_code(
    shell: Shell, command: tuple[str, ...], code: int, said: str
) -> None:
    """Refusals are short, friendly and distinguishable by scripts; nothing is written."""
    done = shell.run(*command, code=code)
    assert said in " ".join(done.stderr.split())
    assert shell.desk.pending() == []


def test_offline_says_what_waits(shell: Shell) -> None:
    """A sync without a network keeps the changes and counts them."""
    shell.run("put", "notes", "title=x")
    assert "1 change of yours waits" in " ".join(shell.run("sync", code=3).stderr.split())
    assert shell.json("status")["pending"] == 1


def test_the_scope_can_be_named_short_and_is_guessed_when_there_is_one(shell: Shell) -> None:
    """`7` means `workspace:7`; a store that holds one such scope needs no naming."""
    shell.run("put", "tags", "red", "--scope", "7")
    assert shell.json("get", "tags", "red")["workspace_id"] == "7"
    shell.desk.peer.database.sql.execute("INSERT INTO scope VALUES ('workspace:7', NULL, 0, 0, 0, 0, NULL)")
    assert shell.json("put", "tags", "blue")["scope"] == "workspace:7"


def test_a_row_in_two_scopes_asks_which(shell: Shell) -> None:
    """A guessable key may be used in several scopes."""
    for scope in ("1", "2"):
        shell.run("put", "tags", "red", "--scope", scope)
    assert "say which" in shell.run("get", "tags", "red", code=1).stderr
    assert shell.json("get", "tags", "red", "--scope", "2")["workspace_id"] == "2"


def test_very_many_rows_are_listed_whole(shell: Shell) -> None:
    """A long list is aligned and complete, one line for each row."""
    with shell.desk.peer.database.transaction():
        for number in range(600):
            shell.desk.writer("tags", "workspace:1").put(f"t{number}", {"color": "x" * (number % 50)})
    lines = shell.run("ls", "tags").stdout.splitlines()
    assert len(lines) == 601
    assert lines[0].split() == ["tag", "color"]
    assert len({line.index("x") for line in lines[1:] if "x" in line}) == 1


# ── outbox and dead letters ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_outbox_is_listed_saved_and_dropped(shell: Shell, tmp_path: Path) -> None:
    """list, export and discard; what builds on a dropped change goes with it."""
    shell.run("put", "notes", KEY, "title=x")
    shell.run("patch", "notes", KEY, "title=y")
    shell.run("put", "notes", OTHER, "title=z")
    assert [one["seq"] for one in shell.json("outbox", "list")] == [1, 2, 3]
    assert "3 changes to send" in shell.run("outbox").stderr
    shell.run("outbox", "export", str(tmp_path / "saved.ndjson"))
    assert len((tmp_path / "saved.ndjson").read_text().splitlines()) == 3
    shell.run("outbox", "discard", "1", code=1, stdin="n\n")
    assert shell.desk.pending() == [1, 2, 3]
    shell.run("outbox", "discard", "1", stdin="y\n")
    assert shell.desk.pending() == [3]
    shell.run("patch", "notes", OTHER, "title=w")
    assert "2 changes dropped" in shell.run("outbox", "discard", "--all", "--yes").stderr
    assert shell.desk.pending() == []


def test_rejected_changes_are_listed_saved_made_again_and_dropped(shell: Shell) -> None:
    """A dead letter is shown with its reason; made again, it takes along what built on it (I26)."""
    desk = shell.desk
    desk.put(KEY, title="x")
    rejection = {"seq": 1} | refused("unique_violation", "the title is in use")
    desk.service.answers.append(
        lambda _: httpx2.Response(200, json={"results": [rejection], "clock": desk.service.reading()})
    )
    desk.writer().patch(KEY, {"count": 2})
    desk.sync.push()
    shown = shell.json("rejected", "list")
    assert [(one["seq"], one["error"]["code"], one["cause"]) for one in shown] == [
        (1, "unique_violation", None),
        (2, "depends", 1),
    ]
    assert "the title is in use" in shell.run("rejected").stdout
    assert json.loads(shell.run("rejected", "export").stdout.splitlines()[0])["error"]["code"] == "unique_violation"
    assert [one["op"] for one in shell.json("rejected", "retry", "1")] == ["put", "patch"]
    assert shell.json("rejected", "list") == []
    assert shell.json("get", "notes", KEY)["count"] == 2
    assert [one["op"] for one in shell.json("outbox", "list")] == ["put", "patch"]


def test_an_edit_whose_row_is_gone_stays_among_the_rejected(shell: Shell) -> None:
    """What cannot be made again is said, and kept (I26)."""
    desk = shell.desk
    desk.put(KEY, title="x")
    desk.service.answers.append(desk.service.verdicts(**{KEY: refused("forbidden")}))
    desk.sync.push()
    desk.peer.database.sql.execute("UPDATE dead_letter SET op = 'patch', fields = '{\"count\": 1}'")
    assert "cannot be made again" in shell.run("rejected", "retry", "--all", code=1).stderr
    assert len(shell.json("rejected", "list")) == 1
    shell.run("rejected", "discard", "--all", "--yes")
    assert shell.json("rejected", "list") == []


# ── whose store it is ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_store_with_changes_is_not_given_to_another_user(shell: Shell) -> None:
    """The outbox is never sent as somebody else: the login is refused, with the ways out (I25)."""
    shell.run("put", "notes", "title=x")
    done = shell.run("login", "--token", token("bob"), code=1)
    assert "1 unsent" in done.stderr
    assert "--store DIR" in " ".join(done.stderr.split())
    assert shell.json("status")["user"] == "ann"
    assert shell.desk.pending() == [1]


def test_an_empty_store_passes_to_another_user_without_the_rows(shell: Shell) -> None:
    """Rows of the one are not shown to the other, and the replica gets another name."""
    before = shell.json("status")
    shell.desk.peer.database.sql.execute("INSERT INTO scope VALUES ('user:ann', 'w', 1, 1, 1, 1, NULL)")
    shell.run("login", "--token", token("bob"), code=3)
    after = shell.json("status")
    assert (after["user"], after["scopes"]) == ("bob", [])
    assert after["client"] != before["client"]


def test_a_token_of_somebody_else_sends_nothing(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token from the environment is held against the store's user before anything is sent."""
    shell.run("put", "notes", "title=x")
    monkeypatch.setenv("TIDE_TOKEN", token("bob"))
    assert "Nothing was sent" in " ".join(shell.run("push", code=7).stderr.split())


@pytest.mark.parametrize("text", ["", "abc", "a.b.c", "e30.e30.e30"])
def test_what_is_no_token_is_refused(shell: Shell, text: str) -> None:
    """A login with anything but a JWT changes nothing."""
    shell.run("login", stdin=text, code=7 if text else 2)
    assert shell.json("status")["user"] == "ann"


def test_the_token_is_readable_by_its_user_alone(shell: Shell) -> None:
    """Nobody else on the machine can read the token or the store's folder."""
    assert (shell.desk.folder / "token").stat().st_mode & 0o077 == 0
    assert shell.desk.folder.stat().st_mode & 0o077 == 0


def test_one_tide_at_a_time_speaks_to_the_service(shell: Shell) -> None:
    """While one synchronises another says so, and may still write."""
    with shell.desk.peer.database.synchronising():
        assert "Another tide" in shell.run("sync", code=3).stderr
        shell.run("put", "notes", "title=x")
    assert shell.desk.pending() == [1]


def test_a_folder_without_a_store_says_what_to_do(tmp_path: Path) -> None:
    """Commands outside a store point to `tide init`."""
    done = CliRunner().invoke(main, ["--store", str(tmp_path / "none"), "ls", "notes"])
    assert done.exit_code == 1
    assert "tide init URL" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_store_belongs_to_one_service(shell: Shell) -> None:
    """`init` with another URL is refused."""
    assert "belongs to" in shell.run("init", "http://elsewhere.test", code=1).stderr
    shell.run("init", "ftp://elsewhere.test", code=2)


def test_the_shell_completes_entities_and_fields(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completion knows the declared names."""
    for words, found in ((f"tide --store {shell.desk.folder} ls no", "notes"), ("tide l", "ls")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        done = CliRunner().invoke(main, env={"_TIDE_COMPLETE": "bash_complete"}, prog_name="tide")
        assert f"plain,{found}" in done.stdout
