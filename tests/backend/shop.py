"""Another program's shop: its table, made and written in plain SQL, and the command line held against it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, Final, TypeVar

import msgspec
import structlog
from click.testing import CliRunner, Result

from tidemark.cli import main
from tidemark.plugin import make_engine, make_store, read_declaration
from tidemark.settings import Settings, variable
from tidemark.store.schema.migrate import beside
from tidemark.sync.access import Principal
from tidemark.sync.engine import Engine
from tidemark_protocol import clock
from tidemark_protocol.messages import Mutation, PullRequest, PullResponse

T = TypeVar("T")

SCHEMA: Final = """
schema: 1
scopes:
  workspace:
    roles: {viewer: read, editor: write, owner: manage}
entities:
  orders:
    table: shop_orders
    key: {column: order_key, type: text}
    scope: {kind: workspace, column: tenant_id}
    capture: true
    fields:
      customer: {type: text, max: 40}
      total: {type: decimal, precision: 15, scale: 2, default: "0.00"}
  notes:
    scope: user
    fields:
      title: {type: text, max: 100, default: ""}
"""
_LATIN: Final = {"mariadb": " CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"}


ADA: Final = Principal("ada", "user:ada", True, 2**40)
CLIENT: Final = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


def kind_of(url: str) -> str:
    """sqlite, postgresql or mariadb."""
    return url.partition(":")[0]


def sql(url: str, statement: str) -> list[Any]:
    """Run one statement as another program would; the rows it gives."""

    def work(connection: Any) -> list[Any]:
        # The driver of MariaDB looks for parameters in every statement.
        text = statement.replace("%", "%%") if kind_of(url) == "mariadb" else statement
        result = connection.exec_driver_sql(text)
        return [tuple(row) for row in result] if result.returns_rows else []

    return beside(url, work, reading=False)


class Shop:
    """A database with the shop's table and `rows` orders in seven scopes, and the command line on it."""

    def __init__(self, url: str, folder: Path, rows: int = 0, schema: str = SCHEMA) -> None:
        self.url = url
        self.kind = kind_of(url)
        self.schema = folder / "schema.yaml"
        self.declare(schema)
        text = f"VARCHAR(190){_LATIN.get(self.kind, '')}"
        if self.kind == "sqlite":
            Path(url.removeprefix("sqlite:///")).touch()
        self.sql(
            f"CREATE TABLE shop_orders (order_key {text} PRIMARY KEY, tenant_id {text} NOT NULL, "
            f"customer {text} NOT NULL, total {'TEXT' if self.kind == 'sqlite' else 'NUMERIC(15, 2)'} NOT NULL, "
            f"remark {text} DEFAULT '')"
        )
        self.fill(0, rows)

    def declare(self, schema: str) -> None:
        """Write the declaration."""
        self.schema.write_text(schema)

    def fill(self, start: int, end: int) -> None:
        """Insert the orders of these numbers."""
        for begin in range(start, end, 500):
            values = ", ".join(
                f"('o{n}', 't{n % 7}', 'c{n % 100}', '{n}.50', '')" for n in range(begin, min(begin + 500, end))
            )
            self.sql(f"INSERT INTO shop_orders VALUES {values}")

    def sql(self, statement: str) -> list[Any]:
        """Run one statement as another program would."""
        return sql(self.url, statement)

    def run(self, *arguments: str, **environ: str) -> Result:
        """The command line on this database."""
        env = {variable(name): value for name, value in environ.items()}
        given = {variable("schema"): str(self.schema), variable("database_url"): self.url}
        root = logging.getLogger()
        handlers, level = [*root.handlers], root.level
        try:
            return CliRunner().invoke(main, arguments, env=given | env)
        finally:
            structlog.reset_defaults()
            root.handlers[:] = handlers
            root.setLevel(level)

    def prepared(self) -> Shop:
        """Migrated, and its rows taken."""
        for command in ("migrate", "adopt"):
            done = self.run(command)
            assert done.exit_code == 0, done.output
        return self

    def doctor(self, *arguments: str, **environ: str) -> Diagnosis:
        """What `tidemark doctor` finds."""
        done = self.run("doctor", "--json", *arguments, **environ)
        try:
            return Diagnosis(done.exit_code, msgspec.json.decode(done.stdout))
        except msgspec.DecodeError:
            raise AssertionError(done.output) from done.exception

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """No trigger reports what is written meanwhile."""
        self.silence()
        yield
        if self.kind == "postgresql":
            self.sql("ALTER TABLE shop_orders ENABLE TRIGGER ALL")
        else:
            done = self.run("migrate")
            assert done.exit_code == 0, done.output
            self.sql("DELETE FROM sync_inbox")

    @contextmanager
    def written_to(self, rows: int) -> Iterator[Event]:
        """Another program inserts, changes and deletes some of so many orders all the while; the event tells that it
        has.
        """
        over, written = Event(), Event()

        def write() -> None:
            for number in count(1):
                self.sql(f"INSERT INTO shop_orders VALUES ('w{number}', 't{number % 7}', 'writer', '1.00', '')")
                self.sql(f"UPDATE shop_orders SET customer = 'changed' WHERE order_key = 'o{number * 37 % rows}'")
                self.sql(f"DELETE FROM shop_orders WHERE order_key = 'o{number * 53 % rows}'")
                written.set()
                if over.wait(0.02):
                    return

        with ThreadPoolExecutor(1) as threads:
            done = threads.submit(write)
            try:
                yield written
            finally:
                over.set()
                done.result()

    def silence(self) -> None:
        """Switch the triggers off, where that can be done, else drop them."""
        if self.kind == "postgresql":
            self.sql("ALTER TABLE shop_orders DISABLE TRIGGER ALL")
            return
        for name in self.triggers():
            self.sql(f"DROP TRIGGER {name}")

    def triggers(self) -> list[str]:
        """The names of the triggers on the shop's table."""
        query = {
            "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'shop_orders'",
            "postgresql": "SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop_orders'::regclass AND NOT tgisinternal",
            "mariadb": "SELECT trigger_name FROM information_schema.triggers "
            "WHERE trigger_schema = DATABASE() AND event_object_table = 'shop_orders'",
        }
        return [str(name) for (name,) in self.sql(query[self.kind])]

    def feed(self, entity: str = "orders") -> dict[str, dict[str, Any]]:
        """The live documents of an entity by row."""
        found = self.sql(f"SELECT \"row\", doc FROM sync_feed WHERE entity = '{entity}' AND NOT deleted")
        return {str(row): msgspec.json.decode(doc) for row, doc in found}

    def table(self) -> dict[str, str]:
        """The customers of the shop's table by order."""
        return dict(self.sql("SELECT order_key, customer FROM shop_orders"))

    def write_notes(self, number: int) -> None:
        """Have a client write that many notes."""
        self.push([("notes", note(n), None, {"title": f"note {n}"}) for n in range(number)])

    def push(self, puts: Sequence[tuple[str, str, str | None, dict[str, Any]]]) -> None:
        """Have a client make rows in one push: entity, row, scope, fields."""
        now = time.time_ns() // 1_000_000
        readings = (clock.reading(now, number, "00000000000000aa") for number in count(1))
        sent = [
            Mutation(seq, "put", entity, row, at, scope, fields)
            for seq, ((entity, row, scope, fields), at) in enumerate(zip(puts, readings, strict=False), 1)
        ]
        answer = asyncio.run(self._asked(lambda engine: engine.push(ADA, CLIENT, 1, sent)))
        assert {result.status for result in answer.results} == {"applied"}, answer

    def pull(self, watermark: dict[str, str] | None = None) -> PullResponse:
        """What a client copies."""
        request = PullRequest(CLIENT, 1, watermark)
        body = asyncio.run(self._asked(lambda engine: engine.pull(ADA, request)))
        return msgspec.json.decode(body, type=PullResponse)

    async def _asked(self, ask: Callable[[Engine], Awaitable[T]]) -> T:
        settings = Settings(schema=str(self.schema), database_url=self.url)
        declaration = read_declaration(settings)
        engine = make_engine(settings, declaration, make_store(settings, declaration))
        await engine.start()
        try:
            return await ask(engine)
        finally:
            await engine.stop()


class Diagnosis:
    """What `tidemark doctor --json` said."""

    def __init__(self, code: int, report: dict[str, Any]) -> None:
        self.code = code
        self.entities = report["entities"]
        self.findings: dict[str, dict[str, Any]] = {finding["code"]: finding for finding in report["findings"]}

    def __contains__(self, code: str) -> bool:
        return code in self.findings

    def __getitem__(self, code: str) -> dict[str, Any]:
        return self.findings[code]

    def __repr__(self) -> str:
        return f"{self.code}: {self.findings}"


def note(number: int) -> str:
    """The key of that note."""
    return f"00000000-0000-4000-8000-{number:012d}"
