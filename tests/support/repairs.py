"""Repairs as tests write them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from ingestor.provider.catalog import feed_name
from ingestor.store.maintenance.repairs import Repair

CROWD = "/real-time/crowd-sentiment"
CHART = "crowd-sentiment-chart-data"


def at(day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    """A moment of January 2026."""
    return datetime(2026, 1, day, hour, minute, second, tzinfo=UTC)


def repair(start: datetime, end: datetime, *, path: str = CROWD, ticker: str = "AAPL", **more: Any) -> Repair:
    """An open one, with everything that a test does not care about filled in."""
    asked = {"ticker": ticker} if ticker else {}
    asked |= {"user_id": more.pop("user_id")} if "user_id" in more else {}
    defaults: dict[str, Any] = {
        "repair_id": 1,
        "subscription_id": 1,
        "feed": feed_name(path, asked),
        "params": json.dumps(asked),
        "kind": "historical",
        "state": "open",
        "cursor": "",
        "attempts": 0,
        "new_rows": 0,
        "error": "",
        "created_at": end,
    }
    return Repair(**defaults | {"path": path, "ticker": ticker, "from_ts": start, "to_ts": end} | more)
