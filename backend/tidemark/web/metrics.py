"""What Prometheus may ask for: few series, whatever users and paths there are (SPEC 7).

Where several processes serve, they share a folder of the Prometheus client's own making: whichever is asked answers for
all of them. Counts of a process that died stay in their sums, its present values go.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tidemark.meter import (
    BehindCause,
    BroadcastFate,
    Fanned,
    Meter,
    Origin,
    SplitCause,
    StreamKind,
    Watched,
)

from .call import METHODS

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder of all processes; the Prometheus client reads it when it is imported."""
_REFRESH: Final = 1.0
"""Seconds after which present values are written again, for another process to show."""
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_MUTATIONS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_000)
_RECEIVERS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)

M = TypeVar("M", bound=MetricWrapperBase)


class Shown(NamedTuple):
    """How a present value is shown; `among` is how those of several processes become one."""

    name: str
    text: str
    labels: tuple[tuple[str, str], ...] = ()
    among: str = "livesum"


_WATCHED: Final[Mapping[Watched, Shown]] = {
    "streams_websocket": Shown("streams", "Streams open.", (("kind", "websocket"),)),
    "streams_events": Shown("streams", "Streams open.", (("kind", "events"),)),
    "streams_waiting": Shown("streams_waiting", "Streams that wait to be let in."),
    "topics": Shown("topics", "Scopes that are followed or waited for."),
    "rooms": Shown("rooms", "Rooms that somebody is in, anywhere.", among="livemax"),
    "room_members_here": Shown("room_members", "Sessions in rooms, once for each room."),
    "room_members_elsewhere": Shown(
        "room_members_elsewhere", "Sessions in rooms of other processes, as one process knows them.", among="livemax"
    ),
    "mutations_waiting": Shown("mutations_waiting", "Mutations and captured rows that wait for a batch."),
    "pulls_waiting": Shown("pulls_waiting", "Pulls that wait for something new."),
    "inbox_entries": Shown("inbox_entries", "Writes in SQL that wait to be collected."),
    "inbox_oldest_seconds": Shown("inbox_oldest_seconds", "How long the first of them has waited.", among="livemax"),
    "inbox_passed_over": Shown("inbox_passed_over", "Writes in SQL that could not be taken and are tried again."),
    "connections_used": Shown("database_connections_used", "Connections to the database in use."),
    "connections_most": Shown("database_connections_max", "Connections to the database that may be in use at once."),
}


class Metrics(Meter):
    """One registry for one service, so that several may live in a process.

    `now` is wall time in Unix milliseconds; `shared` the folder of all processes, None for one alone.
    """

    def __init__(self, now: Callable[[], int], shared: Path | None = None) -> None:
        self.shared = shared
        self._registry = CollectorRegistry()
        if shared is None:
            ProcessCollector(registry=self._registry)
            GCCollector(registry=self._registry)
        self._watched: dict[Watched, tuple[Gauge, Callable[[], float]]] = {}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram, Counter, Counter]] = {}
        self._now = now
        self._time = self._gauge("time_seconds", "The service's clock, as Unix time.", among="livemostrecent")
        self._info = self._gauge(
            "info", "The version that runs and the database's epoch.", ["version", "epoch"], "livemax"
        )
        self._requests = self._of(Counter, "requests", "Requests answered.", ["method", "path", "status"])
        self._seconds = self._histogram("request_seconds", "Time to an answer.", _SECONDS, ["path"])
        self._bytes = self._of(Counter, "request_bytes", "Bytes of bodies.", ["path", "direction"])
        self._writing()
        self._reaching()
        self._joining()

    def _writing(self) -> None:
        self._batches = self._histogram("batch_mutations", "Mutations and captured rows in one batch.", _MUTATIONS)
        self._waited = self._histogram("batch_wait_seconds", "How long a batch's first push waited for it.", _SECONDS)
        self._settling = self._histogram("batch_seconds", "Time that a batch took, its commit included.", _SECONDS)
        self._verdicts = self._of(Counter, "verdicts", "Mutations answered.", ["status"])
        splits = self._of(Counter, "batch_splits", "Transactions that the database refused.", ["cause"])
        self._splits = {cause: splits.labels(cause) for cause in get_args(SplitCause)}
        self._deferred = self._of(Counter, "pushes_deferred", "Pushes put back: another process holds a scope.")
        self._drained = self._of(Counter, "inbox_drained", "Writes in SQL that were collected.")
        self._lag = self._histogram("capture_lag_seconds", "From the earliest write in SQL of a page.", _SECONDS)
        self._failures = self._of(Counter, "inbox_failures", "Looks into the inbox that failed.")

    def _reaching(self) -> None:
        self._pages = self._of(Counter, "pull_pages", "Pages of pulls.")
        self._pulled = self._of(Counter, "pull_changes", "Changes pulled.")
        self._pulled_bytes = self._of(Counter, "pull_bytes", "Bytes of changes pulled.")
        self._opened = self._histogram("stream_open_seconds", "From a connection to its welcome.", _SECONDS, ["kind"])
        self._closed = self._of(Counter, "streams_closed", "Streams that ended.", ["kind", "code"])
        self._refused = self._of(Counter, "streams_refused", "Streams that ended unwelcomed.", ["kind", "code"])
        receivers = self._histogram("fanout_receivers", "Streams given one frame.", _RECEIVERS, ["what"])
        sent = self._of(Counter, "fanout_bytes", "Bytes handed to streams.", ["what"])
        late = self._histogram(
            "fanout_lag_seconds", "From a commit, broadcast or wake to its last frame.", _SECONDS, ["what", "origin"]
        )
        self._fans = {
            (what, origin): (receivers.labels(what), sent.labels(what), late.labels(what, origin))
            for what in get_args(Fanned)
            for origin in get_args(Origin)
        }
        behind = self._of(Counter, "behind", "Streams told that they are behind.", ["cause"])
        self._behind = {cause: behind.labels(cause) for cause in get_args(BehindCause)}
        broadcasts = self._of(Counter, "broadcasts", "Broadcasts and states of streams.", ["fate"])
        self._broadcasts = {fate: broadcasts.labels(fate) for fate in get_args(BroadcastFate)}
        self._withheld = self._of(Counter, "room_frames_withheld", "Frames of rooms that readers were too slow for.")

    def _joining(self) -> None:
        self._wakes_out = self._of(Counter, "wake_sent", "Payloads of wakes and messages to other processes.")
        self._wakes_in = self._of(Counter, "wake_heard", "Payloads of wakes and messages that were heard.")
        self._foreign = self._of(Counter, "wake_foreign", "Messages of other processes that were not understood.")
        self._connects = self._of(Counter, "wake_connects", "Times that the wake channel came up.")
        self._forgotten = self._of(Counter, "housekeeping_forgotten", "What housekeeping forgot.", ["what"])

    # ── asked ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def text(self) -> bytes:
        """The figures of this service."""
        self.refresh()
        if self.shared is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        registry.register(Workers(self.shared))
        MultiProcessCollector(registry, str(self.shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def refresh(self) -> None:
        """Look at all present values."""
        self._time.set(self._now() / 1_000)
        for gauge, reading in self._watched.values():
            gauge.set(reading())

    async def keep_fresh(self) -> None:
        """Until cancelled, let other processes see present values; nothing to do for one alone."""
        while self.shared is not None:
            self.refresh()
            await asyncio.sleep(_REFRESH)

    def started(self, version: str, epoch: str) -> None:
        self._info.labels(version, epoch).set(1)

    def watch(self, what: Watched, reading: Callable[[], float]) -> None:
        shown = _WATCHED[what]
        gauge = self._gauge(shown.name, shown.text, [name for name, _ in shown.labels], shown.among)
        self._watched[what] = (gauge.labels(**dict(shown.labels)) if shown.labels else gauge), reading

    # ── told ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def request(self, method: str, path: str, status: int, seconds: float, received: int = 0, sent: int = 0) -> None:
        """Count a request; `path` is a template, `received` and `sent` are bytes of bodies."""
        method = method if method in METHODS else "other"
        found = self._counters.get((method, path, status))
        if found is None:
            found = (
                self._requests.labels(method, path, str(status)),
                self._seconds.labels(path),
                self._bytes.labels(path, "in"),
                self._bytes.labels(path, "out"),
            )
            self._counters[method, path, status] = found
        found[0].inc()
        found[1].observe(seconds)
        found[2].inc(received)
        found[3].inc(sent)

    def batch(self, mutations: int, waited: float, seconds: float) -> None:
        self._batches.observe(mutations)
        self._waited.observe(waited)
        self._settling.observe(seconds)

    def verdicts(self, counts: Mapping[str, int]) -> None:
        for status, count in counts.items():
            self._verdicts.labels(status).inc(count)

    def split(self, cause: SplitCause) -> None:
        self._splits[cause].inc()

    def deferred(self, requests: int) -> None:
        self._deferred.inc(requests)

    def drained(self, entries: int, lag: float) -> None:
        self._drained.inc(entries)
        self._lag.observe(lag)

    def drain_failed(self) -> None:
        self._failures.inc()

    def pulled(self, changes: int, size: int) -> None:
        self._pages.inc()
        self._pulled.inc(changes)
        self._pulled_bytes.inc(size)

    def stream_opened(self, kind: StreamKind, seconds: float) -> None:
        self._opened.labels(kind).observe(seconds)

    def stream_closed(self, kind: StreamKind, code: int) -> None:
        self._closed.labels(kind, _code(code)).inc()

    def stream_refused(self, kind: StreamKind, code: int) -> None:
        self._refused.labels(kind, _code(code)).inc()

    def fanned_out(self, what: Fanned, receivers: int, size: int, lag: float, origin: Origin) -> None:
        taken, sent, late = self._fans[what, origin]
        taken.observe(receivers)
        sent.inc(size)
        late.observe(lag)

    def fell_behind(self, cause: BehindCause) -> None:
        self._behind[cause].inc()

    def broadcast(self, fate: BroadcastFate, count: int = 1) -> None:
        self._broadcasts[fate].inc(count)

    def withheld(self, frames: int) -> None:
        self._withheld.inc(frames)

    def wake_sent(self, payloads: int = 1) -> None:
        self._wakes_out.inc(payloads)

    def wake_heard(self, payloads: int = 1) -> None:
        self._wakes_in.inc(payloads)

    def wake_connected(self, *, connected: bool) -> None:
        text = "Whether the wake channel is up, for all processes."
        self._gauge("wake_connected", text, among="livemin").set(connected)
        self._connects.inc(connected)

    def foreign(self) -> None:
        self._foreign.inc()

    def kept_house(self, rows: int, entries: int, at: float) -> None:
        self._forgotten.labels("rows").inc(rows)
        self._forgotten.labels("journal_entries").inc(entries)
        name = "housekeeping_last_success_timestamp_seconds"
        self._gauge(name, "When housekeeping last ended well.", among="max").set(at)

    # ── making ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _of(self, kind: type[M], name: str, text: str, labels: Iterable[str] = (), **more: Any) -> M:
        return kind(f"tidemark_{name}", text, labels, registry=self._registry, **more)

    def _gauge(self, name: str, text: str, labels: Iterable[str] = (), among: str = "livesum") -> Gauge:
        found = self._gauges.get(name)
        if found is None:
            found = self._gauges[name] = self._of(Gauge, name, text, labels, multiprocess_mode=among)
        return found

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()) -> Histogram:
        return self._of(Histogram, name, text, labels, buckets=buckets)


class Workers(Collector):
    """Memory, CPU time and files of each living process that writes into `folder`, told apart by `pid`.

    Present values of those that died are taken away.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for pid in sorted({path.stem.rpartition("_")[2] for path in self._folder.glob("gauge_live*.db")}):
            if not _lives(int(pid)):
                with suppress(FileNotFoundError):  # another process looks at the same time
                    mark_process_dead(int(pid), str(self._folder))  # type: ignore[no-untyped-call]
                continue
            for family in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                into = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    into.add_sample(sample.name, {"pid": pid}, sample.value)
        return families.values()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _code(code: int) -> str:
    """A close code as a label: a peer may send any, and those of applications that are not ours are one series."""
    return str(code) if code < 3_000 or 4_400 <= code < 4_500 else "other"
