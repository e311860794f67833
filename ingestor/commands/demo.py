"""Run simulator, daemon and SQLite database in a temporary folder, and provide what the live view shows."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from ingestor.config import load
from ingestor.core.redaction import redactor
from ingestor.daemon.service import Service
from ingestor.errors import DatabaseUnavailable
from ingestor.monitoring.status import Status
from ingestor.simulator import Simulator
from ingestor.store.engine import Engine, make_engine
from ingestor.store.read import tail
from ingestor.store.read.status_queries import count_samples_by_ticker

FEED = "crowd-sentiment"
TICKERS = ("AAPL", "TSLA", "ON", "6E_F")
REFRESH_SECONDS = 0.5
SPARKLINE_VALUES = 40
_CONFIG = """\
instance: demo
provider: {{url: '{url}'}}
http: {{listen: '127.0.0.1:0'}}
log: {{level: warning}}
subscriptions:
  - path: /real-time/crowd-sentiment
    tickers: [{tickers}]
"""
QUERIES = (
    "SELECT ts, ticker, sentiment FROM crowd_sentiment ORDER BY ts DESC LIMIT 10",
    "SELECT ticker, states, from_at, to_at, reason FROM gaps ORDER BY from_at",
)


class TickerRow(NamedTuple):
    """A row of the view."""

    ticker: str
    values: tuple[float, ...]  # the newest last
    rows: int
    lag_seconds: float  # age of the newest row's bucket


class DemoView(NamedTuple):
    """What the view shows."""

    tickers: list[TickerRow]
    status: Status
    page: str | None  # URL of the status page


@contextmanager
def demo_folder(*, keep: bool) -> Iterator[Path]:
    """Create a folder, and remove it in the end unless it is kept."""
    folder = Path(tempfile.mkdtemp(prefix="ingestor-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


async def run(folder: Path, seconds: float | None, show: Callable[[DemoView], None]) -> None:
    """Run in this folder for ``seconds`` (None: until stopped), and call ``show`` regularly."""
    # A minute's bucket every second, so that the view changes.
    async with Simulator(cadence_seconds=1, window_seconds=60, restate_every=7) as simulator:
        redactor.add(simulator.api_key)
        path = folder / "config.yaml"
        path.write_text(_CONFIG.format(url=simulator.url, tickers=", ".join(TICKERS)))
        config = load(path, env={})
        service = Service(config, SecretStr(simulator.api_key))
        daemon = asyncio.create_task(service.run())
        watching = asyncio.create_task(_watch(service, folder, show, seconds))
        await asyncio.wait([daemon, watching], return_when=asyncio.FIRST_COMPLETED)
        if not daemon.done():
            service.stop()
        watching.cancel()
        await asyncio.wait([watching])  # it reads the database in the folder
        await daemon


async def _watch(service: Service, folder: Path, show: Callable[[DemoView], None], seconds: float | None) -> None:
    engine = make_engine(f"sqlite:///{folder / 'ingestor.db'}", read_only=True)
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    try:
        while end is None or loop.time() < end:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                tickers = await asyncio.to_thread(_read_tickers, engine)
            except DatabaseUnavailable:
                continue  # not created yet
            show(DemoView(tickers, service.status(), service.url))
    finally:
        engine.dispose()


def _read_tickers(engine: Engine) -> list[TickerRow]:
    now = datetime.now(UTC)
    tickers = []
    for ticker, rows in sorted(count_samples_by_ticker(engine, FEED).items()):
        newest = tail.latest_observations(engine, limit=SPARKLINE_VALUES, ticker=ticker)
        if newest:
            newest.sort(key=lambda record: record["ts"])
            values = tuple(record["value"] for record in newest)
            tickers.append(TickerRow(ticker, values, rows, (now - newest[-1]["ts"]).total_seconds()))
    return tickers
