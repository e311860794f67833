from __future__ import annotations

import pytest

from ingestor.cli.tail import fit
from tests.unit.monitoring.healthy_status import NOON

RECORD = {
    "ts": NOON,
    "ticker": "AAPL",
    "user_id": "",
    "feed": "crowd-sentiment",
    "metric": "sentiment",
    "value": -0.123456,
    "revision": 1,
    "received_at": NOON,
}


@pytest.mark.parametrize(
    ("width", "line"),
    [
        pytest.param(
            None,
            "2026-11-01 12:00:00  AAPL      crowd-sentiment  sentiment -0.123456  (received 12:00:00, revision 1)",
            id="no terminal",
        ),
        pytest.param(80, "2026-11-01 12:00:00  AAPL      crowd-sentiment  sentiment -0.123456", id="80 columns"),
        pytest.param(45, "11-01 12:00  AAPL      sentiment -0.123456", id="45 columns"),
        pytest.param(40, "12:00 AAPL -0.123456", id="40 columns"),
    ],
)
def test_observation_fits_the_terminal(width: int | None, line: str) -> None:
    assert fit(RECORD, width) == line
