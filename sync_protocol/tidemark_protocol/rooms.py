"""Rooms: how they are named, and what may be shown or said in them (SPEC 6)."""

from __future__ import annotations

import re
from typing import Any, Final

from . import messages
from .checks import MAX_NESTING
from .errors import RequestError
from .rows import parse_scope

MAX_STATE: Final = 4 << 10
MAX_PAYLOAD: Final = 16 << 10
"""Bytes of compact JSON."""

_NAME: Final = re.compile(r"[A-Za-z0-9._~:-]{1,128}")


def scope_of(room: str) -> str:
    """The scope whose readers may join `room`; RequestError `malformed` unless it is `<scope>` or `<scope>/<name>`."""
    scope, slash, name = room.partition("/")
    try:
        parse_scope(scope)
    except ValueError as fault:
        raise RequestError("malformed", f"a room begins with a scope: {fault}") from fault
    if slash and _NAME.fullmatch(name) is None:
        raise RequestError("malformed", "below its scope a room is named by 1 to 128 of A-Z a-z 0-9 . _ ~ : -")
    return scope


def check_value(what: str, value: Any, limit: int) -> None:
    """Refuse a state or payload of more than `limit` bytes (`too_large`), or nested too deep (`malformed`)."""
    body = messages.encode(value)
    if len(body) > limit:
        raise RequestError("too_large", f"a {what} holds at most {limit} bytes")
    messages.check_nesting(body, MAX_NESTING)
