"""The alert rules under Prometheus' own tool: each fires in its state, is silent before, and ends with the cure."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import ingestor.monitoring
from tests.support.requirements import skip_missing

FILE = Path(ingestor.monitoring.__file__).parent / "dashboards" / "ingestor-alerts.yaml"
RULES = {rule["alert"]: rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]}
PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
TARGET = 'instance="host1:8642",job="ingestor"'
BEGINS, CURED = 20, 80  # minutes: each state lasts from one to the other


@dataclass(frozen=True)
class AlertCase:
    """Samples of one a minute, in promtool's notation, and how long an alert waits and outlasts the cure."""

    name: str
    series: dict[str, str]
    waits: int = 0  # minutes, as `for` in the rule
    outlasts: int = 0  # minutes; 0: it ends with the first evaluation after the cure
    fires: int = 1

    def times(self) -> dict[int, int]:
        """Return how many alerts fire at which minute."""
        begins, ends = BEGINS + self.waits, CURED + self.outlasts
        return {begins - 1: 0, begins: self.fires, ends - 1: self.fires, ends: 0}


def state(fine: float, trouble: float) -> str:
    """Return the samples of a gauge."""
    return f"{fine}x{BEGINS - 1} {trouble}x{CURED - BEGINS - 1} {fine}x60"


def gauge(name: str, fine: float, trouble: float, **labels: str) -> dict[str, str]:
    return {series(name, **labels): state(fine, trouble)}


def series(name: str, **labels: str) -> str:
    return f"{name}{{{','.join([TARGET, *(f'{key}={json.dumps(value)}' for key, value in labels.items())])}}}"


FRAME_SECONDS = (
    60 * (BEGINS - 15) - 1
)  # the last frame came so long after the begin that it is 15 minutes old at BEGINS
CASES = [
    AlertCase(
        "IngestorAbsent", {series("ingestor_build_info"): f"1x{BEGINS - 1} stale _x{CURED - BEGINS - 1} 1x60"}, waits=5
    ),
    AlertCase("IngestorNotConnected", gauge("ingestor_connected", 1, 0, path="/real-time/tweet-volume"), waits=5),
    AlertCase("IngestorInstanceSilent", gauge("ingestor_instances", 0, 1, state="silent"), waits=1),
    AlertCase(
        "IngestorNoFrames",
        {
            series("ingestor_last_frame_timestamp_seconds", feed="tweet-volume"): (
                f"{FRAME_SECONDS}x{CURED - 1} {CURED * 60}x60"
            ),
            series("ingestor_frames_received_total", feed="tweet-volume"): "7x200",
        },
        waits=5,
    ),
    AlertCase("IngestorSubscriptionsNotLive", gauge("ingestor_subscriptions", 0, 2, state="silent"), waits=15),
    AlertCase("IngestorKeyRefused", gauge("ingestor_key_refused", 0, 1)),
    AlertCase(
        "IngestorTokenEnding",
        {
            series("ingestor_token_expires_timestamp_seconds"): (
                f"{60 * BEGINS + 299}x{CURED - 1} {60 * CURED + 18_000}x60"
            )
        },
        waits=1,
    ),
    AlertCase("IngestorDatabaseDown", gauge("ingestor_database_up", 1, 0), waits=5),
    AlertCase("IngestorLagging", gauge("ingestor_commit_lag_seconds", 0, 61), waits=5),
    AlertCase(
        "IngestorSpoolFilling",
        {**gauge("ingestor_spool_bytes", 70, 71), **gauge("ingestor_spool_limit_bytes", 100, 100)},
        waits=1,
    ),
    AlertCase(
        "IngestorSpoolAlmostFull",
        {**gauge("ingestor_spool_bytes", 90, 91), **gauge("ingestor_spool_limit_bytes", 100, 100)},
    ),
    AlertCase("IngestorDiskFull", gauge("ingestor_disk_full", 0, 1)),
    AlertCase("IngestorSpoolSetAside", gauge("ingestor_spools_set_aside", 0, 1)),
    AlertCase("IngestorReloadFailed", gauge("ingestor_config_last_reload_successful", 1, 0)),
]


def events(name: str, metric: str, window: int, *, step: int = 1, **labels: str) -> AlertCase:
    """Return the case of events each minute from BEGINS to CURED - 1, which are forgotten after ``window`` minutes."""
    samples = f"0x{BEGINS - 1} {step}+{step}x{CURED - BEGINS - 1} {step * (CURED - BEGINS)}x120"
    return AlertCase(name, {series(metric, **labels): samples}, outlasts=window - 1)


CASES += [
    events("IngestorRepairFailed", "ingestor_repairs_total", 60, outcome="failed"),
    events("IngestorDeadLetters", "ingestor_dead_letters_total", 15, stage="decode"),
    events("IngestorUncaughtErrors", "ingestor_uncaught_errors_total", 15),
    events("IngestorReconnecting", "ingestor_reconnects_total", 30, step=11, reason="lost"),
]


def unit_test(case: AlertCase) -> dict[str, Any]:
    firing = f'count(ALERTS{{alertname="{case.name}",alertstate="firing"}}) or vector(0)'
    checks = [
        {"expr": firing, "eval_time": f"{minute}m", "exp_samples": [{"value": count}]}
        for minute, count in case.times().items()
    ]
    inputs = [{"series": name, "values": values} for name, values in case.series.items()]
    return {"name": case.name, "interval": "1m", "input_series": inputs, "promql_expr_test": checks}


@pytest.fixture(scope="module")
def promtool() -> str:
    return shutil.which("promtool") or skip_missing("promtool: apt-get install prometheus")


def run(*command: str | Path) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


def check_cases(promtool: str, folder: Path, *cases: AlertCase) -> str:
    tests = {"rule_files": [str(FILE)], "evaluation_interval": "1m", "tests": [unit_test(case) for case in cases]}
    file = folder / "tests.yaml"
    file.write_text(json.dumps(tests))
    return run(promtool, "test", "rules", file)


def test_prometheus_accepts_the_rules(promtool: str) -> None:
    assert run(promtool, "check", "rules", FILE) == ""


def test_each_alert_fires_in_its_state_and_ends_with_the_cure(promtool: str, tmp_path: Path) -> None:
    assert sorted(case.name for case in CASES) == sorted(RULES)
    assert check_cases(promtool, tmp_path, *CASES) == ""


@pytest.mark.parametrize("other", [{"ingestor_standing_by": 1}, {"ingestor_unreceived_subscriptions": 0}], ids=str)
def test_alert_is_silent_while_another_instance_receives(
    promtool: str, tmp_path: Path, other: dict[str, float]
) -> None:
    down = gauge("ingestor_connected", 1, 0, path="/real-time/tweet-volume")
    receives = {series(name): f"{value}x200" for name, value in other.items()}
    assert check_cases(promtool, tmp_path, AlertCase("IngestorNotConnected", down | receives, fires=0)) == ""


def test_page_has_an_entry_for_each_alert() -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = page.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    entries = re.findall(r"^\| \*\*(\w+)\*\* \((\w+)\) \| [^|]{20,} \| [^|]{20,} \|$", section, re.MULTILINE)
    assert entries == [(name, rule["labels"]["severity"]) for name, rule in RULES.items()]
