"""Register a spool in the database, and decide what to do if its instance there is not what this run has left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from ingestor.errors import DatabaseUnavailable, PositionConflict
from ingestor.spool.spool import Spool
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo, LostSpan, Ownership, Registration, SpoolExtent


class Registrar:
    """Registers one spool, as often as necessary. Used by the writer's thread only."""

    def __init__(
        self,
        spool: Spool,
        database: BatchWriter,
        instance: InstanceInfo,
        on_lost: Callable[[str, int | None], None],
        on_other_run: Callable[[str], None],
    ) -> None:
        """``on_lost`` receives why entries are lost, and since when (µs); None if coverage in the database is right.

        ``on_other_run`` receives why this spool became another instance without a loss.
        """
        self._spool = spool
        self._database = database
        self._instance = instance
        self._on_lost = on_lost
        self._on_other_run = on_other_run
        self._is_registered = False  # or was, since the start
        self._is_reported = False  # what this registration changes, by an earlier attempt
        self._lost: LostSpan | None = None  # to be recorded with the new instance

    def register(self, published_us: int | None) -> int:
        """Become the run that writes as this spool's instance, and return the position that it has committed.

        If the instance is not ours, or lacks entries that the spool no longer has, become another one.
        ``published_us`` is the last heartbeat that this run has published. Raises DatabaseUnavailable.
        """
        self._check_unknown_spool(published_us)
        found = self._claim()
        if found.ownership in (Ownership.WENT_BACK, Ownership.FOREIGN):
            self._leave(found)
            found = self._claim()
        self._is_registered, self._is_reported, self._lost = True, False, None
        return found.position

    def _check_unknown_spool(self, published_us: int | None) -> None:
        """Report a loss if this spool acknowledged entries, and the database has never seen it."""
        if self._is_reported or self._spool.first_seq() == 1 or self._database.has_instance(self._spool.spool_id):
            return
        self._is_reported = True
        since_us = (published_us or self._instance.started_us) if self._is_registered else None
        self._on_lost("the database does not know this spool, which had written to one before", since_us)

    def _claim(self) -> Registration:
        instance = replace(self._instance, spool_id=self._spool.spool_id, run_id=self._spool.run_id)
        spool = self._spool
        extent = SpoolExtent(spool.first_seq(), spool.opened_head, spool.knows_run, spool.left_by, spool.server)
        found = self._database.register(instance, extent, self._lost)
        if found.server and found.server != spool.server:
            spool.note_server(*found.server)  # before anything is acknowledged because it is there
        return found

    def _leave(self, found: Registration) -> None:
        """Give the spool a new id: it becomes another instance, from its oldest entry on."""
        now_us = time.time_ns() // 1000
        if found.ownership is Ownership.WENT_BACK:
            self._close_coverage_as_lost(now_us)
            place = f"the database's position {found.position}"
            self._report_loss(f"{place} does not fit the spool: one of them is an older copy")
        else:
            reason = self._describe_foreign(found)
            self._lost = self._find_loss(found, now_us if self._is_registered else self._instance.started_us, reason)
            if self._lost:
                self._report_loss(reason)
            elif not self._is_reported:
                self._is_reported = True
                self._on_other_run(reason)
        self._spool.reset_id()

    def _describe_foreign(self, found: Registration) -> str:
        instance = f"instance {found.instance_id} ({found.name})"
        left = self._spool.left_by(found.run_id)
        if left is None:
            return f"another run writes as {instance}: this spool is a copy of that run's, or an older one"
        return (
            f"entries up to {found.position} were written as {instance}, and this spool has them up to {left} only:"
            " it is damaged, an older copy, or a copy of one with which another daemon goes on"
        )

    def _report_loss(self, reason: str) -> None:
        if not self._is_reported:
            self._is_reported = True
            self._on_lost(reason, None)

    def _find_loss(self, found: Registration, until_us: int, reason: str) -> LostSpan | None:
        """Return the time before ``until_us`` whose data may be missing, if another run writes as this instance.

        That run may have ended, and its spool with it: then what it received after its last heartbeat is missing.
        """
        is_reported = self._spool.loss is not None  # by a fact at the start
        is_complete = self._is_registered and found.position >= self._spool.acked
        nothing_to_record = is_reported or is_complete or found.has_ended
        if nothing_to_record or found.heartbeat_us is None or found.heartbeat_us >= until_us:
            return None
        return LostSpan(found.instance_id, found.heartbeat_us, until_us, reason)

    def _close_coverage_as_lost(self, now_us: int) -> None:
        try:
            self._database.close_coverage_as_lost(now_us)
        except PositionConflict as error:
            raise DatabaseUnavailable(f"{error} meanwhile; registering again") from None
