"""The checks of a mutation that need nothing but the declaration (SPEC 4), made before it waits for its transaction.

What was written under an older schema number is converted first (SPEC 10); what is answered of it names its fields as
its author does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, Final

import msgspec
from msgspec import Struct

from tidemark_protocol import clock, rows
from tidemark_protocol.conversion import Conversions, Translation, Upward
from tidemark_protocol.errors import MUTATION_CODES, Rejection
from tidemark_protocol.fields import Validator, compile_entity
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
    one content of a reading from another: op and fields (of a delete the op alone), and `contents` gives those that it
    has under every schema number. `reading` are the 63 bits that name user, scope, entity, row and `at`; None where
    the journal could not know it again. `translation` leads from the author's schema number to the present one, where
    they differ, and `converted` is what it made of the fields.
    """

    sent: Mutation
    scope: str
    entity: str
    row: str
    at: str
    content: int
    reading: int | None
    contents: Callable[[], Iterator[int]] | None = None
    translation: Translation | None = None
    converted: Upward | None = None
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

    def has_content(self, content: int) -> bool:
        """Whether that is its content, under whichever schema number it was sent before."""
        return content == self.content or (self.contents is not None and content in self.contents())

    @property
    def fields(self) -> Any:
        """What it sets, by the names of the present."""
        return self.sent.fields if self.converted is None else self.converted.fields

    @property
    def dropped(self) -> tuple[str, ...]:
        """The paths, as sent, of fields that are no more."""
        return () if self.converted is None else self.converted.dropped

    def as_sent(self, path: str) -> str:
        """What its author calls a path."""
        return path if self.translation is None else self.translation.as_older(path)

    def told(self, fault: Rejection) -> Rejection:
        """A fault of one of its fields, in its author's words."""
        if fault.field is None or (sent := self.as_sent(fault.field)) == fault.field:
            return fault
        return Rejection(fault.code, fault.message.replace(fault.field, sent, 1), sent)


class Preparer:
    """Validators are compiled once, from the declaration. `max_doc` bounds a document, in bytes."""

    def __init__(self, declaration: Declaration, max_doc: int) -> None:
        self._entities = declaration.entities
        self._conversions = Conversions(declaration)
        self._max_doc = max_doc
        self._validators: Mapping[str, Validator] = {
            name: compile_entity(entity) for name, entity in declaration.entities.items()
        }

    def prepare(self, principal: Principal, sent: Mutation, number: int) -> Prepared:
        """`number` is the schema number that it was written under, served or not."""
        scope = principal.own if sent.scope is None else _text(sent.scope)
        entity, row, at = _text(sent.entity), _text(sent.row), _text(sent.at)
        sets = sent.op != "delete" and isinstance(sent.fields, dict)
        translation = self._conversions.translation(entity, number) if sets else None
        converted = None if translation is None else translation.upward(sent.fields)
        content = _spelled(sent.op, sent.fields if converted is None else converted.fields)
        reading = reading_hash(principal.user, scope, entity, row, at) if scope and entity and row and at else None
        ready = Prepared(sent, scope, entity, row, at, hash63(content), reading)
        if sets and entity in self._conversions.entities:
            ready.contents = partial(self._contents, entity, sent, number)
            ready.translation, ready.converted = translation, converted
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
        ready.write = Write(sent.op, ready.at, self._values(ready, self._validators[entity.name]))

    def _values(self, ready: Prepared, validator: Validator) -> dict[str, Any]:
        """What a put or patch sets, canonical; a patch whose fields are all gone sets nothing. Raises Rejection."""
        sent, converted = ready.sent, ready.converted
        if converted is not None and converted.strange is not None:
            raise validator.stranger(sent.fields, converted.strange)
        if not ready.fields and sent.op == "patch":
            return {}
        try:
            return validator.put(ready.fields) if sent.op == "put" else validator.patch(ready.fields)
        except Rejection as fault:
            raise ready.told(fault) from None

    def _contents(self, entity: str, sent: Mutation, number: int) -> Iterator[int]:
        for fields in self._conversions.shapes(entity, number, sent.fields):
            yield hash63(_spelled(sent.op, fields))

    def _check_size(self, ready: Prepared) -> None:
        """Refuse what no document can hold, whatever stands on the row: a whole put, or one value of a patch."""
        sent = ready.sent
        wholes = [ready.fields] if sent.op == "put" else ready.fields.values()
        if any(len(_encoder.encode(whole)) > self._max_doc for whole in wholes):
            ready.write = None
            ready.fault = Rejection("too_large", f"the document would hold more than {self._max_doc} bytes")


def _spelled(op: Any, fields: Any) -> bytes:
    """What a mutation does, in one spelling."""
    return _sorted.encode([op, None if op == "delete" else fields])


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
