"""The status of a healthy daemon, of which each test changes one part."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from ingestor.monitoring.status import (
    ConnectionStatus,
    DatabaseStatus,
    Heartbeat,
    InstanceStatus,
    RowCounts,
    SpoolStatus,
    Status,
    SubscriptionStatus,
    TokenStatus,
)

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)

SENTIMENT = ConnectionStatus(
    id="0123456789ab",
    path="/real-time/crowd-sentiment",
    feed="crowd-sentiment",
    connected=True,
    dialect="4",
    frames=7,
    last_frame_at=NOON,
    since=NOON,
)
AAPL = SubscriptionStatus(
    path="/real-time/crowd-sentiment",
    params='{"ticker":"AAPL"}',
    feed="crowd-sentiment",
    state="live",
    since=NOON,
)
HOST1 = InstanceStatus(
    instance_id=1, name="host1", own=True, state="alive", behind_seconds=3.0, position=7, heartbeat_at=NOON
)
HOST2 = InstanceStatus(
    instance_id=2, name="host2", own=False, state="silent", behind_seconds=90.0, heartbeat_at=NOON, leases=("repair",)
)
GOOD = Status(
    at=NOON,
    instance="desk",
    version="0.1.0",
    pid=42,
    started_at=NOON,
    config_sha256="ab" * 32,
    connections=(SENTIMENT,),
    subscriptions=(AAPL,),
    spool=SpoolStatus(entries=3, bytes=900, limit_bytes=1000, kept_bytes=5000, head_seq=10, durable_seq=9, acked_seq=7),
    database=DatabaseStatus(up=True, kind="sqlite", position=7, last_commit_at=NOON, lag_seconds=0.25),
    rows=RowCounts(new=5, revised=1, duplicate=2, dead=1),
    batches=2,
    token=TokenStatus(expires_at=NOON, life_seconds=3600.0, logins={"ok": 3}),
    pulses=(Heartbeat(name="event loop", age_seconds=0.1, limit_seconds=30.0),),
)


def status(**changes: object) -> Status:
    return replace(GOOD, **changes)  # type: ignore[arg-type]
