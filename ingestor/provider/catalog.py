"""The provider's endpoints as data: which feed a path delivers, which fields it carries and what we call them.

Source: the provider's documentation of June to September 2014, and the answers printed there. A path that is not here
is not refused: its rows are read generically, every numeric field a metric.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

KEY_PARAMS = frozenset({"ticker", "user_id"})  # they are columns of their own; every other param is part of the feed
RANGE_PARAMS = frozenset({"start_ts", "end_ts", "start_date", "end_date"})  # of REST: how much of a feed, not which
KEY_FIELDS = frozenset({"ts", "ticker", "user_id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What a path delivers, whichever form of the path was asked for."""

    name: str
    metrics: Mapping[str, str]  # field of a row → canonical metric; several fields may mean one metric
    cadence_seconds: int  # the provider's bucket
    by_user: bool = False  # rows name a user_id
    history_path: str | None = None  # the REST path of past days
    stream_only: bool = False  # known by its bare name only, not under /real-time/
    whole_days: bool = False  # its history is asked for by dates, not by instants


def _feed(name: str, cadence_seconds: int, fields: str, **more: object) -> Feed:
    # "metric" or "field=metric", separated by blanks
    metrics = {field: metric or field for field, _, metric in (item.partition("=") for item in fields.split())}
    more.setdefault("history_path", f"/historical/{name}")
    return Feed(name=name, cadence_seconds=cadence_seconds, metrics=MappingProxyType(metrics), **more)  # type: ignore[arg-type]


def _chart(prefix: str) -> str:
    # The documentation's table says …_moving_avg, its sample …_moving_average.
    names = [
        prefix,
        f"{prefix}_moving_average",
        f"{prefix}_z_score",
        f"{prefix}_z_score_moving_average",
        "volume",
        "buzz",
    ]
    short = [f"{name.replace('_average', '_avg')}={name}" for name in names if name.endswith("_average")]
    return " ".join(names + short)


FEEDS: Mapping[str, Feed] = MappingProxyType(
    {
        feed.name: feed
        for feed in (
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
                "user-sentiment",
                1,
                "sentiment user_score",
                by_user=True,
                history_path="/historical/user-sentiment-by-ticker",
            ),
            _feed("user-sentiment-last-minute", 1, "sentiment user_score", by_user=True, history_path=None),
            _feed("crowd-sentiment-chart-data", 60, _chart("crowd_sentiment"), stream_only=True, whole_days=True),
            _feed("market-prophit-sentiment-chart-data", 1, _chart("mp_sentiment"), stream_only=True, whole_days=True),
        )
    }
)

# Paths that may be subscribed to: the documented /real-time/ endpoints, and the bare stream names that came later.
STREAMS = (
    "crowd-sentiment",
    "user-sentiment",
    "market-prophit-sentiment",
    *(feed.name for feed in FEEDS.values() if feed.stream_only),
)
PATHS = tuple(f"/real-time/{feed.name}" for feed in FEEDS.values() if not feed.stream_only) + STREAMS


def base_name(path: str) -> str:
    """``/real-time/crowd-sentiment``, ``/historical/crowd-sentiment`` and ``crowd-sentiment`` → ``crowd-sentiment``."""
    name = path.strip("/")
    for prefix in ("real-time/", "historical/"):
        name = name.removeprefix(prefix)
    for suffix in (".json", "-by-ticker", "-by-user"):
        name = name.removesuffix(suffix)
    return name


def feed_name(path: str, params: Mapping[str, str]) -> str:
    """The canonical name of what a path delivers: ``name``; with params besides ticker and user, ``name?period=30``."""
    mute = KEY_PARAMS | RANGE_PARAMS
    rest = "&".join(f"{key}={value}" for key, value in sorted(params.items()) if key not in mute)
    return f"{base_name(path)}?{rest}" if rest else base_name(path)


def metrics_of(path: str) -> Mapping[str, str] | None:
    """Field → metric of a documented path; None for a path that is not documented."""
    feed = FEEDS.get(base_name(path))
    return feed.metrics if feed else None


def unknown_path_warning(path: str) -> str | None:
    """Why this path may be a mistake, with the nearest documented one; None if it is documented."""
    if path in PATHS:
        return None
    near = difflib.get_close_matches(path, PATHS, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else "; it is asked for all the same"
    return f'unknown endpoint "{path}"{hint}'
