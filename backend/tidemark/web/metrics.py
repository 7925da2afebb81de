"""What Prometheus may ask for: few series, whatever users and paths there are (SPEC 7)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One registry for one service, so that several may live in a process. Counts are this process's own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._requests = Counter(
            "tidemark_requests", "Requests answered.", ["method", "path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tidemark_request_seconds", "Time to an answer.", ["path"], buckets=_BUCKETS, registry=self._registry
        )
        self.streams = Gauge("tidemark_streams", "Streams open.", registry=self._registry)
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` is a template."""
        method = method if method in _METHODS else "other"
        found = self._counters.get((method, path, status))
        if found is None:
            found = self._requests.labels(method, path, str(status)), self._seconds.labels(path)
            self._counters[method, path, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
