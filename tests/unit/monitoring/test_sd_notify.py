from __future__ import annotations

import pytest

from ingestor.monitoring.sd_notify import watchdog_seconds


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param({}, None, id="no watchdog"),
        pytest.param({"WATCHDOG_USEC": "60000000"}, 60.0, id="one minute"),
        pytest.param({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "42"}, 1.5, id="for us"),
        pytest.param({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "43"}, None, id="for our parent"),
        pytest.param({"WATCHDOG_USEC": "soon"}, None, id="not a number"),
        pytest.param({"WATCHDOG_USEC": "0"}, None, id="switched off"),
        pytest.param({"WATCHDOG_USEC": "-5"}, None, id="negative"),
    ],
)
def test_watchdog_seconds_is_none_unless_meant_for_us(env: dict[str, str], expected: float | None) -> None:
    assert watchdog_seconds(env, pid=42) == expected
