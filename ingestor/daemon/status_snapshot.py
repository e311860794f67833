"""The daemon's parts, read into the one snapshot that status page, metrics and commands are made from."""

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
from ingestor.core.entries import SubscriptionKey
from ingestor.daemon.reload import ConfigReloader
from ingestor.monitoring import status as ops
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.provider.auth import TokenState
from ingestor.provider.catalog import feed_name
from ingestor.provider.subscriptions import supervisor as provider
from ingestor.provider.subscriptions.counters import GroupStatus
from ingestor.provider.subscriptions.states import SubscriptionState
from ingestor.spool.spool import Spool

SPOOL_PULSE_SECONDS = 30.0  # its thread syncs a heartbeat every five


# What was last said of each subscription, and for which standing: of thousands, few change between two looks.
StatusCache: TypeAlias = dict[SubscriptionKey, tuple[SubscriptionState | None, ops.SubscriptionStatus]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSources:
    """Where the snapshot is read from."""

    reload: ConfigReloader  # which has the config in force
    instance: str
    started_at: datetime
    database_kind: str
    spool: Spool
    writer: WriterStatus
    receive: Callable[[], provider.SupervisorStatus]
    tokens: Callable[[], TokenState]
    troubles: ops.RecentErrors
    told: StatusCache = field(default_factory=dict)


def build_status(parts: StatusSources) -> ops.Status:
    """The daemon now. Called in the event loop."""
    now = datetime.now(UTC)
    receive = parts.receive()
    writer = parts.writer
    return ops.Status(
        at=now,
        instance=parts.instance,
        version=__version__,
        pid=os.getpid(),
        started_at=parts.started_at,
        config_sha256=parts.reload.config.sha256,
        config_reload_successful=parts.reload.successful,
        connections=tuple(_connection(group) for group in receive.groups),
        subscriptions=_subscriptions(parts.reload.config, receive, parts.told),
        spool=_spool(parts.spool, writer, now),
        database=_database(parts.database_kind, writer, now),
        rows=ops.RowCounts(
            new=writer.new,
            revised=writer.revised,
            duplicate=writer.duplicate,
            expired=writer.expired,
            dead=writer.dead_at_decode + writer.dead_at_insert,
        ),
        dead_letters=ops.DeadLetterCounts(decode=writer.dead_at_decode, insert=writer.dead_at_insert),
        batches=writer.batches,
        publish_skew_seconds=dict(writer.publish_skew_seconds),
        token=_token(parts.tokens(), now),
        pulses=(_spool_pulse(parts.spool),),
        last_errors=parts.troubles.newest(),
    )


def _connection(group: GroupStatus) -> ops.ConnectionStatus:
    return ops.ConnectionStatus(
        id=group.connection_id or None,
        path=group.path,
        feed=feed_name(group.path, _params(group.params)),
        connected=group.connected,
        dialect=group.protocol or None,
        frames=group.frames,
        last_frame_at=_moment(group.last_frame_us),
        since=_moment(group.since_us),
        last_error=group.last_error or None,
    )


def _subscriptions(
    config: Config, receive: provider.SupervisorStatus, told: StatusCache
) -> tuple[ops.SubscriptionStatus, ...]:
    if len(told) > len(config.subscriptions):
        told.clear()  # some are not wanted any more
    found = []
    for one in config.subscriptions:
        key, standing = one.key, receive.subscriptions.get(one.key)
        known = told.get(key)
        if known is None or known[0] is not standing:
            known = told[key] = (standing, _subscription(one, standing))
        found.append(known[1])
    return tuple(found)


def _subscription(one: Subscription, standing: SubscriptionState | None) -> ops.SubscriptionStatus:
    return ops.SubscriptionStatus(
        path=one.path,
        params=one.key[2],
        feed=feed_name(one.path, one.params),
        state=standing.state if standing else "pending",
        since=_moment(standing.since_us) if standing else None,
        reason=(standing.reason or None) if standing else None,
    )


def _spool(spool: Spool, writer: WriterStatus, now: datetime) -> ops.SpoolStatus:
    return ops.SpoolStatus(
        entries=spool.entries,
        bytes=spool.live_bytes,
        limit_bytes=spool.max_bytes,
        head_seq=spool.head,
        durable_seq=spool.synced,
        acked_seq=spool.acked,
        oldest_age_seconds=lag_seconds(writer, now),
    )


def _database(kind: str, writer: WriterStatus, now: datetime) -> ops.DatabaseStatus:
    return ops.DatabaseStatus(
        up=writer.database_up,
        kind=kind,
        position=writer.position,
        last_commit_at=datetime.fromtimestamp(writer.committed_at, UTC) if writer.committed_at else None,
        lag_seconds=lag_seconds(writer, now),
        last_error=writer.error,
    )


def _token(token: TokenState, now: datetime) -> ops.TokenStatus:
    ends = token.expires_in_seconds
    return ops.TokenStatus(
        expires_at=None if ends is None else now + timedelta(seconds=ends),
        life_seconds=token.life_seconds,
        logins=dict(token.logins),
    )


def _spool_pulse(spool: Spool) -> ops.Heartbeat:
    age = time.monotonic() - spool.synced_at
    return ops.Heartbeat(name="the spool's thread", age_seconds=age, limit_seconds=SPOOL_PULSE_SECONDS)


def lag_seconds(writer: WriterStatus, now: datetime) -> float:
    """How long the oldest entry has waited for its commit; 0 if none waits."""
    oldest = _moment(writer.oldest_us)
    return max((now - oldest).total_seconds(), 0.0) if oldest else 0.0


def _moment(us: int | None) -> datetime | None:
    return None if us is None else datetime.fromtimestamp(us / 1_000_000, UTC)


def _params(text: str) -> dict[str, str]:
    params: dict[str, str] = json.loads(text)
    return params
