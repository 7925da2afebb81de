"""The checks of a mutation that need nothing but the declaration (SPEC 4), made before it waits for its transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from msgspec import Struct

from tidemark_protocol import clock, rows
from tidemark_protocol.errors import MUTATION_CODES, Rejection
from tidemark_protocol.fields import compile_entity
from tidemark_protocol.merge import Write
from tidemark_protocol.messages import Mutation
from tidemark_protocol.schema import Declaration, Entity

from .access import Principal

RANK: Final = {code: rank for rank, code in enumerate(MUTATION_CODES)}
"""The order of the checks: what is refused for two reasons is refused for the earlier."""

_OPS: Final = ("put", "patch", "delete")
_MAX_GROUP: Final = 64


class Prepared(Struct):
    """A mutation after the static checks: `write` when it passed them, else `fault`.

    `scope`, `entity`, `row` and `at` hold what was sent as far as it is text ("" otherwise), `scope` with the caller's
    own in place of none; `declared` is None for an entity that is not declared.
    """

    sent: Mutation
    scope: str
    entity: str
    row: str
    at: str
    declared: Entity | None = None
    write: Write | None = None
    fault: Rejection | None = None

    @property
    def group(self) -> str | None:
        return self.sent.group if isinstance(self.sent.group, str) else None

    @property
    def addressed(self) -> bool:
        """Whether it names a row and a reading, so that the journal can know it again."""
        return bool(self.entity and self.row and self.at and self.scope)


class _Validator(Protocol):
    def put(self, fields: object) -> dict[str, Any]: ...
    def patch(self, fields: object) -> dict[str, Any]: ...


class Preparer:
    """Validators are compiled once, from the declaration."""

    def __init__(self, declaration: Declaration) -> None:
        self._entities = declaration.entities
        self._validators: Mapping[str, _Validator] = {
            name: compile_entity(entity) for name, entity in declaration.entities.items()
        }

    def prepare(self, principal: Principal, sent: Mutation) -> Prepared:
        scope = principal.own if sent.scope is None else _text(sent.scope)
        ready = Prepared(sent, scope, _text(sent.entity), _text(sent.row), _text(sent.at))
        try:
            self._check(ready)
        except Rejection as fault:
            ready.fault = fault
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
        _check_scope(entity, ready.scope, sent.scope)
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


def _check_scope(entity: Entity, scope: str, sent: object) -> None:
    try:
        kind, decoded = rows.parse_scope(scope)
    except ValueError as fault:
        raise Rejection("invalid_scope", str(fault)) from fault
    if kind != entity.scope.kind:
        needed = f"rows of {entity.name} live in scopes of kind {entity.scope.kind}"
        raise Rejection("invalid_scope", needed if sent is not None else f"{needed}; name one")
    problem = rows.id_problem(entity.scope.type, decoded)
    if problem is not None:
        raise Rejection("invalid_scope", f"the scope's id {problem}")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
