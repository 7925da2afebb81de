"""What OpenTelemetry is told of the service at work: requests, batches, pages, streams; and nothing of people."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from litestar import Litestar
from litestar.testing import TestClient
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.backend.conftest import CLIENT, PULL, PUSH, app_of, bearer, note, plugin_of
from tests.servers import TidemarkServer
from tidemark.plugin import SyncPlugin, make_tracer
from tidemark.tracer import UNTRACED
from tidemark.web.traces import Traces
from tidemark_protocol.errors import RequestError
from tidemark_protocol.stream_server import SUBPROTOCOL

SCHEMA = Path(__file__).resolve().parents[1] / "contract" / "schema.yaml"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
Client = TestClient[Litestar]


@pytest.fixture
def exported() -> InMemorySpanExporter:
    """Keeps the spans."""
    return InMemorySpanExporter()


def traced(exported: InMemorySpanExporter) -> Traces:
    """Traces that go there at once."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return Traces(provider)


@pytest.fixture
def client(exported: InMemorySpanExporter) -> Iterator[Client]:
    """Speaks to a service that is traced."""
    untraced = plugin_of()
    plugin = SyncPlugin(replace(untraced.config, store=untraced.engine.store, tracer=traced(exported)))
    with TestClient(app_of(plugin)) as client:
        yield client


def spans(exported: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Those of a name, in the order in which they ended."""
    return [span for span in exported.get_finished_spans() if span.name == name]


def about(span: ReadableSpan) -> dict[str, Any]:
    """What a span says."""
    return dict(span.attributes or {})


def push(client: Client, *mutations: dict[str, Any], **headers: str) -> int:
    """The status of a push."""
    return client.post("/sync/push", json={**PUSH, "mutations": mutations}, headers=bearer() | headers).status_code


def test_a_request_goes_on_with_its_callers_trace(client: Client, exported: InMemorySpanExporter) -> None:
    """A span with method, route and status, below the one that `traceparent` names."""
    assert push(client, note(1), traceparent=f"00-{TRACE}-{PARENT}-01") == 200
    (request,) = spans(exported, "POST /sync/push")
    assert request.kind is SpanKind.SERVER
    assert request.context is not None and request.parent is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert about(request) == {
        "http.request.method": "POST",
        "http.route": "/sync/push",
        "http.response.status_code": 200,
    }


def test_a_batch_is_linked_to_its_pushes(client: Client, exported: InMemorySpanExporter) -> None:
    """One transaction serves many requests: its span is a trace of its own, with a link to each of them."""
    assert push(client, note(1), note(2)) == 200
    ((pushed,), (batch,)) = spans(exported, "push"), spans(exported, "batch")
    assert batch.parent is None
    assert [link.context for link in batch.links] == [pushed.context]
    assert pushed.context is not None and batch.context is not None
    assert batch.context.trace_id != pushed.context.trace_id
    assert about(batch) == about(pushed) == {"tidemark.mutations": 2}
    (request,) = spans(exported, "POST /sync/push")
    assert pushed.parent == request.context


def test_a_page_is_part_of_its_pull(client: Client, exported: InMemorySpanExporter) -> None:
    """What was read, whole or streamed as lines, is told below the request."""
    push(client, note(1))
    for accept in ("application/json", "application/x-ndjson"):
        exported.clear()
        client.post("/sync/pull", json=PULL, headers=bearer() | {"Accept": accept})
        ((page,), (request,)) = spans(exported, "page"), spans(exported, "POST /sync/pull")
        assert page.parent == request.context
        assert about(page) == {"tidemark.changes": 1}


def test_a_stream_that_opens_is_told(client: Client, exported: InMemorySpanExporter) -> None:
    """From its hello to its welcome."""
    with client.websocket_connect("/sync/stream", subprotocols=[SUBPROTOCOL]) as socket:
        token = bearer()["Authorization"].removeprefix("Bearer ")
        socket.send_json({"t": "hello", "token": token, "client": CLIENT, "schema": 3})
        assert socket.receive_json(timeout=10)["t"] == "welcome"
    (opened,) = spans(exported, "open stream")
    assert about(opened) == {"tidemark.stream": "websocket"}


def test_refusals_are_no_errors(client: Client, exported: InMemorySpanExporter) -> None:
    """A 4xx is the caller's; what operators ask all the time is not traced at all."""
    assert client.post("/sync/pull", json=PULL).status_code == 401
    (refused,) = spans(exported, "POST /sync/pull")
    assert (about(refused)["http.response.status_code"], refused.status.status_code) == (401, StatusCode.UNSET)
    exported.clear()
    for path in ("/health/live", "/metrics"):
        client.get(path)
    assert exported.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("raised", "kind", "status"),
    [
        (ValueError("of ada's"), "ValueError", StatusCode.ERROR),
        (RequestError("unavailable", "of ada's"), "unavailable", StatusCode.UNSET),
        (asyncio.CancelledError("of ada's"), "CancelledError", StatusCode.UNSET),
    ],
)
def test_a_fault_is_told_by_its_kind(
    exported: InMemorySpanExporter, raised: BaseException, kind: str, status: StatusCode
) -> None:
    """What ended a piece of work early passes through, named without its message; only faults of ours are errors."""
    with pytest.raises(type(raised)), traced(exported).span("page"):
        raise raised
    (span,) = exported.get_finished_spans()
    assert (about(span)["error.type"], span.status.status_code) == (kind, status)
    assert "ada" not in span.to_json()


@pytest.mark.parametrize(("method", "name"), [("GET", "GET /x"), ("BREW", "HTTP /x")])
def test_an_answer_that_failed_is_an_error(exported: InMemorySpanExporter, method: str, name: str) -> None:
    """A 5xx is marked; methods that there are not make no names."""
    with traced(exported).request(method, "/x", []) as span:
        span.answered(503)
    (request,) = exported.get_finished_spans()
    assert (request.name, request.status.status_code) == (name, StatusCode.ERROR)


def test_nothing_of_people_is_told(client: Client, exported: InMemorySpanExporter) -> None:
    """No user, scope, row, value or token appears in any span, whatever is asked."""
    secret = bearer("secretive")
    client.post("/sync/push", json={**PUSH, "mutations": [note(1, title="a secret title")]}, headers=secret)
    client.post("/sync/pull", json=PULL | {"scopes": ["workspace:secretive"]}, headers=secret)
    client.get("/sync/scopes/workspace:secretive/members", headers=secret)
    client.get("/sync/events?row=secretive", headers=secret)
    told = "".join(span.to_json() for span in exported.get_finished_spans())
    assert told.count('"name"') >= 6
    for word in ("secret", note(1)["row"], secret["Authorization"], CLIENT):
        assert word not in told


# ── whether there are any ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "tidemark"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_without_a_collector_nothing_is_traced(environ: dict[str, str]) -> None:
    """Unless the variables name one that can be spoken to, there are no spans, and they cost nothing."""
    assert make_tracer(environ) is UNTRACED


def test_without_the_extra_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service runs without its traces."""
    monkeypatch.setitem(sys.modules, "tidemark.web.traces", None)
    assert make_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}) is UNTRACED
    assert "extra `opentelemetry` is not installed" in capsys.readouterr().out


def test_work_for_many_is_part_of_none(exported: InMemorySpanExporter) -> None:
    """Also where it begins inside one of them; outside of any there is nothing to link."""
    traces = traced(exported)
    assert traces.here() is None
    with traces.span("push"):
        with traces.joint("batch", [traces.here(), None]):
            inner = traces.here()
        assert traces.here() != inner
    ((batch,), (pushed,)) = spans(exported, "batch"), spans(exported, "push")
    assert batch.parent is None
    assert [link.context for link in batch.links] == [pushed.context]


# ── a collector ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Collector(ThreadingHTTPServer):
    """Takes spans as a collector does, over OTLP by HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.taken: list[ExportTraceServiceRequest] = []

    def names(self) -> set[str]:
        """Of the spans, with the service's."""
        return {
            f"{resource.resource.attributes[index].value.string_value}: {span.name}"
            for export in self.taken
            for resource in export.resource_spans
            for index, attribute in enumerate(resource.resource.attributes)
            if attribute.key == "service.name"
            for scope in resource.scope_spans
            for span in scope.spans
        }


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        """One export."""
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name in the standard library)
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One that runs."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_collector_has_every_span_once_the_service_has_ended(collector: Collector, tmp_path: Path) -> None:
    """From a running service, by the standard variables alone."""
    host, port = collector.server_address[:2]
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{host!s}:{port}"}
    with TidemarkServer(SCHEMA, f"sqlite:///{tmp_path / 'x.db'}", folder=tmp_path, env=env) as server:
        body = {**PUSH, "mutations": [note(1)]}
        assert httpx2.post(f"{server.url}/sync/push", json=body, headers=bearer()).status_code == 200
        server.stop()
    assert {"tidemark: POST /sync/push", "tidemark: push", "tidemark: batch"} <= collector.names()


def test_a_collector_that_is_away_holds_nobody_up(tmp_path: Path) -> None:
    """Requests are answered, and the service ends in time."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "TIDEMARK_SHUTDOWN_TIMEOUT": "2s"}
    with TidemarkServer(SCHEMA, f"sqlite:///{tmp_path / 'x.db'}", folder=tmp_path, env=env) as server:
        assert httpx2.post(f"{server.url}/sync/pull", json=PULL, headers=bearer(), timeout=10).status_code == 200
        told = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - told < 15
