"""Local writes: checked, stamped, and in the outbox in the same transaction (SPEC 2 and 3)."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from tidemark_protocol.errors import Rejection
from tidemark_protocol.merge import Op
from tidemark_protocol.model import Entity
from tidemark_protocol.outbox import Pending, changed, on_top
from tidemark_protocol.rows import row_problem

from .errors import TideError
from .peer import Document, Peer
from .values import whole

MAX_DOC: Final = 256 << 10
"""Bytes of one document (SPEC 4)."""


class Written(Struct, frozen=True):
    """What a write came to; `unchanged`: the row was like that already, and nothing goes out."""

    op: Op | Literal["unchanged"]
    scope: str
    row: str


class Item(Struct, frozen=True):
    """A row to be imported: `row` is its key (None: a new one), `fields` what it says about it."""

    row: str | None
    fields: dict[str, Any]


class Writer:
    """Writes of one entity in one scope."""

    def __init__(self, peer: Peer, entity: Entity, scope: str, *, group: str | None = None) -> None:
        self._peer = peer
        self._entity = entity
        self._scope = scope
        self._group = group
        self._check = peer.validator(entity)
        self._user = peer.user

    def put(self, row: str | None, values: Mapping[str, Any]) -> Written:
        """The whole row becomes `values` (path → value); over a visible row, a patch of what that changes."""
        with self._peer.database.transaction():
            key = self._key(row)
            doc = self._seen(key)
            fields = self._canonical(whole(values))
            return self._add([self._as_write(key, doc, fields)])[0]

    def patch(self, row: str, values: Mapping[str, Any]) -> Written:
        """Set single fields or keys of a visible row."""
        with self._peer.database.transaction():
            doc = self._shown(row)
            try:
                paths = self._check.patch(dict(values))
            except Rejection as refused:
                raise TideError(f"{row}: {refused.message}") from refused
            after = on_top(doc, [self._mutation("patch", row, paths)], self._entity) or {}
            wanted = {field: after[field] for field in {path.partition("/")[0] for path in paths}}
            return self._add([self._patch(row, doc, wanted)])[0]

    def delete(self, row: str) -> Written:
        with self._peer.database.transaction():
            self._shown(row)
            return self._add([self._mutation("delete", row, None)])[0]

    def take_in(self, items: Iterable[Item]) -> list[Written]:
        """Import rows, all or none: new ones are put, of visible ones only what differs is patched."""
        with self._peer.database.transaction():
            visible = self._peer.visible(self._entity, scope=self._scope)
            mutations: list[Pending | Written] = []
            for item in items:
                key = self._key(item.row)
                doc = visible.get((self._scope, key))
                mutation = self._as_write(key, doc, self._canonical(self._completed(doc, item.fields), key))
                mutations.append(mutation)
                if isinstance(mutation, Pending):
                    after = on_top(doc, [mutation], self._entity)
                    visible[self._scope, key] = after or {}
            return self._add(mutations)

    # ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _key(self, row: str | None) -> str:
        if row is None:
            if self._entity.key.types != ("uuid",):
                raise TideError(f"{self._entity.name} needs a key ({':'.join(self._entity.key.columns)})")
            return str(uuid.uuid4())
        problem = row_problem(self._entity, row)
        if problem is not None:
            raise TideError(f"{row!r} cannot be a key of {self._entity.name}: {problem}")
        return row

    def _seen(self, row: str) -> Document | None:
        """The visible row, if any. A key that is unique over all scopes may be in use in another one."""
        everywhere = None if not self._entity.key.per_scope else self._scope
        found = self._peer.visible(self._entity, scope=everywhere, row=row)
        elsewhere = [scope for scope, _ in found if scope != self._scope]
        if elsewhere and (self._scope, row) not in found:
            raise TideError(f"{self._entity.name} {row} is in {elsewhere[0]} already; a key is used once.")
        return found.get((self._scope, row))

    def _shown(self, row: str) -> Document:
        doc = self._peer.visible(self._entity, scope=self._scope, row=row).get((self._scope, row))
        if doc is None:
            raise TideError(f"There is no {self._entity.name} {row} in {self._scope}.")
        return doc

    def _completed(self, doc: Document | None, fields: dict[str, Any]) -> dict[str, Any]:
        """An imported row says nothing about the fields it does not name."""
        held = {} if doc is None else {name: doc[name] for name in self._entity.fields if name in doc}
        return held | fields

    def _canonical(self, fields: dict[str, Any], row: str | None = None) -> dict[str, Any]:
        try:
            return self._check.put(fields)
        except Rejection as refused:
            raise TideError(f"{row}: {refused.message}" if row else refused.message) from refused

    def _as_write(self, row: str, doc: Document | None, fields: dict[str, Any]) -> Pending | Written:
        if doc is not None:
            return self._patch(row, doc, fields)
        self._check_size(row, fields)
        return self._mutation("put", row, fields)

    def _patch(self, row: str, doc: Document, wanted: Mapping[str, Any]) -> Pending | Written:
        paths = changed(doc, wanted, self._entity.maps)
        if not paths:
            return Written("unchanged", self._scope, row)
        self._check_size(row, {**doc, **wanted})
        return self._mutation("patch", row, paths)

    def _check_size(self, row: str, doc: Mapping[str, Any]) -> None:
        if len(msgspec.json.encode(doc)) > MAX_DOC:
            raise TideError(f"{row}: a row holds at most {MAX_DOC >> 10} KiB")

    def _mutation(self, op: Op, row: str, fields: dict[str, Any] | None) -> Pending:
        peer = self._peer
        wall = peer.now()
        at = peer.outbox.issue(wall + (peer.offset or 0))
        number = peer.declaration.number
        return Pending(0, op, self._scope, self._entity.name, row, at, fields, number, wall, self._group)

    def _add(self, writes: list[Pending | Written]) -> list[Written]:
        if self._peer.user != self._user:
            raise TideError("Somebody else has logged in meanwhile. Nothing was written.")
        self._peer.outbox.add([write for write in writes if isinstance(write, Pending)])
        return [Written(write.op, self._scope, write.row) if isinstance(write, Pending) else write for write in writes]
