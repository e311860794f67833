from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ingestor.cli.status import MAX_NOT_LIVE, StatusSample, _format_status
from ingestor.monitoring.status import RecentError, Status, TokenStatus
from tests.unit.monitoring.healthy_status import AAPL, NOON, SENTIMENT, status


def look(at: float, frames: int, rows: int, begun: str = "42") -> StatusSample:
    return StatusSample(at, begun, frames, rows, {}, ())


@pytest.mark.parametrize(
    ("before", "rates"),
    [
        pytest.param(look(10, 100, 1000), {"frames_per_second": 5, "rows_per_second": 10}, id="two seconds ago"),
        pytest.param(None, {}, id="the first look"),
        pytest.param(look(10, 100, 1000, "41"), {}, id="a daemon that has started anew"),
        pytest.param(look(12, 100, 1000), {}, id="the same moment"),
    ],
)
def test_a_rate_is_what_came_between_two_looks(before: StatusSample | None, rates: dict[str, float]) -> None:
    assert look(12, 110, 1020).rates(before) == rates


def shown(live: Status) -> str:
    return "\n".join(_format_status(live))


def test_a_daemon_in_good_health_in_a_few_lines() -> None:
    assert shown(status(at=NOON + timedelta(seconds=3), token=TokenStatus(expires_at=NOON + timedelta(hours=1)))) == (
        "desk: running since 2026-11-01 12:00:00 UTC, version 0.1.0\n"
        "  reported by the daemon (process 42)\n"
        "  /real-time/crowd-sentiment: connected since 2026-11-01 12:00:00 UTC, Socket.IO protocol 4, 7 frames,"
        " last 3s ago\n"
        "  1 subscriptions live\n"
        "  spool: 3 entries pending, oldest 0.0 s, 900 of 1,000 bytes (90%)\n"
        "  database: sqlite, up, lag 0.2 s, last commit 3s ago\n"
        "  rows: 5 new, 1 revised, 2 duplicate, 1 dead\n"
        "  token: expires 2026-11-01 13:00:00 UTC, in 59m57s"
    )


def test_what_is_not_live_is_named_with_its_reason_and_what_is_too_much_is_counted() -> None:
    refused = replace(AAPL, state="refused", reason="no such ticker", params='{"ticker":"ON"}')
    other = replace(AAPL, state="pending", since=None, params='{"period":"30","ticker":"ON"}')
    said = shown(status(subscriptions=(AAPL, refused, *[other] * MAX_NOT_LIVE)))
    assert "  1 subscriptions live\n  1 subscriptions refused\n  20 subscriptions pending\n" in said
    assert "    /real-time/crowd-sentiment ON: refused since 2026-11-01 12:00:00 UTC: no such ticker\n" in said
    assert '    /real-time/crowd-sentiment {"period":"30","ticker":"ON"}: pending\n' in said
    assert "    and 1 more that are not live\n" in said


def test_before_the_first_connection_there_is_no_reason_yet() -> None:
    said = shown(status(connections=(replace(SENTIMENT, connected=False, frames=0, last_frame_at=None),)))
    assert "/real-time/crowd-sentiment: not connected, 0 frames\n" in said


def test_what_is_wrong_is_said() -> None:
    trouble = RecentError(at=NOON, kind="refused", text="path: /x")
    said = shown(
        status(
            connections=(replace(SENTIMENT, connected=False, last_error="no route"),),
            config_reload_successful=False,
            publish_skew_seconds={"crowd-sentiment": -14_398.2, "tweet-buzz": -2.0},
            last_errors=(trouble,),
        )
    )
    assert "  not ready: /real-time/crowd-sentiment: not connected\n" in said
    assert "not connected: no route, 7 frames, last 0s ago\n" in said
    assert "config: the last reload was rejected" in said
    assert "  crowd-sentiment: the provider's publish clock is 3h59m58s behind ours\n" in said
    assert "tweet-buzz" not in said
    assert said.endswith("  12:00:00 refused: path: /x")
