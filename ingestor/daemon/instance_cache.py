"""What the database knows of the instances that share it, read now and then in a thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from ingestor.core.clock import boottime
from ingestor.core.redaction import redactor
from ingestor.core.threads import start_thread
from ingestor.errors import IngestorError
from ingestor.monitoring.status import InstanceStatus, SharedStatus
from ingestor.store.engine import Engine
from ingestor.store.instances import InstanceRecord, load_instances
from ingestor.store.read.status_queries import count_unreceived

CHECK_SECONDS = 1.0  # between two checks whether a read is due
REFRESH_SECONDS = 15.0
REFRESH_PAUSE_FACTOR = 20  # a read that took long is repeated after this many times its duration
MAX_AGE_SECONDS = 120.0  # what is older says nothing about now

log = logging.getLogger(__name__)


class InstanceCache:
    """The instances as last read; nothing if that was too long ago."""

    def __init__(self, read: Callable[[], SharedStatus]) -> None:
        """``read`` blocks, and may raise any IngestorError."""
        self._read = read
        self._last = SharedStatus()
        self._read_at = 0.0  # boottime()
        self._refresh_at = 0.0
        self._refreshing = threading.Lock()

    def newest(self) -> SharedStatus:
        """Return what was last read. Never waits."""
        return self._last if boottime() - self._read_at < MAX_AGE_SECONDS else SharedStatus()

    async def keep_fresh(self) -> None:
        """Read whenever that is due, until cancelled."""
        while True:
            self.refresh()
            await asyncio.sleep(CHECK_SECONDS)

    def refresh(self) -> None:
        """Read in a thread if that is due and the last attempt has ended: a database may hang for a minute.

        Never waits. Due every REFRESH_SECONDS, and with each call until the writer has registered.
        """
        if boottime() < self._refresh_at or not self._refreshing.acquire(blocking=False):
            return
        try:
            start_thread(threading.Thread(target=self._refresh, name="instances", daemon=True))
        except OSError:
            self._refreshing.release()  # the next call tries again

    def _refresh(self) -> None:
        started = boottime()
        self._refresh_at = started + REFRESH_SECONDS
        try:
            self._last = self._read()
            self._read_at = boottime()
            pause = max(REFRESH_SECONDS, REFRESH_PAUSE_FACTOR * (self._read_at - started))
            self._refresh_at = self._read_at + pause if self._last.instances else 0.0
        except IngestorError as error:  # the writer reports an outage
            log.debug("the instances cannot be read: %s", redactor.scrub(str(error)))
        finally:
            self._refreshing.release()


def load_shared_status(engine: Engine, spool_id: str) -> SharedStatus:
    """Read what the status says of the database's instances; the one of ``spool_id`` is marked as this daemon's.

    Raises DatabaseUnavailable.
    """
    records = load_instances(engine)
    alive = [record.instance_id for record in records if record.alive]
    # Where this daemon gives no sign of life, the database does not know what it receives now.
    is_known = any(record.alive and record.spool_id == spool_id for record in records)
    return SharedStatus(
        instances=tuple(instance_status(record, spool_id) for record in records),
        unreceived_subscriptions=count_unreceived(engine, alive) if is_known else None,
    )


def instance_status(record: InstanceRecord, spool_id: str) -> InstanceStatus:
    """Return an instance as the status shows it."""
    return InstanceStatus(
        instance_id=record.instance_id,
        name=record.name,
        own=record.spool_id == spool_id,
        state=record.state,
        behind_seconds=record.behind_seconds,
        position=record.position,
        heartbeat_at=record.heartbeat_at,
        leases=record.leases,
    )
