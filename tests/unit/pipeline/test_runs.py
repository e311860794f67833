"""What a builder makes of runs is what it makes of frames whose rows are read one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestor.core.entries import Frame, split_into_entries
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.dedup import RecentValueCache
from tests.support.entries import CROWD, T0, decoder, frame, row, run
from tests.support.hostile_payloads import cut_payloads, payloads, texts
from tests.support.hypothesis_steps import wanted_steps

SERIES = ("crowd-sentiment", "crowd_sentiment", "AAPL", "")
MINUTE_US = 60_000_000
OUTCOME = ("units", "size_bytes", "unknown_fields", "skews_us", "last_received_us", "entry_count")


class Builders:
    """Two builders, each with a cache: one is given runs, the other frames, whose rows its decoder reads one by one."""

    def __init__(self) -> None:
        self.caches = [RecentValueCache(generation_seconds=10) for _ in range(2)]
        self._decoders = decoder(), decoder(fast=False)
        self._next_seq = 1

    def add(self, *frames: Frame, most: int = 100, news_after_seq: int = 0) -> None:
        """Give both the frames, as runs of at most ``most``, and compare what they make of them."""
        by_run, by_row = (
            BatchBuilder(self._next_seq, made, cache) for made, cache in zip(self._decoders, self.caches, strict=True)
        )
        by_run.news_after_seq = by_row.news_after_seq = news_after_seq
        entries = list(enumerate(frames, self._next_seq))
        for _, group in groupby(entries, lambda entry: (entry[0] // most, entry[1].connection_id, entry[1].source)):
            first, *others = group
            by_run.add((first[0], run(first[1], *(other for _, other in others))))
        for entry in entries:
            by_row.add(entry)
        self._next_seq += len(frames)
        assert outcome(by_run) == outcome(by_row)
        assert self.caches[0].snapshot() == self.caches[1].snapshot()

    def in_caches(self, change: Callable[[RecentValueCache], object]) -> None:
        for cache in self.caches:
            change(cache)


def outcome(builder: BatchBuilder) -> list[Any]:
    """Everything that a builder has made of its entries."""
    batch = builder.batch
    origins = [batch.origin_of(seq) for seq in range(batch.first_seq, batch.last_seq + 1)]
    fields = [getattr(batch, name) for name in batch.__slots__ if name != "origins"]
    return [origins, fields, [getattr(builder, name) for name in OUTCOME], list(split_into_entries(builder.items))]


@settings(max_examples=wanted_steps(500), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(payloads | payloads | cut_payloads() | texts, min_size=1, max_size=6),
    st.sampled_from([CROWD, "crowd-sentiment-chart-data", "/real-time/user-sentiment", "never-heard-of"]),
    st.sampled_from(["stream", "stream", "snapshot"]),
    st.sampled_from(["{}", '{"user_id":"7"}']),
    st.integers(1, 3),
)
def test_runs_of_any_payload_are_read_like_frames(
    bodies: list[str], path: str, source: Any, params: str, most: int
) -> None:
    field = "volume" if "chart" in path else "sentiment" if "user" in path else "average_sentiment"
    bodies = [json.dumps([row(field=field)]), *bodies, json.dumps([row(minute=1, field=field)])]
    frames = [frame(body, path=path, source=source, params=params) for body in bodies]
    Builders().add(*frames, most=most)


# -- one row each


def single_rows(random: Random, count: int) -> list[Frame]:
    """Frames of one row each, now and then repeated or restated, and at most one that has anything else."""
    tickers = random.choice([["AAPL"], ["AAPL", "ON"], [f"T{number}" for number in range(20)]])
    minutes = random.choice([3, count])
    rows = [
        row(random.choice(tickers), random.randrange(minutes), random.choice([0.5, random.random()]))
        for _ in range(count)
    ]
    bodies = [json.dumps([row]) for row in rows]
    others = [
        "[]",
        "17",
        json.dumps(rows[:2]),
        json.dumps([row() | {"mood": 1}]),
        json.dumps(row()),
        "[ ]",
        "[",
        "x" * 500,
    ]
    if random.random() < 0.5:
        bodies[random.randrange(count)] = random.choice(others)
    return [frame(body, received_us=T0 + random.randrange(1000)) for body in bodies]


@pytest.mark.parametrize("seed", range(wanted_steps(200)))
def test_single_rows_are_read_like_frames(seed: int) -> None:
    random, builders, seq = Random(seed), Builders(), 1
    for count in (random.randrange(1, 250) for _ in range(random.randrange(1, 5))):
        frames, most = single_rows(random, count), random.choice([1, 2, 7, 300])
        builders.add(*frames, most=most, news_after_seq=random.choice([0, seq + random.randrange(count), seq + 999]))
        seq += count


@pytest.mark.parametrize("seed", range(wanted_steps(100)))
def test_single_rows_fill_a_batch_like_frames(seed: int) -> None:
    random = Random(seed)
    frames = single_rows(random, random.randrange(1, 250))
    max_units, max_bytes = random.choice([(random.randrange(1, 300), 10**6), (10**6, random.randrange(1, 30_000))])
    by_run, by_row = (BatchBuilder(1, made, RecentValueCache()) for made in (decoder(), decoder(fast=False)))
    added = by_run.add_run(1, run(*frames), max_units, max_bytes)
    for entry in enumerate(frames, 1):
        if by_row.units < max_units and by_row.size_bytes < max_bytes:
            by_row.add(entry)
    assert added == by_row.entry_count
    assert outcome(by_run) == outcome(by_row)


# -- windows


class Provider:
    """Rolling windows of some tickers, now and then restated, repeated, not in order, not plain or not even JSON."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._values: dict[tuple[str, int], float] = {}
        self._newest = dict.fromkeys(["AAPL", "ON", "A{B", 'A"},{"'], 12)
        self._separators = random.choice([(",", ":"), (", ", ": ")])

    def frame(self) -> Frame:
        random = self._random
        ticker = random.choice(random.choice([["AAPL"], list(self._newest)]))
        self._newest[ticker] += random.choice([0, 1, 1, 1, 2, 20])
        newest = self._newest[ticker]
        if random.random() < 0.3:
            self._values[ticker, newest - random.choice([0, 0, 1, 5, 11])] = random.random()
        rows = [self._row(ticker, minute) for minute in range(newest - random.choice([8, 10, 10, 10]), newest + 1)]
        if random.random() < 0.2:
            self._disturb(rows)
        text = json.dumps(rows, separators=self._separators)
        if random.random() < 0.1:
            place = random.randrange(len(text))
            text = text[:place] + random.choice(["", ",", "]", "[", " ", "{", "}", '"', "}}"]) + text[place + 1 :]
        return frame(text, connection=random.choice(["a", "a", "a", "b"]), received_us=T0 + random.randrange(1000))

    def _row(self, ticker: str, minute: int) -> dict[str, Any]:
        return row(ticker, minute, self._values.setdefault((ticker, minute), self._random.random()))

    def _disturb(self, rows: list[dict[str, Any]]) -> None:
        random = self._random
        place = random.randrange(len(rows))
        odd = random.choice([row("ON"), row(value="?"), rows[0], rows[-1] | {"average_sentiment": 7}, {}, {"mood": 1}])
        random.choice([rows.insert, rows.__setitem__])(place, odd)
        if random.random() < 0.3:
            random.shuffle(rows)


@pytest.mark.parametrize("seed", range(wanted_steps(300)))
def test_windows_are_read_like_frames(seed: int) -> None:
    random = Random(seed)
    builders, provider, now = Builders(), Provider(random), 0.0
    for _ in range(random.randrange(1, 12)):
        frames = [provider.frame() for _ in range(random.randrange(1, 9))]
        if random.random() < 0.2:
            frames.append(frame(frames[-1].text[len('42["res",') : -1], source="snapshot"))
        builders.add(*frames, most=random.randrange(1, 5))
        key = SERIES, T0 + random.randrange(10, 30) * MINUTE_US
        now += random.choice([0, 0, 0, 0, 11])
        builders.in_caches(lambda cache: cache.rotate(now))  # noqa: B023 -- called at once
        if random.random() < 0.2:
            builders.in_caches(lambda cache: cache.discard([key]))  # noqa: B023
