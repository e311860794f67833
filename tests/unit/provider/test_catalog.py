"""What the catalog knows of an endpoint, and the warnings that follow for a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestor.config import load
from ingestor.provider.catalog import find_warnings, requires_ticker


@pytest.mark.parametrize(
    ("path", "params", "expected"),
    [
        ("/real-time/crowd-sentiment", {}, True),
        ("/real-time/crowd-sentiment", {"period": "30"}, True),
        ("/real-time/crowd-sentiment", {"user_id": "7"}, True),
        ("/real-time/crowd-sentiment", {"ticker": "ON"}, False),
        ("/real-time/user-sentiment", {}, True),
        ("/real-time/user-sentiment", {"user_id": "7"}, False),
        ("crowd-sentiment", {}, False),
        ("crowd-sentiment-chart-data", {}, False),
        ("/unknown", {}, False),
    ],
)
def test_endpoints_that_require_a_ticker(path: str, params: dict[str, str], expected: bool) -> None:
    assert requires_ticker(path, params) is expected


def test_warnings_name_the_place_and_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "subscriptions:\n- path: /real-time/crowd-sentiment\n- {path: real-time/tweet-volume, tickers: [A, B]}\n"
        '- {path: crowd-sentiment}\n- {path: /real-time/tweet-buzz, tickers: [A, "@x"]}\n'
    )
    warnings = [str(warning).removeprefix(f"{file}:") for warning in find_warnings(load(file, {}))]
    assert warnings == [
        "2:9: subscriptions.0: names no ticker, and the provider refuses this endpoint without one; "
        "write tickers: [AAPL, …] or tickers_file: …",
        '3:10: subscriptions.1.path: unknown endpoint "real-time/tweet-volume"; '
        'did you mean "/real-time/tweet-volume"?',
        '5:46: subscriptions.3.tickers.1: "@x" is no ticker; did you mean "x"?',
    ]
