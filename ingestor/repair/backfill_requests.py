"""Turn what a person requests with `ingestor backfill` into repairs: which subscriptions, and which range. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from ingestor.config import validators
from ingestor.config.model import Subscription
from ingestor.provider.catalog import feed_name
from ingestor.provider.rest_api import has_history
from ingestor.repair.plan import midnight, split_range
from ingestor.store.maintenance.repairs import BackfillRequest


def build_requests(
    subscriptions: Iterable[Subscription], ticker: str, path: str | None, start: datetime, end: datetime, now: datetime
) -> list[BackfillRequest]:
    """Return a request for each feed that has a history and is subscribed to for ``ticker``, or for ``path`` only.

    Raises ValueError with a message for the operator.
    """
    if not ticker:
        raise ValueError("a ticker is required")
    validators.ticker(ticker)
    end = min(end, midnight(now))  # the provider's history ends yesterday
    if start >= end:
        bounds = f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
        raise ValueError(f"the range {bounds} is empty (the provider's history ends yesterday)")
    selected = _select_subscriptions(subscriptions, ticker, path)
    if not selected:
        raise ValueError(f'no subscription includes "{ticker}"; name an endpoint with --path')
    requests = [_build_request(subscription, start, end) for subscription in selected if has_history(subscription.path)]
    if not requests:
        paths = ", ".join(subscription.path for subscription in selected)
        raise ValueError(f"the provider documents no history for {paths}")
    return list({request.feed: request for request in requests}.values())


def count_queries(request: BackfillRequest) -> int:
    """Return how many requests to the provider this takes."""
    return sum(1 for _ in split_range(request.path, request.from_ts, request.to_ts))


def to_json(requests: Sequence[BackfillRequest]) -> list[dict[str, Any]]:
    """Return the requests as JSON objects."""
    return [msgspec.to_builtins(request) for request in requests]


def from_json(objects: object) -> list[BackfillRequest]:
    """Return the requests that ``to_json`` returned as JSON objects. Raises ValueError for anything else."""
    try:
        return msgspec.convert(objects, list[BackfillRequest])
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _select_subscriptions(subscriptions: Iterable[Subscription], ticker: str, path: str | None) -> list[Subscription]:
    """Return the subscriptions that include ``ticker``, each narrowed down to it."""
    selected = [
        subscription
        for subscription in subscriptions
        if subscription.ticker in ("", ticker) and "user_id" not in subscription.params
    ]
    if path is not None:
        selected = [subscription for subscription in selected if subscription.path == path] or [Subscription(path)]
    return [
        Subscription(subscription.path, subscription.method, {**subscription.params, "ticker": ticker})
        for subscription in selected
    ]


def _build_request(subscription: Subscription, start: datetime, end: datetime) -> BackfillRequest:
    return BackfillRequest(
        path=subscription.path,
        method=subscription.method,
        params=subscription.key[2],
        feed=feed_name(subscription.path, subscription.params),
        ticker=subscription.ticker,
        from_ts=start,
        to_ts=end,
    )
