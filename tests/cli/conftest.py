"""Stores without a service, and a service that says what a test wants it to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from tidemark_cli.peer import Peer
from tidemark_cli.server import Server
from tidemark_cli.sync import Synchroniser
from tidemark_cli.writes import Writer, Written
from tidemark_protocol import clock
from tidemark_protocol.schema import parse, to_wire

Json = dict[str, Any]
URL = "http://service.test"
SECRET = "a secret of tests, 32 bytes or more"
START = 1_800_000_000_000
"""When tests begin, in Unix ms."""
SCHEMA = """
schema: 3
scopes:
  workspace:
    roles: {viewer: read, editor: write}
entities:
  notes:
    scope: user
    fields:
      title:    {type: text, max: 20}
      body:     {type: text, default: ""}
      count:    {type: integer, nullable: true}
      ratio:    {type: number, nullable: true}
      price:    {type: decimal, precision: 6, scale: 2, nullable: true}
      done:     {type: boolean, default: false}
      day:      {type: date, nullable: true}
      labels:   {type: map}
      extra:    {type: json, nullable: true}
      note_id:  {type: uuid, nullable: true, ref: notes}
  tasks:
    scope: workspace
    fields:
      title:    {type: text}
  tags:
    scope: workspace
    key: {column: tag, type: text, per_scope: true}
    fields:
      color:    {type: text, default: grey}
"""
WIRE = to_wire(parse(SCHEMA))


class Time:
    """A device's clock that a test moves by hand (ms)."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        """The time; a glance at it takes a millisecond."""
        self.now += 1
        return self.now


def token(user: str) -> str:
    """A token as the service would sign it."""
    return jwt.encode({"sub": user, "exp": 4_000_000_000}, SECRET, algorithm="HS256")


class Script:
    """A service whose answers to pushes and pulls are given in advance; without any it applies and holds nothing."""

    def __init__(self, time: Callable[[], int]) -> None:
        self.time = time
        self.requests: list[httpx2.Request] = []
        self.pushes: list[Json] = []
        self.answers: list[Callable[[Json], httpx2.Response]] = []
        self.pulls: list[list[Json]] = []
        self.version = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        self.requests.append(request)
        match request.url.path:
            case "/sync/time":
                now = self.time()
                return httpx2.Response(
                    200, json={"clock": clock.floor_reading(now), "time": clock.instant_of_millis(now)}
                )
            case "/sync/schema":
                return httpx2.Response(200, json=WIRE, headers={"ETag": '"3"'})
            case "/sync/push":
                body = json.loads(request.content)
                self.pushes.append(body)
                return self.answers.pop(0)(body) if self.answers else self.verdicts()(body)
            case "/sync/pull":
                lines = self.pulls.pop(0) if self.pulls else [self.trailer()]
                return httpx2.Response(200, text="".join(json.dumps(line) + "\n" for line in lines))
            case path:
                raise AssertionError(f"nobody should ask for {path}")

    def reading(self) -> str:
        """What the service's clock says."""
        return clock.floor_reading(self.time())

    def verdicts(self, **by_row: Json) -> Callable[[Json], httpx2.Response]:
        """Answers a push: `applied` but for the rows named, from the first `retry` on all `retry`."""

        def answer(body: Json) -> httpx2.Response:
            results, blocked = [], False
            for mutation in body["mutations"]:
                said = by_row.get(mutation["row"], {"status": "applied"})
                if blocked:
                    said = {"status": "retry", "error": {"code": "unavailable", "message": "behind another"}}
                blocked = blocked or said["status"] == "retry"
                if said["status"] == "applied":
                    self.version += 1
                    said = {"scope": mutation["scope"], "version": self.version} | said
                results.append({"seq": mutation["seq"]} | said)
            return httpx2.Response(200, json={"results": results, "clock": self.reading()})

        return answer

    def trailer(self, *revoked: str, readable: tuple[str, ...] = ("user:ann", "workspace:1")) -> Json:
        """The last line of a pull."""
        return {"readable": list(readable), "revoked": list(revoked), "clock": self.reading()}


def problem(status: int, code: str, **headers: str) -> Callable[[Json], httpx2.Response]:
    """The service's own refusal of a request."""
    body = {"type": "about:blank", "title": "no", "status": status, "detail": f"it is {code}", "code": code}
    kind = {"Content-Type": "application/problem+json"}
    return lambda _: httpx2.Response(status, content=json.dumps(body), headers=kind | headers)


def page(status: int) -> Callable[[Json], httpx2.Response]:
    """What a proxy on the way says."""
    return lambda _: httpx2.Response(status, html="<h1>Bad gateway</h1>")


def refused(code: str, message: str = "no") -> Json:
    """A verdict `rejected`."""
    return {"status": "rejected", "error": {"code": code, "message": message, "field": None}}


def later(code: str, message: str = "not now") -> Json:
    """A verdict `retry`."""
    return {"status": "retry", "error": {"code": code, "message": message}}


def run(scope: str, after: int, to: int, changes: list[Json], **rest: Any) -> Json:
    """One run at its head, without a digest unless given."""
    said = {"scope": scope, "from": after, "to": to, "head": to, "watermark": f"epoch.{to}.0.3", "reset": False}
    return said | {"changes": changes} | rest


class Desk:
    """A store, its device's clock and the service it speaks to."""

    def __init__(self, folder: Path, time: Time, service: Script) -> None:
        self.folder = folder
        self.time = time
        self.service = service
        self.slept: list[float] = []
        self.peer = self.open(create=True)
        self.peer.begin(URL)
        self.peer.login(token("ann"))
        self.peer.adopt(json.dumps(WIRE).encode(), '"3"')
        self.sync = self.synchroniser()

    def open(self, *, create: bool = False) -> Peer:
        """Open the store, as each call of `tide` does."""
        return Peer(self.folder, create=create, now=self.time)

    def synchroniser(self) -> Synchroniser:
        """What `tide push` and `tide pull` work with."""
        server = Server(URL, self.peer.token, now=self.time, transport=httpx2.MockTransport(self.service))
        return Synchroniser(self.peer, server, sleep=self.slept.append, progress=lambda *_: None)

    def writer(self, entity: str = "notes", scope: str | None = None, **rest: Any) -> Writer:
        """Writes of one entity."""
        found = self.peer.entity(entity)
        return Writer(self.peer, found, self.peer.scope_of(found, scope), **rest)

    def put(self, row: str | None = None, **fields: Any) -> Written:
        """Put a note."""
        return self.writer().put(row, {"title": "t"} | fields)

    def notes(self) -> dict[str, Json]:
        """The notes as the device shows them."""
        return {row: doc for (_, row), doc in self.peer.visible(self.peer.entity("notes")).items()}

    def pending(self) -> list[int]:
        """The seqs that wait."""
        return [mutation.seq for mutation in self.peer.outbox.pending()]


@pytest.fixture
def time() -> Time:
    """A clock that stands at the beginning."""
    return Time()


@pytest.fixture
def desk(tmp_path: Path, time: Time) -> Iterator[Desk]:
    """A store of ann's, logged in."""
    made = Desk(tmp_path / "store", time, Script(lambda: time.now))
    yield made
    made.peer.close()
