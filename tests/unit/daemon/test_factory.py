from __future__ import annotations

from pathlib import Path

import pytest

from ingestor.config import load
from ingestor.core.clock import ClockReading
from ingestor.daemon.factory import clock_restart, sync_seconds
from ingestor.spool.header import SpoolHeartbeat


@pytest.mark.parametrize(
    ("sync_every", "max_wait", "seconds"),
    [
        pytest.param("20ms", "100ms", 0.02, id="as configured"),
        pytest.param("20ms", "10ms", 0.01, id="at most batch.max_wait"),
        pytest.param("20ms", "0s", 0.005, id="at least 5 ms by default"),
        pytest.param("1ms", "0s", 0.001, id="shorter if configured"),
    ],
)
def test_sync_interval_follows_config(tmp_path: Path, sync_every: str, max_wait: str, seconds: float) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"spool: {{sync_every: {sync_every}}}\ndatabase: {{batch: {{max_wait: {max_wait}}}}}\n"
        "subscriptions: [{path: /real-time/crowd-sentiment, tickers: [A]}]\n"
    )
    assert sync_seconds(load(file, {})) == seconds


HOUR = 3600
LAST = SpoolHeartbeat(1_000 * HOUR * 1_000_000, 7, {}, 5 * HOUR, "this boot")


def us(hours: float) -> int:
    return round(hours * HOUR * 1_000_000)


@pytest.mark.parametrize(
    ("last", "now_hours", "up_hours", "expected"),
    [
        pytest.param(LAST, 1_002, 7, None, id="not set"),
        pytest.param(LAST, 1_002 - 0.5 / HOUR, 7, None, id="less than a second"),
        pytest.param(LAST, 998, 7, (us(1_002), us(996)), id="set back: down for two hours"),
        pytest.param(LAST, 1_001, 7, (us(1_002), us(999)), id="set back by less than the downtime"),
        pytest.param(LAST, 9_762, 7, (us(1_002), us(9_760)), id="a year ahead"),
        pytest.param(LAST._replace(boot_id="other"), 1_002, 1, (us(1_000), us(1_001)), id="another boot"),
        pytest.param(LAST._replace(boot_id="other"), 500, 1, (us(1_000), us(499)), id="another boot, set back"),
        pytest.param(LAST._replace(boot_id=""), 1_002, 7, None, id="an older release"),
        pytest.param(LAST._replace(boot_id=""), 998, 7, (us(1_000), us(998)), id="an older release, set back"),
    ],
)
def test_coverage_goes_on_by_a_clock_that_was_set_while_down(
    last: SpoolHeartbeat, now_hours: float, up_hours: float, expected: tuple[int, int] | None
) -> None:
    restart = clock_restart(last, ClockReading(us(now_hours), up_hours * HOUR), "this boot")
    assert (restart and (restart.until_us, restart.since_us)) == expected
