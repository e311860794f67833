"""Which ts the ledger notes for a batch."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from ingestor.core.times import to_us
from ingestor.store.write.ts_ranges import MAX_SHARED_US, ledger_columns

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T0_US = to_us(T0)


def test_range_spans_all_series() -> None:
    keys = sorted([(1, T0_US + 5), (2, T0_US), (2, T0_US + 9), (3, T0_US + 7)])
    ends = {"from_ts": T0, "to_ts": T0 + timedelta(microseconds=9)}
    assert ledger_columns(keys) == ends | {"series_ranges": None}


def test_longer_range_is_noted_for_each_series() -> None:
    assert ledger_columns([(1, T0_US), (2, T0_US + MAX_SHARED_US)])["series_ranges"] is None
    noted = ledger_columns([(1, T0_US), (2, T0_US + 5), (2, T0_US + MAX_SHARED_US + 1)])
    assert (noted["from_ts"], noted["to_ts"]) == (T0, T0 + timedelta(days=1, microseconds=1))
    assert json.loads(noted["series_ranges"]) == [
        [1, "2026-01-01 00:00:00", "2026-01-01 00:00:00"],
        [2, "2026-01-01 00:00:00.000005", "2026-01-02 00:00:00.000001"],
    ]


def test_no_rows_have_no_range() -> None:
    assert set(ledger_columns([]).values()) == {None}
