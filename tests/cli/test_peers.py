"""Real devices on a real service, on both databases."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import SCHEMA
from tests.cli.devices import SCOPE, Tide, environment, grant
from tests.servers import TidemarkServer

ROWS = 2_000


@pytest.fixture
def service(tmp_path: Path, database_url: str) -> Iterator[TidemarkServer]:
    """A service with a workspace that ann and bob may edit."""
    schema = tmp_path / "schema.yaml"
    schema.write_text(SCHEMA)
    with TidemarkServer(schema, database_url) as server:
        for user in ("ann", "bob"):
            grant(server, user, "editor")
        yield server


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


def test_a_store_that_differs_from_the_server_is_found_and_healed(ann: Tide) -> None:
    """`verify` notices a row that is not the server's, says so by its exit code, and pulls the scope anew (I32)."""
    for tag in ("one", "two"):
        ann.run("put", "tags", tag, "--scope", "1")
    ann.run("sync")
    ann.run("verify", "--full")
    with closing(sqlite3.connect(ann.folder / "tide.db")) as store, store:
        store.execute("UPDATE base SET version = version + 1 WHERE row = 'one'")
    different = [check["scope"] for check in ann.json("verify", code=5) if check["ours"] != check["theirs"]]
    assert different == [SCOPE]
    ann.run("verify", "--full")
    assert len(ann.json("ls", "tags")) == 2


def test_changes_made_before_an_upgrade_still_arrive(service: TidemarkServer, ann: Tide, bob: Tide) -> None:
    """Changes go out under the number they were made for; then the device takes the new declaration and its rows."""
    ann.run("put", "tags", "one", "color=red", "--scope", "1")
    ann.run("sync")
    ann.run("patch", "tags", "one", "color=blue")
    newer = SCHEMA.replace("schema: 3", "schema: 4\noldest: 3") + "      size: {type: text, default: small}\n"
    service.schema.write_text(newer)
    service.restart()
    ann.run("sync")
    row = ann.json("get", "tags", "one")
    assert (row["color"], row["size"]) == ("blue", "small")
    assert ann.json("status")["schema"] == 4
    ann.run("patch", "tags", "one", "size=large")
    ann.run("sync")
    bob.run("sync")
    assert bob.json("get", "tags", "one")["size"] == "large"
    assert ann.digest() == bob.digest()


def test_a_number_that_is_no_longer_served_keeps_the_changes(service: TidemarkServer, ann: Tide) -> None:
    """Changes older than the service converts are kept and said, with a code of their own (I25)."""
    ann.run("put", "tags", "one", "color=red", "--scope", "1")
    service.schema.write_text(SCHEMA.replace("schema: 3", "schema: 5"))
    service.restart()
    ann.run("sync", code=6)
    assert ann.json("status")["pending"] == 1
    assert [row["color"] for row in ann.json("ls", "tags")] == ["red"]


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
            assert process.wait(30) in (0, 130, -how), process.stderr and process.stderr.read()
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
