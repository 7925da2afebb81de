"""Who is let in (SPEC section 8)."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
import pytest

from tests.contract.client import SECRET, Device, Service, assert_problem, fresh, token
from tests.contract.conftest import Launcher

ROUTES = [
    ("POST", "/sync/push"),
    ("POST", "/sync/pull"),
    ("GET", "/sync/events"),
    ("GET", "/sync/scopes/workspace:none/members"),
    ("PUT", "/sync/scopes/workspace:none/members/somebody"),
    ("DELETE", "/sync/scopes/workspace:none/members/somebody"),
]


def encode(part: dict[str, Any]) -> str:
    """One part of a token, unsigned."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def unsigned(user: str) -> str:
    """A token that asks to be believed without a signature."""
    return f"{encode({'alg': 'none', 'typ': 'JWT'})}.{encode({'sub': user, 'exp': int(time.time()) + 600})}."


BAD: dict[str, str | None] = {
    "no token": None,
    "empty": "",
    "another scheme": "Basic YTpi",
    "no token after the scheme": "Bearer",
    "garbage": "Bearer garbage",
    "three dots": "Bearer a.b.c",
    "another secret": f"Bearer {token('mallory', secret='another-secret-of-more-than-32-bytes!!')}",
    "expired": f"Bearer {token('mallory', ttl=-60)}",
    "without exp": f"Bearer {token('mallory', exp=None)}",
    "without sub": f"Bearer {token('mallory', sub=None)}",
    "exp that is no number": f"Bearer {token('mallory', exp='soon')}",
    "not yet valid": f"Bearer {token('mallory', nbf=int(time.time()) + 3600)}",
    "no algorithm": f"Bearer {unsigned('mallory')}",
    "another algorithm": "Bearer "
    + jwt.encode({"sub": "mallory", "exp": int(time.time()) + 600}, SECRET[::-1], algorithm="HS512"),
    "the right secret, another algorithm": "Bearer "
    + jwt.encode({"sub": "mallory", "exp": int(time.time()) + 600}, SECRET, algorithm="HS384"),
}


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("kind", BAD)
def test_a_request_without_a_good_token_is_refused(service: Service, method: str, path: str, kind: str) -> None:
    """No token, a token badly signed, expired, unsigned, incomplete or of another algorithm is a 401 on every route."""
    # Invariant (I48).
    authorization = BAD[kind]
    headers = {} if authorization is None else {"Authorization": authorization}
    content = None if method in ("GET", "DELETE") else b"{}"
    headers |= {} if content is None else {"Content-Type": "application/json"}
    assert_problem(service.http.request(method, path, content=content, headers=headers), 401)


def test_a_token_in_the_url_is_no_token(service: Service) -> None:
    """A token in the query is not looked at."""
    good = token(fresh("user"))
    assert_problem(service.http.get("/sync/events", params={"token": good, "access_token": good}), 401)


@pytest.mark.parametrize("sub", ["", "x" * 129, "nul\0nul", "|" * 43 + "x" * 87])
def test_a_subject_that_fits_no_scope_is_refused(service: Service, sub: str) -> None:
    """A `sub` that makes no scope (empty, above 128 units, with NUL) is a 401 with its own code."""
    device = service.device(sub)
    assert_problem(device.post("/sync/pull", device.pull_body()), 401, "subject_unsupported")


@pytest.mark.parametrize(
    ("sub", "scope"),
    [
        ("auth0|{}", "user:auth0%7C{}"),
        ("a b{}", "user:a%20b{}"),
        ("ä{}", "user:%C3%A4{}"),
        ("50%{}", "user:50%25{}"),
        ("ada@example.org{}", "user:ada%40example.org{}"),
        ("~._-{}", "user:~._-{}"),
    ],
)
def test_a_users_scope_is_the_percent_encoded_subject(service: Service, sub: str, scope: str) -> None:
    """A user's own scope is `user:` and the `sub`, percent-encoded where needed, in upper case."""
    tail = fresh("x")
    device, scope = service.device(sub.format(tail)), scope.format(tail)
    assert device.pull()["readable"] == [scope]
    (result,) = device.push(device.put("notes", title="mine"))
    assert (result["status"], result["scope"]) == ("applied", scope)
    (named,) = device.push(device.put("notes", title="mine", scope=scope))
    assert named["status"] == "applied"


@pytest.mark.parametrize("sub", ["x" * 128, "|" * 128])
def test_a_subject_of_128_units_fits(service: Service, sub: str) -> None:
    """A unit is one character or one percent-encoded byte; 128 of them make a scope."""
    assert len(service.device(sub).pull()["readable"]) == 1


def test_audience_and_issuer_are_ignored_when_not_configured(service: Service) -> None:
    """A token with `aud` and `iss` is good where the service was told of neither."""
    device = Device(service, fresh("user"), aud="anything", iss="anybody")
    assert device.pull()["readable"] == [device.scope]


@pytest.fixture(scope="module")
def strict(launch: Launcher) -> Service:
    """A service that expects an audience and an issuer."""
    return launch(env={"TIDEMARK_JWT_AUDIENCE": "tidemark", "TIDEMARK_JWT_ISSUER": "https://id.example"}).service


@pytest.mark.parametrize(
    ("aud", "iss", "status"),
    [
        ("tidemark", "https://id.example", 200),
        (["other", "tidemark"], "https://id.example", 200),
        ("other", "https://id.example", 401),
        ("tidemark", "https://evil.example", 401),
        (None, "https://id.example", 401),
        ("tidemark", None, 401),
    ],
)
def test_audience_and_issuer_are_checked_when_configured(
    strict: Service, aud: Any, iss: str | None, status: int
) -> None:
    """Where audience and issuer are configured, a token without the right ones is a 401."""
    device = Device(strict, fresh("user"), aud=aud, iss=iss)
    assert device.post("/sync/pull", device.pull_body()).status_code == status
