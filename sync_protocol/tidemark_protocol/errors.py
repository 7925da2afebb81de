"""Everything that can be refused, and what the one refused does about it.

A leaf module: it imports nothing of ours. Codes are stable; messages are for people and never parsed.

    Exception
    ├── Rejection            one mutation will never be accepted as it stands (SPEC 4)
    ├── Postponed            one mutation cannot be decided now: verdict `retry` (SPEC 4)
    ├── RequestError         a whole request or frame is refused (SPEC 7), with its HTTP status
    └── DeclarationError     a schema file has faults, all of them named (SPEC 10)
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Remedy(StrEnum):
    """What a client does about a code."""

    RETRY = "retry"
    """Send the very same again, later."""
    RESTAMP = "restamp"
    """Correct the clock, stamp anew, send again."""
    UPGRADE = "upgrade"
    """Keep the outbox; the app must be upgraded first."""
    PARK = "park"
    """Take it out of the outbox, roll the row back, keep it among the dead letters."""
    AUTHENTICATE = "authenticate"
    """Get a fresh token, then send again."""
    SPLIT = "split"
    """Halve the batch; a lone mutation becomes a dead letter."""
    GIVE_UP = "give_up"
    """The request is wrong by itself; repeating it changes nothing."""


MUTATION_CODES: Final[dict[str, Remedy]] = {
    "schema_mismatch": Remedy.UPGRADE,
    "invalid_mutation": Remedy.PARK,
    "unknown_entity": Remedy.PARK,
    "invalid_scope": Remedy.PARK,
    "forbidden": Remedy.PARK,
    "invalid_row": Remedy.PARK,
    "invalid_clock": Remedy.PARK,
    "clock_ahead": Remedy.RESTAMP,
    "read_only_field": Remedy.PARK,
    "unknown_field": Remedy.PARK,
    "invalid_field": Remedy.PARK,
    "missing_field": Remedy.PARK,
    "too_large": Remedy.PARK,
    "too_deep": Remedy.PARK,
    "row_taken": Remedy.PARK,
    "row_unknown": Remedy.PARK,
    "too_old": Remedy.PARK,
    "clock_reused": Remedy.PARK,
    "ref_missing": Remedy.PARK,
    "ref_in_use": Remedy.PARK,
    "unique_violation": Remedy.PARK,
    "constraint_violation": Remedy.PARK,
    "rule": Remedy.PARK,
    "group_rejected": Remedy.PARK,
    "unavailable": Remedy.RETRY,
}
"""Codes of a mutation's verdict, in the order of the checks (SPEC 4)."""

REQUEST_CODES: Final[dict[str, tuple[int, Remedy]]] = {
    "malformed": (400, Remedy.SPLIT),
    "unknown_role": (400, Remedy.GIVE_UP),
    "unauthenticated": (401, Remedy.AUTHENTICATE),
    "token_expired": (401, Remedy.AUTHENTICATE),
    "subject_unsupported": (401, Remedy.GIVE_UP),
    "forbidden": (403, Remedy.GIVE_UP),
    "origin_forbidden": (403, Remedy.GIVE_UP),
    "not_found": (404, Remedy.GIVE_UP),
    "method_not_allowed": (405, Remedy.GIVE_UP),
    "not_acceptable": (406, Remedy.GIVE_UP),
    "schema_mismatch": (409, Remedy.UPGRADE),
    "too_large": (413, Remedy.SPLIT),
    "unsupported_media_type": (415, Remedy.GIVE_UP),
    "rate_limited": (429, Remedy.RETRY),
    "internal": (500, Remedy.RETRY),
    "unavailable": (503, Remedy.RETRY),
}
"""Codes of a refused request or frame with their HTTP status (SPEC 7)."""

ROOM_CODES: Final[dict[str, Remedy]] = {
    "not_joined": Remedy.GIVE_UP,
    "too_many_rooms": Remedy.GIVE_UP,
    "room_full": Remedy.RETRY,
}
"""Codes that only frames about rooms are answered with, besides those of `REQUEST_CODES` (SPEC 6)."""


class Rejection(Exception):
    """One mutation will never be accepted as it stands; `code` is one of `MUTATION_CODES`."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


class Postponed(Exception):
    """One mutation cannot be decided now: `schema_mismatch`, `clock_ahead` or `unavailable`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class RequestError(Exception):
    """A whole request or frame is refused; `code` is one of `REQUEST_CODES`, of a frame also one of `ROOM_CODES`.

    `retry_after` is in seconds, where waiting helps.
    """

    def __init__(self, code: str, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        return REQUEST_CODES[self.code][0]


class Fault(NamedTuple):
    """One fault of a schema file: where (`entities.tasks.fields.status`) and what."""

    path: str
    message: str


class DeclarationError(Exception):
    """A schema file cannot be used; `faults` names every reason."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{path}: {message}" if path else message for path, message in faults))
        self.faults = faults
