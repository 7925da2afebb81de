"""The OpenAPI description of the routes, bodies taken from the very structs that decode them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Final

import msgspec

from tidemark_protocol.errors import REQUEST_CODES
from tidemark_protocol.messages import Hello, PullRequest, PullResponse, PushRequest, PushResponse, Run, Trailer

from .answer import EVENTS
from .members import MEMBER, MEMBERS, Membership
from .problems import CONTENT_TYPE, Problem

Json = dict[str, Any]

_STRUCTS: Final = (PushRequest, PushResponse, PullRequest, PullResponse, Run, Trailer, Hello, Membership, Problem)
_EVENT_FILTERS: Final = [
    "scope",
    "entity",
    "row",
    "user",
    "client",
    "outcome",
    "by",
    "after",
    "before",
    "order",
    "limit",
]
_TEXT: Final[Json] = {"type": "string"}


def document() -> Json:
    """The whole description, OpenAPI 3.1."""
    schemas = msgspec.json.schema_components(_STRUCTS, ref_template="#/components/schemas/{name}")[1]
    hello = schemas["Hello"]
    for name in ("t", "token"):  # the path and the header say these
        del hello["properties"][name]
        hello["required"].remove(name)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidemark",
            "version": version("tidemark"),
            "description": "Push mutations, pull changes, follow them on one websocket. SPEC.md says what they mean.",
        },
        "security": [{"token": []}],
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _paths() -> Json:
    scope, user = _parameter("scope", "path"), _parameter("user", "path")
    pull = _operation("Changes after a watermark", _json(PullResponse), body=PullRequest, also=(403, 409, 413, 415))
    pull["responses"]["200"]["content"]["application/x-ndjson"] = {"schema": _ref(Run)}
    stream = _operation("One websocket for everything; subprotocol tidemark.v1", {}, refused=(400,))
    stream["responses"]["101"] = {"description": "The stream begins with the client's hello"}
    del stream["responses"]["200"]
    events = _operation(
        "The stream as server-sent events; the body is the hello",
        {EVENTS.decode(): {"schema": _TEXT}},
        body=Hello,
        also=(403, 406, 409, 413, 415),
    )
    leave = _operation("End a membership", {}, also=(403,))
    leave["responses"]["204"] = leave["responses"].pop("200")
    schema = _operation("What is declared", _json(None))
    schema["responses"]["304"] = {"description": "As the ETag given says"}
    return {
        "/sync/push": {
            "post": _operation("Deliver mutations", _json(PushResponse), body=PushRequest, also=(403, 413, 415))
        },
        "/sync/pull": {"post": pull},
        "/sync/stream": {"get": stream | {"security": []}, "post": events},
        "/sync/schema": {"get": schema},
        "/sync/time": {"get": _operation("The server's clock and time", _json(None), refused=()) | {"security": []}},
        "/sync/events": {
            "get": _operation("The journal", _json(None), also=(403,))
            | {"parameters": [_parameter(name, "query") for name in _EVENT_FILTERS]}
        },
        MEMBERS: {
            "parameters": [scope],
            "get": _operation("Members of a scope and their roles", _json(None), also=(403,)),
        },
        MEMBER: {
            "parameters": [scope, user],
            "put": _operation("Make a member, or change its role", _json(None), body=Membership, also=(403, 413, 415)),
            "delete": leave,
        },
        "/health/live": {"get": _operation("The process runs", _json(None), refused=()) | {"security": []}},
        "/health/ready": {"get": _operation("It can serve", _json(None), refused=(503,)) | {"security": []}},
        "/metrics": {"get": _operation("Figures for Prometheus", {"text/plain": {}}, refused=()) | {"security": []}},
    }


def _operation(
    summary: str,
    content: Json,
    *,
    body: type | None = None,
    refused: Iterable[int] = (400, 401, 429, 500, 503),
    also: Iterable[int] = (),
) -> Json:
    responses: Json = {"200": {"description": "Done"} | ({"content": content} if content else {})}
    for status in sorted({*refused, *also}):
        codes = [code for code, (number, _) in REQUEST_CODES.items() if number == status]
        responses[str(status)] = {
            "description": " or ".join(codes),
            "content": {CONTENT_TYPE.decode(): {"schema": _ref(Problem)}},
        }
    operation: Json = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    return operation


def _json(struct: type | None) -> Json:
    return {"application/json": {"schema": {"type": "object"} if struct is None else _ref(struct)}}


def _ref(struct: type) -> Json:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


def _parameter(name: str, place: str) -> Json:
    return {"name": name, "in": place, "required": place == "path", "schema": _TEXT}
