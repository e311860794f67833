from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ingestor.core.entries import Fact
from ingestor.core.redaction import redactor
from ingestor.monitoring.status import (
    DatabaseStatus,
    Heartbeat,
    RecentErrors,
    SpoolStatus,
    Status,
    check_health,
    check_readiness,
    severity,
)

from .healthy_status import AAPL, GOOD, NOON, SENTIMENT, status

SECRET = "a-key-that-nobody-may-read"


@pytest.fixture
def secret() -> Iterator[str]:
    redactor.add(SECRET)
    yield SECRET
    redactor.forget(SECRET)


def test_a_status_survives_the_way_through_json() -> None:
    assert Status.from_json(GOOD.to_json()) == GOOD


def test_a_status_of_a_newer_version_can_be_read() -> None:
    newer = json.loads(GOOD.to_json()) | {"something_new": 1}
    assert Status.from_json(json.dumps(newer).encode()) == GOOD


def test_times_are_written_in_utc() -> None:
    assert json.loads(GOOD.to_json())["started_at"] == "2026-11-01T12:00:00Z"


def test_a_secret_in_any_text_from_outside_does_not_reach_status_json(secret: str) -> None:
    troubles = RecentErrors()
    troubles.on_fact(Fact("refused", 0, {"reason": f"no {secret}"}))
    spoiled = status(
        connections=(replace(SENTIMENT, last_error=f"no {secret}"),),
        subscriptions=(replace(AAPL, reason=f"no {secret}"),),
        database=DatabaseStatus(last_error=f"no {secret}"),
        last_errors=troubles.newest(),
    )
    body = spoiled.to_json().decode()
    assert secret not in body
    assert body.count("no ***") == 4


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        pytest.param({}, (), id="all well"),
        pytest.param({"connections": ()}, ("no connection has been tried yet",), id="nothing tried yet"),
        pytest.param(
            {"connections": (SENTIMENT, replace(SENTIMENT, path="tweet-buzz", connected=False))},
            ("tweet-buzz: not connected",),
            id="one of two connections down",
        ),
        pytest.param({"database": DatabaseStatus()}, ("the database cannot be reached",), id="no database"),
        pytest.param({"spool": SpoolStatus(bytes=1000, limit_bytes=1000)}, ("the spool is full",), id="spool full"),
    ],
)
def test_ready_means_connected_and_able_to_store(changes: dict[str, object], reasons: tuple[str, ...]) -> None:
    assert check_readiness(status(**changes)).reasons == reasons


@pytest.mark.parametrize(("age", "ok"), [(29.9, True), (30.1, False)])
def test_healthy_means_that_everything_advances(age: float, ok: bool) -> None:
    pulse = Heartbeat(name="spool", age_seconds=age, limit_seconds=30)
    verdict = check_health(status(pulses=(*GOOD.pulses, pulse)))
    assert verdict.ok is ok


def test_an_unhealthy_daemon_says_what_is_stuck() -> None:
    stuck = Heartbeat(name="spool", age_seconds=75, limit_seconds=30)
    assert check_health(status(pulses=(stuck,))).reasons == ("spool has not advanced for 75 s (limit 30 s)",)


def test_a_daemon_without_database_and_provider_is_healthy() -> None:
    away = status(database=DatabaseStatus(), connections=(replace(SENTIMENT, connected=False),))
    assert check_health(away).ok


def test_only_the_last_troubles_are_kept_newest_last() -> None:
    troubles = RecentErrors(keep=2)
    for number in range(3):
        troubles.on_fact(Fact("provider_error", number, {"text": str(number)}))
    assert [trouble.text for trouble in troubles.newest()] == ["text: 1", "text: 2"]


def test_good_news_is_no_trouble() -> None:
    troubles = RecentErrors()
    troubles.on_fact(Fact("connected", int(NOON.timestamp() * 1e6), {}))
    assert troubles.newest() == ()


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        pytest.param(Fact("connected", 0, {}), "info", id="good news"),
        pytest.param(Fact("subscribed", 0, {}, "live"), "info", id="good news with a state"),
        pytest.param(Fact("refused", 0, {}, "refused"), "warning", id="known kind"),
        pytest.param(Fact("resting", 0, {}, "spool_full"), "error", id="unknown kind, bad state"),
    ],
)
def test_a_fact_is_as_severe_as_its_kind_or_else_its_state(fact: Fact, expected: str) -> None:
    assert severity(fact) == expected
