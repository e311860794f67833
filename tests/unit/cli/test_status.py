from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ingestor.cli.status import MAX_NOT_LIVE, StatusSample, _format_status, fit_screen
from ingestor.monitoring.status import RecentError, StandbyStatus, Status, TokenStatus
from tests.unit.monitoring.healthy_status import AAPL, HOST1, HOST2, NOON, SENTIMENT, status


def sample(at: float, frames: int, rows: int, source_id: str = "42") -> StatusSample:
    return StatusSample(at, source_id, frames, rows, {}, (), 0)


@pytest.mark.parametrize(
    ("before", "rates"),
    [
        pytest.param(sample(10, 100, 1000), {"frames_per_second": 5, "rows_per_second": 10}, id="two seconds ago"),
        pytest.param(None, {}, id="first sample"),
        pytest.param(sample(10, 100, 1000, "41"), {}, id="restarted daemon"),
        pytest.param(sample(12, 100, 1000), {}, id="same time"),
    ],
)
def test_rates_between_two_samples(before: StatusSample | None, rates: dict[str, float]) -> None:
    assert sample(12, 110, 1020).rates(before) == rates


def render(live: Status) -> str:
    return "\n".join(_format_status(live))


def test_healthy_daemon() -> None:
    assert render(status(at=NOON + timedelta(seconds=3), token=TokenStatus(expires_at=NOON + timedelta(hours=1)))) == (
        "desk: running since 2026-11-01 12:00:00 UTC, version 0.1.0\n"
        "  reported by the daemon (process 42)\n"
        "  /real-time/crowd-sentiment: connected since 2026-11-01 12:00:00 UTC, Socket.IO protocol 4, 7 frames,"
        " last 3s ago\n"
        "  1 subscriptions live\n"
        "  spool: 3 entries pending, oldest 0.0 s, 900 of 1,000 bytes (90%), 5,000 bytes kept\n"
        "  database: sqlite, up, lag 0.2 s, last commit 3s ago\n"
        "  rows: 5 new, 1 revised, 2 duplicate, 1 dead\n"
        "  token: expires 2026-11-01 13:00:00 UTC, in 59m57s"
    )


def test_instances_are_listed_where_several_share_the_database() -> None:
    text = render(status(instances=(HOST1, HOST2)))
    assert "  instance 1 (host1, this daemon): alive, 3s behind\n" in text
    silent = "silent, last heartbeat 2026-11-01 12:00:00 UTC, 1m30s behind, holds repair\n"
    assert f"  instance 2 (host2): {silent}" in text
    assert "instance" not in render(status(instances=(HOST1,)))


def test_subscriptions_not_live_are_listed_and_truncated() -> None:
    refused = replace(AAPL, state="refused", reason="no such ticker", params='{"ticker":"ON"}')
    other = replace(AAPL, state="pending", since=None, params='{"period":"30","ticker":"ON"}')
    text = render(status(subscriptions=(AAPL, refused, *[other] * MAX_NOT_LIVE)))
    assert "  1 subscriptions live\n  1 subscriptions refused\n  20 subscriptions pending\n" in text
    assert "    /real-time/crowd-sentiment ON: refused since 2026-11-01 12:00:00 UTC: no such ticker\n" in text
    assert '    /real-time/crowd-sentiment {"period":"30","ticker":"ON"}: pending\n' in text
    assert "    and 1 more that are not live\n" in text


def test_role_of_a_daemon_with_standby_is_shown() -> None:
    standby = StandbyStatus(role="standby", reason="instance 3 (host2) receives", receiver="instance 3 (host2)")
    text = render(status(standby=standby, connections=(replace(SENTIMENT, connected=False),)))
    assert "  standing by: instance 3 (host2) receives\n" in text
    assert "not ready" not in text


def test_status_before_first_connection_has_no_reason() -> None:
    text = render(status(connections=(replace(SENTIMENT, connected=False, frames=0, last_frame_at=None),)))
    assert "/real-time/crowd-sentiment: not connected, 0 frames\n" in text


def test_problems_are_shown() -> None:
    trouble = RecentError(at=NOON, kind="refused", text="path: /x")
    text = render(
        status(
            connections=(replace(SENTIMENT, connected=False, last_error="no route"),),
            config_reload_successful=False,
            publish_skew_seconds={"crowd-sentiment": -14_398.2, "tweet-buzz": -2.0},
            last_errors=(trouble,),
        )
    )
    assert "  not ready: /real-time/crowd-sentiment: not connected\n" in text
    assert "not connected: no route, 7 frames, last 0s ago\n" in text
    assert "config: the last reload was rejected" in text
    assert "  crowd-sentiment: the provider's publish clock is 3h59m58s behind ours\n" in text
    assert "tweet-buzz" not in text
    assert text.endswith("  12:00:00 refused: path: /x")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 20)])
def test_screen_shows_trouble_in_full_then_values(width: int, height: int) -> None:
    reason = "the database is unavailable: " + "it cannot be reached; " * 3
    many = [f"    /real-time/crowd-sentiment T{number:04}: refused since noon" for number in range(30)]
    lines = ["desk: running", "  reported by the daemon", *many, "  spool: 7 entries pending", f"  not ready: {reason}"]
    screen = fit_screen(lines, width, height)
    assert len(screen) == height - 1
    assert max(map(len, screen)) <= width
    assert screen[0] == "desk: running"
    end = screen.index("  spool: 7 entries pending")
    assert " ".join(" ".join(screen[1:end]).split()) == f"not ready: {reason}".strip()
    assert screen[-1].startswith("  and ")


def test_screen_shows_a_short_status_as_it_is() -> None:
    assert fit_screen(["desk: running", "  rows: 1 new"], 80, 24) == ["desk: running", "  rows: 1 new"]
