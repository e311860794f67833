"""Note in the ledger which ts a batch wrote, so that a reader of what is new need not search all samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from ingestor.core.times import to_datetime, to_sqlite_text
from ingestor.store.write.revisions import SampleKey

MAX_SHARED_US = 86_400_000_000  # a longer range, as of a backfill, is noted for each series


def ledger_columns(keys: Sequence[SampleKey]) -> dict[str, Any]:
    """Return the columns of the ledger for the sorted keys of a batch."""
    if not keys:
        return {"from_ts": None, "to_ts": None, "series_ranges": None}
    times_us = [ts_us for _, ts_us in keys]
    from_us, to_us = min(times_us), max(times_us)
    series_ranges = _ranges_of_series(keys) if to_us - from_us > MAX_SHARED_US else None
    return {"from_ts": to_datetime(from_us), "to_ts": to_datetime(to_us), "series_ranges": series_ranges}


def _ranges_of_series(keys: Sequence[SampleKey]) -> str:
    """Return JSON: [[series_id, first ts, last ts], …]."""
    ranges = []
    for series_id, of_series in groupby(keys, key=itemgetter(0)):
        times_us = [ts_us for _, ts_us in of_series]
        ranges.append([series_id, to_sqlite_text(times_us[0]), to_sqlite_text(times_us[-1])])
    return json.dumps(ranges, separators=(",", ":"))
