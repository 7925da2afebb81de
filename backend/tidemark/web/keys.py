"""Keys that tokens are checked with: a shared secret, a public key, or the identity provider's published set."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import jwt
import structlog
from jwt.algorithms import HMACAlgorithm

from tidemark.settings import Settings
from tidemark_protocol.errors import RequestError

_MAX_AGE: Final = 600.0
_ASK_AGAIN: Final = 30.0
_ASK_AGAIN_EMPTY: Final = 1.0

_log = structlog.get_logger()


class Key(NamedTuple):
    """Key material, ready for the library, and the algorithms it may be used with."""

    kid: str | None
    algorithms: Sequence[str]
    material: Any


class Keys(Protocol):
    """Finds the key for a token."""

    async def find(self, kid: str | None) -> Key:
        """The key of that id; RequestError `unauthenticated` if there is none, `unavailable` if none is known yet."""


class OneKey:
    """The same key for every token."""

    def __init__(self, key: Key) -> None:
        self._key = key

    async def find(self, kid: str | None) -> Key:  # noqa: ARG002  (whatever a token says, there is one key)
        return self._key


class PublishedKeys:
    """The keys at a JWKS URL: fetched when first needed, again when old or when a token names an unknown one.

    At most one fetch runs at a time, and one in 30 s; while the provider does not answer, the keys known stay good.
    `fetch` gives the document's bytes and raises OSError; `monotonic` is in seconds.
    """

    def __init__(
        self, fetch: Callable[[], Awaitable[bytes]], algorithms: Sequence[str], monotonic: Callable[[], float]
    ) -> None:
        self._fetch = fetch
        self._algorithms = algorithms
        self._monotonic = monotonic
        self._keys: list[Key] = []
        self._fetched = self._asked = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> Key:
        key = self._known(kid)
        if key is None:
            await self._refresh()
            key = self._known(kid)
        elif self._monotonic() - self._fetched > _MAX_AGE:
            self._start()
        if key is not None:
            return key
        if not self._keys:
            raise RequestError("unavailable", "the identity provider's keys cannot be had", retry_after=5)
        raise RequestError("unauthenticated", "the token is signed by a key that is not published")

    def _known(self, kid: str | None) -> Key | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.kid == kid), None)

    async def _refresh(self) -> None:
        task = self._start()
        if task is not None:
            await asyncio.shield(task)

    def _start(self) -> asyncio.Task[None] | None:
        """The fetch that is running or begins now; None when the last one is too recent."""
        if self._fetching is None:
            now = self._monotonic()
            if now - self._asked < (_ASK_AGAIN if self._keys else _ASK_AGAIN_EMPTY):
                return None
            self._asked = now
            self._fetching = asyncio.create_task(self._load())
        return self._fetching

    async def _load(self) -> None:
        try:
            keys = read_key_set(await self._fetch(), self._algorithms)
        except (OSError, ValueError, RecursionError) as fault:
            _log.warning("signing keys cannot be fetched", fault=repr(fault), known=len(self._keys))
        else:
            self._keys, self._fetched = keys, self._monotonic()
        finally:
            self._fetching = None


def read_key_set(document: bytes, algorithms: Sequence[str]) -> list[Key]:
    """The usable signing keys of a JWKS document; ValueError if it is none or holds none."""
    content = json.loads(document)
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError("this is no JSON Web Key Set")
    keys = [key for entry in entries if isinstance(entry, dict) and (key := _from_jwk(entry, algorithms)) is not None]
    if not keys:
        raise ValueError(f"the key set holds no signing key for {', '.join(algorithms)}")
    return keys


def read_public_key(text: str, algorithms: Sequence[str]) -> Key:
    """A public key from PEM or JWK text, or from the file that `text` names; ValueError or OSError."""
    if not text.lstrip().startswith(("-----BEGIN", "{")):
        text = Path(text).read_text(encoding="utf-8")
    if "PRIVATE KEY" in text:
        raise ValueError("this is a private key; the service needs the public one")
    if text.lstrip().startswith("{"):
        entry = json.loads(text)
        found = _from_jwk(entry, algorithms)
    else:
        found = _fitting(None, algorithms, lambda algorithm: algorithm.prepare_key(text.strip() + "\n"))
    if found is None:
        raise ValueError(f"no public key for {', '.join(algorithms)}")
    return found


def shared_secret(secret: str) -> Key:
    """The key of HS256; ValueError if the library takes it for something else, as a PEM text."""
    try:
        return Key(None, ("HS256",), HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret))
    except jwt.InvalidKeyError as fault:
        raise ValueError(str(fault)) from fault


def keys_of(settings: Settings, fetch: Callable[[str], Awaitable[bytes]], monotonic: Callable[[], float]) -> Keys:
    """The keys that the settings name; ValueError or OSError when they cannot be used."""
    if settings.jwt_jwks_url:
        url = settings.jwt_jwks_url
        return PublishedKeys(lambda: fetch(url), settings.jwt_algorithms, monotonic)
    if settings.jwt_public_key:
        return OneKey(read_public_key(settings.jwt_public_key, settings.jwt_algorithms))
    if settings.jwt_secret:
        return OneKey(shared_secret(settings.jwt_secret))
    raise ValueError("there is neither a secret nor a public key to check tokens with")


def _from_jwk(entry: Mapping[str, Any], algorithms: Sequence[str]) -> Key | None:
    if entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    kid, own = entry.get("kid"), entry.get("alg")
    allowed = [name for name in algorithms if own is None or name == own]

    def prepare(algorithm: Any) -> Any:
        return algorithm.prepare_key(algorithm.from_jwk(dict(entry)))

    return _fitting(kid if isinstance(kid, str) else None, allowed, prepare)


def _fitting(kid: str | None, algorithms: Sequence[str], prepare: Callable[[Any], Any]) -> Key | None:
    """The key with those of `algorithms` that take it, or None."""
    fitting: list[str] = []
    material = None
    for name in algorithms:
        algorithm = jwt.get_algorithm_by_name(name)
        try:
            prepared = prepare(algorithm)
        except (jwt.InvalidKeyError, ValueError, TypeError, AttributeError):
            continue  # a key of another type, which is what is being found out
        if algorithm.check_key_length(prepared) is None:
            fitting.append(name)
            material = prepared
    return Key(kid, fitting, material) if fitting else None
