from __future__ import annotations

from pathlib import Path

import pytest

from ingestor.config import load
from ingestor.daemon.factory import sync_seconds


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
