"""A factory of repairs for tests."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from ingestor.provider.catalog import feed_name
from ingestor.store.maintenance.repairs import Repair

CROWD = "/real-time/crowd-sentiment"
CHART = "crowd-sentiment-chart-data"


def at(day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    """Return a time in January 2026, UTC."""
    return datetime(2026, 1, day, hour, minute, second, tzinfo=UTC)


def repair(start: datetime, end: datetime, *, path: str = CROWD, ticker: str = "AAPL", **columns: Any) -> Repair:
    """Make an open repair. Columns that a test does not set have defaults."""
    params = {"ticker": ticker} if ticker else {}
    params |= {"user_id": columns.pop("user_id")} if "user_id" in columns else {}
    defaults: dict[str, Any] = {
        "repair_id": 1,
        "subscription_id": 1,
        "feed": feed_name(path, params),
        "params": json.dumps(params),
        "kind": "historical",
        "state": "open",
        "cursor": "",
        "attempts": 0,
        "new_rows": 0,
        "error": "",
        "created_at": end,
    }
    return Repair(**defaults | {"path": path, "ticker": ticker, "from_ts": start, "to_ts": end} | columns)
