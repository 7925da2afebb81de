"""Spans for OpenTelemetry (the extra `opentelemetry`), named by its conventions where it has some."""

from __future__ import annotations

import os
from asyncio import CancelledError
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from tidemark.tracer import Link, Span
from tidemark_protocol.errors import RequestError

from .call import METHODS

_CLOSE_WITHIN: Final = 3.0
"""Seconds after which what a collector has not taken is given up."""


class Told(Span):
    """A span of OpenTelemetry."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def set(self, name: str, value: str | float) -> None:
        self._span.set_attribute(name, value)

    def answered(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))


class Traces:
    """Spans made by `provider`, which belongs to this alone."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("tidemark")

    @classmethod
    def to_collector(cls, version: str) -> Traces:
        """To the collector that the variables OTEL_… name, as they say."""
        about = {"service.version": version}
        if not (os.environ.get(OTEL_SERVICE_NAME) or "service.name=" in os.environ.get(OTEL_RESOURCE_ATTRIBUTES, "")):
            about["service.name"] = "tidemark"
        provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    @contextmanager
    def request(self, method: str, route: str, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[Span]:
        known = method if method in METHODS else "_OTHER"
        caller = propagate.extract({name.decode("latin-1"): value.decode("latin-1") for name, value in headers})
        about = {"http.request.method": known, "http.route": route}
        name = f"{'HTTP' if known == '_OTHER' else known} {route}"
        with self._begun(name, kind=SpanKind.SERVER, context=caller, attributes=about) as span:
            yield span

    @contextmanager
    def span(self, name: str) -> Iterator[Span]:
        with self._begun(name) as span:
            yield span

    @contextmanager
    def joint(self, name: str, links: Sequence[Link | None]) -> Iterator[Span]:
        known = [trace.Link(link) for link in links if isinstance(link, trace.SpanContext)]
        with self._begun(name, context=Context(), links=known) as span:
            yield span

    def here(self) -> Link | None:
        context = trace.get_current_span().get_span_context()
        return context if context.is_valid else None

    def close(self) -> None:
        # An unreachable collector is asked again and again for longer than a service may take to end.
        ending = Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(_CLOSE_WITHIN)

    @contextmanager
    def _begun(self, name: str, **how: Any) -> Iterator[Span]:
        """Messages of exceptions stay here: they may say what is somebody's own."""
        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False, **how
        ) as span:
            try:
                yield Told(span)
            except BaseException as error:
                span.set_attribute(
                    "error.type", error.code if isinstance(error, RequestError) else type(error).__name__
                )
                if not isinstance(error, RequestError | CancelledError):
                    span.set_status(Status(StatusCode.ERROR))
                raise
