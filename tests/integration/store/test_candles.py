"""Candles against a plain reckoning of them, whatever comes late, is restated or repaired; and what they cost."""

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
from tests.support.entries import decoder, frame

from .row_factory import DAY, Database, at

CROWD = ("crowd-sentiment", "crowd_sentiment")
TICKERS = ("AAPL", "TSLA", "ON")  # the last has no subscription of its own
HOUR = timedelta(hours=1)
Span = tuple[datetime, datetime]


class Reckoning:
    """A database, and what its candles must be by the simplest of means."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.random = random.Random(seed)
        self.db = Database(engine)
        self._daemon = batch_writer.BatchWriter(engine)
        self._daemon.register(
            batch_writer.InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=0), 1
        )
        self._seq = 0
        self._values: dict[tuple[str, datetime], float] = {}
        self._listened: dict[str, list[Span]] = {ticker: [] for ticker in TICKERS}
        self._unsettled: list[tuple[str, Span]] = []  # ticker of an open repair, "" for all
        for subscription_id, ticker in ((1, "AAPL"), (2, "TSLA"), (3, "")):
            self.db.subscription(subscription_id, ticker)
        self.heartbeat = DAY

    def values_come(self) -> None:
        """A few new ones, late ones and restated ones, off the socket or from the provider's history."""
        source = self.random.choice(("stream", "snapshot", "backfill"))
        minutes = self.random.sample(range(3 * 1440), 20)
        found = [(self.random.choice(TICKERS), DAY + timedelta(minutes=m), self.random.random()) for m in minutes]
        found += [
            (*key, self.random.random()) for key in self.random.sample(sorted(self._values), len(self._values) // 5)
        ]
        self._seq += 1
        assembly = BatchBuilder(self._seq, decoder())
        rows = [{"ts": ts.isoformat(), "ticker": ticker, "average_sentiment": value} for ticker, ts, value in found]
        received_us = int((DAY + timedelta(days=4)).timestamp() * 1e6) + self._seq
        assembly.add((self._seq, frame(rows, received_us=received_us, source=source)))
        self._daemon.write(assembly.batch)
        self._values |= {(ticker, ts): value for ticker, ts, value in found}

    def somebody_listens(self) -> None:
        """One of two other instances, for one ticker or all; or does not."""
        instance_id, (subscription_id, ticker), span = self.random.choice((7, 8)), self._subscription(), self._span()
        state = self.random.choice(("live", "live", "disconnected"))
        self.db.state(subscription_id, instance_id, state, *map(_clock, span))
        if state == "live":
            self._listen(ticker, span)

    def a_gap_is_repaired(self) -> None:
        (subscription_id, ticker), span = self._subscription(), self._span()
        state = self.random.choice(("done", "open", "failed"))
        self.db.repair(subscription_id, *map(_clock, span), state=state)
        if state == "done":
            self._listen(ticker, span)
        if state == "open":
            self._unsettled.append((ticker, span))

    def time_passes(self) -> None:
        self.heartbeat += timedelta(hours=self.random.randrange(20))
        with self.db.engine.begin() as connection:
            connection.execute(schema.instances.update().values(heartbeat_at=self.heartbeat))

    def candles(self, width: timedelta) -> list[tuple[Any, ...]]:
        def bucket(item: tuple[tuple[str, datetime], float]) -> tuple[str, datetime]:
            (ticker, ts), _ = item
            return ticker, DAY + (ts - DAY) // width * width

        values = sorted(self._values.items())
        return [self._candle(*name, width, [value for _, value in some]) for name, some in groupby(values, key=bucket)]

    def _candle(self, ticker: str, start: datetime, width: timedelta, values: list[float]) -> tuple[Any, ...]:
        end = start + width
        covered = sum((_union_of(self._listened[ticker], start, end)), timedelta()).total_seconds()
        unsettled = any(name in ("", ticker) and a < end + HOUR and b > start for name, (a, b) in self._unsettled)
        final = self.heartbeat >= end + HOUR and not unsettled
        ends = (values[0], max(values), min(values), values[-1], pytest.approx(sum(values) / len(values)), len(values))
        share = pytest.approx(100 * covered / width.total_seconds())
        return (ticker, start, *ends, pytest.approx(covered / 60), share, final)

    def _listen(self, ticker: str, span: Span) -> None:
        for one in (ticker,) if ticker else TICKERS:
            self._listened[one].append(span)

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
def test_candles_are_right_whatever_comes_late_is_restated_or_repaired(engine: Engine, seed: int) -> None:
    reckoning = Reckoning(engine, seed)
    happenings = (Reckoning.values_come, Reckoning.somebody_listens, Reckoning.a_gap_is_repaired, Reckoning.time_passes)
    reckoning.values_come()
    for _ in range(12):
        for happening in happenings:
            happening(reckoning)
        for view, width in ((views.crowd_sentiment_hourly, HOUR), (views.crowd_sentiment_daily, 24 * HOUR)):
            expected = reckoning.candles(width)
            assert reckoning.db.read(view) == expected
            some = reckoning.random.choice(expected)
            assert reckoning.db.read(view, ticker=some[0]) == [one for one in expected if one[0] == some[0]]
            assert reckoning.db.read(view, bucket_at=some[1]) == [one for one in expected if one[1] == some[1]]


def test_a_sample_that_is_centuries_off_has_its_candle_and_costs_no_more(engine: Engine) -> None:
    db = Database(engine)
    for ticker, year in (("AAPL", 1970), ("AAPL", 2026), ("T", 9998)):
        db.sample(*CROWD, ticker, _clock(datetime(year, 12, 31, tzinfo=UTC)), 0.5, received_at=DAY)
    for view in (views.crowd_sentiment_hourly, views.crowd_sentiment_daily):
        assert [moment.year for _, moment in db.read(view, "ticker", "bucket_at")] == [1970, 2026, 9998]


def test_what_one_hour_costs_does_not_grow_with_the_others(engine: Engine) -> None:
    _name(engine, tickers=20)
    _fill(engine, range(19, 21))
    before = _work(engine, at("20:00"))
    _fill(engine, [*range(19), *range(21, 150)])
    assert _work(engine, at("20:00")) < 1.3 * before


@pytest.mark.postgres
@pytest.mark.parametrize("migrated_url", ["postgres"], indirect=True)
def test_postgresql_does_not_compile_the_question_for_longer_than_the_answer_takes(engine: Engine) -> None:
    _name(engine, tickers=5_000)
    _fill(engine, [0])
    for view in ("crowd_sentiment_hourly", "crowd_sentiment_daily"):
        with engine.connect() as connection:
            plan = connection.execute(text(f"EXPLAIN SELECT * FROM {view} WHERE bucket_at >= '{DAY}'")).scalars().all()
        assert not [line for line in plan if "JIT" in line]


def _name(engine: Engine, *, tickers: int) -> None:
    names = [{"series_id": n, "ticker": f"T{n}", "feed": CROWD[0], "metric": CROWD[1]} for n in range(tickers)]
    with engine.begin() as connection:
        connection.execute(insert(schema.series).values(first_seen_at=DAY), names)


def _fill(engine: Engine, hours: Iterable[int]) -> None:
    """One value of each ticker in each of these hours."""
    with engine.begin() as connection:
        ids = connection.execute(select(schema.series.c.series_id)).scalars().all()
        value = {"value": 0.5, "received_at": DAY, "seq": 1, "instance_id": 1, "source": "stream"}
        rows = [value | {"series_id": n, "ts": DAY + hour * HOUR} for hour in hours for n in ids]
        connection.execute(insert(schema.samples), rows)
        connection.execute(text("ANALYZE"))


def _work(engine: Engine, hour: datetime) -> int:
    """To find the candles of an hour: samples that PostgreSQL reads, instructions of SQLite's machine."""
    counted: list[None] = []
    c = views.crowd_sentiment_hourly.c
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            raw = connection.connection.driver_connection
            raw.set_progress_handler(lambda: counted.append(None), 100)
        assert len(connection.execute(select(c).where(c.bucket_at == hour)).all()) == 20
        if engine.dialect.name == "sqlite":
            return len(counted)
        read = "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname = 'samples'"
        return int(connection.execute(text(read)).scalar_one())
