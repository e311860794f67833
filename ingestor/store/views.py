"""The views as queries read them: names and typed columns. Their SQL is in ``migrations/versions``."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, ColumnClause, Date, Double, Integer, TableClause, Text, column, table
from sqlalchemy.types import TypeEngine

from ingestor.store.schema import UtcDateTime

# A column name means the same in every view and implies the type. Those not listed are times or measured numbers.
_TEXTS = (
    "feed",
    "metric",
    "ticker",
    "user_id",
    "path",
    "params",
    "source",
    "state",
    "states",
    "reason",
    "instance_name",
    "connection_id",
    "event",
    "body",
    "cursor",
    "kind",
    "next_cursor",
)
_TYPES: dict[str, TypeEngine[Any]] = {
    **dict.fromkeys(_TEXTS, Text()),
    **dict.fromkeys(("subscription_id", "instance_id", "series_id", "revision", "samples", "row_count"), Integer()),
    **dict.fromkeys(("seq", "start_seq", "first_seq", "last_seq"), BigInteger()),
    **{"day": Date(), "is_final": Boolean(), "samples_deleted": Boolean()},
}

VIEWS: list[TableClause] = []


def _type(name: str) -> TypeEngine[Any]:
    is_time = name in ("ts", "known_from", "known_until") or name.endswith("_at")
    return UtcDateTime() if is_time else _TYPES.get(name, Double())


def typed_columns(names: str) -> list[ColumnClause[Any]]:
    """Return columns of views or of statements like them, with the types that their names imply."""
    return [column(name, _type(name)) for name in names.split()]


def _view(name: str, columns: str) -> TableClause:
    view = table(name, *typed_columns(columns))
    VIEWS.append(view)
    return view


_ORIGIN = "revision published_at received_at source"
_OBSERVATION = f"feed metric ticker user_id ts value {_ORIGIN} instance_id seq"
_SUBSCRIPTION = "subscription_id feed path params ticker"
_SPAN = "from_at to_at"
_CANDLE = "bucket_at open high low close mean samples covered_minutes coverage_percent is_final"


def _feed(name: str, metrics: str, key: str = "ticker") -> TableClause:
    return _view(name, f"ts {key} {metrics} {_ORIGIN}")


def _chart(name: str, metric: str) -> TableClause:
    forms = ("", "_moving_average", "_z_score", "_z_score_moving_average")
    return _feed(name, " ".join(f"{metric}{form}" for form in forms) + " volume buzz")


observations = _view("observations", _OBSERVATION)
revisions = _view("revisions", _OBSERVATION)
latest = _view("latest", _OBSERVATION)
history = _view(
    "history", "feed metric ticker user_id ts value known_from known_until source instance_id seq series_id"
)

crowd_sentiment = _feed("crowd_sentiment", "sentiment")
crowd_sentiment_moving_average = _feed("crowd_sentiment_moving_average", "moving_average")
crowd_sentiment_z_score = _feed("crowd_sentiment_z_score", "z_score")
crowd_sentiment_z_score_moving_average = _feed("crowd_sentiment_z_score_moving_average", "moving_average")
market_prophit_sentiment = _feed("market_prophit_sentiment", "sentiment")
market_prophit_sentiment_moving_average = _feed("market_prophit_sentiment_moving_average", "moving_average")
market_prophit_sentiment_z_score = _feed("market_prophit_sentiment_z_score", "z_score")
market_prophit_sentiment_z_score_moving_average = _feed(
    "market_prophit_sentiment_z_score_moving_average", "moving_average"
)
tweet_volume = _feed("tweet_volume", "volume")
tweet_buzz = _feed("tweet_buzz", "buzz")
user_sentiment = _feed("user_sentiment", "sentiment user_score", key="ticker user_id")
user_sentiment_last_minute = _feed("user_sentiment_last_minute", "sentiment user_score", key="ticker user_id")
crowd_sentiment_chart_data = _chart("crowd_sentiment_chart_data", "crowd_sentiment")
market_prophit_sentiment_chart_data = _chart("market_prophit_sentiment_chart_data", "mp_sentiment")

uncontradicted = _view("uncontradicted", f"subscription_id instance_id {_SPAN}")
coverage_intervals = _view(
    "coverage_intervals", f"subscription_id instance_id start_seq state reason {_SPAN} started_at ended_at"
)
wanted = _view("wanted", f"subscription_id {_SPAN}")
covered = _view("covered", f"subscription_id {_SPAN}")
gaps = _view("gaps", f"{_SUBSCRIPTION} {_SPAN} seconds states reason")
instance_gaps = _view(
    "instance_gaps", f"instance_id instance_name {_SUBSCRIPTION} {_SPAN} seconds covered_seconds states reason"
)
coverage_daily = _view(
    "coverage_daily", f"{_SUBSCRIPTION} day wanted_seconds covered_seconds percent coverage_percent samples_deleted"
)
candles_hourly = _view("candles_hourly", f"feed metric ticker user_id {_CANDLE} samples_deleted")
candles_daily = _view("candles_daily", f"feed metric ticker user_id {_CANDLE} samples_deleted")
crowd_sentiment_hourly = _view("crowd_sentiment_hourly", f"ticker {_CANDLE}")
crowd_sentiment_daily = _view("crowd_sentiment_daily", f"ticker {_CANDLE}")
ingest_lag = _view("ingest_lag", "feed metric ticker user_id ts received_at source lag_seconds")
change_cursor = _view("change_cursor", "cursor")
payloads = _view(
    "payloads",
    "instance_id seq connection_id source event path params received_at published_at row_count body first_seq last_seq",
)
