from __future__ import annotations

from pathlib import Path

import pytest

from ingestor.commands.check import LoadEstimate, estimate_load, run_offline_checks
from ingestor.commands.check_result import CheckResult
from ingestor.config import load

CROWD = "/real-time/crowd-sentiment"


def run_checks(folder: Path, text: str) -> dict[str, CheckResult]:
    (folder / "config.yaml").write_text(text)
    return {result.name: result for result in run_offline_checks(load(folder / "config.yaml", {}))}


@pytest.mark.parametrize(
    ("subscriptions", "expected"),
    [
        pytest.param(
            f"[{{path: {CROWD}, tickers: [A, B]}}]",
            LoadEstimate(2 * 1440, 2 * 1440 * 60 * 85),
            id="two tickers, a window per minute",
        ),
        pytest.param(
            "[{path: crowd-sentiment}]", LoadEstimate(1440 * 5000, 1440 * 5000 * 85), id="a stream of all tickers"
        ),
        pytest.param(
            "[{path: crowd-sentiment-chart-data, ticker: A}]", LoadEstimate(6 * 1440, 1440 * 85), id="six metrics"
        ),
        pytest.param(
            "[{path: market-prophit-sentiment, ticker: A}]", LoadEstimate(86400, 86400 * 85), id="a value per second"
        ),
        pytest.param("[{path: /unheard-of, ticker: A}]", LoadEstimate(1440, 1440 * 60 * 85), id="unknown endpoint"),
    ],
)
def test_load_estimate_per_day(tmp_path: Path, subscriptions: str, expected: LoadEstimate) -> None:
    (tmp_path / "config.yaml").write_text(f"subscriptions: {subscriptions}\n")
    assert estimate_load(load(tmp_path / "config.yaml", {})) == expected


ONE = f"subscriptions: [{{path: {CROWD}, ticker: A}}]\n"  # 7,344,000 bytes a day
ALL = f"subscriptions: [{{path: {CROWD}}}]\n"  # 425,000 bytes a second


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        ("{payloads: 12h}", "at most 1,440 samples per day, about 112 KiB; payloads, kept for 12h, add 2 MiB in total"),
        ("{payloads: none}", "at most 1,440 samples per day, about 112 KiB"),
        (
            "{payloads: forever}",
            "at most 1,440 samples per day, about 112 KiB; payloads add 4 MiB per day, see database",
        ),
    ],
)
def test_growth_includes_payloads(tmp_path: Path, retention: str, expected: str) -> None:
    assert run_checks(tmp_path, f"database: {{retention: {retention}}}\n{ONE}")["growth"].message.startswith(expected)


def test_growth_counts_what_postgresql_compresses(tmp_path: Path) -> None:
    config = "database: {url: 'postgresql://u@127.0.0.1:1/d', retention: {payloads: forever}}\n"
    growth = run_checks(tmp_path, f"{config}{ONE}")["growth"].message
    assert growth.startswith("at most 1,440 samples per day, about 169 KiB; payloads add 2 MiB per day")


def test_small_spool_and_small_disk_are_warnings(
    tmp_path: Path,
) -> None:
    small = run_checks(tmp_path, f"spool: {{max_bytes: 200KiB}}\n{ONE}")
    assert small["outage"].message == "200 KiB (spool.max_bytes) last for a database outage of 0.7 h"
    assert small["outage"].warning and not small["disk"].warning
    large = run_checks(tmp_path, f"spool: {{max_bytes: 60TiB}}\n{ONE}")
    assert large["disk"].warning and not large["outage"].warning
    assert ", less than the 60.0 TiB for spool.max_bytes and spool.keep: free some, or lower" in large["disk"].message
    assert "days of data" in large["database disk"].message


@pytest.mark.parametrize(
    ("keep", "subscriptions", "expected"),
    [
        ("0", ONE, "nothing (spool.keep): if the database goes back, what it had committed is lost"),
        ("{time: 0}", ONE, "nothing (spool.keep): if the database goes back, what it had committed is lost"),
        ("{}", ONE, "the database may go back by 24.0 h without a loss (spool.keep.time, about 1 MiB)"),
        ("{size: 300kB}", ONE, "the database may go back by 4.9 h without a loss (293 KiB, spool.keep.size)"),
        ("{}", ALL, "the database may go back by 7.0 h without a loss (2 GiB, spool.keep.size)"),
    ],
)
def test_check_says_how_far_the_database_may_go_back(
    tmp_path: Path, keep: str, subscriptions: str, expected: str
) -> None:
    found = run_checks(tmp_path, f"spool: {{max_bytes: 200KiB, keep: {keep}}}\n{subscriptions}")
    assert found["keep"].message.startswith(expected)
    if subscriptions == ONE:  # what is kept is no space for an outage
        assert found["outage"].message == "200 KiB (spool.max_bytes) last for a database outage of 0.7 h"


def test_load_that_there_is_no_time_to_compress_is_kept_as_it_is() -> None:
    assert LoadEstimate(0, 1e9).kept_bytes == pytest.approx(2e8)
    assert LoadEstimate(0, 1e12).kept_bytes == pytest.approx(1e12 - 0.8 * 1.2e6 * 86_400)


def test_kept_space_counts_on_the_disk(tmp_path: Path) -> None:
    found = run_checks(tmp_path, f"spool: {{keep: {{time: 3650d, size: 60TiB}}}}\n{ALL}")
    assert found["disk"].warning
    assert "less than the 24.4 TiB for spool.max_bytes and spool.keep" in found["disk"].message


def test_disk_of_database_server_is_not_checked(tmp_path: Path) -> None:
    assert "database disk" not in run_checks(tmp_path, f"database: {{url: 'postgresql://u@127.0.0.1:1/d'}}\n{ONE}")


def test_check_warns_of_what_the_provider_will_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("subscriptions:\n- path: /real-time/crowd-sentiment\n")
    warnings = [result for result in run_offline_checks(load(tmp_path / "config.yaml", {})) if result.name == "config"]
    assert [result.warning for result in warnings] == [False, True]
    assert warnings[1].message.startswith(f"{tmp_path}/config.yaml:2:9: subscriptions.0: names no ticker, and")
