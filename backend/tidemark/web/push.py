"""`POST /sync/push` (SPEC 4)."""

from __future__ import annotations

from tidemark.sync.engine import Engine
from tidemark_protocol import messages

from .answer import Answer
from .call import Call
from .routes import Route


def push_route(engine: Engine) -> Route:
    max_body = engine.settings.max_body

    async def push(call: Call) -> Answer:
        request = messages.decode_push(await call.json_body(max_body))
        response = await engine.push(call.caller, request.client, request.schema, request.mutations)
        return Answer(messages.encode(response))

    return Route("/sync/push", {"POST": push})
