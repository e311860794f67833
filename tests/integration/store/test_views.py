"""The views over handmade rows: each case is a small table and the expected result."""

from __future__ import annotations

import re
from datetime import date, timedelta

import pytest
from sqlalchemy import Engine, insert, text

from ingestor.store import schema, views
from ingestor.store.write import sqlite_sql
from ingestor.store.write.batch import Origin, PayloadColumns
from tests.support.entries import T0

from .row_factory import Database, at

CROWD = ("crowd-sentiment", "crowd_sentiment")

SINGLE_FEEDS = [
    ("crowd-sentiment", "crowd_sentiment", views.crowd_sentiment, "sentiment"),
    ("crowd-sentiment-moving-average", "moving_average", views.crowd_sentiment_moving_average, "moving_average"),
    ("crowd-sentiment-z-score", "z_score", views.crowd_sentiment_z_score, "z_score"),
    (
        "crowd-sentiment-z-score-moving-average",
        "moving_average",
        views.crowd_sentiment_z_score_moving_average,
        "moving_average",
    ),
    ("market-prophit-sentiment", "mp_sentiment", views.market_prophit_sentiment, "sentiment"),
    (
        "market-prophit-sentiment-moving-average",
        "moving_average",
        views.market_prophit_sentiment_moving_average,
        "moving_average",
    ),
    ("market-prophit-sentiment-z-score", "z_score", views.market_prophit_sentiment_z_score, "z_score"),
    (
        "market-prophit-sentiment-z-score-moving-average",
        "moving_average",
        views.market_prophit_sentiment_z_score_moving_average,
        "moving_average",
    ),
    ("tweet-volume", "volume", views.tweet_volume, "volume"),
    ("tweet-buzz", "buzz", views.tweet_buzz, "buzz"),
]


@pytest.fixture
def db(engine: Engine) -> Database:
    return Database(engine)


def test_observations_join_samples_with_names(db: Database) -> None:
    db.sample(*CROWD, "ON", "10:00", 0.25, revision=1, published_at=at("05:00"), received_at=at("10:00:02.5"), seq=7)
    db.sample(*CROWD, "ON", "10:00", 0.5, table="sample_revisions", received_at=at("10:00:01"), seq=3)
    origin = ("stream", 1)
    assert db.read(views.observations) == [
        (*CROWD, "ON", "", at("10:00"), 0.25, 1, at("05:00"), at("10:00:02.5"), *origin, 7)
    ]
    assert db.read(views.revisions) == [(*CROWD, "ON", "", at("10:00"), 0.5, 0, None, at("10:00:01"), *origin, 3)]


def test_feed_view_shows_only_its_feed(db: Database) -> None:
    for number, (feed, metric, _, _) in enumerate(SINGLE_FEEDS):
        db.sample(feed, metric, "AAPL", "10:00", float(number))
        db.sample(f"{feed}?period=30", metric, "AAPL", "10:00", -1.0)
    found = [db.read(view, "ts", "ticker", column) for _, _, view, column in SINGLE_FEEDS]
    assert found == [[(at("10:00"), "AAPL", float(number))] for number in range(len(SINGLE_FEEDS))]


SOURCES = ["backfill", "snapshot", "stream"]
FEEDS_OF_VIEWS = [
    *((feed, metric, view) for feed, metric, view, _ in SINGLE_FEEDS),
    ("user-sentiment", "sentiment", views.user_sentiment),
    ("user-sentiment-last-minute", "sentiment", views.user_sentiment_last_minute),
    ("crowd-sentiment-chart-data", "volume", views.crowd_sentiment_chart_data),
    ("market-prophit-sentiment-chart-data", "volume", views.market_prophit_sentiment_chart_data),
]


def test_views_have_the_word_of_each_source(db: Database) -> None:
    for feed, metric, _ in FEEDS_OF_VIEWS:
        for source in SOURCES:
            db.sample(feed, metric, source, "10:00", 0.5, source=source)
    for source in SOURCES:
        db.sample(*CROWD, source, "10:00", 0.25, source=source, table="sample_revisions")
    expected = [(source, source) for source in SOURCES]
    found = {view.name: db.read(view, "ticker", "source") for *_, view in FEEDS_OF_VIEWS}
    assert found == dict.fromkeys(found, expected)
    for view in (views.observations, views.revisions, views.latest, views.ingest_lag):
        assert db.read(view, "ticker", "source", feed="crowd-sentiment") == expected, view.name


def test_feed_view_shows_origin_of_value(db: Database) -> None:
    db.sample(*CROWD, "AAPL", "10:00", 0.5, revision=2, published_at=at("05:00"), received_at=at("10:01"))
    assert db.read(views.crowd_sentiment) == [
        (at("10:00"), "AAPL", 0.5, 2, at("05:00"), at("10:01"), "stream"),
    ]


@pytest.mark.parametrize(
    ("feed", "view"),
    [
        ("user-sentiment", views.user_sentiment),
        ("user-sentiment-last-minute", views.user_sentiment_last_minute),
    ],
)
def test_user_sentiment_has_one_row_per_user_and_ts(db: Database, feed: str, view) -> None:
    db.sample(feed, "sentiment", "AAPL", "10:00:01", 0.5, user_id="7", received_at=at("10:00:02"))
    db.sample(feed, "user_score", "AAPL", "10:00:01", 3.0, user_id="7", received_at=at("10:00:03"))
    db.sample(feed, "sentiment", "AAPL", "10:00:01", 0.1, user_id="8", source="backfill", revision=1)
    ts = at("10:00:01")
    assert db.read(view) == [
        (ts, "AAPL", "7", 0.5, 3.0, 0, None, at("10:00:03"), "stream"),
        (ts, "AAPL", "8", 0.1, None, 1, None, ts, "backfill"),
    ]


@pytest.mark.parametrize(
    ("feed", "metric", "view"),
    [
        ("crowd-sentiment-chart-data", "crowd_sentiment", views.crowd_sentiment_chart_data),
        ("market-prophit-sentiment-chart-data", "mp_sentiment", views.market_prophit_sentiment_chart_data),
    ],
)
def test_chart_data_has_one_row_per_ts_and_ticker(db: Database, feed: str, metric: str, view) -> None:
    forms = [metric, f"{metric}_moving_average", f"{metric}_z_score", f"{metric}_z_score_moving_average"]
    for value, name in enumerate([*forms, "volume", "buzz"]):
        db.sample(feed, name, "AAPL", "10:00", float(value), revision=1)
    db.sample(feed, "buzz", "TSLA", "10:00", 9.0)
    db.sample(feed, "volume", "TSLA", "10:00", 8.0, source="backfill")
    ts = at("10:00")
    assert db.read(view) == [
        (ts, "AAPL", 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6, None, ts, "stream"),
        (ts, "TSLA", None, None, None, None, 8.0, 9.0, 0, None, ts, "mixed"),
    ]


def test_latest_is_newest_by_ts_not_by_arrival(db: Database) -> None:
    db.sample(*CROWD, "AAPL", "10:01", 0.2, received_at=at("10:01"))
    db.sample(*CROWD, "AAPL", "10:00", 0.1, received_at=at("11:00"))
    db.sample(*CROWD, "TSLA", "09:00", 0.3)
    assert db.read(views.latest, "ticker", "ts", "value") == [("AAPL", at("10:01"), 0.2), ("TSLA", at("09:00"), 0.3)]


@pytest.mark.parametrize(
    "query",
    [
        "latest",
        "observations WHERE ticker = 'AAPL'",
        "crowd_sentiment WHERE ticker = 'AAPL'",
        "user_sentiment WHERE ticker = 'AAPL'",
        "ingest_lag WHERE ticker = 'AAPL'",
        "crowd_sentiment_hourly WHERE ticker = 'AAPL'",
    ],
)
def test_ticker_query_does_not_scan_all_samples(db: Database, query: str) -> None:
    _fill(db.engine, tickers=100, samples_each=200)
    explain = "EXPLAIN" if db.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with db.engine.connect() as connection:
        plan = "\n".join(str(line) for line in connection.execute(text(f"{explain} SELECT * FROM {query}")))
    assert "Seq Scan on samples" not in plan
    assert "SCAN m'" not in plan
    assert "Index" in plan or "SEARCH m USING PRIMARY KEY" in plan


@pytest.mark.parametrize(
    ("ts", "received", "seconds"),
    [
        pytest.param("10:00", "10:00:02.5", 2.5, id="a fraction"),
        pytest.param("10:00:59.9996", "10:01:00.0001", 0.0005, id="across a minute within a millisecond"),
        pytest.param("23:59:59", "+1 00:00:01", 2.0, id="across midnight"),
        pytest.param("10:00:01", "10:00", -1.0, id="clock of the provider is ahead"),
    ],
)
def test_ingest_lag_is_exact_to_the_microsecond(db: Database, ts: str, received: str, seconds: float) -> None:
    db.sample(*CROWD, "AAPL", ts, 0.5, received_at=at(received))
    assert db.read(views.ingest_lag, "lag_seconds") == [(pytest.approx(seconds, abs=1e-7),)]


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_sqlite_times_have_no_zeros_at_their_end(db: Database) -> None:
    """A time has one spelling in every table and view, so that ``=`` finds it."""
    db.instance(1, "12:00:00.25")
    db.subscription(1, "AAPL")
    db.add_states(
        [(1, 1, "live", 36_000, 37_000.5), (1, 1, "silent", 37_000.5, 40_000.125), (1, 1, "live", 41_000, 42_000)]
    )
    for ts in ("10:00", "10:00:00.5", "10:01:00.000010"):
        db.sample(*CROWD, "AAPL", ts, 0.5, published_at=at("10:02"))
    names = Origin("c", "stream", "res", "/real-time/crowd-sentiment", "{}")
    stamps = [T0, T0 + 500_000, T0 + 1_000_000]
    with db.engine.begin() as connection:
        frames = PayloadColumns()
        for seq, us in enumerate(stamps, 1):
            frames.add(seq, us, us - 250_000, 1, "[]")
        sqlite_sql.insert_payloads(connection, 1, {names: frames}, ("DELETE FROM events WHERE seq = %s", (0,)))
    found = set()
    with db.engine.connect() as connection:
        for name in (*schema.metadata.tables, *(view.name for view in views.VIEWS)):
            rows = connection.exec_driver_sql(f"SELECT * FROM {name}").all()
            texts = {value for row in rows for value in row if isinstance(value, str)}
            found |= {text_ for text_ in texts if re.match(r"\d{4}-\d\d-\d\d ", text_)}
    assert len(found) > 15
    assert [text_ for text_ in found if not re.fullmatch(r"[-\d]{10} [:\d]{8}(\.\d*[1-9])?", text_)] == []


# A case is: intervals (subscription, instance, state, start, end), heartbeats of instances, expected gaps of
# subscription 1 (start, end, states).
GAPS = [
    pytest.param([(1, 1, "live", "10:00", "11:00")], {1: "11:00"}, [], id="always live"),
    pytest.param(
        [(1, 1, "pending", "10:00", "10:01"), (1, 1, "live", "10:01", None)],
        {1: "12:00"},
        [("10:00", "10:01", "pending")],
        id="pending until the first frame",
    ),
    pytest.param(
        [
            (1, 1, "live", "10:00", "11:00"),
            (1, 1, "disconnected", "11:00", "11:05"),
            (1, 1, "pending", "11:05", "11:06"),
            (1, 1, "live", "11:06", None),
        ],
        {1: "12:00"},
        [("11:00", "11:06", "disconnected, pending")],
        id="one gap with its states in order",
    ),
    pytest.param(
        [(1, 1, "live", "10:00", None)], {1: "12:00"}, [], id="open live interval is capped without a gap after it"
    ),
    pytest.param(
        [(1, 1, "live", "10:00", "11:00"), (1, 1, "disconnected", "11:00", None)],
        {1: "12:00"},
        [("11:00", "12:00", "disconnected")],
        id="open gap lasts until the heartbeat",
    ),
    pytest.param([(1, 1, "live", "10:00", None)], {1: None}, [], id="open without heartbeat has no length"),
    pytest.param([(1, 1, "live", "10:00", None)], {1: "09:00"}, [], id="heartbeat before the start"),
    pytest.param(
        [(1, 1, "live", "10:00", "11:00"), (1, 1, "lost", "11:00", "11:30")],
        {1: "11:00"},
        [("11:00", "11:30", "lost")],
        id="what was lost after the last heartbeat",
    ),
    pytest.param(
        [(1, 1, "live", "10:00", "12:00"), (1, 1, "silent", "12:00", "13:00")],
        {1: "11:00"},
        [],
        id="nothing counts that lies after the heartbeat",
    ),
    pytest.param(
        [
            (1, 1, "live", "10:00", "10:30"),
            (1, 1, "crashed", "10:30", "11:00"),
            (1, 1, "live", "11:00", None),
        ],
        {1: "12:00"},
        [("10:30", "11:00", "crashed")],
        id="crash and restart",
    ),
    pytest.param(
        [
            (1, 1, "live", "10:00", "10:30"),
            (1, 1, "stopped", "10:30", "11:00"),
            (1, 1, "live", "11:00", None),
        ],
        {1: "12:00"},
        [("10:30", "11:00", "stopped")],
        id="stopped and started again",
    ),
    pytest.param(
        [(1, 1, "live", "10:00", "10:30"), (1, 1, "stopped", "10:30", None)],
        {1: "12:00"},
        [],
        id="no longer wanted",
    ),
    pytest.param(
        [(1, 1, "live", "10:00", "11:00"), (1, 2, "live", "10:30", None)],
        {1: "11:00", 2: "12:00"},
        [],
        id="two instances overlap",
    ),
    pytest.param(
        [(1, 1, "live", "10:00", None), (1, 2, "live", "10:30", "10:45"), (1, 2, "disconnected", "10:45", None)],
        {1: "12:00", 2: "12:00"},
        [],
        id="one instance disconnected, the other live",
    ),
    pytest.param(
        [
            (1, 1, "live", "10:00", "11:00"),
            (1, 1, "disconnected", "11:00", None),
            (1, 2, "live", "10:00", "10:30"),
            (1, 2, "refused", "10:30", "11:30"),
            (1, 2, "live", "11:30", None),
        ],
        {1: "12:00", 2: "12:00"},
        [("11:00", "11:30", "refused, disconnected")],
        id="both instances away, with both states",
    ),
    pytest.param(
        [(1, 1, "live", "10:00", None), (1, 2, "live", "11:00", None)],
        {1: "10:30", 2: "12:00"},
        [("10:30", "11:00", "unknown")],
        id="killed for good, another instance later",
    ),
    pytest.param(
        [
            (1, 1, "live", "10:00", "12:00"),
            (1, 2, "live", "10:10", "10:20"),
            (1, 2, "live", "10:30", "10:40"),
            (1, 1, "silent", "12:00", "12:30"),
        ],
        {1: "12:30", 2: "12:30"},
        [("12:00", "12:30", "silent")],
        id="short intervals inside a long one",
    ),
    pytest.param(
        [(1, 1, "live", "10:00", "10:30"), (1, 1, "live", "10:30", "11:00")],
        {1: "11:00"},
        [],
        id="intervals that touch",
    ),
    pytest.param(
        [(1, 1, "live", "10:00", "10:00:00.000001"), (1, 1, "disconnected", "10:00:00.000001", "10:00:00.000002")],
        {1: "11:00"},
        [("10:00:00.000001", "10:00:00.000002", "disconnected")],
        id="gap of one microsecond",
    ),
    pytest.param(
        [(2, 1, "live", "09:00", None), (1, 1, "refused", "10:00", "11:00"), (1, 1, "live", "11:30", "11:40")],
        {1: "12:00"},
        [],
        id="subscription without ticker covers every ticker",
    ),
    pytest.param(
        [(2, 1, "live", "10:15", "10:30"), (1, 1, "refused", "10:00", "11:00")],
        {1: "12:00"},
        [("10:00", "10:15", "refused"), ("10:30", "11:00", "refused")],
        id="subscription without ticker, part of the time",
    ),
    pytest.param(
        [(3, 1, "live", "09:00", None), (1, 1, "refused", "10:00", "11:00")],
        {1: "12:00"},
        [("10:00", "11:00", "refused")],
        id="other ticker covers nothing",
    ),
    pytest.param(
        [(4, 1, "live", "09:00", None), (1, 1, "refused", "10:00", "11:00")],
        {1: "12:00"},
        [("10:00", "11:00", "refused")],
        id="subscription to one user covers nothing",
    ),
    pytest.param(
        [(5, 1, "live", "09:00", None), (1, 1, "refused", "10:00", "11:00")],
        {1: "12:00"},
        [("10:00", "11:00", "refused")],
        id="other feed covers nothing",
    ),
    pytest.param(
        [(6, 1, "live", "09:00", None), (1, 1, "refused", "10:00", "11:00")],
        {1: "12:00"},
        [],
        id="other path to the same feed and ticker",
    ),
]


@pytest.fixture
def watched(db: Database) -> Database:
    """Subscription 1 is under test; each of the others differs from it in one column."""
    db.subscription(1, "AAPL")
    db.subscription(2)
    db.subscription(3, "TSLA")
    db.subscription(4, params='{"user_id":"7"}')
    db.subscription(5, feed="tweet-volume", path="/real-time/tweet-volume")
    db.subscription(6, "AAPL", path="crowd-sentiment")
    return db


@pytest.mark.parametrize(("intervals", "heartbeats", "expected"), GAPS)
def test_gaps_are_wanted_time_without_coverage(
    watched: Database,
    intervals: list[tuple[int, int, str, str, str | None]],
    heartbeats: dict[int, str | None],
    expected: list[tuple[str, str, str]],
) -> None:
    for instance_id, heartbeat in heartbeats.items():
        watched.instance(instance_id, heartbeat)
    for interval in intervals:
        watched.state(*interval)
    found = watched.read(views.gaps, "from_at", "to_at", "states", "seconds", subscription_id=1)
    assert found == [
        (at(start), at(end), states, pytest.approx((at(end) - at(start)).total_seconds(), abs=1e-7))
        for start, end, states in expected
    ]


@pytest.mark.parametrize(
    ("repairs", "expected"),
    [
        pytest.param([(1, "11:00", "11:06", "done")], [], id="whole gap"),
        pytest.param([(1, "11:00", "11:06", "open")], [("11:00", "11:06")], id="open repair"),
        pytest.param([(1, "11:00", "11:06", "failed")], [("11:00", "11:06")], id="failed"),
        pytest.param([(1, "11:02", "11:04", "done")], [("11:00", "11:02"), ("11:04", "11:06")], id="middle of the gap"),
        pytest.param([(1, "10:30", "11:03", "done"), (1, "11:03", "11:30", "done")], [], id="two touching repairs"),
        pytest.param([(2, "11:00", "11:06", "done")], [], id="subscription without ticker"),
        pytest.param([(3, "11:00", "11:06", "done")], [("11:00", "11:06")], id="repair of another ticker"),
        pytest.param([(1, "08:00", "09:00", "done")], [("11:00", "11:06")], id="before the wanted time"),
    ],
)
def test_finished_repair_closes_gap(
    watched: Database, repairs: list[tuple[int, str, str, str]], expected: list[tuple[str, str]]
) -> None:
    watched.instance(1, "12:00")
    watched.state(1, 1, "live", "10:00", "11:00")
    watched.state(1, 1, "disconnected", "11:00", "11:06")
    watched.state(1, 1, "live", "11:06", None)
    for repair in repairs:
        watched.repair(*repair)
    found = watched.read(views.gaps, "from_at", "to_at", subscription_id=1)
    assert found == [(at(start), at(end)) for start, end in expected]


def test_covered_merges_touching_and_overlapping_intervals(watched: Database) -> None:
    watched.state(1, 1, "live", "10:00", "10:30")
    watched.state(1, 2, "live", "10:00", "10:30")
    watched.state(1, 3, "live", "10:30", "10:40")
    watched.state(1, 4, "live", "11:00", "11:10")
    watched.state(1, 5, "live", "11:05", "11:20")
    watched.state(1, 6, "live", "11:30", "11:30")
    assert watched.read(views.covered, "from_at", "to_at", subscription_id=1) == [
        (at("10:00"), at("10:40")),
        (at("11:00"), at("11:20")),
    ]


def test_gap_lists_each_state_and_reason_once(watched: Database) -> None:
    watched.instance(1, "12:00")
    watched.state(1, 1, "refused", "10:00", "10:10", "no such ticker")
    watched.state(1, 1, "pending", "10:10", "10:11")
    watched.state(1, 1, "refused", "10:11", "10:20", "no such ticker")
    watched.state(1, 1, "disconnected", "10:20", "10:30", "100 % gone: %s")
    assert watched.read(views.gaps, "feed", "path", "params", "ticker", "states", "reason") == [
        (
            "crowd-sentiment",
            "/real-time/crowd-sentiment",
            '{"ticker":"AAPL"}',
            "AAPL",
            "refused, pending, disconnected",
            "no such ticker, 100 % gone: %s",
        )
    ]


def test_coverage_daily_sums_wanted_and_covered_seconds(watched: Database) -> None:
    watched.instance(1, "+1 06:00")
    watched.state(1, 1, "live", "-1 18:00", "18:00")
    watched.state(1, 1, "disconnected", "18:00", "+1 03:00")
    watched.state(1, 1, "live", "+1 03:00", None)
    watched.repair(1, "18:00", "21:00")
    hour = 3600
    assert watched.read(views.coverage_daily, "day", "wanted_seconds", "covered_seconds", "percent") == [
        (date(2024, 3, 9), 6 * hour, 6 * hour, 100),
        (date(2024, 3, 10), 24 * hour, 21 * hour, 87.5),
        (date(2024, 3, 11), 6 * hour, 3 * hour, 50),
    ]


def test_coverage_daily_uses_utc_days_in_any_session(watched: Database) -> None:
    watched.instance(1, "+1 00:00")
    watched.state(1, 1, "live", "00:00", None)
    # In New York the tenth of March 2024 has 23 hours.
    watched.engine = _in_new_york(watched.engine)
    assert watched.read(views.coverage_daily, "day", "wanted_seconds") == [(date(2024, 3, 10), 86400)]


def test_candles_have_open_high_low_close(watched: Database) -> None:
    for ts, value in [("10:00", 0.3), ("10:01", 0.9), ("10:58", -0.4), ("10:59", 0.2), ("11:00", 0.5)]:
        watched.sample(*CROWD, "AAPL", ts, value)
    watched.sample(*CROWD, "TSLA", "10:00", 0.7)
    watched.sample("crowd-sentiment-z-score", "z_score", "AAPL", "10:00", 99.0)
    columns = ("ticker", "bucket_at", "open", "high", "low", "close", "mean", "samples")
    assert watched.read(views.crowd_sentiment_hourly, *columns) == [
        ("AAPL", at("10:00"), 0.3, 0.9, -0.4, 0.2, pytest.approx(0.25), 4),
        ("AAPL", at("11:00"), 0.5, 0.5, 0.5, 0.5, 0.5, 1),
        ("TSLA", at("10:00"), 0.7, 0.7, 0.7, 0.7, 0.7, 1),
    ]
    assert watched.read(views.crowd_sentiment_daily, *columns, ticker="AAPL") == [
        ("AAPL", at("00:00"), 0.3, 0.9, -0.4, 0.5, pytest.approx(0.3), 5),
    ]


@pytest.mark.parametrize(
    ("ticker", "intervals", "hour_minutes", "day_minutes"),
    [
        pytest.param("AAPL", [], 0, 0, id="never live"),
        pytest.param("AAPL", [(1, 1, "live", "09:00", "12:00")], 60, 180, id="always live"),
        pytest.param(
            "AAPL", [(1, 1, "live", "09:50", "10:15"), (1, 2, "live", "10:10", "10:30")], 30, 40, id="two instances"
        ),
        pytest.param("AAPL", [(2, 1, "live", "10:30", "11:30")], 30, 60, id="subscription without ticker"),
        pytest.param("ELSE", [(2, 1, "live", "10:30", "11:30")], 30, 60, id="ticker without its own subscription"),
        pytest.param("ELSE", [(1, 1, "live", "09:00", "12:00")], 0, 0, id="subscription of another ticker"),
    ],
)
def test_candles_report_covered_minutes(
    watched: Database,
    ticker: str,
    intervals: list[tuple[int, int, str, str, str]],
    hour_minutes: float,
    day_minutes: float,
) -> None:
    watched.sample(*CROWD, ticker, "10:00", 0.5)
    for interval in intervals:
        watched.state(*interval)
    columns = ("covered_minutes", "coverage_percent")
    hours = watched.read(views.crowd_sentiment_hourly, *columns, bucket_at=at("10:00"))
    days = watched.read(views.crowd_sentiment_daily, *columns)
    assert hours == [(hour_minutes, pytest.approx(hour_minutes / 60 * 100))]
    assert days == [(day_minutes, pytest.approx(day_minutes / 1440 * 100))]


@pytest.mark.parametrize(
    ("heartbeat", "repair", "final"),
    [
        pytest.param(None, None, False, id="no heartbeat"),
        pytest.param("11:59", None, False, id="provider may still restate"),
        pytest.param("12:00", None, True, id="over for an hour"),
        pytest.param("13:00", (1, "10:59", "11:30", "open"), False, id="open repair"),
        pytest.param("13:00", (3, "10:59", "11:30", "open"), True, id="other ticker"),
        pytest.param("13:00", (1, "11:59", "12:30", "open"), False, id="open repair that may restate it"),
        pytest.param("13:00", (1, "12:00", "12:30", "open"), True, id="open repair of a later time"),
        pytest.param("13:00", (1, "09:00", "10:00", "open"), True, id="open repair of an earlier time"),
        pytest.param("13:00", (1, "10:00", "11:30", "done"), True, id="finished repair"),
    ],
)
def test_candle_is_final_once_it_can_no_longer_change(
    watched: Database, heartbeat: str | None, repair: tuple[int, str, str, str] | None, final: bool
) -> None:
    watched.instance(1, heartbeat)
    watched.sample(*CROWD, "AAPL", "10:00", 0.5)
    if repair:
        watched.repair(*repair)
    assert watched.read(views.crowd_sentiment_hourly, "is_final") == [(final,)]
    assert watched.read(views.crowd_sentiment_daily, "is_final") == [(False,)]


SILENT = ((1, 1, "live", "09:00", "10:50"), (1, 1, "silent", "10:50", "12:58"))


@pytest.mark.parametrize(
    ("states", "final"),
    [
        pytest.param([(1, 1, "live", "09:00", None)], True, id="still live"),
        pytest.param([(1, 1, "live", "09:00", "10:50"), (1, 1, "silent", "10:50", None)], False, id="gap continues"),
        pytest.param(
            [(1, 1, "live", "09:00", "11:30"), (1, 1, "crashed", "11:30", "12:59"), (1, 1, "pending", "12:59", None)],
            False,
            id="gap began while the provider may restate",
        ),
        pytest.param([*SILENT, (1, 1, "live", "12:58", None)], False, id="gap ended, repair not created yet"),
        pytest.param([(1, 1, "live", "12:30", None)], False, id="before the subscription was wanted"),
        pytest.param(
            [(1, 1, "live", "09:00", "10:50"), (1, 1, "silent", "10:50", None), (2, 2, "live", "10:00", None)],
            True,
            id="other instance is live for every ticker",
        ),
        pytest.param([(1, 3, "live", "09:00", None)], False, id="heartbeat is behind"),
        pytest.param([(1, 1, "live", "09:00", "10:50"), (1, 1, "stopped", "10:50", None)], True, id="stopped"),
        pytest.param([(3, 1, "live", "09:00", "10:50"), (3, 1, "silent", "10:50", None)], True, id="other ticker"),
    ],
)
def test_candle_is_not_final_while_gap_awaits_repair(
    watched: Database, states: list[tuple[int, int, str, str, str | None]], final: bool
) -> None:
    _add_instances_and_sample(watched)
    for state in states:
        watched.state(*state)
    assert watched.read(views.crowd_sentiment_hourly, "is_final", bucket_at=at("10:00")) == [(final,)]


@pytest.mark.parametrize(
    ("state", "final"), [("done", True), ("failed", True), ("open", False)], ids=["done", "failed", "under way"]
)
def test_candle_is_final_once_its_repair_has_ended(watched: Database, state: str, final: bool) -> None:
    _add_instances_and_sample(watched)
    for interval in (*SILENT, (1, 1, "live", "12:58", None)):
        watched.state(*interval)
    watched.repair(1, "10:50", "12:58", state)
    assert watched.read(views.crowd_sentiment_hourly, "is_final", bucket_at=at("10:00")) == [(final,)]


@pytest.mark.parametrize(
    ("first", "repair", "final"),
    [
        pytest.param("10:00", None, True, id="subscribed at its start"),
        pytest.param("10:56", None, False, id="subscribed in it"),
        pytest.param("12:30", None, False, id="subscribed after it"),
        pytest.param("10:56", ("10:00", "10:56"), True, id="backfilled since"),
        pytest.param("10:56", ("10:01", "10:56"), False, id="backfilled in part"),
    ],
)
def test_candle_of_time_before_the_first_subscription_is_not_final(
    watched: Database, first: str, repair: tuple[str, str] | None, final: bool
) -> None:
    _add_instances_and_sample(watched)
    watched.state(1, 1, "live", first, None)
    if repair:
        watched.repair(1, *repair)
    assert watched.read(views.crowd_sentiment_hourly, "is_final", bucket_at=at("10:00")) == [(final,)]


def test_wanted_hour_without_samples_has_a_candle(watched: Database) -> None:
    watched.instance(1, "16:00")
    watched.sample(*CROWD, "AAPL", "10:00", 0.5)
    watched.state(1, 1, "live", "09:30", "11:00")
    watched.state(1, 1, "silent", "11:00", "12:30")
    watched.state(1, 1, "live", "12:30", "13:00")
    columns = ("bucket_at", "open", "mean", "samples", "covered_minutes", "is_final")
    assert watched.read(views.candles_hourly, *columns) == [
        (at("09:00"), None, None, 0, 30, False),
        (at("10:00"), 0.5, 0.5, 1, 60, True),
        (at("11:00"), None, None, 0, 0, True),
        (at("12:00"), None, None, 0, 30, True),
    ]
    (day,) = watched.read(views.candles_daily, "samples", "covered_minutes", "coverage_percent")
    assert day == (1, 120, pytest.approx(100 * 120 / 1440))


def test_deleted_samples_are_told_from_none(watched: Database) -> None:
    watched.instance(1, "+1 04:00")
    watched.sample(*CROWD, "AAPL", "10:00", 0.5)
    watched.state(1, 1, "live", "-1 00:00", "+1 01:00")
    watched.add("deletions", before=at("00:00"), deleted_at=at("00:00"), instance_id=1)
    days = watched.read(views.coverage_daily, "day", "percent", "coverage_percent", "samples_deleted")
    assert days == [
        (date(2024, 3, 9), 100, 100, True),
        (date(2024, 3, 10), 100, 100, False),
        (date(2024, 3, 11), 100, pytest.approx(100 / 24), False),
    ]
    candles = watched.read(views.candles_daily, "bucket_at", "samples", "is_final", "samples_deleted")
    assert candles == [
        (at("-1 00:00"), 0, False, True),
        (at("00:00"), 1, True, False),
        (at("+1 00:00"), 0, False, False),
    ]


def test_candles_of_a_user_are_covered_by_subscriptions_to_the_user_or_to_all(watched: Database) -> None:
    feed = {"feed": "user-sentiment", "path": "/real-time/user-sentiment"}
    watched.subscription(11, "AAPL", params='{"ticker":"AAPL","user_id":"bob"}', **feed)
    watched.subscription(12, "AAPL", params='{"ticker":"AAPL","user_id":7}', **feed)
    watched.subscription(13, "AAPL", params='{"ticker":"AAPL"}', **feed)
    for user_id in ("bob", "7", "eve"):
        watched.sample("user-sentiment", "sentiment", "AAPL", "10:00", 0.5, user_id)
    for subscription_id, end in ((11, "10:10"), (12, "10:20"), (13, "10:05")):
        watched.state(subscription_id, 1, "live", "10:00", end)
    found = watched.read(views.candles_hourly, "user_id", "covered_minutes")
    assert found == [("7", 20), ("bob", 10), ("eve", 5)]


def _add_instances_and_sample(watched: Database) -> None:
    """Add two instances with a heartbeat of 13:00, one with an older heartbeat, and a sample of 10:00."""
    for instance_id, heartbeat in ((1, "13:00"), (2, "13:00"), (3, "11:10")):
        watched.instance(instance_id, heartbeat)
    watched.sample(*CROWD, "AAPL", "10:00", 0.5)


def _fill(engine: Engine, tickers: int, samples_each: int) -> None:
    start, minute = at("-1 00:00"), timedelta(minutes=1)
    names = [
        {"series_id": i, "feed": feed, "metric": metric, "ticker": f"T{i}", "first_seen_at": start}
        for i in range(tickers)
        for feed, metric in [CROWD]
    ]
    values = [
        {"series_id": i, "ts": start + j * minute, "value": 0.5, "received_at": start, "seq": 1, "instance_id": 1}
        for i in range(tickers)
        for j in range(samples_each)
    ]
    with engine.begin() as connection:
        connection.execute(insert(schema.series), names)
        connection.execute(insert(schema.samples).values(source="stream"), values)
        if engine.dialect.name == "postgresql":
            connection.execute(text("ANALYZE"))


def _in_new_york(engine: Engine) -> Engine:
    if engine.dialect.name == "sqlite":
        return engine
    with engine.begin() as connection:
        connection.execute(text("SET TIME ZONE 'America/New_York'"))
    return engine
