from __future__ import annotations

from pathlib import Path

import pytest

from ingestor.commands.check import CheckResult, LoadEstimate, _load, run_offline_checks
from ingestor.config import load

CROWD = "/real-time/crowd-sentiment"


def found(folder: Path, text: str) -> dict[str, CheckResult]:
    (folder / "config.yaml").write_text(text)
    return {one.name: one for one in run_offline_checks(load(folder / "config.yaml", {}))}


@pytest.mark.parametrize(
    ("subscriptions", "expected"),
    [
        pytest.param(
            f"[{{path: {CROWD}, tickers: [A, B]}}]",
            LoadEstimate(2 * 1440, 2 * 1440 * 60 * 85),
            id="two windows a minute",
        ),
        pytest.param(
            "[{path: crowd-sentiment}]", LoadEstimate(1440 * 5000, 1440 * 5000 * 85), id="a stream of all, once each"
        ),
        pytest.param(
            "[{path: crowd-sentiment-chart-data, ticker: A}]", LoadEstimate(6 * 1440, 1440 * 85), id="six metrics"
        ),
        pytest.param(
            "[{path: market-prophit-sentiment, ticker: A}]", LoadEstimate(86400, 86400 * 85), id="each second"
        ),
        pytest.param(
            "[{path: /unheard-of, ticker: A}]", LoadEstimate(1440, 1440 * 60 * 85), id="as if it were documented"
        ),
    ],
)
def test_what_the_subscriptions_bring_in_a_day(tmp_path: Path, subscriptions: str, expected: LoadEstimate) -> None:
    (tmp_path / "config.yaml").write_text(f"subscriptions: {subscriptions}\n")
    assert _load(load(tmp_path / "config.yaml", {})) == expected


ONE = f"subscriptions: [{{path: {CROWD}, ticker: A}}]\n"  # 7,344,000 bytes a day


@pytest.mark.parametrize(
    ("retention", "said"),
    [
        ("{payloads: 12h}", "at most 1,440 samples a day, some 141 KiB; payloads of 12h add 4 MiB, once"),
        ("{payloads: none}", "at most 1,440 samples a day, some 141 KiB"),
        ("{payloads: forever}", "at most 1,440 samples a day, some 141 KiB; payloads add 7 MiB a day: see database"),
    ],
)
def test_growth_says_what_payloads_add(tmp_path: Path, retention: str, said: str) -> None:
    assert found(tmp_path, f"database: {{retention: {retention}}}\n{ONE}")["growth"].message.startswith(said)


def test_a_spool_that_holds_less_than_an_hour_and_a_disk_that_holds_less_than_the_spool_are_warned_of(
    tmp_path: Path,
) -> None:
    small = found(tmp_path, f"spool: {{max_bytes: 200KiB}}\n{ONE}")
    assert small["outage"].message == "200 KiB (spool.max_bytes) hold some 0.7 h of a database that is away"
    assert small["outage"].warning and not small["disk"].warning
    large = found(tmp_path, f"spool: {{max_bytes: 60TiB}}\n{ONE}")
    assert large["disk"].warning and not large["outage"].warning
    assert "less than spool.max_bytes: free some, or lower it" in large["disk"].message
    assert "days of what is collected" in large["database disk"].message


def test_of_a_server_nobody_knows_the_disk(tmp_path: Path) -> None:
    assert "database disk" not in found(tmp_path, f"database: {{url: 'postgresql://u@127.0.0.1:1/d'}}\n{ONE}")
