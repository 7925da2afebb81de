"""Validation of a mutation's `fields` against the declaration (SPEC 4).

`compile_entity` prepares one check for each field. The way of a valid mutation is short; only one that is refused is
looked at again, to name the code that comes first in the order of SPEC 4.
"""

from __future__ import annotations

import re
from typing import Any

from msgspec import UNSET

from .checks import MAX_NESTING, Invalid, TooDeep, canonical, check_json, check_map_key, compile_field
from .errors import Rejection
from .model import Entity

__all__ = ["Invalid", "TooDeep", "Validator", "canonical", "compile_entity"]

_TOKEN = re.compile(r"(?:[^~/]|~[01])+")


def compile_entity(entity: Entity) -> Validator:
    """The validator of an entity's mutations; compile once, use for as long as the declaration stands."""
    return Validator(entity)


class Validator:
    """Turns the `fields` of puts and patches of one entity into canonical values, or raises Rejection.

    What it returns shares nested values with what it was given and with defaults: neither is ever changed in place.
    """

    __slots__ = ("_checks", "_entity", "_plan")

    def __init__(self, entity: Entity) -> None:
        self._entity = entity
        self._checks = {name: compile_field(field) for name, field in entity.fields.items()}
        self._plan = tuple((name, self._checks[name], field.initial) for name, field in entity.fields.items())

    def put(self, fields: object) -> dict[str, Any]:
        """The complete row, field → value in declaration order, defaults filled in."""
        if type(fields) is not dict:
            raise Rejection("invalid_mutation", "fields must be an object")
        row: dict[str, Any] = {}
        given = 0
        try:
            for name, check, initial in self._plan:
                if name in fields:
                    row[name] = check(fields[name])
                    given += 1
                elif initial is UNSET:
                    raise self._refusal(fields, whole=True)
                else:
                    row[name] = initial
        except (Invalid, TooDeep):
            raise self._refusal(fields, whole=True) from None
        if given != len(fields):
            raise self._refusal(fields, whole=True)
        return row

    def patch(self, fields: object) -> dict[str, Any]:
        """Path → value: `field`, or `field/key` of a map (None removes the key); never empty."""
        if type(fields) is not dict or not fields:
            raise Rejection("invalid_mutation", "the fields of a patch must be an object that sets something")
        values: dict[str, Any] = {}
        checks = self._checks
        try:
            for path, value in fields.items():
                if path in checks:
                    values[path] = checks[path](value)
                else:
                    values[path] = self._entry(fields, path, value)
        except (Invalid, TooDeep):
            raise self._refusal(fields, whole=False) from None
        return values

    def stranger(self, fields: dict[str, Any], path: str) -> Rejection:
        """The refusal of `fields` whose author's number knows no field at `path`."""
        return self._set_by_nobody(fields) or self._unknown(path)

    def _entry(self, fields: dict[str, Any], path: str, value: Any) -> Any:
        """The value set at a path that is no field's name, or the refusal."""
        if not self._knows(path, whole=False):
            raise self._refusal(fields, whole=False)
        name, _, token = path.partition("/")
        if name in fields:
            raise Invalid(f"stands below {name}, which is set too")
        _check_token(token)
        return None if value is None else check_json(value, MAX_NESTING - 1)

    def _refusal(self, fields: dict[str, Any], *, whole: bool) -> Rejection:
        """Why `fields` is refused: over all of them, the code that comes first in the order of SPEC 4."""
        fault = self._set_by_nobody(fields)
        if fault is not None:
            return fault
        for path in fields:
            if not self._knows(path, whole=whole):
                return self._unknown(path)
        deep: str | None = None
        for path, value in fields.items():
            try:
                self._checks[path](value) if path in self._checks else self._entry(fields, path, value)
            except Invalid as invalid:
                return Rejection("invalid_field", f"{path} {invalid}", path)
            except TooDeep:
                deep = deep or path
        if whole:
            for name, _, initial in self._plan:
                if initial is UNSET and name not in fields:
                    return Rejection("missing_field", f"{name} is required", name)
        return Rejection("too_deep", f"{deep} nests more than {MAX_NESTING} deep", deep)

    def _set_by_nobody(self, fields: dict[str, Any]) -> Rejection | None:
        for path in fields:
            if path in self._entity.read_only:
                return Rejection("read_only_field", f"{path} is not set by mutations", path)
        return None

    def _unknown(self, path: str) -> Rejection:
        return Rejection("unknown_field", f"{self._entity.name} has no field {path!r}", str(path))

    def _knows(self, path: object, *, whole: bool) -> bool:
        if path in self._checks:
            return True
        if whole or type(path) is not str:
            return False
        name, slash, token = path.partition("/")
        return bool(slash) and name in self._entity.maps and "/" not in token


def _check_token(token: str) -> None:
    if _TOKEN.fullmatch(token) is None:
        raise Invalid("names no key: keys are not empty, and ~ is written ~0, / is written ~1")
    check_map_key(token.replace("~1", "/").replace("~0", "~"))
