"""From a bearer token to a principal (SPEC 8).

Which signatures count is the configuration's: HS256 with the shared secret, or the allowed ones that fit a public key.
A token's own `alg` only has to be among them. Times come from an injected clock, without leeway.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import jwt

from tidemark.sync.access import Principal
from tidemark_protocol.errors import RequestError
from tidemark_protocol.rows import user_scope

from .keys import Key, Keys

_MAX_TOKEN: Final = 16 * 1024
_REMEMBERED: Final = 10_000
_REMEMBERED_FOR: Final = 300.0
_LAST_SECOND: Final = 253_402_300_799
_SIGNATURE_ONLY: Final[jwt.types.Options] = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_jti": False,
    "verify_sub": False,
}


class Authenticator:
    """Checks tokens; remembers those it has checked, because the same one comes with every request.

    `now` is Unix seconds. `audience` and `issuer` None are not looked at.
    """

    def __init__(self, keys: Keys, now: Callable[[], float], audience: str | None = None, issuer: str | None = None):
        self._keys = keys
        self._now = now
        self._audience = audience
        self._issuer = issuer
        self._known: OrderedDict[str, tuple[Principal, float]] = OrderedDict()

    async def header(self, authorization: bytes | None) -> Principal:
        """Whom an `Authorization` header names; RequestError 401."""
        if authorization is None:
            raise RequestError("unauthenticated", "an Authorization header with a bearer token is needed")
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise RequestError("unauthenticated", "the Authorization header holds no bearer token")
        return await self.authenticate(token.strip().decode("latin-1"))

    async def authenticate(self, token: str) -> Principal:
        """Whom a token names; RequestError 401: `unauthenticated`, `token_expired` or `subject_unsupported`."""
        now = self._now()
        known = self._known.get(token)
        if known is not None and now < known[1]:
            self._known.move_to_end(token)
            return known[0]
        self._known.pop(token, None)
        principal = _principal(await self._claims(token), now)
        self._known[token] = principal, min(principal.expires, now + _REMEMBERED_FOR)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return principal

    async def _claims(self, token: str) -> Mapping[str, Any]:
        """The claims under a good signature, with `aud` and `iss` as configured."""
        if len(token) > _MAX_TOKEN:
            raise RequestError("unauthenticated", "the token is too long")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self._keys.find(kid if isinstance(kid, str) else None)
            return self._verified(token, key)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError) as fault:
            raise RequestError("unauthenticated", f"the token is not valid: {fault}") from fault

    def _verified(self, token: str, key: Key) -> Mapping[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.material,
            algorithms=key.algorithms,
            audience=self._audience,
            issuer=self._issuer,
            options=_SIGNATURE_ONLY
            | {"verify_aud": self._audience is not None, "verify_iss": self._issuer is not None},
        )
        return claims


def _principal(claims: Mapping[str, Any], now: float) -> Principal:
    expires, not_before = _time(claims, "exp"), _time(claims, "nbf")
    if expires is None:
        raise RequestError("unauthenticated", "the token has no exp")
    if expires <= now:
        raise RequestError("token_expired", "the token has expired")
    if not_before is not None and not_before > now:
        raise RequestError("unauthenticated", "the token is not valid yet")
    user = claims.get("sub")
    if not isinstance(user, str):
        raise RequestError("unauthenticated", "the token has no sub, or one that is no text")
    try:
        own = user_scope(user)
    except ValueError as fault:
        raise RequestError("subject_unsupported", f"the token's sub names no scope: {fault}") from fault
    return Principal(user, own, claims.get("role") == "admin", int(min(expires, _LAST_SECOND)))


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A claim that is a time in Unix seconds, if it is there."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise RequestError("unauthenticated", f"the token's {name} is no number")
    return value
