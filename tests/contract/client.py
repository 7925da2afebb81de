"""A small client of the service for the contract suite: tokens, clock readings, mutations, pushes, pulls.

It knows the protocol alone and holds no state beyond what a replica must: its user, its client id and its clock.
"""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import httpx2
import jwt

SECRET = "a secret of the contract suite that is long enough for any HMAC there is"
SCHEMA = 3

Json = dict[str, Any]


def fresh(name: str) -> str:
    """A user or scope id that no other test uses."""
    return f"{name}-{secrets.token_hex(6)}"


def key() -> str:
    """A new row key."""
    return str(uuid.uuid4())


def wall() -> int:
    """This machine's time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def reading(milliseconds: int, counter: int = 0, node: str = "00000000000000aa") -> str:
    """One clock reading as text (SPEC section 2)."""
    return f"{milliseconds:012x}-{counter:04x}-{node}"


def milliseconds(at: str) -> int:
    """The Unix milliseconds of a reading."""
    return int(at[:12], 16)


def timestamp(at: str) -> str:
    """The time of a reading as documents write it: RFC 3339, six digits of fraction, `Z`."""
    whole, rest = divmod(milliseconds(at), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest:03d}000Z"


class Clock:
    """A hybrid logical clock that never issues a reading twice; safe to share between threads."""

    def __init__(self, node: str | None = None) -> None:
        self.node = node or secrets.token_hex(8)
        self._last = (0, 0)
        self._lock = threading.Lock()

    def tick(self) -> str:
        """The next reading."""
        with self._lock:
            now = wall()
            stood, counter = self._last
            self._last = (now, 0) if now > stood else (stood + (counter == 0xFFFF), (counter + 1) & 0xFFFF)
            return reading(*self._last, self.node)

    def advance(self, seen: str) -> None:
        """Take in a reading received from the server."""
        with self._lock:
            self._last = max(self._last, (milliseconds(seen), int(seen[13:17], 16)))


def token(user: str, *, secret: str = SECRET, ttl: float = 3600, **claims: Any) -> str:
    """A signed token of `user` that expires after `ttl` seconds; `claims` add to it or, being None, take away."""
    body: Json = {"sub": user, "exp": int(time.time() + ttl)} | claims
    return jwt.encode({name: value for name, value in body.items() if value is not None}, secret, algorithm="HS256")


def op(
    kind: str,
    entity: str,
    row: str,
    fields: Mapping[str, Any] | None = None,
    *,
    at: str,
    scope: str | None = None,
    group: str | None = None,
) -> Json:
    """One mutation without its `seq`, which a push gives."""
    mutation: Json = {"op": kind, "entity": entity, "row": row, "at": at}
    for name, value in (("fields", fields), ("scope", scope), ("group", group)):
        if value is not None:
            mutation[name] = value
    return mutation


class Service:
    """Where a running service is, and one pool of connections to it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.http = httpx2.Client(base_url=self.url, timeout=40, trust_env=False)

    @property
    def stream_url(self) -> str:
        """The address of the websocket."""
        return self.url.replace("http", "ws", 1) + "/sync/stream"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for tests that speak through a bare socket."""
        url = httpx2.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def device(self, user: str | None = None, **claims: Any) -> Device:
        """A new device of `user`, or of a user nobody else is."""
        return Device(self, fresh("user") if user is None else user, **claims)

    def admin(self) -> Device:
        """A device of an operator."""
        return self.device(fresh("admin"), role="admin")

    def workspace(self, **members: Device) -> str:
        """A new workspace whose members are given by role: `workspace(owner=alice, viewer=bob)`."""
        scope = f"workspace:{fresh('ws')}"
        admin = self.admin()
        for role, member in members.items():
            admin.grant(scope, member.user, role)
        return scope

    def close(self) -> None:
        """Give the connections back."""
        self.http.close()


class Device:
    """One installed replica of one user."""

    def __init__(self, service: Service, user: str, **claims: Any) -> None:
        self.service = service
        self.user = user
        self.scope = f"user:{user}"
        self.client = str(uuid.uuid4())
        self.clock = Clock()
        self.token = token(user, **claims)
        self.headers = {"Authorization": f"Bearer {self.token}"}

    def again(self) -> Device:
        """Another device of the same user."""
        return Device(self.service, self.user)

    def on(self, service: Service) -> Device:
        """The same installation, speaking to another process of the service."""
        other = Device(service, self.user)
        other.client, other.clock, other.token, other.headers = self.client, self.clock, self.token, self.headers
        return other

    # Mutations

    def put(self, entity: str, row: str | None = None, /, *, at: str | None = None, **rest: Any) -> Json:
        """A put of `row`, or of a new one; `scope` and `group` beside the fields go into the mutation."""
        return self._write("put", entity, row or key(), at, rest)

    def patch(self, entity: str, row: str, /, *, at: str | None = None, **rest: Any) -> Json:
        """A patch of `row`; paths that are no Python names go in by `fields={…}`."""
        return self._write("patch", entity, row, at, rest)

    def delete(self, entity: str, row: str, /, *, at: str | None = None, **rest: Any) -> Json:
        """A delete of `row`."""
        return self._write("delete", entity, row, at, rest)

    def _write(self, kind: str, entity: str, row: str, at: str | None, rest: Json) -> Json:
        scope, group = rest.pop("scope", None), rest.pop("group", None)
        fields = None if kind == "delete" else rest.pop("fields", {}) | rest
        return op(kind, entity, row, fields, at=at or self.clock.tick(), scope=scope, group=group)

    # Requests

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        """Post `body` (bytes and text as they are, anything else as JSON)."""
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        return self.service.http.post(
            path, content=content, headers={"Content-Type": "application/json"} | self.headers | headers
        )

    def envelope(self, mutations: Sequence[Json], **rest: Any) -> Json:
        """A push of `mutations`, numbered from 1."""
        numbered = [{"seq": seq} | mutation for seq, mutation in enumerate(mutations, 1)]
        return {"client": self.client, "schema": SCHEMA, "mutations": numbered} | rest

    def push_answer(self, *mutations: Json, **rest: Any) -> Json:
        """The whole answer of a push that must be a 200."""
        response = self.post("/sync/push", self.envelope(mutations, **rest))
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        assert [result["seq"] for result in answer["results"]] == list(range(1, len(mutations) + 1))
        self.clock.advance(answer["clock"])
        return answer

    def push(self, *mutations: Json, **rest: Any) -> list[Json]:
        """The results of a push, one for each mutation."""
        results: list[Json] = self.push_answer(*mutations, **rest)["results"]
        return results

    def apply(self, *mutations: Json) -> list[Json]:
        """Push mutations that must all be applied."""
        results = self.push(*mutations)
        assert [result["status"] for result in results] == ["applied"] * len(mutations), results
        return results

    def pull(self, watermark: Mapping[str, str] | None = None, **rest: Any) -> Json:
        """One page of a pull that must be a 200."""
        response = self.post("/sync/pull", self.pull_body(watermark, **rest))
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        self.clock.advance(answer["clock"])
        return answer

    def pull_body(self, watermark: Mapping[str, str] | None = None, **rest: Any) -> Json:
        """The body of a pull."""
        return {"client": self.client, "schema": SCHEMA, "watermark": dict(watermark or {})} | rest

    def pages(self, watermark: Mapping[str, str] | None = None, **rest: Any) -> Iterator[Json]:
        """Pages of a pull until the service says that there is no more."""
        held = dict(watermark or {})
        for _ in itertools.repeat(None, 10_000):
            page = self.pull(held, **rest)
            held |= {run["scope"]: run["watermark"] for run in page["scopes"]}
            yield page
            if not page["more"]:
                return
        raise AssertionError("the pull never ends")

    def docs(self, entity: str | None = None, scope: str | None = None) -> dict[str, Json]:
        """The live documents by row, pulled from nothing."""
        rows: dict[tuple[str, str], Any] = {}
        for page in self.pages(scopes=None if scope is None else [scope]):
            for change in changes(page["scopes"]):
                rows[change["entity"], change["row"]] = change["doc"]
        return {row: doc for (kind, row), doc in rows.items() if doc is not None and entity in (None, kind)}

    def doc(self, entity: str, row: str, scope: str | None = None) -> Json | None:
        """One live document, or None."""
        return self.docs(entity, scope).get(row)

    # Membership and the journal

    def members_path(self, scope: str, user: str | None = None) -> str:
        """The path of a scope's members, or of one of them."""
        tail = "" if user is None else "/" + quote(user, safe="")
        return f"/sync/scopes/{quote(scope, safe=':')}/members{tail}"

    def grant_response(self, scope: str, user: str, role: Any) -> httpx2.Response:
        """The answer to a PUT of a member."""
        return self.service.http.put(self.members_path(scope, user), json={"role": role}, headers=self.headers)

    def grant(self, scope: str, user: str, role: str) -> None:
        """Give `user` a role, which must succeed."""
        response = self.grant_response(scope, user, role)
        assert response.is_success, response.text

    def expel_response(self, scope: str, user: str) -> httpx2.Response:
        """The answer to a DELETE of a member."""
        return self.service.http.delete(self.members_path(scope, user), headers=self.headers)

    def expel(self, scope: str, user: str) -> None:
        """End a membership, which must succeed."""
        response = self.expel_response(scope, user)
        assert response.is_success, response.text

    def members_response(self, scope: str) -> httpx2.Response:
        """The answer to a GET of the members."""
        return self.service.http.get(self.members_path(scope), headers=self.headers)

    def get(self, path: str, **params: Any) -> httpx2.Response:
        """A GET with this device's token."""
        return self.service.http.get(path, params=params, headers=self.headers)

    def events(self, **params: Any) -> list[Json]:
        """One page of the journal that must be a 200."""
        response = self.get("/sync/events", **params)
        assert response.status_code == 200, response.text
        events: list[Json] = response.json()["events"]
        return events


def changes(runs: Iterable[Json]) -> list[Json]:
    """All changes of some runs, in order."""
    return [change for run in runs for change in run["changes"]]


def code(result: Json) -> str | None:
    """The error code of a mutation's result."""
    error = result.get("error")
    return None if error is None else error["code"]


def assert_problem(response: httpx2.Response, status: int, problem: str | None = None) -> Json:
    """Check the one shape of every refused request (RFC 9457 and a stable `code`)."""
    assert response.status_code == status, (response.status_code, response.text[:500])
    assert response.headers["content-type"].split(";")[0] == "application/problem+json"
    body: Json = {}
    with suppress(ValueError):
        body = response.json()
    assert {"type", "title", "status", "detail", "code"} <= body.keys(), body
    assert body["status"] == status
    assert isinstance(body["code"], str) and body["code"]
    if problem is not None:
        assert body["code"] == problem
    return body
