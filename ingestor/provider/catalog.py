"""The provider's endpoints as data: the feed of each path, its fields, and the metric that each field is stored as.

Source: the provider's documentation of June to September 2014 and its sample responses. A path that is not listed here
is not rejected: its rows are decoded generically, with every numeric field as a metric.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ingestor.config import Config
from ingestor.core.entries import ROW_PARAMS
from ingestor.errors import ConfigProblem

RANGE_PARAMS = frozenset({"start_ts", "end_ts", "start_date", "end_date"})  # of REST: how much of a feed is requested
TICKER_MISSING = (
    "names no ticker, and the provider refuses this endpoint without one; write tickers: [AAPL, …] or tickers_file: …"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What a path delivers, in whichever form the path is written."""

    name: str
    metrics: Mapping[str, str]  # field of a row → canonical metric; several fields may map to one metric
    cadence_seconds: int  # length of the provider's buckets
    by_user: bool = False  # rows have a user_id
    history_path: str | None = None  # REST path for past days
    stream_only: bool = False  # has no /real-time/ endpoint, only a bare stream name
    whole_days: bool = False  # history is requested by dates, not by timestamps


def _feed(name: str, cadence_seconds: int, fields: str, **attributes: object) -> Feed:
    # "metric" or "field=metric", separated by blanks
    metrics = {field: metric or field for field, _, metric in (item.partition("=") for item in fields.split())}
    attributes.setdefault("history_path", f"/historical/{name}")
    return Feed(name=name, cadence_seconds=cadence_seconds, metrics=MappingProxyType(metrics), **attributes)  # type: ignore[arg-type]


def _chart(prefix: str) -> str:
    # The documentation's table has …_moving_avg, its sample …_moving_average.
    names = [prefix + suffix for suffix in ("", "_moving_average", "_z_score", "_z_score_moving_average")]
    aliases = [f"{name.replace('_average', '_avg')}={name}" for name in names if name.endswith("_average")]
    return " ".join([*names, "volume", "buzz", *aliases])


_FEEDS = (
    _feed("crowd-sentiment", 60, "crowd_sentiment average_sentiment=crowd_sentiment"),
    _feed("crowd-sentiment-moving-average", 60, "moving_average"),
    _feed("crowd-sentiment-z-score", 60, "z_score"),
    _feed("crowd-sentiment-z-score-moving-average", 60, "moving_average"),
    _feed("market-prophit-sentiment", 1, "mp_sentiment signal_value=mp_sentiment"),
    _feed("market-prophit-sentiment-moving-average", 1, "moving_average"),
    _feed("market-prophit-sentiment-z-score", 1, "z_score"),
    _feed("market-prophit-sentiment-z-score-moving-average", 1, "moving_average"),
    _feed("tweet-volume", 60, "volume"),
    _feed("tweet-buzz", 60, "buzz"),
    _feed(
        "user-sentiment", 1, "sentiment user_score", by_user=True, history_path="/historical/user-sentiment-by-ticker"
    ),
    _feed("user-sentiment-last-minute", 1, "sentiment user_score", by_user=True, history_path=None),
    _feed("crowd-sentiment-chart-data", 60, _chart("crowd_sentiment"), stream_only=True, whole_days=True),
    _feed("market-prophit-sentiment-chart-data", 1, _chart("mp_sentiment"), stream_only=True, whole_days=True),
)
FEEDS: Mapping[str, Feed] = MappingProxyType({feed.name: feed for feed in _FEEDS})

# Paths that may be subscribed to: the documented /real-time/ endpoints, and the bare stream names added later.
_BARE = tuple(feed.name for feed in _FEEDS if feed.stream_only)
STREAMS = ("crowd-sentiment", "user-sentiment", "market-prophit-sentiment", *_BARE)
PATHS = (*(f"/real-time/{feed.name}" for feed in _FEEDS if not feed.stream_only), *STREAMS)


def base_name(path: str) -> str:
    """Return the feed's name in a path: "crowd-sentiment" for ``/real-time/crowd-sentiment`` and its other forms."""
    name = path.strip("/")
    for prefix in ("real-time/", "historical/"):
        name = name.removeprefix(prefix)
    for suffix in (".json", "-by-ticker", "-by-user"):
        name = name.removesuffix(suffix)
    return name


def feed_name(path: str, params: Mapping[str, str]) -> str:
    """Return the canonical feed name of a path and its params: ``name`` or, with other params, ``name?period=30``."""
    ignored = ROW_PARAMS | RANGE_PARAMS
    query = "&".join(f"{key}={value}" for key, value in sorted(params.items()) if key not in ignored)
    return f"{base_name(path)}?{query}" if query else base_name(path)


def metrics_of(path: str) -> Mapping[str, str] | None:
    """Return field → metric of a documented path; None for any other path."""
    feed = FEEDS.get(base_name(path))
    return feed.metrics if feed else None


def requires_ticker(path: str, params: Mapping[str, str]) -> bool:
    """Return whether the provider refuses these params because they name no ticker.

    An endpoint below ``/real-time/`` is for one ticker, or one user if its rows have a user_id. A stream sends all.
    """
    if path not in PATHS or path in STREAMS or params.get("ticker"):
        return False
    return not (FEEDS[base_name(path)].by_user and params.get("user_id"))


def unknown_path_warning(path: str) -> str | None:
    """Return a warning that names the closest documented path; None if ``path`` is documented."""
    if path in PATHS:
        return None
    matches = difflib.get_close_matches(path, PATHS, n=1)
    hint = f'; did you mean "{matches[0]}"?' if matches else "; subscribing to it anyway"
    return f'unknown endpoint "{path}"{hint}'


def find_warnings(config: Config) -> list[ConfigProblem]:
    """Return what is valid, but what the provider will probably refuse: once per place in the file, in its order."""
    by_location = {subscription.location: subscription for subscription in config.subscriptions}
    warnings = []
    for location, subscription in by_location.items():
        place = subscription.config_path
        if message := unknown_path_warning(subscription.path):
            warnings.append(ConfigProblem(location, f"{place}.path", message))
        if requires_ticker(subscription.path, subscription.params):
            warnings.append(ConfigProblem(location, place, TICKER_MISSING))
    return [*warnings, *config.warnings]
