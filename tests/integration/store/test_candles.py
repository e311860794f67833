"""Compare candles with a simple model, after late, restated and repaired values; and check what they cost."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, delete, insert, select, text

from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.store import schema, views
from ingestor.store.write import batch_writer
from ingestor.store.write.registration import InstanceInfo
from tests.support.entries import decoder, frame

from .row_factory import DAY, Database, at

CROWD = ("crowd-sentiment", "crowd_sentiment")
TICKERS = ("AAPL", "TSLA", "ON")  # the last has no subscription of its own
HOUR = timedelta(hours=1)
Span = tuple[datetime, datetime]


class Series(NamedTuple):
    feed: str
    metric: str
    ticker: str
    user_id: str = ""


class Subscription(NamedTuple):
    feed: str
    ticker: str = ""
    user_id: str | None = None

    def says_something_about(self, series: Series) -> bool:
        return (
            self.feed == series.feed and self.ticker in ("", series.ticker) and self.user_id in (None, series.user_id)
        )


USERS = "user-sentiment"
SUBSCRIPTIONS = {
    1: Subscription("crowd-sentiment", "AAPL"),
    2: Subscription("crowd-sentiment", "TSLA"),
    3: Subscription("crowd-sentiment"),
    4: Subscription(USERS, "AAPL", "u1"),
    5: Subscription(USERS, "AAPL"),
}
OTHERS = [Series(USERS, metric, "AAPL", user) for metric in ("sentiment", "user_score") for user in ("u1", "u2")]


class CandleModel:
    """A database, and the candles that it must have, computed in the simplest way."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.random = random.Random(seed)
        self.db = Database(engine)
        self._writer = batch_writer.BatchWriter(engine)
        self._writer.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=0))
        self._seq = 0
        self._values: dict[tuple[Series, datetime], float] = {}
        self._series = set(OTHERS)  # crowd sentiment follows with its first values
        for series_id, series in enumerate(OTHERS, 1000):
            self.db.add("series", series_id=series_id, first_seen_at=DAY, **series._asdict())
            self.db._series[tuple(series)] = series_id
        self._live: dict[int, list[Span]] = defaultdict(list)  # by subscription, with finished repairs
        self._observed: dict[int, list[Span]] = defaultdict(list)  # in any state
        self._open_repairs: list[tuple[int, Span]] = []
        self._deleted_before: datetime | None = None
        for subscription_id, (feed, ticker, user_id) in SUBSCRIPTIONS.items():
            params = {"ticker": ticker, "user_id": user_id}
            text_ = json.dumps({name: value for name, value in params.items() if value})
            self.db.subscription(subscription_id, ticker, feed=feed, path=f"/real-time/{feed}", params=text_)
        self.heartbeat = DAY

    def write_values(self) -> None:
        """Write new, late and restated values, from the socket or from REST."""
        source = self.random.choice(("stream", "snapshot", "backfill"))
        first = 0 if self._deleted_before is None else (self._deleted_before - DAY) // timedelta(minutes=1)
        minutes = self.random.sample(range(first, 3 * 1440), 20)
        values = [(self.random.choice(TICKERS), DAY + timedelta(minutes=m), self.random.random()) for m in minutes]
        crowd = sorted((series.ticker, ts) for series, ts in self._values if series[:2] == CROWD)
        values += [(*key, self.random.random()) for key in self.random.sample(crowd, len(crowd) // 5)]
        self._seq += 1
        builder = BatchBuilder(self._seq, decoder())
        rows = [{"ts": ts.isoformat(), "ticker": ticker, "average_sentiment": value} for ticker, ts, value in values]
        received_us = int((DAY + timedelta(days=4)).timestamp() * 1e6) + self._seq
        builder.add((self._seq, frame(rows, received_us=received_us, source=source)))
        self._writer.write(builder.batch)
        self._note({(Series(*CROWD, ticker), ts): value for ticker, ts, value in values})

    def write_values_of_users(self) -> None:
        for series in self.random.sample(OTHERS, 2):
            moment, value = DAY + timedelta(seconds=self.random.randrange(2 * 86_400, 3 * 86_400)), self.random.random()
            if (series, moment) not in self._values:
                self.db.sample(*series[:3], _clock(moment), value, series.user_id)
                self._note({(series, moment): value})

    def _note(self, values: dict[tuple[Series, datetime], float]) -> None:
        self._values |= values
        self._series.update(series for series, _ in values)

    def add_coverage(self) -> None:
        """Add live or disconnected time of one of two other instances."""
        instance_id, subscription_id, span = self.random.choice((7, 8)), self._subscription(), self._span()
        state = self.random.choice(("live", "live", "disconnected"))
        self.db.state(subscription_id, instance_id, state, *map(_clock, span))
        self._observed[subscription_id].append(span)
        if state == "live":
            self._live[subscription_id].append(span)

    def add_repair(self) -> None:
        subscription_id, span = self._subscription(), self._span()
        state = self.random.choice(("done", "open", "failed"))
        self.db.repair(subscription_id, *map(_clock, span), state=state)
        if state == "done":
            self._live[subscription_id].append(span)
        if state == "open":
            self._open_repairs.append((subscription_id, span))

    def advance_heartbeat(self) -> None:
        self.heartbeat += timedelta(hours=self.random.randrange(20))
        with self.db.engine.begin() as connection:
            connection.execute(schema.instances.update().values(heartbeat_at=self.heartbeat))

    def delete_a_day(self) -> None:
        """Do what retention does, at most twice."""
        if self.random.random() < 0.8 or (self._deleted_before or DAY) >= DAY + timedelta(days=2):
            return
        before = self._deleted_before = (self._deleted_before or DAY) + timedelta(days=1)
        with self.db.engine.begin() as connection:
            for table in (schema.samples, schema.sample_revisions):
                connection.execute(delete(table).where(table.c.ts < before))
        self.db.add("deletions", before=before, deleted_at=before, instance_id=1)
        self._values = {(series, ts): value for (series, ts), value in self._values.items() if ts >= before}

    def candles(self, width: timedelta) -> list[tuple[Any, ...]]:
        values: dict[tuple[Series, datetime], list[float]] = defaultdict(list)
        for (series, ts), value in sorted(self._values.items()):
            values[series, DAY + (ts - DAY) // width * width].append(value)
        for series in self._series:
            for wanted_from, wanted_to in self._wanted(series):
                start = DAY + (wanted_from - DAY) // width * width
                while start < wanted_to:
                    values[series, start] += []
                    start += width
        return [self._candle(*key, width, found) for key, found in sorted(values.items())]

    def _wanted(self, series: Series) -> Iterator[Span]:
        for subscription_id in self._subscriptions_of(series):
            if spans := self._observed[subscription_id]:
                yield min(start for start, _ in spans), max(end for _, end in spans)

    def _subscriptions_of(self, series: Series) -> list[int]:
        return [number for number, other in SUBSCRIPTIONS.items() if other.says_something_about(series)]

    def _candle(self, series: Series, start: datetime, width: timedelta, values: list[float]) -> tuple[Any, ...]:
        end, subscriptions = start + width, self._subscriptions_of(series)
        live = [span for number in subscriptions for span in self._live[number]]
        covered = sum((_union_of(live, start, end)), timedelta())
        is_repairing = any(
            number in subscriptions and a < end + HOUR and b > start for number, (a, b) in self._open_repairs
        )
        first = min((wanted_from for wanted_from, _ in self._wanted(series)), default=start)
        is_deleted = self._deleted_before is not None and start < self._deleted_before
        final = self.heartbeat >= end + HOUR and not is_repairing and not is_deleted
        final = final and (first <= start or covered == width)
        ends: tuple[Any, ...] = (None, None, None, None, None, 0)
        if values:
            mean = pytest.approx(sum(values) / len(values))
            ends = (values[0], max(values), min(values), values[-1], mean, len(values))
        share = pytest.approx(100 * (covered / width))
        return (*series, start, *ends, pytest.approx(covered.total_seconds() / 60), share, final, is_deleted)

    def _subscription(self) -> int:
        return self.random.choice(sorted(SUBSCRIPTIONS))

    def _span(self) -> Span:
        start = DAY + timedelta(seconds=self.random.randrange(-7_200, 3 * 86_400))
        return start, start + timedelta(seconds=self.random.choice((1, 300, 4_000, 90_000)))


def _clock(moment: datetime) -> str:
    after = moment - DAY
    seconds = after.seconds
    return f"{after.days} {seconds // 3600}:{seconds // 60 % 60}:{seconds % 60}"


def _union_of(spans: list[Span], start: datetime, end: datetime) -> Iterator[timedelta]:
    reached = start
    for a, b in sorted(spans):
        yield max(min(b, end) - max(a, reached), timedelta())
        reached = max(reached, min(b, end))


STEPS = (
    CandleModel.write_values,
    CandleModel.write_values_of_users,
    CandleModel.add_coverage,
    CandleModel.add_repair,
    CandleModel.advance_heartbeat,
    CandleModel.delete_a_day,
)
CANDLES = (
    (views.candles_hourly, views.crowd_sentiment_hourly, HOUR),
    (views.candles_daily, views.crowd_sentiment_daily, 24 * HOUR),
)


@pytest.mark.parametrize("seed", range(2))
def test_candles_match_model_after_every_change(engine: Engine, seed: int) -> None:
    model = CandleModel(engine, seed)
    model.write_values()
    for _ in range(12):
        for step in STEPS:
            step(model)
        for view, crowd_view, width in CANDLES:
            expected = model.candles(width)
            assert model.db.read(view) == expected
            candle = model.random.choice(expected)
            assert model.db.read(view, ticker=candle[2]) == [other for other in expected if other[2] == candle[2]]
            assert model.db.read(view, bucket_at=candle[4]) == [other for other in expected if other[4] == candle[4]]
            crowd = [(other[2], *other[4:-1]) for other in expected if other[:2] == CROWD]
            assert model.db.read(crowd_view) == crowd
        assert_same_percentages(model.db)


def assert_same_percentages(db: Database) -> None:
    """Compare the days of subscriptions with the candles of their ticker."""
    days = {
        (ticker, day): (pytest.approx(percent), deleted)
        for feed, ticker, day, percent, deleted in db.read(
            views.coverage_daily, "feed", "ticker", "day", "coverage_percent", "samples_deleted"
        )
        if feed == CROWD[0]
    }
    columns = ("ticker", "bucket_at", "coverage_percent", "samples_deleted")
    candles = db.read(views.candles_daily, *columns, feed=CROWD[0])
    compared = {(ticker, at_.date()): (percent, deleted) for ticker, at_, percent, deleted in candles}
    assert {key: found for key, found in compared.items() if key in days} == {
        key: found for key, found in days.items() if key in compared
    }


def test_sample_centuries_off_has_its_candle(engine: Engine) -> None:
    db = Database(engine)
    for ticker, year in (("AAPL", 1970), ("AAPL", 2026), ("T", 9998)):
        db.sample(*CROWD, ticker, _clock(datetime(year, 12, 31, tzinfo=UTC)), 0.5, received_at=DAY)
    for view in (views.crowd_sentiment_hourly, views.crowd_sentiment_daily):
        assert [moment.year for _, moment in db.read(view, "ticker", "bucket_at")] == [1970, 2026, 9998]


def test_cost_of_one_hour_does_not_grow_with_history(engine: Engine) -> None:
    _add_series(engine, tickers=100)
    _add_samples(engine, range(19, 21))
    before = _count_work(engine, at("20:00"))
    _add_samples(engine, [*range(19), *range(21, 150)])
    assert _count_work(engine, at("20:00")) < 1.3 * before


@pytest.mark.postgres
@pytest.mark.parametrize("migrated_url", ["postgres"], indirect=True)
def test_postgresql_does_not_jit_compile_candles(engine: Engine) -> None:
    _add_series(engine, tickers=5_000)
    _add_samples(engine, [0])
    for view in ("crowd_sentiment_hourly", "crowd_sentiment_daily"):
        with engine.connect() as connection:
            plan = connection.execute(text(f"EXPLAIN SELECT * FROM {view} WHERE bucket_at >= '{DAY}'")).scalars().all()
        assert not [line for line in plan if "JIT" in line]


def _add_series(engine: Engine, *, tickers: int) -> None:
    names = [{"series_id": n, "ticker": f"T{n}", "feed": CROWD[0], "metric": CROWD[1]} for n in range(tickers)]
    with engine.begin() as connection:
        connection.execute(insert(schema.series).values(first_seen_at=DAY), names)


def _add_samples(engine: Engine, hours: Iterable[int]) -> None:
    """Add one value of each series in each of these hours."""
    with engine.begin() as connection:
        ids = connection.execute(select(schema.series.c.series_id)).scalars().all()
        value = {"value": 0.5, "received_at": DAY, "seq": 1, "instance_id": 1, "source": "stream"}
        rows = [value | {"series_id": n, "ts": DAY + hour * HOUR} for hour in hours for n in ids]
        connection.execute(insert(schema.samples), rows)
        connection.execute(text("ANALYZE"))


def _count_work(engine: Engine, hour: datetime) -> int:
    """Count the work for the candles of an hour: samples that PostgreSQL reads, or virtual machine steps of SQLite."""
    steps: list[None] = []
    c = views.crowd_sentiment_hourly.c
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            raw = connection.connection.driver_connection
            raw.set_progress_handler(lambda: steps.append(None), 100)
        assert len(connection.execute(select(c).where(c.bucket_at == hour)).all()) == 100
        if engine.dialect.name == "sqlite":
            return len(steps)
        rows_read = "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname = 'samples'"
        return int(connection.execute(text(rows_read)).scalar_one())
