"""The one shape of every refusal: RFC 9457 problem details with a stable `code` (SPEC 7)."""

from __future__ import annotations

import math
from typing import Final

import msgspec
from litestar.exceptions import HTTPException
from msgspec import Struct

from tidemark.store.base import Unavailable
from tidemark_protocol.errors import REQUEST_CODES, RequestError

from .answer import Answer, Header

CONTENT_TYPE: Final = b"application/problem+json"
TYPE_PREFIX: Final = "urn:tidemark:error:"
_CHALLENGE: Final[Header] = (b"www-authenticate", b"Bearer")
_WAITING_HELPS: Final = frozenset({429, 503})

TITLES: Final[dict[str, str]] = {
    "malformed": "The request is malformed",
    "unknown_role": "The scope has no such role",
    "unauthenticated": "A valid token is required",
    "token_expired": "The token has expired",
    "subject_unsupported": "The token's subject cannot name a scope",
    "forbidden": "Not allowed",
    "origin_forbidden": "The origin is not allowed",
    "not_found": "Not found",
    "method_not_allowed": "The method is not allowed here",
    "not_acceptable": "The answer comes in another form",
    "schema_mismatch": "The schema number is not served",
    "too_large": "The request is too large",
    "unsupported_media_type": "The content type or encoding is not supported",
    "rate_limited": "Too many requests",
    "internal": "Something went wrong here",
    "unavailable": "Not available right now",
}

_CODE_OF_STATUS: Final = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    503: "unavailable",
}


class Problem(Struct, frozen=True):
    """The body; `code` is one of `REQUEST_CODES`."""

    type: str
    title: str
    status: int
    detail: str
    code: str


def problem(code: str, detail: str, *, retry_after: float | None = None, headers: tuple[Header, ...] = ()) -> Answer:
    """The answer that refuses with `code`; `retry_after` in seconds, 1 at least where waiting helps."""
    status = REQUEST_CODES[code][0]
    if status == 401:
        headers = (*headers, _CHALLENGE)
    if status in _WAITING_HELPS:
        headers = (*headers, (b"retry-after", b"%d" % max(1, math.ceil(retry_after or 1))))
    body = Problem(TYPE_PREFIX + code, TITLES[code], status, detail, code)
    return Answer(msgspec.json.encode(body), status, CONTENT_TYPE, headers)


def problem_of(error: Exception) -> Answer:
    """The answer for anything raised; what nobody foresaw is `internal` and says nothing of itself."""
    match error:
        case RequestError():
            return problem(error.code, error.detail, retry_after=error.retry_after)
        case Unavailable():
            return problem("unavailable", "the database does not answer; send the same again later")
        case UnicodeDecodeError() | RecursionError():
            return problem("malformed", "the text is not UTF-8, or nested too deep")
        case HTTPException(status_code=status) if status < 500 or status in _WAITING_HELPS:
            code = _CODE_OF_STATUS.get(status, "malformed")
            headers = tuple((name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items())
            return problem(code, error.detail or TITLES[code], headers=headers)
        case _:
            return problem("internal", "the fault is logged here; sending the same again later may help")
