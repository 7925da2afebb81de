"""The checks of a mutation that need nothing but the declaration (SPEC 4), made before it waits for its transaction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from tidemark_protocol import clock, rows
from tidemark_protocol.errors import MUTATION_CODES, Rejection
from tidemark_protocol.fields import compile_entity
from tidemark_protocol.merge import Write
from tidemark_protocol.messages import Mutation
from tidemark_protocol.model import ColumnType, Declaration, Entity

from .access import Principal
from .feed import hash63

RANK: Final = {code: rank for rank, code in enumerate(MUTATION_CODES)}
"""The order of the checks: what is refused for two reasons is refused for the earlier."""

_OPS: Final = ("put", "patch", "delete")
_MAX_GROUP: Final = 64
_LONGEST_SCOPE: Final = 32 + 1 + 3 * 128
_WRAPPING: Final = len('["patch",]')
_encoder: Final = msgspec.json.Encoder()
_sorted: Final = msgspec.json.Encoder(order="sorted")


class Prepared(Struct):
    """A mutation after the static checks: `write` when it passed them, else `fault`.

    `scope`, `entity`, `row` and `at` hold what was sent as far as it is text ("" otherwise), `scope` with the caller's
    own in place of none; `declared` is None for an entity that is not declared. `content` are the 63 bits that tell
    one content of a reading from another: op and fields as they were sent, of a delete the op alone. `reading` are
    those that name user, scope, entity, row and `at`; None where the journal could not know it again.
    """

    sent: Mutation
    scope: str
    entity: str
    row: str
    at: str
    content: int
    reading: int | None
    declared: Entity | None = None
    write: Write | None = None
    fault: Rejection | None = None

    @property
    def group(self) -> str | None:
        return self.sent.group if isinstance(self.sent.group, str) else None

    @property
    def is_malformed(self) -> bool:
        """Whether it names no row that there could be, or says nothing of it."""
        return self.fault is not None and RANK[self.fault.code] < RANK["clock_ahead"]


class _Validator(Protocol):
    def put(self, fields: object) -> dict[str, Any]: ...
    def patch(self, fields: object) -> dict[str, Any]: ...


class Preparer:
    """Validators are compiled once, from the declaration. `max_doc` bounds a document, in bytes."""

    def __init__(self, declaration: Declaration, max_doc: int) -> None:
        self._entities = declaration.entities
        self._max_doc = max_doc
        self._validators: Mapping[str, _Validator] = {
            name: compile_entity(entity) for name, entity in declaration.entities.items()
        }

    def prepare(self, principal: Principal, sent: Mutation) -> Prepared:
        scope = principal.own if sent.scope is None else _text(sent.scope)
        entity, row, at = _text(sent.entity), _text(sent.row), _text(sent.at)
        content = _sorted.encode([sent.op, None if sent.op == "delete" else sent.fields])
        reading = reading_hash(principal.user, scope, entity, row, at) if scope and entity and row and at else None
        ready = Prepared(sent, scope, entity, row, at, hash63(content), reading)
        try:
            self._check(ready)
        except Rejection as fault:
            ready.fault = fault
        if len(content) - _WRAPPING > self._max_doc and (ready.write is not None or _is_too_deep(ready)):
            self._check_size(ready)
        return ready

    def _check(self, ready: Prepared) -> None:
        sent = ready.sent
        group = sent.group
        if sent.op not in _OPS if isinstance(sent.op, str) else True:
            raise Rejection("invalid_mutation", "op is one of put, patch, delete")
        if group is not None and not (isinstance(group, str) and 1 <= len(group) <= _MAX_GROUP):
            raise Rejection("invalid_mutation", f"group is a text of 1 to {_MAX_GROUP} characters")
        if sent.op != "delete" and not isinstance(sent.fields, dict):
            raise Rejection("invalid_mutation", f"a {sent.op} carries an object of fields")
        if sent.op == "patch" and not sent.fields:
            raise Rejection("invalid_mutation", "a patch sets at least one field")
        entity = self._entities.get(ready.entity)
        if entity is None:
            raise Rejection("unknown_entity", "no such entity is declared")
        ready.declared = entity
        problem = _scope_problem(entity, ready.scope)
        if problem is not None:
            raise Rejection("invalid_scope", problem if sent.scope is not None else f"{problem}; name one")
        problem = rows.row_problem(entity, sent.row)
        if problem is not None:
            raise Rejection("invalid_row", problem)
        if not clock.is_reading(sent.at):
            raise Rejection("invalid_clock", "at is a reading: 12, 4 and 16 lower case hex digits, joined by hyphens")
        if sent.op == "delete":
            ready.write = Write("delete", ready.at, {})
            return
        validator = self._validators[entity.name]
        values = validator.put(sent.fields) if sent.op == "put" else validator.patch(sent.fields)
        ready.write = Write(sent.op, ready.at, values)

    def _check_size(self, ready: Prepared) -> None:
        """Refuse what no document can hold, whatever stands on the row: a whole put, or one value of a patch."""
        sent = ready.sent
        wholes = [sent.fields] if sent.op == "put" else sent.fields.values()
        if any(len(_encoder.encode(whole)) > self._max_doc for whole in wholes):
            ready.write = None
            ready.fault = Rejection("too_large", f"the document would hold more than {self._max_doc} bytes")


def reading_hash(user: str, scope: str | None, entity: str, row: str, at: str) -> int:
    """The 63 bits under which a spent reading is found."""
    return hash63(_encoder.encode((user, scope, entity, row, at)))


def _scope_problem(entity: Entity, scope: str) -> str | None:
    """Why rows of an entity cannot live in a scope."""
    judge = _judged_scope if len(scope) <= _LONGEST_SCOPE else _judged_scope.__wrapped__
    return judge(entity.name, entity.scope.kind, entity.scope.type, scope)


@lru_cache(maxsize=4096)
def _judged_scope(entity: str, kind: str, id_type: ColumnType, scope: str) -> str | None:
    """The same; remembered, since the same few scopes come again and again."""
    try:
        named, decoded = rows.parse_scope(scope)
    except ValueError as fault:
        return str(fault)
    if named != kind:
        return f"rows of {entity} live in scopes of kind {kind}"
    problem = rows.id_problem(id_type, decoded)
    return None if problem is None else f"the scope's id {problem}"


def _is_too_deep(ready: Prepared) -> bool:
    return ready.fault is not None and ready.fault.code == "too_deep"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
