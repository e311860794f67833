"""``python -m tests.tools.batch_building``: the processor time from the spool's file to the batch.

``--against COMMIT`` measures another commit in turn with this one, and prints both.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
TREE = "INGESTOR_BENCHMARK_TREE"  # the folder whose code is measured
if TREE in os.environ:
    sys.path.insert(0, os.environ[TREE])

from ingestor.core.entries import FrameRun  # noqa: E402
from ingestor.pipeline.batch_builder import BatchBuilder  # noqa: E402
from ingestor.pipeline.batch_policy import BatchPolicy  # noqa: E402
from ingestor.pipeline.decoder import Decoder  # noqa: E402
from ingestor.pipeline.dedup import RecentValueCache  # noqa: E402
from ingestor.pipeline.read_ahead import ReadAhead  # noqa: E402
from ingestor.pipeline.writer_status import WriterStatus  # noqa: E402
from ingestor.provider import catalog  # noqa: E402
from ingestor.spool.chunk_store import ChunkReader, ChunkWriter, pack  # noqa: E402

CHUNK_EVENTS = 500
POLICY = BatchPolicy(max_rows=5_000, max_wait_seconds=0)
START = datetime(2026, 1, 1, tzinfo=UTC)
REAL_TIME, STREAM = "/real-time/crowd-sentiment", "crowd-sentiment"

random = Random(1)


def row(minute: int, ticker: str = "AAPL", field: str = "average_sentiment", **more: Any) -> str:
    ts = (START + timedelta(minutes=minute)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"ts": ts, **more, "ticker": ticker, field: f"{random.random():.16f}"}, separators=(",", ":"))


def rows_each(events: int, count: int) -> Iterator[list[str]]:
    for event in range(events):
        yield [row(event * count + number) for number in range(count)]


def windows(events: int, *, restated: bool = False, bad: bool = False) -> Iterator[list[str]]:
    """Windows of 60 rows, of which one is new, of 20 tickers in turn."""
    rows = {f"T{number}": [row(minute, f"T{number}") for minute in range(60)] for number in range(20)}
    for event in range(events):
        minute, ticker = 60 + event // 20, f"T{event % 20}"
        window = rows[ticker] = [*rows[ticker][1:], row(minute, ticker)]
        if restated:
            window[-2] = row(minute - 1, ticker)
        yield [row(0, "AAPL", "unknown"), *window] if bad else window


def lists(responses: Iterable[list[str]]) -> list[str]:
    return [f'42["res",[{",".join(rows)}]]' for rows in responses]


def envelopes(responses: Iterable[list[str]]) -> list[str]:
    head = '{"path":"crowd-sentiment","params":{"ticker":"AAPL"},"timestamp":"2026-01-01T00:00:00.000Z","results":'
    return [f'42["res",{head}[{",".join(rows)}]}}]' for rows in responses]


def restated(events: int) -> Iterator[list[str]]:
    for event in range(events):
        yield [row(event // 2)]


def with_bad_rows(events: int) -> Iterator[list[str]]:
    for event, rows in enumerate(rows_each(events, 1)):
        yield rows if event % 1_000 else ["17"]


Shape = tuple[Callable[[], Sequence[str]], int, str]  # texts, frames of a run, path
SHAPES: dict[str, Shape] = {
    "one row, runs of 50": (lambda: lists(rows_each(20_000, 1)), 50, REAL_TIME),
    "one row, runs of 5": (lambda: lists(rows_each(20_000, 1)), 5, REAL_TIME),
    "one row, two alternating connections": (lambda: lists(rows_each(20_000, 1)), 1, REAL_TIME),
    "one row, half of them restated": (lambda: lists(restated(20_000)), 50, REAL_TIME),
    "one row, a bad one in each batch": (lambda: lists(with_bad_rows(20_000)), 50, REAL_TIME),
    "100 rows": (lambda: lists(rows_each(500, 100)), 10, REAL_TIME),
    "windows": (lambda: lists(windows(2_000)), 20, REAL_TIME),
    "windows, two alternating connections": (lambda: lists(windows(2_000)), 1, REAL_TIME),
    "windows, one row restated": (lambda: lists(windows(2_000, restated=True)), 20, REAL_TIME),
    "windows with a bad row": (lambda: lists(windows(1_000, bad=True)), 20, REAL_TIME),
    "envelopes of one row": (lambda: envelopes(rows_each(5_000, 1)), 50, STREAM),
    "envelopes of 60 rows": (lambda: envelopes(rows_each(500, 60)), 10, STREAM),
    "rows of users": (
        lambda: lists([row(event, field="sentiment", user_id="7")] for event in range(5_000)),
        50,
        "/real-time/user-sentiment",
    ),
}


class FilledSpool:
    """A spool that is only read. Before runs, ``read`` was what ``read_items`` is now."""

    def __init__(self, reader: ChunkReader, events: int) -> None:
        self._reader, self.synced = reader, events
        self.acked = self.highest_acked = 0

    def wait(self, after_seq: int, _max_wait_seconds: float, _min_entries: int = 1) -> bool:
        return self.synced > after_seq

    def __getattr__(self, name: str) -> Any:
        return partial(getattr(self._reader, name), max_bytes=8 << 20)


def fill(path: Path, texts: Sequence[str], run_frames: int, feed_path: str) -> None:
    writer = ChunkWriter(path)
    for start in range(0, len(texts), CHUNK_EVENTS):
        runs = []
        for first in range(start, min(start + CHUNK_EVENTS, len(texts)), run_frames):
            part = texts[first : min(first + run_frames, start + CHUNK_EVENTS)]
            connection = f"c0ffee00000{first // run_frames % 2 if run_frames == 1 else 0}"
            runs.append(
                FrameRun(connection, "stream", "res", feed_path, "{}", [*range(first, first + len(part))], part)
            )
        writer.write([pack(start + 1, runs)], acked=0)
    writer.close()


def measure(path: Path, events: int) -> float:
    reader = ChunkReader(path)
    spool: Any = FilledSpool(reader, events)
    build = partial(BatchBuilder, decoder=Decoder(catalog.metrics_of, catalog.feed_name))
    ahead = ReadAhead(spool, POLICY, build, RecentValueCache(), WriterStatus(), lambda: False)
    position, started = 0, time.thread_time()
    while position < events:
        position = ahead.collect_batch(position, 0).batch.last_seq
        ahead.confirm(())
    seconds = time.thread_time() - started
    reader.close()
    return seconds / events * 1e6


def measure_all() -> dict[str, float]:
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (make_texts, run_frames, feed_path)) in enumerate(SHAPES.items()):
            texts, path = make_texts(), Path(folder, f"{number}.db")
            fill(path, texts, run_frames, feed_path)
            gc.collect()
            gc.disable()
            figures[name] = min(measure(path, len(texts)) for _ in range(3))
            gc.enable()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.batch_building", description=__doc__)
    parser.add_argument("--against", metavar="COMMIT", help="measure this commit, too")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trees = {"this": str(ROOT)}
        if options.against:
            archive = subprocess.run(["git", "archive", options.against, "ingestor"], cwd=ROOT, capture_output=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            trees = {options.against: folder} | trees
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in range(options.rounds):
            for name, tree in trees.items():
                command = [sys.executable, __file__]
                found = subprocess.run(command, env=os.environ | {TREE: tree}, capture_output=True, check=True)
                rounds[name].append(json.loads(found.stdout))
    print(f"| µs of processor for each event | {' | '.join(trees)} |")
    print(f"|---|{'---:|' * len(trees)}")
    for shape in SHAPES:
        medians = [f"{statistics.median(figures[shape] for figures in found):.1f}" for found in rounds.values()]
        print(f"| {shape} | {' | '.join(medians)} |")


if __name__ == "__main__":
    if TREE in os.environ:
        print(json.dumps(measure_all()))
    else:
        main()
