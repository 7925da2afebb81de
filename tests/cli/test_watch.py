"""Following live: `tide watch` on a real service (SPEC 6)."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SCHEMA
from tests.cli.devices import Tide, grant
from tests.servers import TidemarkServer
from tidemark_cli.peer import claims_of


@pytest.fixture
def service(tmp_path: Path) -> Iterator[TidemarkServer]:
    """A service with a workspace that ann and bob may edit."""
    schema = tmp_path / "schema.yaml"
    schema.write_text(SCHEMA)
    with TidemarkServer(schema, f"sqlite:///{tmp_path / 'tidemark.db'}", env={"TIDEMARK_HEARTBEAT": "2s"}) as server:
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


class Watching:
    """A `tide watch` that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def said(self, words: str) -> str:
        """The next note that holds these words."""
        assert self.process.stderr is not None
        return next(line for line in self.process.stderr if words in line)

    def seen(self) -> dict[str, Any]:
        """The next change."""
        assert self.process.stdout is not None
        change: dict[str, Any] = json.loads(self.process.stdout.readline())
        return change


@contextmanager
def watching(device: Tide) -> Iterator[Watching]:
    """Watch, from the moment the stream is open; ended as Ctrl-C would."""
    process = device.start("watch", "--json")
    try:
        one = Watching(process)
        one.said("Following")
        yield one
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_changes_come_live_and_what_others_write_to_the_store_goes_out(ann: Tide, bob: Tide) -> None:
    """A watching device applies changes as they come, and pushes what another process puts into its outbox."""
    with watching(bob) as one:
        ann.run("put", "tags", "live", "color=red", "--scope", "1")
        ann.run("push")
        seen = one.seen()
        assert (seen["entity"], seen["row"], seen["doc"]["color"]) == ("tags", "live", "red")
        bob.run("patch", "tags", "live", "color=blue")
        assert one.seen()["doc"]["color"] == "blue"
        bob.run("sync", code=3)
        ann.run("sync")
        ann.run("rm", "tags", "live")
        ann.run("sync")
        assert one.seen()["doc"] is None
    assert one.process.returncode == 0
    assert ann.digest() == bob.digest()


def test_a_service_that_comes_back_is_followed_again(service: TidemarkServer, ann: Tide, bob: Tide) -> None:
    """After a restart the stream resumes where it stood, and nothing is missing or twice (I38)."""
    with watching(bob) as one:
        ann.run("put", "tags", "before", "--scope", "1")
        ann.run("push")
        assert one.seen()["row"] == "before"
        service.restart()
        one.said("Following")
        ann.run("put", "tags", "after", "--scope", "1")
        ann.run("push")
        assert one.seen()["row"] == "after"
    assert ann.digest() == bob.digest()


def test_a_revoked_scope_goes_while_watching(service: TidemarkServer, ann: Tide, bob: Tide) -> None:
    """The end of a membership reaches the device at once, and so does its return (I39)."""
    ann.run("put", "tags", "secret", "--scope", "1")
    ann.run("push")
    with watching(bob) as one:
        assert len(bob.json("ls", "tags")) == 1
        grant(service, "bob", None)
        one.said("may not be read any more")
        assert bob.json("ls", "tags") == []
        grant(service, "bob", "viewer")
        assert one.seen()["row"] == "secret"


def test_a_token_that_expires_ends_the_watch_unless_there_is_a_new_one(service: TidemarkServer, bob: Tide) -> None:
    """A login elsewhere keeps a watch alive; without one the end of the token is its end (I41)."""
    bob.run("login", stdin=service.token("bob", ttl=10))
    with watching(bob) as one:
        fresh = service.token("bob", ttl=20)
        expires = claims_of(fresh).exp
        (bob.folder / "token").write_text(fresh)
        assert one.process.wait(60) == 7
        assert time.time() >= expires
