"""Compare candles with a simple model, after late, restated and repaired values; and check what they cost."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, text

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


class CandleModel:
    """A database, and the candles that it must have, computed in the simplest way."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.random = random.Random(seed)
        self.db = Database(engine)
        self._writer = batch_writer.BatchWriter(engine)
        self._writer.register(InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=0))
        self._seq = 0
        self._values: dict[tuple[str, datetime], float] = {}
        self._live: dict[str, list[Span]] = {ticker: [] for ticker in TICKERS}
        self._open_repairs: list[tuple[str, Span]] = []  # (ticker or "" for all, time)
        for subscription_id, ticker in ((1, "AAPL"), (2, "TSLA"), (3, "")):
            self.db.subscription(subscription_id, ticker)
        self.heartbeat = DAY

    def write_values(self) -> None:
        """Write new, late and restated values, from the socket or from REST."""
        source = self.random.choice(("stream", "snapshot", "backfill"))
        minutes = self.random.sample(range(3 * 1440), 20)
        values = [(self.random.choice(TICKERS), DAY + timedelta(minutes=m), self.random.random()) for m in minutes]
        values += [
            (*key, self.random.random()) for key in self.random.sample(sorted(self._values), len(self._values) // 5)
        ]
        self._seq += 1
        builder = BatchBuilder(self._seq, decoder())
        rows = [{"ts": ts.isoformat(), "ticker": ticker, "average_sentiment": value} for ticker, ts, value in values]
        received_us = int((DAY + timedelta(days=4)).timestamp() * 1e6) + self._seq
        builder.add((self._seq, frame(rows, received_us=received_us, source=source)))
        self._writer.write(builder.batch)
        self._values |= {(ticker, ts): value for ticker, ts, value in values}

    def add_coverage(self) -> None:
        """Add live or disconnected time of one of two other instances, for one ticker or all."""
        instance_id, (subscription_id, ticker), span = self.random.choice((7, 8)), self._subscription(), self._span()
        state = self.random.choice(("live", "live", "disconnected"))
        self.db.state(subscription_id, instance_id, state, *map(_clock, span))
        if state == "live":
            self._add_live(ticker, span)

    def add_repair(self) -> None:
        (subscription_id, ticker), span = self._subscription(), self._span()
        state = self.random.choice(("done", "open", "failed"))
        self.db.repair(subscription_id, *map(_clock, span), state=state)
        if state == "done":
            self._add_live(ticker, span)
        if state == "open":
            self._open_repairs.append((ticker, span))

    def advance_heartbeat(self) -> None:
        self.heartbeat += timedelta(hours=self.random.randrange(20))
        with self.db.engine.begin() as connection:
            connection.execute(schema.instances.update().values(heartbeat_at=self.heartbeat))

    def candles(self, width: timedelta) -> list[tuple[Any, ...]]:
        def bucket(item: tuple[tuple[str, datetime], float]) -> tuple[str, datetime]:
            (ticker, ts), _ = item
            return ticker, DAY + (ts - DAY) // width * width

        values = sorted(self._values.items())
        return [
            self._candle(*name, width, [value for _, value in group]) for name, group in groupby(values, key=bucket)
        ]

    def _candle(self, ticker: str, start: datetime, width: timedelta, values: list[float]) -> tuple[Any, ...]:
        end = start + width
        covered = sum((_union_of(self._live[ticker], start, end)), timedelta()).total_seconds()
        is_repairing = any(name in ("", ticker) and a < end + HOUR and b > start for name, (a, b) in self._open_repairs)
        final = self.heartbeat >= end + HOUR and not is_repairing
        ends = (values[0], max(values), min(values), values[-1], pytest.approx(sum(values) / len(values)), len(values))
        share = pytest.approx(100 * covered / width.total_seconds())
        return (ticker, start, *ends, pytest.approx(covered / 60), share, final)

    def _add_live(self, ticker: str, span: Span) -> None:
        for name in (ticker,) if ticker else TICKERS:
            self._live[name].append(span)

    def _subscription(self) -> tuple[int, str]:
        return self.random.choice(((1, "AAPL"), (2, "TSLA"), (3, "")))

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


@pytest.mark.parametrize("seed", range(2))
def test_candles_match_model_after_every_change(engine: Engine, seed: int) -> None:
    model = CandleModel(engine, seed)
    steps = (CandleModel.write_values, CandleModel.add_coverage, CandleModel.add_repair, CandleModel.advance_heartbeat)
    model.write_values()
    for _ in range(12):
        for step in steps:
            step(model)
        for view, width in ((views.crowd_sentiment_hourly, HOUR), (views.crowd_sentiment_daily, 24 * HOUR)):
            expected = model.candles(width)
            assert model.db.read(view) == expected
            candle = model.random.choice(expected)
            assert model.db.read(view, ticker=candle[0]) == [other for other in expected if other[0] == candle[0]]
            assert model.db.read(view, bucket_at=candle[1]) == [other for other in expected if other[1] == candle[1]]


def test_sample_centuries_off_has_its_candle(engine: Engine) -> None:
    db = Database(engine)
    for ticker, year in (("AAPL", 1970), ("AAPL", 2026), ("T", 9998)):
        db.sample(*CROWD, ticker, _clock(datetime(year, 12, 31, tzinfo=UTC)), 0.5, received_at=DAY)
    for view in (views.crowd_sentiment_hourly, views.crowd_sentiment_daily):
        assert [moment.year for _, moment in db.read(view, "ticker", "bucket_at")] == [1970, 2026, 9998]


def test_cost_of_one_hour_does_not_grow_with_history(engine: Engine) -> None:
    _add_series(engine, tickers=20)
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
        assert len(connection.execute(select(c).where(c.bucket_at == hour)).all()) == 20
        if engine.dialect.name == "sqlite":
            return len(steps)
        rows_read = "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname = 'samples'"
        return int(connection.execute(text(rows_read)).scalar_one())
