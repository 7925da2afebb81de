"""The routes around the protocol and the shape of refusals (SPEC section 7)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.contract.client import Service, assert_problem, milliseconds, wall
from tests.contract.conftest import Launcher


@pytest.mark.parametrize("path", ["/", "/sync", "/sync/nothing", "/sync/push/more", "/nowhere"])
def test_an_unknown_path_is_not_found(service: Service, path: str) -> None:
    """A path that is no route is a 404 in the one shape of refusals (the root may be a page)."""
    response = service.http.get(path)
    if path != "/" or not response.is_success:
        assert_problem(response, 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sync/push"),
        ("GET", "/sync/pull"),
        ("DELETE", "/sync/push"),
        ("PUT", "/sync/pull"),
        ("POST", "/sync/events"),
        ("POST", "/sync/time"),
        ("POST", "/sync/schema"),
    ],
)
def test_another_method_is_not_allowed(service: Service, method: str, path: str) -> None:
    """A known path asked by another method is a 405."""
    assert_problem(service.http.request(method, path, headers=service.device().headers), 405)


def test_the_time_needs_no_token(service: Service) -> None:
    """`GET /sync/time` gives the server's clock and time to anybody."""
    response = service.http.get("/sync/time")
    assert response.status_code == 200
    answer = response.json()
    assert abs(milliseconds(answer["clock"]) - wall()) < 5_000
    assert abs(datetime.fromisoformat(answer["time"]) - datetime.now(UTC)).total_seconds() < 5


def test_the_schema_is_given_with_an_etag(service: Service) -> None:
    """`GET /sync/schema` gives the declaration's number and entities, and answers 304 to its own ETag."""
    device = service.device()
    response = device.get("/sync/schema")
    assert response.status_code == 200
    assert response.json()["schema"] == 3
    assert "notes" in response.text
    assert "percent" in response.text
    etag = response.headers["etag"]
    again = service.http.get("/sync/schema", headers=device.headers | {"If-None-Match": etag})
    assert again.status_code == 304
    assert again.content == b""


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_operators_see_health_and_metrics(service: Service, path: str) -> None:
    """Health and metrics answer 200 to an operator."""
    assert service.admin().get(path).status_code == 200


def test_the_api_is_documented(service: Service) -> None:
    """`/docs` answers with a page."""
    assert service.http.get("/docs", follow_redirects=True).status_code == 200


def test_too_many_requests_are_put_off(launch: Launcher) -> None:
    """A user above the rate limit gets 429 with Retry-After; another user is not held up."""
    limited = launch(env={"TIDEMARK_RATE_LIMIT": "20"}).service
    eager, calm = limited.device(), limited.device()
    responses = [eager.post("/sync/pull", eager.pull_body()) for _ in range(60)]
    refused = [response for response in responses if response.status_code != 200]
    assert refused
    assert_problem(refused[0], 429)
    assert int(refused[0].headers["retry-after"]) >= 1
    calm.pull()
