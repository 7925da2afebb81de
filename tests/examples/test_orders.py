"""examples/orders: a shop's tables are taken over while the shop is at work, and followed (SPEC 10)."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest

from examples.orders.generate import TENANTS, connect
from tests.cli.devices import Tide
from tests.servers import TidemarkServer
from tidemark_protocol.schema import parse

ORDERS = Path(__file__).parents[2] / "examples" / "orders"
SCHEMA = ORDERS / "schema.yaml"
ENTITIES = parse(SCHEMA.read_text(encoding="utf-8")).entities
WITHIN = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

Rows = dict[str, dict[tuple[Any, ...], dict[str, Any]]]


def shop(url: str, *options: str) -> subprocess.Popen[str]:
    """The shop's program, as its owner starts it."""
    command = [sys.executable, str(ORDERS / "generate.py"), "--url", url, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def at_work(url: str, *options: str) -> Iterator[None]:
    """The shop is open; it closes in good order, all its transactions done."""
    process = shop(url, *options)
    assert process.stdout is not None
    assert "rows/s" in process.stdout.readline()
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        said, faults = process.communicate(timeout=60)
    assert (process.returncode, faults) == (0, "")
    assert "undone" not in said.splitlines()[-1]


@contextmanager
def watching(device: Tide) -> Iterator[list[str]]:
    """The device follows live, ended as Ctrl-C would; the entities of the changes that it has shown so far."""
    process = device.start("watch", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    assert any("Following" in line for line in process.stderr)
    shown: list[str] = []
    reader = Thread(target=lambda: shown.extend(json.loads(line)["entity"] for line in process.stdout or ()))
    reader.start()
    try:
        yield shown
    finally:
        process.send_signal(signal.SIGINT)
        reader.join(20)
        process.communicate(timeout=20)


def identity(entity: str, row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from every other."""
    declared = ENTITIES[entity]
    return tuple(str(row[column]) for column in (declared.scope.column, *declared.key.columns))


def in_json(kind: str, value: Any) -> Any:
    """A column's value as SPEC 10 writes it."""
    if value is None:
        return None
    match kind:
        case "decimal":
            return f"{Decimal(str(value)):.2f}"
        case "date":
            return value.isoformat() if isinstance(value, date) else value
        case "boolean":
            return bool(value)
        case "text":
            return str(value)
        case _:
            return value


async def in_sql(url: str) -> Rows:
    """Every row of the shop's tables, column by column."""
    database = await connect(url, 60)
    found: Rows = {}
    for name, entity in ENTITIES.items():
        kinds: dict[str, str] = dict.fromkeys((*entity.key.columns, entity.scope.column), "text")
        kinds |= {field: declared.type for field, declared in entity.fields.items()}
        rows = await database.read(f"SELECT {', '.join(kinds)} FROM {name}")
        said = [{n: in_json(k, v) for (n, k), v in zip(kinds.items(), row, strict=True)} for row in rows]
        found[name] = {identity(name, row): row for row in said}
    await database.close()
    return found


def in_replica(device: Tide) -> Rows:
    """The same of what a device holds, without the two times that the shop does not know."""
    found: Rows = {}
    for name in ENTITIES:
        rows = [
            {n: v for n, v in row.items() if n not in {"created_at", "updated_at"}} for row in device.json("ls", name)
        ]
        found[name] = {identity(name, row): row for row in rows}
    return found


def until(holds: Callable[[], bool]) -> None:
    """Look until it holds, but not for ever."""
    deadline = time.monotonic() + WITHIN
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)


def operate(command: str, url: str) -> None:
    """Run a command of `tidemark` on the shop's database."""
    words = [str(Path(sys.executable).with_name("tidemark")), command, "--schema", str(SCHEMA), "--database", url]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def let_in(service: TidemarkServer, user: str) -> None:
    """Give a user both tenants' rows."""
    for tenant in TENANTS:
        place = f"{service.url}/sync/scopes/workspace:{tenant}/members/{user}"
        httpx2.put(place, headers=service.headers("op", "admin"), json={"role": "editor"}).raise_for_status()


def test_a_shop_at_work_is_adopted_and_followed(database_url: str, tmp_path: Path) -> None:
    """Adopted while the shop goes on, and followed by a device, every row ends as SQL has it, field by field."""
    created = shop(database_url, "--create", "--seconds", "0")
    assert (created.communicate(timeout=60)[1], created.returncode) == ("", 0)
    with ExitStack() as serving, ExitStack() as open_hours:
        open_hours.enter_context(at_work(database_url, "--rate", "60"))
        operate("migrate", database_url)
        operate("adopt", database_url)
        service = serving.enter_context(TidemarkServer(SCHEMA, database_url, folder=tmp_path, migrate=False))
        let_in(service, "ada")
        ada = Tide(service, tmp_path / "ada", "ada")
        with watching(ada) as shown:
            until(lambda: len(shown) >= 200)
            assert {"orders", "order_line_items"} <= set(shown)
            open_hours.close()
            held = asyncio.run(in_sql(database_url))
            until(lambda: in_replica(ada) == held)
        assert in_replica(ada) == held
        assert all(held.values())
        ada.run("verify")
