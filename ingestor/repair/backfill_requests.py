"""What a person asks for by hand: of which subscriptions, which time, in how many questions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from ingestor.config import validators
from ingestor.config.model import Subscription, canonical_json
from ingestor.provider.catalog import feed_name
from ingestor.provider.rest_api import has_history
from ingestor.repair.plan import midnight, split_range
from ingestor.store.maintenance.repairs import BackfillRequest


def build_requests(
    subscriptions: Iterable[Subscription], ticker: str, path: str | None, start: datetime, end: datetime, now: datetime
) -> list[BackfillRequest]:
    """A wish for each feed that is subscribed to for ``ticker`` and has a history, or for ``path`` alone.

    Raises ValueError, a message for the operator.
    """
    if not ticker:
        raise ValueError("name a ticker")
    validators.ticker(ticker)
    end = min(end, midnight(now))  # the provider's history ends yesterday
    if start >= end:
        raise ValueError(f"nothing lies between {start:%Y-%m-%d %H:%M} and {end:%Y-%m-%d %H:%M} UTC")
    asked = _asked(subscriptions, ticker, path)
    if not asked:
        raise ValueError(f'"{ticker}" is not subscribed to; say of which endpoint: --path')
    found = {wish.feed: wish for wish in (_wish(one, start, end) for one in asked) if has_history(wish.path)}
    if not found:
        raise ValueError(f"the provider documents no history of {', '.join(one.path for one in asked)}")
    return list(found.values())


def count_queries(wish: BackfillRequest) -> int:
    """How often the provider is to be asked."""
    return sum(1 for _ in split_range(wish.path, wish.from_ts, wish.to_ts))


def to_json(some: Sequence[BackfillRequest]) -> list[dict[str, Any]]:
    """As JSON takes it."""
    stamps = ("from_ts", "to_ts")
    return [asdict(one) | {name: getattr(one, name).isoformat() for name in stamps} for one in some]


def from_json(some: Sequence[dict[str, Any]]) -> list[BackfillRequest]:
    """What ``packed`` has packed."""
    stamps = ("from_ts", "to_ts")
    return [BackfillRequest(**one | {name: datetime.fromisoformat(one[name]) for name in stamps}) for one in some]


def _asked(subscriptions: Iterable[Subscription], ticker: str, path: str | None) -> list[Subscription]:
    """The subscriptions that bring ``ticker``, each for it alone."""
    named = [one for one in subscriptions if one.ticker in ("", ticker) and "user_id" not in one.params]
    if path is not None:
        named = [one for one in named if one.path == path] or [Subscription(path)]
    return [Subscription(one.path, one.method, {**one.params, "ticker": ticker}) for one in named]


def _wish(one: Subscription, start: datetime, end: datetime) -> BackfillRequest:
    return BackfillRequest(
        path=one.path,
        method=one.method,
        params=canonical_json(one.params),
        feed=feed_name(one.path, one.params),
        ticker=one.ticker,
        from_ts=start,
        to_ts=end,
    )
