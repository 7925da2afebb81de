"""What operators see of the service at work: `/metrics`, of one process and of several (SPEC 7)."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar
from litestar.testing import TestClient

from tests.backend.conftest import DECLARATION, PULL, PUSH, app_of, bearer, note, plugin_of
from tests.contract.shop import eventually
from tests.figures import Figures, scrape
from tests.servers import TidemarkServer
from tidemark.meter import Meter, Watched
from tidemark.plugin import make_store, make_wake
from tidemark.settings import Settings
from tidemark.store.base import ConstraintFailed, Saved, Transaction
from tidemark.store.memory import MemoryStore, MemoryTransaction
from tidemark.store.schema.migrate import beside, migrate
from tidemark.wake.postgresql import APPLICATION
from tidemark.web.metrics import Metrics

SCHEMA = Path(__file__).resolve().parents[1] / "contract" / "schema.yaml"
Client = TestClient[Litestar]


def figures(client: Client) -> Figures:
    """What the service says of itself."""
    return Figures(client.get("/metrics").text)


def push(client: Client, *mutations: dict[str, Any]) -> list[str]:
    """The verdicts of a push."""
    response = client.post("/sync/push", json={**PUSH, "mutations": mutations}, headers=bearer())
    return [result["status"] for result in response.json()["results"]]


def public(kind: type) -> set[str]:
    """The methods that a class itself defines for others."""
    return {name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")}


# ── the port ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_whatever_is_told_is_shown() -> None:
    """No method of the port is left to do nothing, and every present value has a name."""
    assert public(Meter) <= public(Metrics)
    metrics = Metrics(lambda: 0)
    for what in get_args(Watched):
        metrics.watch(what, lambda: 7)
    text = metrics.text().decode()
    assert text.count(" 7.0\n") == len(get_args(Watched))


def test_a_later_reading_takes_an_earlier_ones_place() -> None:
    """Present values are asked for at each scrape, of whoever came last."""
    rooms = [1]
    metrics = Metrics(lambda: 0)
    metrics.watch("rooms", lambda: 5)
    metrics.watch("rooms", lambda: rooms[0])
    assert Figures(metrics.text().decode()).sum("tidemark_rooms") == 1
    rooms[0] = 2
    assert Figures(metrics.text().decode()).sum("tidemark_rooms") == 2


@given(st.lists(st.integers(0, 65_535), max_size=200))
def test_close_codes_make_few_series(codes: list[int]) -> None:
    """Peers may close with any code: what has no meaning here is one series, and none is lost."""
    metrics = Metrics(lambda: 0)
    for code in codes:
        metrics.stream_closed("websocket", code)
    shown = Figures(metrics.text().decode())
    assert shown.sum("tidemark_streams_closed_total") == len(codes)
    assert len(list(shown.of("tidemark_streams_closed_total"))) <= 130
    for code in (1001, 1006, 1012, 4429):
        assert shown.sum("tidemark_streams_closed_total", code=str(code)) == codes.count(code)


def test_a_fan_out_counts_frames_bytes_and_how_late_they_were() -> None:
    """Frames are the sum of receivers; changes and rooms, own and others' commits are told apart."""
    metrics = Metrics(lambda: 0)
    metrics.fanned_out("changes", receivers=1_000, size=300_000, lag=0.004, origin="here")
    metrics.fanned_out("changes", receivers=10, size=3_000, lag=0.2, origin="elsewhere")
    metrics.fanned_out("room", receivers=3, size=60, lag=0.001, origin="here")
    shown = Figures(metrics.text().decode())
    assert shown.sum("tidemark_fanout_receivers_sum", what="changes") == 1_010
    assert shown.sum("tidemark_fanout_receivers_count", what="changes") == 2
    assert shown.sum("tidemark_fanout_bytes_total") == 303_060
    assert shown.sum("tidemark_fanout_lag_seconds_bucket", what="changes", origin="here", le="0.005") == 1
    assert shown.sum("tidemark_fanout_lag_seconds_bucket", what="changes", origin="elsewhere", le="0.1") == 0


# ── one process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_writes_and_reads_are_counted_by_batch_and_page(client: Client) -> None:
    """Mutations, verdicts, requests with their bytes, changes pulled: each once."""
    assert push(client, note(1), note(2), note(1) | {"seq": 3, "entity": "nothing"}) == [
        "applied",
        "applied",
        "rejected",
    ]
    body = client.post("/sync/pull", json=PULL, headers=bearer()).content
    shown = figures(client)
    assert shown.sum("tidemark_batch_mutations_sum") == 3
    assert shown.sum("tidemark_batch_seconds_count") == shown.sum("tidemark_batch_wait_seconds_count") == 1
    assert shown.sum("tidemark_verdicts_total", status="applied") == 2
    assert shown.sum("tidemark_verdicts_total", status="rejected") == 1
    assert shown.sum("tidemark_pull_changes_total") == 2
    assert 0 < shown.sum("tidemark_pull_bytes_total") < len(body)
    assert shown.sum("tidemark_request_bytes_total", path="/sync/pull", direction="out") == len(body)
    assert shown.sum("tidemark_mutations_waiting") == 0
    assert 0 <= time.time() - shown.sum("tidemark_time_seconds") < 5
    assert list(shown.of("tidemark_info")) == [1]


class Refusing(MemoryStore):
    """A database that refuses one title."""

    async def transact(self, body: Callable[[Transaction], Any]) -> Any:
        """A transaction whose save may be refused."""

        async def refusing(tx: Transaction) -> Any:
            assert isinstance(tx, MemoryTransaction)
            honest = tx._save

            def save(saved: Saved) -> None:
                if any(image.values["title"] == "refused" for image in saved.images):
                    raise ConstraintFailed("no", unique=False)
                honest(saved)

            tx._save = save  # type: ignore[method-assign]
            return await body(tx)

        return await super().transact(refusing)


def test_what_the_database_refuses_is_one_batch_and_one_verdict_each() -> None:
    """A batch settled in parts is told of with its cause, and no verdict is counted twice."""
    with TestClient(app_of(plugin_of(Refusing(DECLARATION, chance=os.urandom)))) as client:
        assert push(client, note(1), note(2, title="refused"), note(3)) == ["applied", "rejected", "applied"]
        shown = figures(client)
    assert shown.sum("tidemark_batch_splits_total", cause="constraint") >= 1
    assert shown.sum("tidemark_batch_mutations_count") == 1
    assert shown.sum("tidemark_verdicts_total") == 3


def test_names_say_their_units(client: Client) -> None:
    """Everything of ours has the prefix, and times are seconds."""
    push(client, note(1))
    for name in figures(client).names:
        assert name.startswith(("tidemark_", "process_", "python_")), name
        assert not name.removesuffix("_total").endswith(("_ms", "_milliseconds", "_kb", "_minutes")), name


@pytest.mark.parametrize("kind", ["postgresql_url", "mariadb_url"])
async def test_connections_in_use_are_seen(request: pytest.FixtureRequest, kind: str) -> None:
    """One more while a transaction is open; never more than there may be."""
    url = request.getfixturevalue(kind)
    await asyncio.to_thread(migrate, url, DECLARATION)
    store = make_store(Settings(database_url=url), DECLARATION)
    await store.open()
    try:
        before = store.connections()

        async def look(_tx: Transaction) -> int:
            return store.connections().used

        assert await store.transact(look) == before.used + 1 <= before.most
        assert store.connections() == before
    finally:
        await store.close()


async def test_a_wake_channel_says_whether_it_is_up(postgresql_url: str) -> None:
    """Nothing without a channel; down until it listens, up again each time that it was cut; what is said is counted."""
    metrics = Metrics(lambda: 0)
    wake = make_wake(Settings(wake=postgresql_url), meter=metrics)
    cut = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        f"WHERE application_name = '{APPLICATION}' AND datname = current_database()"
    )

    def shown(name: str) -> list[float]:
        return list(Figures(metrics.text().decode()).of(f"tidemark_wake_{name}"))

    assert shown("connected") == []
    looks = asyncio.Queue[object]()
    await wake.start(looks.put_nowait, lambda _: None, "0a1b2c3d")
    try:
        assert shown("connected") == [0]
        for connects in (1, 2):
            async with asyncio.timeout(20):
                while shown("connected") != [1] or shown("connects_total")[0] < connects:
                    await looks.get()
            assert shown("connects_total") == [connects]
            await asyncio.to_thread(
                lambda: beside(postgresql_url, lambda c: c.exec_driver_sql(cut).all(), reading=False)
            )
        assert shown("sent_total")[0] >= 2
    finally:
        await wake.stop()


# ── several processes ────────────────────────────────────────────────────────────────────────────────────────────────


def test_any_worker_answers_for_all(postgresql_url: str, tmp_path: Path) -> None:
    """Counts are sums over all processes, also over one that was killed; present values are of the living; memory and
    CPU are told for each; nothing is left behind on disk.
    """
    with (
        httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0)) as strangers,
        TidemarkServer(SCHEMA, postgresql_url, folder=tmp_path, workers=2, env={"TMPDIR": str(tmp_path)}) as server,
    ):

        def shown(name: str, **labels: str) -> list[float]:
            return list(scrape(server.url).of(name, **labels))

        before = server.nodes(2)
        body = {**PUSH, "mutations": [note(1), note(2)]}
        assert strangers.post(f"{server.url}/sync/push", json=body, headers=bearer()).status_code == 200
        eventually(lambda: len(shown("process_resident_memory_bytes")) == 2)
        for _ in range(20):
            strangers.get(f"{server.url}/health/live")
        for _ in range(10):
            assert shown("tidemark_requests_total", path="/health/live") == [20]
            assert shown("tidemark_batch_mutations_sum") == [2]
        eventually(lambda: shown("tidemark_database_connections_max") == [12])
        assert shown("tidemark_info") == [1]
        assert abs(shown("tidemark_time_seconds")[0] - time.time()) < 5

        workers = [s.labels["pid"] for s in scrape(server.url).samples if s.name == "process_open_fds"]
        os.kill(int(workers[0]), signal.SIGKILL)
        eventually(lambda: server.nodes() - before, 60)
        assert shown("tidemark_requests_total", path="/health/live") == [20]
        eventually(lambda: shown("tidemark_database_connections_max") == [12])
        assert len(shown("process_resident_memory_bytes")) == 2
        assert list(tmp_path.glob("tidemark-metrics-*"))
        server.stop()
        assert not list(tmp_path.glob("tidemark-metrics-*"))
