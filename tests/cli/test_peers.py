"""Real devices on a real service: `tide` as its users run it, on both databases."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.conftest import SCHEMA
from tests.servers import TidemarkServer

TIDE = str(Path(sys.executable).with_name("tide"))
SCOPE = "workspace:1"
ROWS = 2_000


class Tide:
    """One store of one user; every command is a process of its own."""

    def __init__(self, service: TidemarkServer, folder: Path, user: str) -> None:
        self.folder = folder
        self.user = user
        self.run("init", service.url)
        self.run("login", stdin=service.token(user))

    def command(self, *words: str) -> list[str]:
        """The command line."""
        return [TIDE, "--store", str(self.folder), *words]

    def run(self, *words: str, code: int = 0, stdin: str = "") -> str:
        """Run a command that must end with `code`; what it answered."""
        done = subprocess.run(
            self.command(*words), input=stdin, capture_output=True, text=True, env=environment(), check=False
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def json(self, *words: str, code: int = 0) -> Any:
        """What a command answers to a script."""
        return json.loads(self.run(*words, "--json", code=code))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Run a command without waiting for its end."""
        return subprocess.Popen(
            self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )

    def digest(self) -> str:
        """The proven digest of the workspace."""
        return next(str(check["ours"]) for check in self.json("verify") if check["scope"] == SCOPE)


def environment() -> dict[str, str]:
    """The machine's, without what would change what `tide` does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDE_")}
    return kept | {"NO_PROXY": "127.0.0.1"}


@pytest.fixture
def service(tmp_path: Path, database_url: str) -> Iterator[TidemarkServer]:
    """A service with a workspace that ann and bob may edit."""
    schema = tmp_path / "schema.yaml"
    schema.write_text(SCHEMA)
    with TidemarkServer(schema, database_url) as server:
        for user in ("ann", "bob"):
            grant(server, user, "editor")
        yield server


def grant(server: TidemarkServer, user: str, role: str | None) -> None:
    """Give a role in the workspace, or take it away."""
    url = f"{server.url}/sync/scopes/{SCOPE}/members/{user}"
    headers = server.headers("op", "admin")
    response = httpx2.put(url, headers=headers, json={"role": role}) if role else httpx2.delete(url, headers=headers)
    response.raise_for_status()


@pytest.fixture
def ann(service: TidemarkServer, tmp_path: Path) -> Tide:
    """A device of ann's."""
    return Tide(service, tmp_path / "ann", "ann")


@pytest.fixture
def bob(service: TidemarkServer, tmp_path: Path) -> Tide:
    """A device of bob's."""
    return Tide(service, tmp_path / "bob", "bob")


def test_two_devices_that_edited_the_same_rows_come_to_the_same_state(ann: Tide, bob: Tide) -> None:
    """The later write of a field wins, a delete beats an edit, whoever syncs first (I7, I9, I10)."""
    for tag in ("same", "gone"):
        ann.run("put", "tags", tag, "--scope", "1")
    ann.run("sync")
    bob.run("pull")
    for order in ((ann, bob), (bob, ann)):
        first = order[0].user
        ann.run("patch", "tags", "same", f"color=ann, {first} first")
        bob.run("patch", "tags", "same", f"color=bob, {first} first")
        bob.run("put", "tags", f"new-{first}", "color=green")
        for device in (*order, order[0]):
            device.run("sync")
        assert ann.digest() == bob.digest()
        for device in order:
            assert device.json("get", "tags", "same")["color"] == f"bob, {first} first"
    ann.run("rm", "tags", "gone")
    bob.run("patch", "tags", "gone", "color=late")
    assert bob.json("sync")["pushed"]["applied"] == 1
    assert ann.json("sync")["pushed"]["applied"] == 1
    bob.run("sync")
    assert ann.json("ls", "tags") == bob.json("ls", "tags")
    story = ann.json("why", "tags", "same")
    assert [(one["by"].split()[0], one["outcome"]) for one in story][-4:] == [
        ("ann", "applied"),
        ("bob", "applied"),
        ("ann", "superseded"),
        ("bob", "applied"),
    ]
    assert story[2]["overwrote"] == {"color": "ann, ann first"}


def test_what_is_rejected_is_set_aside_and_can_be_made_again(service: TidemarkServer, ann: Tide, bob: Tide) -> None:
    """A row that may not be written is rolled back with what built on it, and sent again when it may be (I26)."""
    ann.run("put", "tags", "mine", "--scope", "1")
    ann.run("sync")
    grant(service, "bob", "viewer")
    bob.run("pull")
    bob.run("put", "tags", "theirs", "color=red")
    bob.run("patch", "tags", "theirs", "color=blue")
    bob.run("patch", "tags", "mine", "color=blue")
    bob.run("sync", code=4)
    letters = bob.json("rejected", "list")
    assert [one["error"]["code"] for one in letters] == ["forbidden"] * 3
    assert [(row["tag"], row["color"]) for row in bob.json("ls", "tags")] == [("mine", "grey")]
    grant(service, "bob", "editor")
    bob.run("rejected", "retry", "--all")
    bob.run("sync")
    ann.run("sync")
    assert {row["tag"]: row["color"] for row in ann.json("ls", "tags")} == {"mine": "blue", "theirs": "blue"}
    assert ann.digest() == bob.digest()


def test_a_former_member_loses_the_rows_and_keeps_the_changes(service: TidemarkServer, ann: Tide, bob: Tide) -> None:
    """After revocation the rows are gone from the device, its unsent changes are dead letters (I26, I33)."""
    ann.run("put", "tags", "one", "--scope", "1")
    ann.run("sync")
    bob.run("pull")
    grant(service, "bob", None)
    bob.run("patch", "tags", "one", "color=red")
    bob.run("pull")
    assert bob.json("ls", "tags") == []
    assert [one["error"]["code"] for one in bob.json("rejected", "list")] == ["revoked"]


def test_watching_shows_changes_and_sends_what_others_write_to_the_store(ann: Tide, bob: Tide) -> None:
    """A watching device applies changes live, and pushes what another process puts into its outbox."""
    bob.run("pull")
    watching = bob.start("watch", "--json")
    assert watching.stdout is not None
    assert watching.stderr is not None
    assert any("Following" in line for line in watching.stderr)
    ann.run("put", "tags", "live", "color=red", "--scope", "1")
    ann.run("push")
    seen = json.loads(watching.stdout.readline())
    assert (seen["entity"], seen["row"], seen["doc"]["color"]) == ("tags", "live", "red")
    bob.run("patch", "tags", "live", "color=blue")
    seen = json.loads(watching.stdout.readline())
    assert seen["doc"]["color"] == "blue"
    bob.run("sync", code=3)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 0
    ann.run("pull")
    assert ann.digest() == bob.digest()


def test_commands_at_the_same_time_neither_lose_nor_double_anything(ann: Tide, bob: Tide) -> None:
    """Several processes write to one store while others synchronise it; every row arrives once (I25)."""
    ann.run("pull")

    def write(number: int) -> None:
        ann.run("put", "tags", f"t{number}", "--scope", "1")

    def sync(_: int) -> None:
        done = subprocess.run(ann.command("sync"), capture_output=True, env=environment(), check=False)
        assert done.returncode in (0, 3), done.stderr

    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(write if n % 3 else sync, n) for n in range(18)]
        assert all(one.result() is None for one in work)
    ann.run("sync")
    bob.run("pull")
    assert sorted(row["tag"] for row in bob.json("ls", "tags")) == sorted(f"t{n}" for n in range(18) if n % 3)
    assert ann.digest() == bob.digest()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_a_command_ended_at_any_moment_loses_nothing(ann: Tide, bob: Tide, tmp_path: Path, how: signal.Signals) -> None:
    """import, push and pull are ended at random moments; run again, they finish, and both devices are equal (I25)."""
    file = tmp_path / "tags.csv"
    file.write_text("tag,color\n" + "".join(f"t{n},c{n}\n" for n in range(ROWS)))
    chance = random.Random(int(how))
    for device, words in (
        (ann, ("import", "tags", str(file), "--scope", "1")),
        (ann, ("push",)),
        (bob, ("pull",)),
    ):
        for _ in range(4):
            process = device.start(*words)
            time.sleep(chance.uniform(0.1, 1.2))
            process.send_signal(how)
            assert process.wait(30) in (0, 130, -how), process.stderr
            process.communicate()
        device.run(*words)
        if device is ann:
            assert len(ann.json("ls", "tags")) == ROWS
    ann.run("sync")
    bob.run("sync")
    assert {row["tag"]: row["color"] for row in bob.json("ls", "tags")} == {f"t{n}": f"c{n}" for n in range(ROWS)}
    assert ann.digest() == bob.digest()
    assert ann.json("status")["pending"] == ann.json("status")["rejected"] == 0


def test_a_service_killed_in_the_middle_costs_nothing(
    service: TidemarkServer, ann: Tide, bob: Tide, tmp_path: Path
) -> None:
    """A push whose answer never came is sent again, and has its effect once (I14, I25)."""
    file = tmp_path / "tags.csv"
    file.write_text("tag,color\n" + "".join(f"t{n},c{n}\n" for n in range(ROWS)))
    ann.run("import", "tags", str(file), "--scope", "1")
    pushing = ann.start("push")
    deadline = time.monotonic() + 30
    while ann.json("status")["pending"] == ROWS and time.monotonic() < deadline:
        time.sleep(0.01)
    service.kill()
    pushing.communicate()
    service.start()
    ann.run("sync")
    bob.run("sync")
    assert len(bob.json("ls", "tags")) == ROWS
    assert ann.digest() == bob.digest()
