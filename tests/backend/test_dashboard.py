"""The dashboard and the alerts name what `/metrics` gives, and nothing else. Neither is run here."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from tests.figures import Figures
from tidemark.meter import Watched
from tidemark.web.metrics import Metrics

DOCS: Final = Path(__file__).resolve().parents[2] / "docs" / "grafana"
SCRAPED: Final = {"job", "instance"}
"""Labels that Prometheus adds."""
OF_PROMETHEUS: Final = {"up"}
NAME: Final = r"\b(?:tidemark|process|python|up)(?:_\w+)?\b"
SELECTOR: Final = re.compile(rf"({NAME})(?:\{{([^}}]*)\}})?")
GROUPING: Final = re.compile(r"\b(?:by|without|on) \(([^)]*)\)")


def everything() -> str:
    """What a service shows in which everything has happened once."""
    metrics = Metrics(lambda: 1)
    metrics.started("1.0", "epoch")
    for what in get_args(Watched):
        metrics.watch(what, lambda: 1)
    metrics.request("GET", "/sync/pull", 200, 0.1, 1, 1)
    metrics.batch(1, 0.1, 0.1)
    metrics.verdicts({"applied": 1})
    metrics.split("held")
    metrics.deferred(1)
    metrics.drained(1, 0.1)
    metrics.drain_failed()
    metrics.pulled(1, 1)
    metrics.stream_opened("websocket", 0.1)
    metrics.stream_closed("websocket", 1001)
    metrics.stream_refused("events", 1013)
    metrics.fanned_out("changes", 1, 1, 0.1, "here")
    metrics.fell_behind("slow_reader")
    metrics.broadcast("sent")
    metrics.withheld(1)
    metrics.wake_sent()
    metrics.wake_heard()
    metrics.wake_connected(connected=True)
    metrics.foreign()
    metrics.kept_house(1, 1, 1.0)
    return metrics.text().decode()


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """The labels that each name comes with."""
    found: dict[str, set[str]] = defaultdict(set)
    for sample in Figures(everything()).samples:
        found[sample.name] |= sample.labels.keys()
    for name in [name for name in found if name.startswith("process_")]:
        found[name].add("pid")  # of several workers
    return found


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """Grafana's file."""
    found: dict[str, Any] = json.loads((DOCS / "tidemark.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    """Prometheus's alerts."""
    (group,) = YAML(typ="safe").load((DOCS / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """Every query of the dashboard's panels and variables."""
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


def check(expression: str, labels: dict[str, set[str]]) -> set[str]:
    """The names in an expression, each of which is shown, with the labels that it is asked for."""
    names = set()
    allowed = SCRAPED | {label for name, _ in SELECTOR.findall(expression) for label in labels.get(name, ())}
    for name, matchers in SELECTOR.findall(expression):
        assert name in labels or name in OF_PROMETHEUS, f"{name} is not shown: {expression}"
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert asked <= SCRAPED | labels.get(name, set()), expression
        names.add(name)
    for group in GROUPING.findall(expression):
        assert {label.strip() for label in group.split(",")} <= allowed, expression
    assert names, expression
    for opened, closed in ("()", "[]", "{}"):
        assert expression.count(opened) == expression.count(closed), expression
    return names


def test_everything_that_is_counted_can_be_seen() -> None:
    """What these tests compare with lacks nothing: each family has a sample."""
    for family in text_string_to_metric_families(everything()):
        assert family.samples, family.name


def test_the_dashboard_asks_for_what_is_shown(dashboard: dict[str, Any], labels: dict[str, set[str]]) -> None:
    """Names and labels of all queries are those of `/metrics`; and every figure of ours is on it somewhere."""
    asked = {name for expression in expressions(dashboard) for name in check(expression, labels)}
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in labels if name.startswith("tidemark_")}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}
    alone = {"tidemark_room_members_elsewhere"}
    assert {family.removesuffix("_total") for family in families - alone} == {
        name.removesuffix("_total") for name in shown if name.startswith("tidemark_")
    }


def test_the_dashboard_is_whole(dashboard: dict[str, Any]) -> None:
    """Panels have numbers and places of their own, a title, and a source that its user chooses."""
    panels = dashboard["panels"]
    assert dashboard["schemaVersion"] >= 39
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert panel["title"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["datasource"]["uid"] == "${datasource}"
    named = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval"}
    assert used == named


def test_alerts_ask_for_what_is_shown(rules: list[dict[str, Any]], labels: dict[str, set[str]]) -> None:
    """Each has a name, a severity, a sentence, and an expression over names and labels of `/metrics`."""
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        check(rule["expr"], labels)
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))


@pytest.mark.parametrize(
    "expression",
    [
        "sum(tidemark_nothing)",
        'tidemark_streams{colour="red"}',
        "sum by (user) (tidemark_streams)",
        "sum(tidemark_streams",
    ],
)
def test_what_is_not_shown_is_found_out(expression: str, labels: dict[str, set[str]]) -> None:
    """These checks do fail."""
    with pytest.raises(AssertionError):
        check(expression, labels)
