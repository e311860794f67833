"""``tail -f`` prints every recorded value once, whichever daemon wrote it; compared with the tables."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select

from ingestor.commands.tail import VALUES_PER_SERIES, Follower
from ingestor.core.entries import Frame
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.store import schema, views
from ingestor.store.engine import make_engine
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from tests.support.entries import T0, decoder, fact, frame, row
from tests.support.query_plans import full_scans, recorded_selects

SECOND = 1_000_000


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


class Daemon:
    """Writes batches like the writer."""

    def __init__(self, engine: Engine, name: str, *, keep_payloads: bool = True) -> None:
        self._database = BatchWriter(engine)
        instance = InstanceInfo(spool_id=name, name=name, version="", config_sha256="", started_us=T0)
        self._seq = self._database.register(instance).position
        self._keep_payloads = keep_payloads

    def commit(self, *frames: Frame) -> None:
        builder = BatchBuilder(self._seq + 1, decoder(), keep_payloads=self._keep_payloads)
        for entry in (*frames, fact()):
            self._seq += 1
            builder.add((self._seq, entry))
        self._database.write(builder.batch)


def count_values(records: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """Count each value by its key, value and origin."""
    names = ("instance_id", "seq", "feed", "metric", "ticker", "user_id", "ts", "value")
    return Counter(tuple(record[name] for name in names) for record in records)


def recorded(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [
            dict(row)
            for view in (views.observations, views.revisions)
            for row in connection.execute(select(view)).mappings()
        ]


def poll_all(follower: Follower) -> list[dict[str, Any]]:
    return [record for seen in follower.poll() for record in seen.records]


def answer(chance: random.Random, at_us: int) -> Frame:
    """Return a window of a few values: most are known, some are restated, and some are unreadable."""
    rows: list[Any] = [
        row(ticker, minute, chance.choice([0.1, 0.2, 0.3]))
        for ticker in chance.sample(["AAPL", "ON", "6E_F"], chance.randint(1, 2))
        for minute in chance.sample(range(8), 4)
    ]
    rows += chance.choices([row("ON", 3, 0.4), row("ON", 3, 0.5), row("ON", 3, "none"), {"ticker": "ON"}], k=2)
    source = chance.choice(["stream", "stream", "snapshot"])
    return frame(rows, received_us=at_us, source=source)


@pytest.mark.parametrize("seed", range(4))
def test_every_value_of_two_daemons_is_returned_once(engine: Engine, seed: int) -> None:
    chance = random.Random(seed)
    daemons = [Daemon(engine, "one"), Daemon(engine, "two")]
    daemons[0].commit(answer(chance, T0))
    before = count_values(recorded(engine))
    follower, of_one = Follower(engine), Follower(engine, "ON")
    seen: list[dict[str, Any]] = []
    seen_of_one: list[dict[str, Any]] = []
    for step in range(25):
        # Late responses too: they are older than what is stored.
        frames = [answer(chance, T0 + chance.randint(0, 2 * step) * SECOND) for _ in range(chance.randint(0, 3))]
        chance.choice(daemons).commit(*frames, *chance.choices([frame("{bad"), frame([])], k=1))
        if step == 12:
            daemons.append(Daemon(engine, "three"))
        if chance.random() < 0.4:
            seen += poll_all(follower)
            seen_of_one += poll_all(of_one)
    seen += poll_all(follower)
    seen_of_one += poll_all(of_one)
    everything = count_values(recorded(engine))
    assert everything.total() > 60
    assert sum(record["revision"] for record in seen)
    assert count_values(seen) == everything - before
    assert count_values(seen_of_one) == Counter({key: n for key, n in (everything - before).items() if key[4] == "ON"})
    assert poll_all(follower) == []


def test_latest_and_poll_do_not_overlap(engine: Engine) -> None:
    daemon = Daemon(engine, "one")
    daemon.commit(frame([row("ON", minute, 0.1) for minute in range(4)]))
    follower = Follower(engine)
    daemon.commit(frame([row("ON", 3, 0.2), row("ON", 4, 0.1)], received_us=T0 + SECOND))  # before the first poll
    assert [(record["ts"].minute, record["value"]) for record in follower.latest(9)] == [(0, 0.1), (1, 0.1), (2, 0.1)]
    assert [(record["ts"].minute, record["value"], record["revision"]) for record in poll_all(follower)] == [
        (3, 0.2, 1),
        (4, 0.1, 0),
    ]


def test_without_payloads_newest_values_and_missing_count(engine: Engine) -> None:
    daemon = Daemon(engine, "one", keep_payloads=False)
    follower = Follower(engine)
    daemon.commit(
        frame([row(ticker, minute, 0.1) for ticker in ("ON", "AAPL") for minute in range(VALUES_PER_SERIES + 5)])
    )
    (seen,) = follower.poll()
    assert (len(seen.records), seen.missing) == (2 * VALUES_PER_SERIES, 10)
    assert {record["ts"].hour * 60 + record["ts"].minute for record in seen.records} == set(
        range(5, VALUES_PER_SERIES + 5)
    )
    daemon.commit(frame([row("ON", VALUES_PER_SERIES, 0.2)], received_us=T0 + SECOND))
    assert [(record["value"], record["revision"]) for record in poll_all(follower)] == [(0.2, 1)]


def test_follower_continues_after_ledger_is_pruned(engine: Engine) -> None:
    daemon = Daemon(engine, "one")
    follower = Follower(engine)
    daemon.commit(frame([row("ON", 1, 0.1)]))
    daemon.commit(frame([row("ON", 2, 0.1)]))
    with engine.begin() as connection:
        connection.execute(schema.batches.delete())
    assert [record["ts"].minute for record in poll_all(follower)] == [1, 2]


def test_poll_does_not_scan_samples(engine: Engine) -> None:
    daemon, follower = Daemon(engine, "one"), Follower(engine, "ON")
    daemon.commit(frame([row("ON", minute, 0.1) for minute in range(3)]))
    Daemon(engine, "two", keep_payloads=False).commit(frame([row("ON", 5, 0.1)]))
    with (
        recorded_selects(engine, "samples") as sample_queries,
        recorded_selects(engine, "sample_revisions") as revision_queries,
    ):
        assert len(poll_all(follower)) == 4
        assert len(Follower(engine, "ON").latest(2)) == 2
    assert len(sample_queries + revision_queries) >= 4
    for query in sample_queries + revision_queries:
        assert full_scans(engine, query, "samples", "sample_revisions", "m", "p") == [], query[0]
