from __future__ import annotations

from pathlib import Path

import pytest

from ingestor.config import load
from ingestor.daemon.factory import sync_seconds


@pytest.mark.parametrize(
    ("sync_every", "max_wait", "seconds"),
    [
        pytest.param("20ms", "100ms", 0.02, id="as told"),
        pytest.param("20ms", "10ms", 0.01, id="no longer than it may wait in all"),
        pytest.param("20ms", "0s", 0.005, id="a disk needs a while"),
        pytest.param("1ms", "0s", 0.001, id="whoever wants it so"),
    ],
)
def test_how_long_an_entry_waits_before_it_is_synced(
    tmp_path: Path, sync_every: str, max_wait: str, seconds: float
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"spool: {{sync_every: {sync_every}}}\ndatabase: {{batch: {{max_wait: {max_wait}}}}}\n"
        "subscriptions: [{path: /real-time/crowd-sentiment, tickers: [A]}]\n"
    )
    assert sync_seconds(load(file, {})) == seconds
