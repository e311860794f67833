"""The whole way of the data in a temporary folder: simulator, daemon, SQLite, and what a viewer sees of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ingestor.config import load
from ingestor.core.redaction import redactor
from ingestor.daemon.service import Service
from ingestor.errors import DatabaseUnavailable
from ingestor.simulator import Simulator
from ingestor.store.engine import make_engine
from ingestor.store.read import status as query
from ingestor.store.read import tail

FEED = "crowd-sentiment"
TICKERS = ("AAPL", "TSLA", "ON", "6E_F")
FRAME_SECONDS = 0.5  # between two looks
SPARK_VALUES = 40
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TickerRow:
    """What is shown of one ticker."""

    ticker: str
    values: tuple[float, ...]  # the newest last
    rows: int
    lag_seconds: float  # age of the newest row's bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoView:
    """What is shown at one moment."""

    lines: tuple[TickerRow, ...]
    rows: int
    revised: int
    frames: int
    spooled: int
    page: str | None


async def run(seconds: float | None, show: Callable[[DemoView], None]) -> Path:
    """Run for ``seconds`` (None: until cancelled or signalled), showing as it goes. Returns the database's path."""
    folder = Path(tempfile.mkdtemp(prefix="ingestor-demo-"))
    # A minute's bucket each second, so that there is something to see.
    async with Simulator(cadence_seconds=1, window_seconds=60, restate_every=7) as simulator:
        redactor.add(simulator.api_key)
        path = folder / "config.yaml"
        path.write_text(_CONFIG.format(url=simulator.url, tickers=", ".join(TICKERS)))
        config = load(path, env={})
        service = Service(config, SecretStr(simulator.api_key))
        daemon = asyncio.create_task(service.run())
        await asyncio.wait(
            [daemon, asyncio.create_task(_watch(service, folder, show, seconds))], return_when="FIRST_COMPLETED"
        )
        if not daemon.done():
            service.stop()
        await daemon
    return folder / "ingestor.db"


async def _watch(service: Service, folder: Path, show: Callable[[DemoView], None], seconds: float | None) -> None:
    engine = make_engine(f"sqlite:///{folder / 'ingestor.db'}", read_only=True)
    loop = asyncio.get_running_loop()
    until = None if seconds is None else loop.time() + seconds
    try:
        while until is None or loop.time() < until:
            await asyncio.sleep(FRAME_SECONDS)
            try:
                lines = await asyncio.to_thread(_lines, engine)
            except DatabaseUnavailable:
                continue  # not made yet
            show(_view(service, lines))
    finally:
        engine.dispose()


def _lines(engine: Any) -> tuple[TickerRow, ...]:
    counts, now = query.count_samples_by_ticker(engine, FEED), datetime.now(UTC)
    lines = []
    for ticker, rows in sorted(counts.items()):
        records = sorted(tail.latest_observations(engine, limit=SPARK_VALUES, ticker=ticker), key=lambda one: one["ts"])
        if records:
            values = tuple(one["value"] for one in records)
            lag = (now - records[-1]["ts"]).total_seconds()
            lines.append(TickerRow(ticker=ticker, values=values, rows=rows, lag_seconds=lag))
    return tuple(lines)


def _view(service: Service, lines: tuple[TickerRow, ...]) -> DemoView:
    status = service.status()
    return DemoView(
        lines=lines,
        rows=status.rows.new,
        revised=status.rows.revised,
        frames=sum(connection.frames for connection in status.connections),
        spooled=status.spool.entries,
        page=service.url,
    )
