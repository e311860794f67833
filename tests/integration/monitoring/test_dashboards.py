"""The dashboard and the alerts, compared with the metrics of a running daemon."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import ingestor.monitoring
from tests.support.daemon import InProcessDaemon, until, write_config
from tests.support.faulty_simulator import FaultySimulator

FOLDER = Path(ingestor.monitoring.__file__).parent / "dashboards"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "ingestor-dashboard.json").read_text())
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "ingestor-alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
# The labels that Prometheus adds to every sample of a target.
TARGET_LABELS = {"instance", "job"}


def expressions() -> Iterator[str]:
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    yield from (rule["expr"] for rule in ALERTS)
    variable = next(item for item in DASHBOARD["templating"]["list"] if item["name"] == "instance")
    yield variable["query"]["query"]


def labels_of(expression: str) -> Iterator[tuple[str, str]]:
    """Yield (metric, label) of every matcher and every grouping."""
    names = re.findall(r"ingestor_[a-z_]+", expression)
    for name, matchers in re.findall(r"(ingestor_[a-z_]+)\{([^}]*)\}", expression):
        yield from ((name, label) for label in re.findall(r"(\w+)\s*[=!]", matchers))
    for listed in re.findall(r"(?:by|without) \(([^)]*)\)", expression):
        yield from ((name, label.strip()) for name in names for label in listed.split(","))


@pytest.fixture
async def exposed(simulator: FaultySimulator, tmp_path: Path) -> dict[str, set[str]]:
    """The metrics of a live daemon → their labels."""
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    subscriptions = {"/real-time/crowd-sentiment": ["AAPL"]}
    config = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions=subscriptions)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await until(lambda: daemon.status.rows.new and daemon.status.instances)
        text = await daemon.metrics()
    found: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].update(sample.labels)
    return found


async def test_metrics_and_labels_exist_and_all_metrics_are_shown(
    exposed: dict[str, set[str]],
) -> None:
    used = {name for expr in expressions() for name in re.findall(r"ingestor_[a-z_]+", expr)}
    assert len(used) > 15
    assert used - exposed.keys() == set()
    wrong = {
        (n, label) for expr in expressions() for n, label in labels_of(expr) if label not in exposed[n] | TARGET_LABELS
    }
    assert wrong == set()
    for rule in ALERTS:
        named = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        alerted = rule["expr"].partition(" unless ")[0]  # what follows does not label the alert
        assert all(named <= exposed[name] for name in re.findall(r"ingestor_[a-z_]+", alerted)), rule["alert"]
    # Every metric has a panel.
    shown = {name for target in DASHBOARD["panels"] for name in re.findall(r"ingestor_[a-z_]+", json.dumps(target))}
    created = {name for name in exposed if name.endswith("_created")}
    assert exposed.keys() - created - shown == set()


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_alert_has_summary_description_and_runbook(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Ingestor[A-Z][A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"[1-9][0-9]*[smh]", rule.get("for", "1m"))
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}


def test_each_way_to_miss_data_has_an_alert() -> None:
    rules = {rule["alert"]: rule["expr"] for rule in ALERTS}
    assert len(rules) == len(ALERTS)
    assert "== 0" in rules["IngestorNotConnected"] and "== 0" in rules["IngestorDatabaseDown"]
    assert rules["IngestorSpoolFilling"].endswith("> 0.7") and rules["IngestorSpoolAlmostFull"].endswith("> 0.9")
    assert {"IngestorLagging", "IngestorDeadLetters", "IngestorTokenEnding"} <= rules.keys()
    assert {"IngestorReloadFailed", "IngestorNoFrames", "IngestorAbsent"} <= rules.keys()


def test_alert_on_events_is_the_exception() -> None:
    events = {rule["alert"] for rule in ALERTS if "increase(" in rule["expr"]}
    assert events == {"IngestorRepairFailed", "IngestorReconnecting", "IngestorDeadLetters", "IngestorUncaughtErrors"}


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: str(panel["title"]))
def test_panel_has_the_unit_of_its_metrics(panel: dict[str, Any]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert unit in {"short", "s", "bytes", "percentunit", "cps"}
    queries = [target["expr"] for target in panel["targets"]]
    if unit == "bytes":
        assert all("_bytes" in query for query in queries)
    if unit == "s":
        assert all("_seconds" in query for query in queries)
    assert len({target["refId"] for target in panel["targets"]}) == len(queries)


def test_dashboard_uses_its_variables_and_no_other() -> None:
    defined = {item["name"] for item in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(DASHBOARD)))
    assert used == defined


def test_dashboard_panels_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    taken: list[tuple[int, int]] = []
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] >= 0 and grid["x"] + grid["w"] <= 24
        taken += [
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        ]
        assert panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert len(set(taken)) == len(taken)
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [item["name"] for item in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]
