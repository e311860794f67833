"""Bounds: memory with names and texts from outside, file descriptors with reconnects, metric labels with errors."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from sqlalchemy import Engine

from ingestor.core.entries import Fact, Frame
from ingestor.monitoring.metrics import Metrics
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.pipeline.writer import Writer
from ingestor.spool.spool import Spool
from ingestor.store.read.audit import audit
from ingestor.store.write import batch_writer
from tests.support.entries import T0, decoder, frame, row
from tests.support.flaky_commit import FlakyCommits
from tests.support.writers import make_writer, put, raise_failure
from tests.unit.monitoring.healthy_status import GOOD

MEGABYTE = 1 << 20
FRAME_ROWS = 1_000


def registered_writer(spool: Spool, engine: Engine, **options: Any) -> Writer:
    writer = make_writer(spool, engine, sleep=lambda _seconds: None, **options)
    writer.register()
    return writer


async def write(spool: Spool, writer: Writer, *frames: Frame) -> None:
    await put(spool, *frames)
    while not writer.drained:
        writer.step()


def unseen_tickers(first: int) -> Frame:
    return frame([row(f"T{number}") for number in range(first, first + FRAME_ROWS)])


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


# -- names


async def test_names_from_outside_take_bounded_memory(
    spool: Spool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_writer, "INTERNED_NAMES", 3_000)
    cache = RecentValueCache(capacity=3_000)
    writer = registered_writer(spool, engine, cache=cache)
    for first in range(0, 12_000, FRAME_ROWS):
        await write(spool, writer, unseen_tickers(first))
    assert writer.status.new == 12_000
    assert len(writer._database._series._ids) <= 3_000
    assert len(cache.snapshot()) <= 2 * (3_000 + FRAME_ROWS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_memory_stops_growing_after_500000_tickers(
    spool: Spool, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = registered_writer(spool, engine)
    sizes = {0: resident_bytes()}
    for first in range(0, 1_000_000, 5 * FRAME_ROWS):
        await write(spool, writer, *(unseen_tickers(first + offset) for offset in range(0, 5 * FRAME_ROWS, FRAME_ROWS)))
        sizes[first + 5 * FRAME_ROWS] = resident_bytes()
    with capsys.disabled():
        print("".join(f"\n{n:>9} tickers {size >> 20:>5} MB" for n, size in sizes.items() if n % 100_000 == 0))
    assert sizes[1_000_000] - sizes[500_000] < 64 * MEGABYTE
    assert sizes[1_000_000] - sizes[0] < 512 * MEGABYTE


LONG = 100_000
LONG_TEXTS: list[tuple[str, Callable[[int], Any]]] = [
    ("stamp", lambda n: [row() | {"ts": f"2026-01-01T00:00:00.{'0' * LONG}{n}Z"}]),
    ("ticker of an envelope", lambda n: {"path": "x", "params": {"ticker": f"{'A' * LONG}{n}"}, "results": []}),
    ("path of an envelope", lambda n: {"path": f"{'x' * LONG}{n}", "results": []}),
    ("ticker", lambda n: [row(f"{'A' * LONG}{n}")]),
    ("field", lambda n: [row() | {f"{'x' * LONG}{n}": 1}]),
]


@pytest.mark.parametrize("payload", [make for _, make in LONG_TEXTS], ids=[name for name, _ in LONG_TEXTS])
def test_decoder_caches_no_long_text(payload: Callable[[int], Any]) -> None:
    shared = decoder()
    tracemalloc.start()
    for number in range(300):
        shared.decode(frame(payload(number)))
    gc.collect()
    grown_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown_bytes < 3 * MEGABYTE  # of 30 that were decoded


# -- descriptors


async def test_200_lost_connections_leak_no_descriptors(spool: Spool, engine: Engine) -> None:
    commits = FlakyCommits(engine)
    writer = registered_writer(spool, engine)
    await write(spool, writer, frame([row("A")]))
    before = descriptors()
    for number in range(200):
        commits.fail(1, done=number % 2 == 0)
        await write(spool, writer, frame([row("A", minute=number)]))
    assert descriptors() <= before + 2  # a log file may be open at this moment
    assert audit(engine) == []


async def test_200_spool_starts_leak_no_descriptors(tmp_path: Path) -> None:
    async def start_and_stop() -> None:
        spool = Spool(tmp_path, max_bytes=1 << 30, sync_every_seconds=0)
        spool.start(raise_failure)
        await spool.durable(spool.append(frame([])))
        spool.read(0, max_entries=10)
        await spool.close()

    await start_and_stop()
    before = descriptors()
    for _ in range(200):
        await start_and_stop()
    assert descriptors() <= before


# -- labels


def test_text_from_outside_becomes_no_metric_label() -> None:
    metrics = Metrics(lambda: GOOD)
    before = len(generate_latest(metrics.registry).splitlines())
    for number in range(1_000):
        metrics.on_fact(Fact("disconnected", T0, {"cause": f"c{number}", "reason": f"r{number}"}))
        metrics.on_fact(Fact("provider_error", T0, {"event": f"e{number}"}))
        metrics.on_fact(Fact(f"kind{number}", T0, {}))
    assert len(generate_latest(metrics.registry).splitlines()) == before
