"""A status server without a daemon: a test sets what it serves."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from ingestor.config.validators import ListenAddress
from ingestor.errors import IngestorError
from ingestor.monitoring.coverage_strips import CoverageCache, StateSpan
from ingestor.monitoring.http_server import StatusServer
from ingestor.monitoring.latest_values import LatestValues
from ingestor.monitoring.load_history import LoadHistory
from ingestor.monitoring.metrics import Metrics
from ingestor.monitoring.status import ConnectionStatus, DatabaseStatus, Status
from ingestor.store.write.batch import SampleRow

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
NOON_US = 1_793_534_400_000_000
GOOD = Status(
    at=NOON,
    instance="desk",
    version="0.1.0",
    pid=42,
    started_at=NOON,
    config_sha256="ab" * 32,
    connections=(ConnectionStatus(id="0123456789ab", path="tweet-buzz", feed="tweet-buzz", connected=True),),
    database=DatabaseStatus(up=True, kind="sqlite"),
)


def row(ticker: str = "AAPL", *, feed: str = "crowd-sentiment", ts_us: int = NOON_US, value: float = 0.25) -> SampleRow:
    """Return a committed row."""
    return SampleRow((feed, feed.replace("-", "_"), ticker, ""), ts_us, value, None, NOON_US, "stream", 1, 0)


class StatusContent:
    """What the server serves. A test changes ``status``, ``values``, ``spans`` and ``failure`` while it runs."""

    def __init__(self) -> None:
        self.status = GOOD
        self.values = LatestValues()
        self.values.add_rows([row()])
        self.history = LoadHistory()
        self.history.record(1.0, head_seq=0, waiting=0, lag_seconds=0.0)
        self.history.record(2.0, head_seq=7, waiting=3, lag_seconds=0.25)
        self.spans: list[StateSpan] = []
        self.failure: IngestorError | None = None  # of reading them

    def snapshot(self) -> Status:
        return self.status

    def read_spans(self, _since: datetime) -> Iterable[StateSpan]:
        if self.failure:
            raise self.failure
        return self.spans

    def server(self, host: str = "127.0.0.1", port: int = 0) -> StatusServer:
        return StatusServer(
            ListenAddress(host, port),
            snapshot=self.snapshot,
            metrics=Metrics(self.snapshot),
            values=self.values,
            history=lambda: self.history.to_json(5.0),
            coverage=CoverageCache(self.read_spans).to_json,
        )
