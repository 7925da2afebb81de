"""The service alone: the plugin, a start page, and errors of unknown paths in the same shape as all others."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response
from litestar.config.cors import CORSConfig
from prometheus_client import disable_created_metrics

from . import log
from .plugin import SyncConfig, SyncPlugin, make_tracer
from .settings import Settings, for_development
from .tracer import UNTRACED, Tracer
from .web.answer import HTML, Answer
from .web.call import Call
from .web.pages import start_page
from .web.routes import Route, refusal

DATA = Path("var")
"""Where development mode keeps its secret, below the folder that the service runs in."""
_GC_THRESHOLDS = (200_000, 20, 20)
"""A batch of a thousand mutations makes some 10,000 objects that die with it, and a thousand streams that come at once
many more that stay: no need to look in between.
"""


def create_app(settings: Settings, on_request: log.OnRequest = log.request_line, tracer: Tracer = UNTRACED) -> Litestar:
    """The application; in development mode when the settings name no keys.

    Raises SettingsError or DeclarationError with every fault.
    """
    if not settings.has_keys:
        settings = for_development(settings, DATA, os.urandom)
    plugin = SyncPlugin(SyncConfig(settings, log=on_request, tracer=tracer))
    page = start_page(plugin.declaration, f"{own_command()} token --user ada")

    async def start(_call: Call) -> Answer:
        return Answer(page, content_type=HTML)

    return Litestar(
        route_handlers=[plugin.frame.handler(Route("/", {"GET": start}, public=True), "")],
        plugins=[plugin],
        lifespan=[_settled_memory],
        exception_handlers={Exception: partial(_refused, on_request)},
        cors_config=_cors(settings),
        openapi_config=None,
        logging_config=None,
    )


def own_command() -> str:
    """How a person calls `tidemark` from the folder that the service runs in: by name if that finds this very one."""
    own = Path(sys.executable).with_name("tidemark")
    found = shutil.which("tidemark")
    if found is not None and Path(found).resolve() == own.resolve():
        return "tidemark"
    return str(own.relative_to(Path.cwd())) if own.is_relative_to(Path.cwd()) else str(own)


def factory() -> Litestar:
    """The application as the environment says, for servers that start processes of their own."""
    settings = Settings.from_environ(os.environ)
    out = sys.stdout
    disable_created_metrics()  # type: ignore[no-untyped-call]
    on_request = log.configure(settings.log_level, settings.log_format, out.buffer, terminal=out.isatty())
    return create_app(settings, on_request, make_tracer(os.environ))


def _cors(settings: Settings) -> CORSConfig | None:
    if not settings.origins:
        return None
    return CORSConfig(
        allow_origins=list(settings.origins),
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "If-None-Match"],
        expose_headers=["ETag", "Retry-After"],
    )


def _refused(on_request: log.OnRequest, request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The answer where no route of ours gave one: an unknown path, mostly."""
    answer = refusal(error, request.method, "?")
    on_request(log.RequestLine(request.method, "?", answer.status, 0, None, 0, len(answer.body)))
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, status_code=answer.status, media_type=answer.content_type.decode(), headers=headers)


@asynccontextmanager
async def _settled_memory(_app: Litestar) -> AsyncIterator[None]:
    """What was made so far lives as long as the process: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    yield
