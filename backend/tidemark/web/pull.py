"""`POST /sync/pull`: pages, long polls and streamed lines (SPEC 5)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec.structs import replace

from tidemark.sync.engine import Engine
from tidemark_protocol import messages

from .answer import NDJSON, Answer, Streamed, accepts
from .call import Call
from .routes import Route
from .shutdown import Shutdown


def pull_route(engine: Engine, shutdown: Shutdown) -> Route:
    max_body = engine.settings.max_body

    async def pull(call: Call) -> Answer | Streamed:
        caller = call.caller
        request = messages.decode_pull(await call.json_body(max_body))
        if accepts(call.header(b"accept"), NDJSON):
            lines = _until(shutdown, engine.pull_lines(caller, request))
            return Streamed(await anext(lines), lines, NDJSON)
        if not request.wait or shutdown.begun:
            return Answer(await engine.pull(caller, replace(request, wait=0)))
        at_once = replace(request, wait=0)
        held = engine.pull(caller, request)
        return Answer(await shutdown.hold(call, held, lambda: engine.pull(caller, at_once)))

    return Route("/sync/pull", {"POST": pull})


async def _until(shutdown: Shutdown, lines: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The lines; cut off when the service goes away (those before stand). Whoever stops reading ends theirs too."""
    async with aclosing(lines):
        async for line in lines:
            yield line
            if shutdown.begun:
                return
