"""What Prometheus sees. Nearly all of it is read from the status when scraped, so that receiving pays nothing for it.

Only what a snapshot cannot hold is counted as it happens: facts, the time a batch takes, errors that nobody caught.
"""

from __future__ import annotations

import platform
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ingestor.core.entries import Fact, State
from ingestor.core.version import source_commit
from ingestor.monitoring.status import ConnectionStatus, Status

OTHER = "other"
LOGIN_OUTCOMES = ("ok", "refused", "unavailable", "nonsense")
# Why a socket was lost, as the disconnected fact's `cause` has it; its `reason` is free text, and has no bound.
CAUSES = ("kicked", "closed", "lost", "mute", "paused", "renewed", "silent", "refused", "spool_full", OTHER)
PROVIDER_EVENTS = ("err", "error", OTHER)

# A commit takes some milliseconds; a database in trouble, up to the statement timeout.
_BATCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Every metric of one daemon, in a registry of its own. ``snapshot`` is called at each scrape."""

    def __init__(self, snapshot: Callable[[], Status]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_FromStatus(snapshot))
        self._reconnects = self._counter("reconnects", "Sockets lost", "reason", CAUSES)
        self._provider_errors = self._counter(
            "provider_errors", "Error events from the provider", "event", PROVIDER_EVENTS
        )
        self._repairs = self._counter("repairs", "Gaps whose repair has ended", "outcome", ("done", "failed"))
        self._uncaught = Counter("ingestor_uncaught_errors", "Errors that no task caught", registry=self.registry)
        self._batch_seconds = Histogram(
            "ingestor_batch_seconds",
            "From the batch being due to its commit",
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )

    def on_fact(self, fact: Fact) -> None:
        """Count a fact, if it is of a kind that is counted."""
        match fact.kind:
            case "disconnected":
                self._reconnects.labels(_bounded(fact.detail.get("cause"), CAUSES)).inc()
            case "provider_error":
                count = 1 + fact.detail.get("suppressed", 0)
                self._provider_errors.labels(_bounded(fact.detail.get("event"), PROVIDER_EVENTS)).inc(count)
            case "repaired":
                self._repairs.labels("done").inc()
            case "repair_failed":
                self._repairs.labels("failed").inc()

    def observe_batch(self, seconds: float) -> None:
        """A batch was committed. May be called from the writer's thread."""
        self._batch_seconds.observe(seconds)

    def count_uncaught_error(self) -> None:
        """An error reached the event loop's exception handler."""
        self._uncaught.inc()

    def _counter(self, name: str, text: str, label: str, values: tuple[str, ...]) -> Counter:
        counter = Counter(f"ingestor_{name}", text, [label], registry=self.registry)
        for value in values:
            counter.labels(value)  # there from the start, at 0: a rate over an absent series is no rate
        return counter


def _bounded(label: object, known: tuple[str, ...]) -> str:
    return label if isinstance(label, str) and label in known else OTHER


class _FromStatus(Collector):
    def __init__(self, snapshot: Callable[[], Status]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        status = self._snapshot()
        yield from _received(status)
        yield from _written(status)
        yield from _waiting(status)
        yield from _connected(status)
        yield from _daemon(status)

    def describe(self) -> list[Metric]:
        return []  # else registering would take a snapshot, of a daemon that is still being built


def _received(status: Status) -> Iterator[Metric]:
    known = {subscription.feed for subscription in status.subscriptions}
    frames = CounterMetricFamily("ingestor_frames_received", "Frames received", labels=["feed"])
    last = GaugeMetricFamily(
        "ingestor_last_frame_timestamp_seconds", "When the last frame was received", labels=["feed"]
    )
    for feed, connections in _by_feed(status.connections, known).items():
        frames.add_metric([feed], sum(one.frames for one in connections))
        stamps = [one.last_frame_at.timestamp() for one in connections if one.last_frame_at]
        if stamps:
            last.add_metric([feed], max(stamps))
    skew = GaugeMetricFamily(
        "ingestor_publish_skew_seconds", "The provider's publish clock against ours; negative: behind", labels=["feed"]
    )
    for feed, seconds in status.publish_skew_seconds.items():
        if feed in known:
            skew.add_metric([feed], seconds)
    yield frames
    yield last
    yield skew


def _by_feed(connections: tuple[ConnectionStatus, ...], known: set[str]) -> dict[str, list[ConnectionStatus]]:
    # The path with the prefix and the bare stream name are one feed, and a label may stand only once.
    feeds: dict[str, list[ConnectionStatus]] = {}
    for connection in connections:
        feeds.setdefault(connection.feed if connection.feed in known else OTHER, []).append(connection)
    return feeds


def _written(status: Status) -> Iterator[Metric]:
    rows = CounterMetricFamily("ingestor_rows", "Rows decoded, by what became of them", labels=["outcome"])
    for outcome in ("new", "revised", "duplicate", "dead", "expired"):
        rows.add_metric([outcome], getattr(status.rows, outcome))
    letters = CounterMetricFamily("ingestor_dead_letters", "Dead letters written", labels=["stage"])
    for stage in ("decode", "insert"):
        letters.add_metric([stage], getattr(status.dead_letters, stage))
    yield rows
    yield letters


def _waiting(status: Status) -> Iterator[Metric]:
    spool, database = status.spool, status.database
    yield GaugeMetricFamily("ingestor_spool_entries", "Entries in the spool", spool.entries)
    yield GaugeMetricFamily("ingestor_spool_bytes", "Size of the entries in the spool", spool.bytes)
    yield GaugeMetricFamily("ingestor_spool_limit_bytes", "spool.max_bytes", spool.limit_bytes)
    yield GaugeMetricFamily("ingestor_commit_lag_seconds", "How long the oldest entry has waited", database.lag_seconds)
    yield GaugeMetricFamily("ingestor_database_up", "1 if the last try reached it", database.up)


def _connected(status: Status) -> Iterator[Metric]:
    connected = GaugeMetricFamily("ingestor_connected", "1 if every connection of the path is up", labels=["path"])
    paths: dict[str, bool] = {}
    for one in status.connections:
        paths[one.path] = paths.get(one.path, True) and one.connected
    for path, up in paths.items():
        connected.add_metric([path], up)
    subscriptions = GaugeMetricFamily("ingestor_subscriptions", "Subscriptions by state", labels=["state"])
    states = Tally(one.state for one in status.subscriptions)
    for state in get_args(State):
        subscriptions.add_metric([state], states[state])
    yield connected
    yield subscriptions


def _daemon(status: Status) -> Iterator[Metric]:
    logins = CounterMetricFamily("ingestor_logins", "Tokens asked for, by the answer", labels=["outcome"])
    for outcome in LOGIN_OUTCOMES:
        logins.add_metric([outcome], status.token.logins.get(outcome, 0))
    yield logins
    if status.token.expires_at:
        yield GaugeMetricFamily(
            "ingestor_token_expires_timestamp_seconds",
            "When the token ends",
            status.token.expires_at.timestamp(),
        )
    yield GaugeMetricFamily(
        "ingestor_config_last_reload_successful",
        "0 after a reload that was refused",
        status.config_reload_successful,
    )
    yield InfoMetricFamily(
        "ingestor_build",
        "What runs here",
        {"version": status.version, "commit": source_commit(), "python": platform.python_version()},
    )
