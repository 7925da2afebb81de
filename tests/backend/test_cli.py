"""`tidemark`: the service as a process, its database, its messages and exit codes."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
import structlog
from click.testing import CliRunner, Result
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.backend.conftest import CLIENT, PULL, SECRET
from tests.contract.shop import eventually
from tests.servers import ServerError, TidemarkServer, log_tail
from tidemark.cli import main
from tidemark.settings import PREFIX, variable

SCHEMA = Path(__file__).resolve().parents[1] / "contract" / "schema.yaml"


@pytest.fixture(autouse=True)
def on_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings of the caller, a folder of its own, and logging afterwards as it was."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def run(*arguments: str, **environ: str) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(main, arguments, env={variable(name): value for name, value in environ.items()})


@pytest.mark.parametrize("arguments", [[], ["--help"], ["serve", "-h"], ["schema"], ["epoch"], ["token", "--help"]])
def test_it_explains_itself(arguments: list[str]) -> None:
    """Every command has a help text."""
    assert "Usage" in run(*arguments).output


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_signed_with_the_secret() -> None:
    """Subject, role and lifetime are those asked for; audience and issuer those configured."""
    done = run(
        *("token", "--user", "auth0|7", "--role", "admin", "--ttl", "30m"),
        jwt_secret=SECRET,
        jwt_audience="us",
        jwt_issuer="me",
    )
    claims = jwt.decode(done.output.strip(), SECRET, algorithms=["HS256"], audience="us", issuer="me")
    assert (claims["sub"], claims["role"]) == ("auth0|7", "admin")
    assert 1790 < claims["exp"] - time.time() <= 1800


def test_without_a_secret_it_is_signed_with_that_of_development_mode(tmp_path: Path) -> None:
    """Which is the one kept below the folder, made if need be."""
    token = run("token", "--user", "ada").output.strip()
    secret = (tmp_path / "var" / "dev-secret").read_text()
    assert jwt.decode(token, secret, algorithms=["HS256"])["sub"] == "ada"


def test_tokens_of_a_provider_are_not_ours_to_sign() -> None:
    """With public keys there is nothing to sign with."""
    done = run("token", "--user", "ada", jwt_jwks_url="https://id.example/keys")
    assert done.exit_code == 1
    assert "identity provider" in done.output


def test_a_lifetime_is_a_duration() -> None:
    """Another text is a fault."""
    assert run("token", "--user", "ada", "--ttl", "soon").exit_code == 1


# ── declarations ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_good_schema_has_no_faults() -> None:
    """It says what was found."""
    done = run("schema", "check", str(SCHEMA))
    assert done.exit_code == 0
    assert "schema 3" in done.output


def test_every_fault_of_a_schema_is_named(tmp_path: Path) -> None:
    """One line each, by path, and exit code 1."""
    (tmp_path / "schema.yaml").write_text(
        "schema: 1\nentities:\n"
        "  a:\n    scope: user\n    fields: {x: {type: strange}}\n"
        "  b: {scope: nowhere, fields: {}}\n"
    )
    done = run("schema", "check", "schema.yaml")
    assert done.exit_code == 1
    assert "entities.a.fields.x" in done.output
    assert "entities.b.scope" in done.output


def test_a_missing_schema_is_a_fault() -> None:
    """Named, without a traceback."""
    done = run("schema", "check", "none.yaml")
    assert done.exit_code == 1
    assert "none.yaml" in done.output


# ── the database ─────────────────────────────────────────────────────────────────────────────────────────────────────


def written(done: Result) -> list[Path]:
    """The revisions that a command names."""
    assert done.exit_code == 0, done.output
    return [Path(line) for line in done.output.splitlines() if line.endswith(".py")]


def test_a_database_is_brought_up_to_date(database_url: str) -> None:
    """As often as one likes; the first revision says what was made by difference, the second has nothing to say."""
    environ = {"schema": str(SCHEMA), "database_url": database_url, "migrations": "here"}
    for _ in range(2):
        assert run("migrate", **environ).exit_code == 0
    assert len(written(run("schema", "revision", "-m", "first", **environ))) == 1
    assert run("migrate", **environ).exit_code == 0
    nothing = run("schema", "revision", "-m", "second", **environ)
    assert written(nothing) == []
    assert "nothing to write" in nothing.output


def test_a_changed_declaration_is_written_as_a_revision(tmp_path: Path) -> None:
    """Reviewable files beside the declaration, and `migrate` runs them."""
    file, url = tmp_path / "schema.yaml", f"sqlite:///{tmp_path / 'x.db'}"
    declared = "schema: 1\nentities:\n  notes:\n    scope: user\n    fields:\n      title: {type: text, default: ''}\n"
    file.write_text(declared)
    options = ("--schema", str(file), "--database", url)
    assert run("migrate", *options).exit_code == 0
    file.write_text(declared + "      color: {type: text, default: blue}\n")
    *_, revision = written(run("schema", "revision", "-m", "colors", *options))
    assert revision.parent == tmp_path / "migrations"
    assert "color" in revision.read_text()
    assert run("migrate", *options).exit_code == 0
    assert written(run("schema", "revision", "-m", "again", *options)) == []


def test_an_epoch_is_renewed(database_url: str) -> None:
    """A new name each time."""
    options = ("--schema", str(SCHEMA), "--database", database_url)
    assert run("migrate", *options).exit_code == 0
    names = {run("epoch", "renew", *options).output for _ in range(3)}
    assert len(names) == 3


@pytest.mark.parametrize(
    "url", ["postgresql://nobody@127.0.0.1:1/x", "mysql://db/x", "tidemark.db", "sqlite:///a/b/x.db"]
)
@pytest.mark.parametrize("command", [["epoch", "renew"], ["serve"]])
def test_a_database_that_cannot_be_used_is_named(url: str, command: list[str]) -> None:
    """One line, exit code 1, no traceback."""
    done = run(*command, "--schema", str(SCHEMA), "--database", url)
    assert (done.exit_code, isinstance(done.exception, SystemExit)) == (1, True), done.exception
    assert done.output.startswith("tidemark: ")
    assert "Traceback" not in done.output


# ── serving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(*arguments: str, **environ: str) -> str:
    """What `serve` says when it does not start."""
    done = run("serve", "--schema", str(SCHEMA), *arguments, **environ)
    assert done.exit_code == 1, done.output
    return done.output


def test_faults_of_the_configuration_are_listed() -> None:
    """All of them, each with its variable."""
    output = refused(jwt_secret="short", retention="long")
    assert [line.split(":")[1].strip() for line in output.splitlines()] == ["TIDEMARK_RETENTION", "TIDEMARK_JWT_SECRET"]


def test_development_mode_is_for_this_machine_only() -> None:
    """Listening elsewhere wants a secret."""
    assert "TIDEMARK_JWT_SECRET" in refused("--host", "0.0.0.0", "--migrate")


def test_sqlite_takes_one_worker() -> None:
    """The reason is given."""
    assert "SQLite serves one process" in refused("--workers", "2", "--migrate", database_url="sqlite:///x.db")


def test_missing_tables_are_not_made_unasked(database_url: str) -> None:
    """It says what to run."""
    assert "--migrate" in refused("--database", database_url)


def test_a_port_in_use_is_named() -> None:
    """One line."""
    with TidemarkServer(SCHEMA, "sqlite:///a.db") as server:
        assert "cannot listen" in refused("--port", str(server.port), "--migrate", database_url="sqlite:///b.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a server runs and logs."""
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[TidemarkServer]:
    """A running service on SQLite."""
    with TidemarkServer(SCHEMA, f"sqlite:///{folder / 'tidemark.db'}", folder=folder) as server:
        yield server


def text_of(url: str) -> str:
    """A page."""
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


def test_development_mode_says_so(folder: Path) -> None:
    """Where the secret is, and how to get a token that is taken."""
    with TidemarkServer(SCHEMA, "sqlite:///var/tidemark.db", secret=None, folder=folder) as server:
        said = server.log.read_text()
        token = run("token", "--user", "ada").output.strip()
        answer = httpx2.post(f"{server.url}/sync/pull", json=PULL, headers={"Authorization": f"Bearer {token}"})
    assert "development mode" in said
    assert "var/dev-secret" in said
    assert "tidemark token --user" in said
    assert answer.json()["readable"] == ["user:ada"]


def test_the_start_page_says_what_to_do(server: TidemarkServer) -> None:
    """A token, a request, what is declared; nothing is loaded from elsewhere."""
    page = text_of(server.url)
    for words in ("tidemark token", "curl", "Authorization: Bearer", "notes", "docs"):
        assert words in page
    assert "https://" not in page


def test_unknown_paths_have_the_one_shape(server: TidemarkServer) -> None:
    """Outside our routes too."""
    response = httpx2.get(f"{server.url}/nowhere")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "not_found"


def test_the_log_is_json_with_a_line_for_each_request(server: TidemarkServer) -> None:
    """Where it is no terminal; tokens and bodies are not in it."""
    headers = server.headers("ada")
    httpx2.post(f"{server.url}/sync/pull", json=PULL, headers=headers)
    httpx2.get(f"{server.url}/nowhere?token=hunter2")
    server.stop()
    text = server.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["method"], line["path"], line["status"], line["user"]) for line in requests] == [
        ("POST", "/sync/pull", 200, "ada"),
        ("GET", "?", 404, None),
    ]
    assert all({"ms", "received", "sent", "timestamp", "level"} <= line.keys() for line in requests)
    for secret in (headers["Authorization"][7:], "hunter2", SECRET, CLIENT):
        assert secret not in text


def test_secrets_by_file_and_options_reach_the_process_that_serves(folder: Path) -> None:
    """What is decided at start is what serves: files are read, options win over the environment."""
    (folder / "secret").write_text(SECRET)
    (folder / "url").write_text("postgresql://nobody@127.0.0.1:1/x")
    environ = {
        "TIDEMARK_JWT_SECRET_FILE": str(folder / "secret"),
        "TIDEMARK_DATABASE_URL_FILE": str(folder / "url"),
        "TIDEMARK_HOST": "nowhere.example",
    }
    server = TidemarkServer(SCHEMA, "sqlite:///var/tidemark.db", secret=None, env=environ, folder=folder)
    with server:
        server.secret = SECRET
        answer = httpx2.post(f"{server.url}/sync/pull", json=PULL, headers=server.headers("ada"))
    assert answer.json()["readable"] == ["user:ada"]


def test_misspelt_settings_are_named(folder: Path) -> None:
    """A warning, and it runs."""
    environ = {"TIDEMARK_RETENTON": "1s"}
    with TidemarkServer(SCHEMA, "sqlite:///x.db", folder=folder, env=environ) as server:
        assert "TIDEMARK_RETENTON" in server.log.read_text()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Runs what blocks."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def held_pull(server: TidemarkServer, pool: ThreadPoolExecutor) -> Future[httpx2.Response]:
    """A pull that waits."""
    headers = server.headers("ada")
    page = httpx2.post(f"{server.url}/sync/pull", json=PULL, headers=headers).json()
    body: dict[str, Any] = PULL | {"wait": 25, "watermark": {run["scope"]: run["watermark"] for run in page["scopes"]}}
    held = pool.submit(httpx2.post, f"{server.url}/sync/pull", json=body, headers=headers, timeout=30)
    with pytest.raises(TimeoutError):
        held.result(timeout=0.3)
    return held


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_cleanly(
    request: pytest.FixtureRequest, folder: Path, pool: ThreadPoolExecutor, workers: int, number: signal.Signals
) -> None:
    """A pull that waits is answered, a stream is closed with 1012, and the exit code is 0."""
    url = f"sqlite:///{folder / 'x.db'}" if workers == 1 else request.getfixturevalue("postgresql_url")
    with TidemarkServer(SCHEMA, url, folder=folder, workers=workers) as server:
        held = held_pull(server, pool)
        with connect(f"{server.websocket_url}/sync/stream", subprotocols=["tidemark.v1"]) as stream:  # type: ignore[list-item]
            stream.send(json.dumps({"t": "hello", "token": server.token("ada"), **PULL}))
            assert json.loads(stream.recv(timeout=5))["t"] == "welcome"
            started = time.monotonic()
            os.kill(server.pid, number)
            assert held.result(timeout=10).status_code == 200
            closed = _close_code(stream)
            assert closed == 1012
        assert server.wait(10) == 0
        assert time.monotonic() - started < 5
        assert '"level":"error"' not in server.log.read_text()


def _close_code(stream: Any) -> int | None:
    try:
        while True:
            stream.recv(timeout=10)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def test_several_workers_share_the_work_and_are_replaced(postgresql_url: str, folder: Path) -> None:
    """On PostgreSQL every process serves; one that dies is replaced."""
    with TidemarkServer(SCHEMA, postgresql_url, folder=folder, workers=2) as server:
        before = server.nodes(2)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        serving = [child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
        os.kill(int(serving[0]), signal.SIGKILL)
        eventually(lambda: server.nodes() - before, 60)


def test_a_database_held_by_another_process_is_refused(server: TidemarkServer) -> None:
    """SQLite serves one process; the second says so and ends."""
    second = TidemarkServer(SCHEMA, server.database)
    with pytest.raises(ServerError):
        second.start()
    assert "another process" in log_tail(second.log)
