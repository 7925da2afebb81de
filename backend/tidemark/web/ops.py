"""The routes beside the protocol: schema, time, health, metrics, documentation (SPEC 7)."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import msgspec

from tidemark.sync.engine import Engine
from tidemark_protocol.clock import instant_of_millis
from tidemark_protocol.errors import RequestError
from tidemark_protocol.schema import to_wire

from . import metrics as prometheus
from .answer import HTML, Answer, as_json
from .call import Call
from .metrics import Metrics
from .openapi import document
from .pages import docs_page
from .routes import Route
from .shutdown import Shutdown


def schema_route(engine: Engine) -> Route:
    """The declaration as clients need it. It is the same for everybody and still asks for a token."""
    body = msgspec.json.encode(to_wire(engine.declaration))
    etag = b'"%b"' % blake2b(body, digest_size=12).hexdigest().encode()
    headers = ((b"etag", etag), (b"cache-control", b"private, no-cache"))

    async def schema(call: Call) -> Answer:
        given = (call.header(b"if-none-match") or b"").split(b",")
        if any(tag.strip().removeprefix(b"W/") in {etag, b"*"} for tag in given):
            return Answer(b"", 304, headers=headers)
        return Answer(body, headers=headers)

    return Route("/sync/schema", {"GET": schema})


def time_route(engine: Engine, now: Callable[[], int]) -> Route:
    """`now` is Unix milliseconds."""

    async def time(_call: Call) -> Answer:
        answer = as_json({"clock": engine.clock(), "time": instant_of_millis(now())})
        return answer._replace(headers=((b"cache-control", b"no-store"),))

    return Route("/sync/time", {"GET": time}, public=True)


def health_routes(engine: Engine, shutdown: Shutdown) -> list[Route]:
    async def live(_call: Call) -> Answer:
        return as_json({"status": "live"})

    async def ready(_call: Call) -> Answer:
        if shutdown.begun:
            raise RequestError("unavailable", "this process is going away")
        await engine.ready()
        return as_json({"status": "ready"})

    return [
        Route("/health/live", {"GET": live}, public=True, quiet=True),
        Route("/health/ready", {"GET": ready}, public=True, quiet=True),
    ]


def metrics_route(metrics: Metrics) -> Route:
    async def exposition(_call: Call) -> Answer:
        return Answer(metrics.text(), content_type=prometheus.CONTENT_TYPE)

    return Route("/metrics", {"GET": exposition}, public=True, quiet=True)


def docs_routes() -> list[Route]:
    """The OpenAPI document and a page that shows it, with nothing loaded from elsewhere."""
    described = document()
    body, page = msgspec.json.encode(described), docs_page(described)

    async def openapi(_call: Call) -> Answer:
        return Answer(body)

    async def docs(_call: Call) -> Answer:
        return Answer(page, content_type=HTML)

    return [Route("/docs", {"GET": docs}, public=True), Route("/docs/openapi.json", {"GET": openapi}, public=True)]
