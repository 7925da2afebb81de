"""The plugin beside the routes of an application that was there before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar, Request, Response, get, post
from litestar.testing import TestClient

from tests.backend.conftest import DECLARATION, PULL, PUSH, SECRET, bearer, note
from tidemark.plugin import SyncConfig, SyncPlugin, make_store, make_wake
from tidemark.settings import Settings, SettingsError
from tidemark.store.mysql import MysqlStore
from tidemark.store.postgresql import PostgresStore
from tidemark.store.schema.migrate import migrate
from tidemark.store.sqlite import SqliteStore
from tidemark.wake.local import LocalWake
from tidemark.wake.nats import NatsWake
from tidemark.wake.polling import PollingWake
from tidemark.wake.postgresql import PostgresWake
from tidemark.wake.redis import RedisWake
from tidemark_protocol.errors import DeclarationError

Client = TestClient[Litestar]


@get("/tasks")
async def own_route() -> dict[str, int]:
    """A route of the application."""
    return {"tasks": 7}


@post("/tasks")
async def failing_route() -> None:
    """One that fails."""
    raise LookupError("no such task")


def own_handler(_request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, str]]:
    """How the application answers its errors."""
    return Response({"oops": type(error).__name__}, status_code=418)


@pytest.fixture(params=["", "/api/v1"])
def prefix(request: pytest.FixtureRequest) -> str:
    """Where the routes are put."""
    return str(request.param)


@pytest.fixture
def host(prefix: str, tmp_path: Path) -> Iterator[Client]:
    """An application with routes and errors of its own, and the plugin on a SQLite file."""
    settings = Settings(jwt_secret=SECRET, database_url=f"sqlite:///{tmp_path / 'tidemark.db'}")
    migrate(settings.database_url, DECLARATION)
    plugin = SyncPlugin(SyncConfig(settings, path=prefix, declaration=DECLARATION))
    app = Litestar(
        [own_route, failing_route], plugins=[plugin], exception_handlers={Exception: own_handler}, logging_config=None
    )
    with TestClient(app) as client:
        yield client


def test_both_sets_of_routes_answer(host: Client, prefix: str) -> None:
    """What was there is there, and a push is pulled again beside it."""
    assert host.get("/tasks").json() == {"tasks": 7}
    pushed = host.post(f"{prefix}/sync/push", json={**PUSH, "mutations": [note(1)]}, headers=bearer())
    assert [result["status"] for result in pushed.json()["results"]] == ["applied"]
    (run,) = host.post(f"{prefix}/sync/pull", json=PULL, headers=bearer()).json()["scopes"]
    assert [change["row"] for change in run["changes"]] == [note(1)["row"]]
    path = f"{prefix}/sync/scopes/workspace:7/members/a%2Fb"
    assert host.put(path, json={"role": "viewer"}, headers=bearer(role="admin")).json()["user"] == "a/b"


def test_the_stream_answers_below_the_prefix(host: Client, prefix: str) -> None:
    """A websocket says welcome."""
    token = bearer()["Authorization"].removeprefix("Bearer ")
    with host.websocket_connect(f"{prefix}/sync/stream", subprotocols=["tidemark.v1"]) as stream:
        stream.send_json({"t": "hello", "token": token, **PULL, "watermark": {}})
        assert stream.receive_json()["t"] == "welcome"


def test_errors_stay_with_whom_they_belong(host: Client, prefix: str) -> None:
    """The application's handlers answer for its routes and unknown paths, ours for ours."""
    assert host.post("/tasks").json() == {"oops": "LookupError"}
    assert host.get("/nowhere").json() == {"oops": "NotFoundException"}
    assert host.get(f"{prefix}/sync/pull").json()["code"] == "method_not_allowed"
    assert host.post(f"{prefix}/sync/pull").json()["code"] == "unauthenticated"


def test_nothing_else_is_added(host: Client, prefix: str) -> None:
    """The application's own API description stays its own, and there is no start page."""
    assert list(host.get("/schema/openapi.json").json()["paths"]) == ["/tasks"]
    assert host.get(prefix or "/").status_code == 418


def test_a_plugin_needs_keys() -> None:
    """An application has no development mode: without keys it does not start."""
    with pytest.raises(SettingsError, match="neither a secret nor a public key"):
        SyncPlugin(SyncConfig(Settings(), declaration=DECLARATION))


def test_a_bad_key_names_its_setting() -> None:
    """A public key that cannot be read is a fault of its setting."""
    with pytest.raises(SettingsError, match="TIDEMARK_JWT_PUBLIC_KEY"):
        SyncPlugin(SyncConfig(Settings(jwt_public_key="/nowhere.pem"), declaration=DECLARATION))


def test_the_declaration_is_read_from_its_file(tmp_path: Path) -> None:
    """A missing file is a fault of the setting, a faulty one names its faults."""
    file = tmp_path / "schema.yaml"
    with pytest.raises(SettingsError, match="TIDEMARK_SCHEMA"):
        SyncPlugin(SyncConfig(Settings(jwt_secret=SECRET, schema=str(file))))
    file.write_text("schema: 0\nentities: 7\n")
    with pytest.raises(DeclarationError):
        SyncPlugin(SyncConfig(Settings(jwt_secret=SECRET, schema=str(file))))


def test_rules_are_a_module() -> None:
    """One that cannot be imported is a fault of the setting."""
    with pytest.raises(SettingsError, match="TIDEMARK_RULES"):
        SyncPlugin(SyncConfig(Settings(jwt_secret=SECRET, rules="no.such.module"), declaration=DECLARATION))


@pytest.mark.parametrize(
    ("url", "store", "wake"),
    [
        ("sqlite:////tmp/x.db", SqliteStore, LocalWake),
        ("postgresql://ada@db/x", PostgresStore, PostgresWake),
        ("postgres://ada@db/x", PostgresStore, PostgresWake),
        ("mysql://ada@db/x", MysqlStore, PollingWake),
        ("mariadb://ada@db/x", MysqlStore, PollingWake),
        ("mysql+asyncmy://ada@db/x", MysqlStore, PollingWake),
    ],
)
def test_the_url_names_the_store(url: str, store: type, wake: type) -> None:
    """And what joins its processes."""
    settings = Settings(database_url=url)
    assert isinstance(make_store(settings, DECLARATION, chance=os.urandom), store)
    assert isinstance(make_wake(settings), wake)


def test_other_databases_are_refused() -> None:
    """With the ones that are served."""
    with pytest.raises(SettingsError, match="sqlite:, postgresql:, mysql: and mariadb: are served, not oracle:"):
        make_store(Settings(database_url="oracle://db/x"), DECLARATION, chance=os.urandom)


def test_without_the_driver_of_mysql_the_setting_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install; who has no use for MySQL needs nothing."""
    for name in [name for name in sys.modules if name.startswith("tidemark.store.mysql")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncmy", None)
    with pytest.raises(SettingsError, match=r"TIDEMARK_DATABASE_URL.*install tidemark\[mysql\]"):
        make_store(Settings(database_url="mysql://ada@db/x"), DECLARATION)
    make_store(Settings(database_url="postgresql://ada@db/x"), DECLARATION)


def test_sqlite_serves_one_process() -> None:
    """With the reason."""
    settings = Settings(database_url="sqlite:////tmp/x.db", workers=2)
    with pytest.raises(SettingsError, match="SQLite serves one process"):
        make_store(settings, DECLARATION, chance=os.urandom)


@pytest.mark.parametrize(
    ("wake", "kind"),
    [
        ("polling", PollingWake),
        ("postgresql://ada@past-the-pooler/x", PostgresWake),
        ("redis://ada:secret@broker:6380/0", RedisWake),
        ("rediss://broker?ssl_ca_certs=/etc/ca.pem", RedisWake),
        ("valkey://broker", RedisWake),
        ("valkeys://broker", RedisWake),
        ("nats://broker", NatsWake),
        ("tls://ada:secret@broker:4223", NatsWake),
        ("nats://first,nats://second:4223", NatsWake),
    ],
)
def test_the_wake_can_be_chosen(wake: str, kind: type) -> None:
    """Polling, a connection of its own, or a broker."""
    assert isinstance(make_wake(Settings(database_url="postgresql://pooler/x", wake=wake)), kind)


@pytest.mark.parametrize("wake", ["pigeon", "redis", "kafka://broker", "nats:broker"])
def test_another_wake_is_refused(wake: str) -> None:
    """With all that are served."""
    with pytest.raises(SettingsError, match=r"TIDEMARK_WAKE.*auto, polling.*postgresql://, redis://.*nats://"):
        make_wake(Settings(wake=wake))


@pytest.mark.parametrize(
    "wake",
    [
        "redis://:hu/sh@broker",
        "redis://broker?colour=red",
        "redis://broker?db=one",
        "nats://",
        "nats://first,second",
        "nats://ada:hu/sh@broker",
        "nats://broker:0",
    ],
)
def test_a_wake_whose_url_cannot_be_read(wake: str) -> None:
    """It is refused when it is made, not again and again when it connects, and what is said bears no secret."""
    with pytest.raises(SettingsError, match="TIDEMARK_WAKE") as caught:
        make_wake(Settings(wake=wake))
    assert "hu" not in str(caught.value)


@pytest.mark.parametrize("broker", ["redis", "nats"])
def test_without_the_client_of_a_broker_the_setting_is_at_fault(monkeypatch: pytest.MonkeyPatch, broker: str) -> None:
    """The message says what to install; who has no use for the broker needs nothing."""
    monkeypatch.delitem(sys.modules, f"tidemark.wake.{broker}", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == broker]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, broker, None)
    with pytest.raises(SettingsError, match=rf"TIDEMARK_WAKE.*install tidemark\[{broker}\]"):
        make_wake(Settings(wake=f"{broker}://broker"))
