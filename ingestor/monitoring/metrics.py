"""Metrics for Prometheus. Most are read from the status snapshot at each scrape, so that receiving costs nothing more.

What a snapshot does not hold is counted as it happens: facts, the duration of a batch, uncaught errors.
"""

from __future__ import annotations

import collections
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ingestor.core.entries import Fact, State
from ingestor.core.version import source_commit
from ingestor.monitoring.status import Status

OTHER = "other"
MAX_INSTANCES = 20  # that have a metric of their own
LOGIN_OUTCOMES = ("ok", "refused", "unavailable", "nonsense")
# The values of `cause` in a disconnected fact. Its `reason` is free text, which would make any number of labels.
CAUSES = (
    *("kicked", "closed", "lost", "limit", "mute", "paused", "renewed", "silent", "refused", "spool_full", "standby"),
    OTHER,
)
PROVIDER_EVENTS = ("err", "error", OTHER)

# A commit takes some milliseconds, or up to the statement timeout if the database is in trouble.
_BATCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """All metrics of one daemon, in their own registry. ``snapshot`` is called at each scrape.

    Any thread may observe ``batch_seconds``. ``uncaught_errors`` reached the exception handler of the event loop.
    """

    def __init__(self, snapshot: Callable[[], Status]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_StatusCollector(snapshot))
        self._reconnects = self._counter("reconnects", "Connections lost", "reason", CAUSES)
        self._provider_errors = self._counter(
            "provider_errors", "Error events from the provider", "event", PROVIDER_EVENTS
        )
        self._repairs = self._counter("repairs", "Repairs of gaps that have ended", "outcome", ("done", "failed"))
        self.uncaught_errors = Counter("ingestor_uncaught_errors", "Errors that no code caught", registry=self.registry)
        batch_help = "Time from a batch being due to its commit"
        self.batch_seconds = Histogram(
            "ingestor_batch_seconds", batch_help, buckets=_BATCH_BUCKETS, registry=self.registry
        )

    def on_fact(self, fact: Fact) -> None:
        """Count the fact if a metric exists for its kind."""
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

    def _counter(self, name: str, documentation: str, label: str, values: tuple[str, ...]) -> Counter:
        counter = Counter(f"ingestor_{name}", documentation, [label], registry=self.registry)
        for value in values:
            counter.labels(value)  # exported as 0 from the start: rate() needs a first sample
        return counter


def _bounded(label: object, known: tuple[str, ...]) -> str:
    return label if isinstance(label, str) and label in known else OTHER


class _StatusCollector(Collector):
    def __init__(self, snapshot: Callable[[], Status]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        status = self._snapshot()
        for metrics in _STATUS_METRICS:
            yield from metrics(status)

    def describe(self) -> list[Metric]:
        return []  # otherwise registering takes a snapshot, while the daemon is still being built


def _by_label(
    family: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    documentation: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    metric = family(name, documentation, labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def _frame_metrics(status: Status) -> Iterator[Metric]:
    known = {subscription.feed for subscription in status.subscriptions}
    frames: collections.Counter[str] = collections.Counter()
    last: dict[str, float] = {}
    for connection in status.connections:
        # A path and its bare stream name are one feed, and a label value must not be exported twice.
        feed = connection.feed if connection.feed in known else OTHER
        frames[feed] += connection.frames
        if connection.last_frame_at:
            last[feed] = max(last.get(feed, 0.0), connection.last_frame_at.timestamp())
    skew = {feed: seconds for feed, seconds in status.publish_skew_seconds.items() if feed in known}
    yield _by_label(CounterMetricFamily, "ingestor_frames_received", "Frames received", "feed", frames)
    yield _by_label(GaugeMetricFamily, "ingestor_last_frame_timestamp_seconds", "Time of the last frame", "feed", last)
    skew_help = "Provider's publish clock minus ours; negative: behind"
    yield _by_label(GaugeMetricFamily, "ingestor_publish_skew_seconds", skew_help, "feed", skew)


def _row_metrics(status: Status) -> Iterator[Metric]:
    yield _by_label(CounterMetricFamily, "ingestor_rows", "Rows decoded, by outcome", "outcome", asdict(status.rows))
    letters = asdict(status.dead_letters)
    yield _by_label(CounterMetricFamily, "ingestor_dead_letters", "Dead letters written", "stage", letters)


def _spool_metrics(status: Status) -> Iterator[Metric]:
    spool, database = status.spool, status.database
    yield GaugeMetricFamily("ingestor_spool_entries", "Entries in the spool", spool.entries)
    yield GaugeMetricFamily("ingestor_spool_bytes", "Size of the entries in the spool", spool.bytes)
    yield GaugeMetricFamily("ingestor_spool_limit_bytes", "spool.max_bytes", spool.limit_bytes)
    kept_help = "Size of the entries that are in the database and stay for spool.keep"
    yield GaugeMetricFamily("ingestor_spool_kept_bytes", kept_help, spool.kept_bytes)
    disk_help = "1 while the disk of the spool is full and nothing is received"
    yield GaugeMetricFamily("ingestor_disk_full", disk_help, spool.disk_full)
    aside_help = "Spools that could not be read completely and are still in the spool's folder"
    yield GaugeMetricFamily("ingestor_spools_set_aside", aside_help, spool.set_aside)
    yield GaugeMetricFamily("ingestor_commit_lag_seconds", "Age of the oldest uncommitted entry", database.lag_seconds)
    yield GaugeMetricFamily("ingestor_database_up", "1 if the last attempt reached the database", database.up)


def _connection_metrics(status: Status) -> Iterator[Metric]:
    paths: dict[str, bool] = {}
    for connection in status.connections:
        paths[connection.path] = paths.get(connection.path, True) and connection.connected
    protocols = collections.Counter(open_.dialect for open_ in status.connections if open_.connected and open_.dialect)
    counts = collections.Counter(subscription.state for subscription in status.subscriptions)
    states = {state: counts[state] for state in get_args(State)}
    yield _by_label(GaugeMetricFamily, "ingestor_connected", "1 if all connections of the path are up", "path", paths)
    connections_help = "Open connections, by protocol version of Socket.IO"
    yield _by_label(GaugeMetricFamily, "ingestor_connections", connections_help, "protocol", protocols)
    yield _by_label(GaugeMetricFamily, "ingestor_subscriptions", "Subscriptions by state", "state", states)


def _daemon_metrics(status: Status) -> Iterator[Metric]:
    token, logins = status.token, {outcome: status.token.logins.get(outcome, 0) for outcome in LOGIN_OUTCOMES}
    yield _by_label(CounterMetricFamily, "ingestor_logins", "Token requests, by outcome", "outcome", logins)
    yield GaugeMetricFamily("ingestor_key_refused", "1 if the provider refused the API key last", token.key_refused)
    if token.expires_at:
        expiry = token.expires_at.timestamp()
        yield GaugeMetricFamily("ingestor_token_expires_timestamp_seconds", "Time at which the token expires", expiry)
    standby_help = "1 while another instance holds the lease and receives"
    yield GaugeMetricFamily("ingestor_standing_by", standby_help, status.stands_by)
    reloaded = status.config_reload_successful
    yield GaugeMetricFamily("ingestor_config_last_reload_successful", "0 if the last reload was rejected", reloaded)
    build = {"version": status.version, "commit": source_commit(), "python": platform.python_version()}
    yield InfoMetricFamily("ingestor_build", "Version of the running program", build)


def _instance_metrics(status: Status) -> Iterator[Metric]:
    if not status.instances:
        return  # not read yet, or too long ago
    counts = collections.Counter(instance.state for instance in status.instances)
    states = {state: counts[state] for state in ("alive", "silent", "stopped")}
    instances_help = "Instances that share the database, by state"
    yield _by_label(GaugeMetricFamily, "ingestor_instances", instances_help, "state", states)
    behind = GaugeMetricFamily(
        "ingestor_instance_behind_seconds",
        "Age of the newest time before which everything that the instance received is in the database",
        labels=["id", "name"],
    )
    running = [instance for instance in status.instances if instance.behind_seconds is not None]
    for instance in running[-MAX_INSTANCES:]:
        behind.add_metric([str(instance.instance_id), instance.name], instance.behind_seconds or 0.0)
    yield behind
    unreceived = status.unreceived_subscriptions
    if unreceived is not None:
        yield GaugeMetricFamily(
            "ingestor_unreceived_subscriptions", "Subscriptions that no instance receives", unreceived
        )


_STATUS_METRICS = (
    _frame_metrics,
    _row_metrics,
    _spool_metrics,
    _connection_metrics,
    _daemon_metrics,
    _instance_metrics,
)
