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
    StandbyStatus,
    Status,
    check_health,
    check_readiness,
    severity,
)

from .healthy_status import AAPL, GOOD, NOON, SENTIMENT, status

SECRET = "a-key-to-mask"


@pytest.fixture
def secret() -> Iterator[str]:
    redactor.add(SECRET)
    yield SECRET
    redactor.remove(SECRET)


def test_status_survives_the_round_trip_through_json() -> None:
    assert Status.from_json(GOOD.to_json()) == GOOD


def test_status_of_a_newer_version_can_be_read() -> None:
    newer = json.loads(GOOD.to_json()) | {"something_new": 1}
    assert Status.from_json(json.dumps(newer).encode()) == GOOD


def test_status_json_has_times_in_utc() -> None:
    assert json.loads(GOOD.to_json())["started_at"] == "2026-11-01T12:00:00Z"


def test_status_json_has_no_secret_from_outside_texts(secret: str) -> None:
    errors = RecentErrors()
    errors.on_fact(Fact("refused", 0, {"reason": f"no {secret}"}))
    changed = status(
        connections=(replace(SENTIMENT, last_error=f"no {secret}"),),
        subscriptions=(replace(AAPL, reason=f"no {secret}"),),
        database=DatabaseStatus(last_error=f"no {secret}"),
        standby=StandbyStatus(role="waiting", reason=f"no {secret}"),
        last_errors=errors.newest(),
    )
    body = changed.to_json().decode()
    assert secret not in body
    assert body.count("no ***") == 7


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        pytest.param({}, (), id="ready"),
        pytest.param({"connections": ()}, ("no connection has been attempted yet",), id="no connection yet"),
        pytest.param(
            {"connections": (SENTIMENT, replace(SENTIMENT, path="tweet-buzz", connected=False))},
            ("tweet-buzz: not connected",),
            id="one of two not connected",
        ),
        pytest.param(
            {"database": DatabaseStatus()},
            ("the database is unavailable: no attempt to reach it has succeeded yet",),
            id="no database yet",
        ),
        pytest.param(
            {"database": DatabaseStatus(last_error="the session is read-only: …; name the primary")},
            ("the database is unavailable: the session is read-only: …; name the primary",),
            id="database fails",
        ),
        pytest.param({"spool": SpoolStatus(bytes=1000, limit_bytes=1000)}, ("the spool is full",), id="spool full"),
        pytest.param({"spool": SpoolStatus(disk_full=True)}, ("the disk of the spool is full",), id="disk full"),
    ],
)
def test_ready_means_connected_and_able_to_store(changes: dict[str, object], reasons: tuple[str, ...]) -> None:
    assert check_readiness(status(**changes)).reasons == reasons


def test_daemon_that_stands_by_is_ready_without_connection_as_long_as_another_receives() -> None:
    unconnected = status(connections=(replace(SENTIMENT, connected=False),))
    standby = StandbyStatus(role="standby", reason="instance 3 (host2) receives", receiver="instance 3 (host2)")
    assert check_readiness(replace(unconnected, standby=standby)).ok
    assert check_readiness(replace(unconnected, standby=standby, database=DatabaseStatus(last_error="away"))).reasons
    waiting = StandbyStatus(role="waiting", reason="the lease is not held: away")
    assert check_readiness(replace(unconnected, standby=waiting)).reasons == (
        "no connection is opened: the lease is not held: away",
        "/real-time/crowd-sentiment: not connected",
    )
    assert check_health(replace(unconnected, standby=waiting)).ok


@pytest.mark.parametrize(("age", "ok"), [(29.9, True), (30.1, False)])
def test_healthy_means_that_every_heartbeat_advances(age: float, ok: bool) -> None:
    heartbeat = Heartbeat(name="spool", age_seconds=age, limit_seconds=30)
    health = check_health(status(pulses=(*GOOD.pulses, heartbeat)))
    assert health.ok is ok


def test_unhealthy_daemon_names_what_is_stuck() -> None:
    stuck = Heartbeat(name="spool", age_seconds=75, limit_seconds=30)
    assert check_health(status(pulses=(stuck,))).reasons == ("spool has not advanced for 75 s (limit 30 s)",)


def test_daemon_without_database_and_provider_is_healthy() -> None:
    disconnected = status(database=DatabaseStatus(), connections=(replace(SENTIMENT, connected=False),))
    assert check_health(disconnected).ok


def test_newest_errors_are_kept_in_order() -> None:
    errors = RecentErrors(max_errors=2)
    for number in range(3):
        errors.on_fact(Fact("provider_error", number, {"text": str(number)}))
    assert [error.text for error in errors.newest()] == ["text: 1", "text: 2"]


def test_fact_of_severity_info_is_not_kept() -> None:
    errors = RecentErrors()
    errors.on_fact(Fact("connected", int(NOON.timestamp() * 1e6), {}))
    assert errors.newest() == ()


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        pytest.param(Fact("connected", 0, {}), "info", id="info"),
        pytest.param(Fact("subscribed", 0, {}, "live"), "info", id="info with a state"),
        pytest.param(Fact("refused", 0, {}, "refused"), "warning", id="known kind"),
        pytest.param(Fact("resting", 0, {}, "spool_full"), "error", id="unknown kind, bad state"),
    ],
)
def test_severity_is_that_of_the_kind_or_else_the_state(fact: Fact, expected: str) -> None:
    assert severity(fact) == expected
