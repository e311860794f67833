"""Build the one status that the status page, the metrics, the health checks and the commands are made from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from ingestor import __version__
from ingestor.config import Config, Subscription
from ingestor.core.clock import boottime
from ingestor.core.entries import SubscriptionKey
from ingestor.core.times import to_optional_datetime
from ingestor.daemon.reload import ConfigReloader
from ingestor.monitoring import status as monitoring
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.provider.auth import TokenState
from ingestor.provider.catalog import feed_name
from ingestor.provider.subscriptions.counters import GroupStatus
from ingestor.provider.subscriptions.states import SubscriptionState
from ingestor.provider.subscriptions.supervisor import SupervisorStatus
from ingestor.spool.spool import Spool

SPOOL_HEARTBEAT_SECONDS = 30.0  # the limit; the spool's thread syncs a heartbeat every 5 s

# The status of each subscription, and the state it was made from: of thousands, few change between two calls.
StatusCache: TypeAlias = dict[SubscriptionKey, tuple[SubscriptionState | None, monitoring.SubscriptionStatus]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSources:
    """The parts of the daemon that a status is read from."""

    reloader: ConfigReloader  # holds the config in force
    instance: str
    started_at: datetime
    database_kind: str
    spool: Spool
    writer: WriterStatus
    supervisor: Callable[[], SupervisorStatus]
    tokens: Callable[[], TokenState]
    recent_errors: monitoring.RecentErrors
    standby: Callable[[], monitoring.StandbyStatus | None] = lambda: None
    shared: Callable[[], monitoring.SharedStatus] = monitoring.SharedStatus
    cache: StatusCache = field(default_factory=dict)


def build_status(sources: StatusSources) -> monitoring.Status:
    """Return the daemon's status. Must be called in the event loop."""
    now = datetime.now(UTC)
    supervisor, standby = sources.supervisor(), sources.standby()
    writer = sources.writer
    shared = sources.shared()
    age = time.monotonic() - sources.spool.synced_at
    return monitoring.Status(
        at=now,
        instance=sources.instance,
        version=__version__,
        pid=os.getpid(),
        started_at=sources.started_at,
        config_sha256=sources.reloader.config.sha256,
        config_reload_successful=sources.reloader.successful,
        connections=tuple(_connection(group) for group in supervisor.groups),
        subscriptions=_subscriptions(sources.reloader.config, supervisor, sources.cache),
        spool=_spool(sources.spool, writer, now),
        database=_database(sources.database_kind, writer, now),
        rows=monitoring.RowCounts(
            new=writer.new,
            revised=writer.revised,
            duplicate=writer.duplicate,
            expired=writer.expired,
            dead=writer.dead_at_decode + writer.dead_at_insert,
        ),
        dead_letters=monitoring.DeadLetterCounts(decode=writer.dead_at_decode, insert=writer.dead_at_insert),
        batches=writer.batches,
        publish_skew_seconds=dict(writer.publish_skew_seconds),
        token=_token(sources.tokens(), now, is_used=not (standby and standby.role == "standby")),
        standby=standby,
        pulses=(
            monitoring.Heartbeat(name="the spool's thread", age_seconds=age, limit_seconds=SPOOL_HEARTBEAT_SECONDS),
        ),
        instances=shared.instances,
        unreceived_subscriptions=shared.unreceived_subscriptions,
        last_errors=sources.recent_errors.newest(),
    )


def _connection(group: GroupStatus) -> monitoring.ConnectionStatus:
    return monitoring.ConnectionStatus(
        id=group.connection_id or None,
        path=group.path,
        feed=feed_name(group.path, json.loads(group.params)),
        connected=group.connected,
        dialect=group.protocol or None,
        frames=group.frames,
        last_frame_at=to_optional_datetime(group.last_frame_us),
        since=to_optional_datetime(group.since_us),
        last_error=_with_retry(group.last_error, group.failed_attempts, group.retry_boottime) or None,
    )


def _subscriptions(
    config: Config, supervisor: SupervisorStatus, cache: StatusCache
) -> tuple[monitoring.SubscriptionStatus, ...]:
    if len(cache) > len(config.subscriptions):
        cache.clear()  # a reload removed some of them
    statuses = []
    for subscription in config.subscriptions:
        key = subscription.key
        state = supervisor.subscriptions.get(key)
        cached = cache.get(key)
        if cached is None or cached[0] is not state:
            cached = cache[key] = (state, _subscription(subscription, state))
        statuses.append(cached[1])
    return tuple(statuses)


def _subscription(subscription: Subscription, state: SubscriptionState | None) -> monitoring.SubscriptionStatus:
    return monitoring.SubscriptionStatus(
        path=subscription.path,
        params=subscription.key[2],
        feed=feed_name(subscription.path, subscription.params),
        state=state.state if state else "pending",
        since=to_optional_datetime(state.since_us) if state else None,
        reason=(state.reason or None) if state else None,
    )


def _spool(spool: Spool, writer: WriterStatus, now: datetime) -> monitoring.SpoolStatus:
    return monitoring.SpoolStatus(
        entries=spool.entries,
        bytes=spool.live_bytes,
        limit_bytes=spool.max_bytes,
        kept_bytes=spool.kept_bytes,
        head_seq=spool.head,
        durable_seq=spool.synced,
        acked_seq=spool.acked,
        oldest_age_seconds=commit_lag_seconds(writer, now),
        disk_full=spool.disk_full,
        set_aside=spool.set_aside,
    )


def _database(kind: str, writer: WriterStatus, now: datetime) -> monitoring.DatabaseStatus:
    return monitoring.DatabaseStatus(
        up=writer.database_up,
        kind=kind,
        server=writer.server,
        position=writer.position,
        last_commit_at=datetime.fromtimestamp(writer.committed_at, UTC) if writer.committed_at else None,
        lag_seconds=commit_lag_seconds(writer, now),
        last_error=writer.error and _with_retry(writer.error, writer.failed_attempts, writer.retry_boottime),
    )


def _with_retry(error: str, failed_attempts: int, retry_boottime: float) -> str:
    """Return an error with what the log does not repeat: how often it was tried, and when it is tried next."""
    if not failed_attempts:
        return error
    seconds = max(0, round(retry_boottime - boottime()))
    return f"{error} ({failed_attempts} failed attempt{'s' * (failed_attempts > 1)}, the next one in {seconds} s)"


def _token(token: TokenState, now: datetime, *, is_used: bool) -> monitoring.TokenStatus:
    seconds = token.expires_in_seconds if is_used else None
    return monitoring.TokenStatus(
        expires_at=None if seconds is None else now + timedelta(seconds=seconds),
        life_seconds=token.life_seconds,
        key_refused=token.key_refused and is_used,
        logins=dict(token.logins),
    )


def commit_lag_seconds(writer: WriterStatus, now: datetime) -> float:
    """Return for how long the oldest entry has been waiting to be committed; 0 if none is waiting."""
    oldest_at = to_optional_datetime(writer.oldest_us)
    return max((now - oldest_at).total_seconds(), 0.0) if oldest_at else 0.0
