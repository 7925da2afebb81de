"""A store and who it belongs to: one replica, one user, one service (SPEC 1)."""

from __future__ import annotations

import base64
import os
import secrets
import time
import uuid
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from tidemark_protocol.errors import DeclarationError
from tidemark_protocol.fields import Validator, compile_entity
from tidemark_protocol.model import USER, Declaration, Entity, Field
from tidemark_protocol.outbox import on_top
from tidemark_protocol.rows import format_scope, parse_scope, user_scope
from tidemark_protocol.schema import from_wire

from .database import Database
from .errors import LoginNeeded, TideError
from .outbox import Outbox
from .replica import Replica
from .values import find_entity

Now = Callable[[], int]
"""This device's own time in Unix milliseconds."""
Document = dict[str, Any]


def wall() -> int:
    return time.time_ns() // 1_000_000


def fresh_node() -> str:
    """The node of a clock: drawn at each opening, so that a copied store never shares one (SPEC 2)."""
    return secrets.token_hex(8)


class Peer:
    """An opened store."""

    def __init__(
        self, folder: Path, *, create: bool = False, now: Now = wall, node: Callable[[], str] = fresh_node
    ) -> None:
        self.database = Database(folder, create=create)
        self.outbox = Outbox(self.database, node)
        self.replica = Replica(self.database, self.outbox)
        self.now = now
        self._validators: dict[str, Validator] = {}

    def close(self) -> None:
        self.database.close()

    # ── who and where ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        return self.database.get("url") or ""

    @property
    def client(self) -> str:
        return self.database.get("client") or ""

    @property
    def user(self) -> str | None:
        return self.database.get("user")

    @property
    def own(self) -> str:
        """The user's own scope."""
        if self.user is None:
            raise LoginNeeded("Nobody is logged in. Run: tide login")
        return user_scope(self.user)

    @property
    def offset(self) -> int | None:
        """The server's time less this device's (ms), as last measured."""
        text = self.database.get("offset")
        return None if text is None else int(text)

    def corrected(self) -> int:
        """The server's time, as far as this device knows."""
        return self.now() + (self.offset or 0)

    def begin(self, url: str) -> None:
        """Make this a replica of the service at `url`."""
        with self.database.transaction():
            if self.url and self.url != url:
                raise TideError(f"This store belongs to {self.url}. Use another one: tide --store DIR init {url}")
            self.database.set("url", url)
            if not self.client:
                self.database.set("client", str(uuid.uuid4()))

    def token(self) -> str:
        """The token of this store's user; one of somebody else is never used with this outbox."""
        file = self._token_file
        text = os.environ.get("TIDE_TOKEN") or (file.read_text().strip() if file.exists() else "")
        if not text:
            raise LoginNeeded("Nobody is logged in. Run: tide login")
        if self.user is not None and claims_of(text).sub != self.user:
            raise LoginNeeded(
                f"This store belongs to {self.user}, the token to {claims_of(text).sub}. Nothing was sent."
            )
        return text

    @property
    def _token_file(self) -> Path:
        return self.database.folder / "token"

    def login(self, token: str) -> str:
        """Keep a token. A store with changes of another user is not given away; the user's name."""
        user = claims_of(token).sub
        with self.database.transaction():
            if self.user is not None and self.user != user:
                self._hand_to_another(user)
            self.database.set("user", user)
            user_scope(user)
            file = self._token_file.with_suffix(".new")
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:  # noqa: PTH123
                out.write(token + "\n")
            file.replace(self._token_file)
        return user

    def _hand_to_another(self, user: str) -> None:
        waiting, letters = self.outbox.count(), len(self.outbox.dead_letters())
        if waiting or letters:
            raise TideError(
                f"This store holds {waiting} unsent and {letters} rejected changes of {self.user}, which are never sent"
                f" as {user}. Push them as {self.user}, or save and drop them (tide outbox export, tide outbox discard,"
                f" tide rejected …), or use another store: tide --store DIR init {self.url}"
            )
        for table in ("base", "scope", "outbox"):
            self.database.sql.execute(f"DELETE FROM {table}")
        self.database.set("client", str(uuid.uuid4()))

    # ── what is declared ─────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def declaration(self) -> Declaration:
        text = self.database.get("schema")
        if text is None:
            raise LoginNeeded("The declaration of the tables is not here yet. Run: tide login")
        return from_wire(msgspec.json.decode(text))

    def adopt(self, body: bytes, etag: str | None) -> Declaration:
        """Keep a declaration that the service gave."""
        try:
            declaration = from_wire(msgspec.json.decode(body))
        except (DeclarationError, msgspec.DecodeError) as fault:
            raise TideError(f"The service's declaration cannot be used: {fault}") from fault
        with self.database.transaction():
            self.database.set("schema", body.decode())
            self.database.set("etag", etag)
        self.__dict__["declaration"] = declaration
        self._validators.clear()
        return declaration

    def entity(self, name: str) -> Entity:
        return find_entity(self.declaration.entities, name)

    def validator(self, entity: Entity) -> Validator:
        if entity.name not in self._validators:
            self._validators[entity.name] = compile_entity(entity)
        return self._validators[entity.name]

    def refs(self, entity: str) -> Iterable[Field]:
        """The `ref` fields of an entity, as the outbox asks for them."""
        known = self.declaration.entities.get(entity)
        return () if known is None else known.refs

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def scope_of(self, entity: Entity, given: str | None) -> str:
        """The scope to write in: the own one, the one given (`workspace:7` or `7`), or the only one there is."""
        kind = entity.scope.kind
        if kind == USER:
            if given not in (None, self.own):
                raise TideError(f"{entity.name} belongs to the user: leave --scope out")
            return self.own
        if given is None:
            held = [standing.scope for standing in self.replica.standings() if standing.scope.startswith(f"{kind}:")]
            if len(held) != 1:
                known = f" You can see {', '.join(held)}." if held else ""
                raise TideError(f"{entity.name} is shared: say where with --scope {kind}:ID.{known}")
            return held[0]
        try:
            scope = given if ":" in given else format_scope(kind, given)
            found, _ = parse_scope(scope)
        except ValueError as fault:
            raise TideError(f"{given!r} is no scope: {fault}") from fault
        if found != kind:
            raise TideError(f"{entity.name} lives in scopes of kind {kind}, not {found}")
        return scope

    def visible(
        self, entity: Entity, *, scope: str | None = None, row: str | None = None
    ) -> dict[tuple[str, str], Document]:
        """(scope, row) → document of the rows as this device shows them, pending edits on top, ordered by key."""
        conditions = {"entity": entity.name} | ({"scope": scope} if scope else {}) | ({"row": row} if row else {})
        where = " AND ".join(f"{name} = ?" for name in conditions)
        documents: dict[tuple[str, str, str], Document | None] = dict(
            self.replica.documents(where, *conditions.values())
        )
        for name, mutations in self.outbox.of_rows(where, *conditions.values()).items():
            documents[name] = on_top(documents.get(name), mutations, entity)
        return {(name[0], name[2]): doc for name, doc in sorted(documents.items()) if doc is not None}

    def find(self, entity: Entity, row: str, scope: str | None) -> tuple[str, Document]:
        """A visible row and its scope."""
        within = None if scope is None else self.scope_of(entity, scope)
        found = self.visible(entity, scope=within, row=row)
        if not found:
            raise TideError(f"There is no {entity.name} {row}" + (f" in {within}." if within else "."))
        if len(found) > 1:
            raise TideError(f"{entity.name} {row} is in {', '.join(s for s, _ in found)}: say which with --scope")
        (((where, _), document),) = found.items()
        return where, document


class Claims(msgspec.Struct, frozen=True):
    """What a token says about itself: whose it is, and until when (Unix seconds)."""

    sub: str
    exp: float


def claims_of(token: str) -> Claims:
    """Read a token. Only the service can tell whether it is genuine."""
    try:
        body = token.split(".")[1]
        return msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=Claims)
    except (IndexError, ValueError, msgspec.MsgspecError) as fault:
        raise LoginNeeded("That is no token: a JWT with `sub`, the user, and `exp` is needed.") from fault
