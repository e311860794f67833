"""What must not grow: memory with names and texts from outside, descriptors with reconnects, labels with errors."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from sqlalchemy import Engine

from ingestor.core.entries import Fact, Frame
from ingestor.errors import SpoolFailed
from ingestor.monitoring.metrics import Metrics
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.pipeline.writer import Writer
from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine
from ingestor.store.read.audit import audit
from ingestor.store.write import batch_writer as store
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo
from tests.support.entries import T0, decoder, frame, row
from tests.support.flaky_commit import HastyWriter, Unsteady
from tests.unit.monitoring.healthy_status import GOOD

MEGABYTE = 1 << 20
FRAME_ROWS = 1_000


def _unexpected(failure: SpoolFailed) -> None:
    raise failure


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30, sync_every_seconds=0)
    spool.start(_unexpected)
    yield spool
    await spool.close()


def begun(spool: Spool, engine: Engine) -> Writer:
    instance = InstanceInfo(spool_id=spool.spool_id, name="", version="", config_sha256="", started_us=T0)
    policy = BatchPolicy(max_rows=5_000, max_wait_seconds=0)
    made = HastyWriter(spool, BatchWriter(engine), decoder(), policy, instance, prepare=lambda: None)
    made.drain()
    made._begin()
    return made


async def write(spool: Spool, writer: Writer, *frames: Frame) -> None:
    for one in frames:
        spool.append(one)
    await spool.durable(spool.head)
    while not writer.drained:
        writer.step()


def strangers(first: int) -> Frame:
    """A frame of tickers that nobody has heard of."""
    return frame([row(f"T{number}") for number in range(first, first + FRAME_ROWS)])


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


# -- names


async def test_names_from_outside_take_no_more_memory_than_they_are_allowed(
    spool: Spool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "INTERNED_NAMES", 3_000)
    writer = begun(spool, engine)
    writer._known = RecentValueCache(capacity=3_000)
    for first in range(0, 12_000, FRAME_ROWS):
        await write(spool, writer, strangers(first))
    assert writer.status.new == 12_000
    assert len(writer._database._series._ids) <= 3_000
    assert len(writer._known._young) + len(writer._known._old) <= 2 * (3_000 + FRAME_ROWS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_a_million_tickers_fit_in_the_memory_that_half_of_them_took(
    spool: Spool, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = begun(spool, engine)
    sizes = {0: resident_bytes()}
    for first in range(0, 1_000_000, 5 * FRAME_ROWS):
        await write(spool, writer, *(strangers(first + more) for more in range(0, 5 * FRAME_ROWS, FRAME_ROWS)))
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
def test_the_decoder_remembers_no_long_text(payload: Callable[[int], Any]) -> None:
    reading = decoder()
    tracemalloc.start()
    for number in range(300):
        reading.decode(frame(payload(number)))
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 3 * MEGABYTE  # of 30 that came


# -- descriptors


async def test_descriptors_stay_as_they_are_over_two_hundred_lost_connections(spool: Spool, engine: Engine) -> None:
    commits = Unsteady(engine)
    writer = begun(spool, engine)
    await write(spool, writer, frame([row("A")]))
    before = descriptors()
    for number in range(200):
        commits.fail(1, done=number % 2 == 0)
        await write(spool, writer, frame([row("A", minute=number)]))
    assert descriptors() <= before + 2  # a log file that is open at this moment
    assert audit(engine) == []


async def test_descriptors_stay_as_they_are_over_two_hundred_starts_of_a_spool(tmp_path: Path) -> None:
    async def once() -> None:
        spool = Spool(tmp_path, max_bytes=1 << 30, sync_every_seconds=0)
        spool.start(_unexpected)
        await spool.durable(spool.append(frame([])))
        spool.read(0, max_entries=10)
        await spool.close()

    await once()
    before = descriptors()
    for _ in range(200):
        await once()
    assert descriptors() <= before


# -- labels


def test_no_text_from_outside_becomes_a_label() -> None:
    metrics = Metrics(lambda: GOOD)
    before = len(generate_latest(metrics.registry).splitlines())
    for number in range(1_000):
        metrics.on_fact(Fact("disconnected", T0, {"cause": f"c{number}", "reason": f"r{number}"}))
        metrics.on_fact(Fact("provider_error", T0, {"event": f"e{number}"}))
        metrics.on_fact(Fact(f"kind{number}", T0, {}))
    assert len(generate_latest(metrics.registry).splitlines()) == before
