"""`GET /sync/events` (SPEC 7)."""

from __future__ import annotations

from tidemark.sync.engine import Engine

from .answer import Answer
from .call import Call
from .routes import Route


def journal_route(engine: Engine) -> Route:
    async def events(call: Call) -> Answer:
        return Answer(await engine.events(call.caller, call.query()))

    return Route("/sync/events", {"GET": events})
