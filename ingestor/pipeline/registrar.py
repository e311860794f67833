"""Register a spool in the database, and decide what to do if its instance there is not what this run has left.

A database may go back in time: it was restored from a copy, or a standby that lagged was promoted. The instance is then
at a position before what the spool has acknowledged. What the spool still keeps is written again, as the same instance.
What it no longer keeps is lost: this instance ends, and another one begins with the oldest entry that is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from ingestor.core.entries import Fact, recorded_us
from ingestor.core.times import to_datetime
from ingestor.errors import DatabaseUnavailable, PositionConflict
from ingestor.spool.spool import Spool
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo, LostSpan, Ownership, Registration, SpoolExtent


class Rewind(NamedTuple):
    """What is written again, because the database went back in time."""

    position: int  # that the database has: the entries after it are written again
    entries: int
    since_us: int | None  # when the first of them was received
    reason: str

    def to_fact(self, at_us: int) -> Fact:
        """Return the fact that reports it."""
        detail: dict[str, Any] = {"reason": self.reason, "entries": self.entries, "position": self.position}
        if self.since_us is not None:
            detail["received_since"] = f"{to_datetime(self.since_us):%Y-%m-%d %H:%M:%S} UTC"
        return Fact("rewound", at_us, detail)


class Registrar:
    """Registers one spool, as often as necessary. Used by the writer's thread only."""

    def __init__(
        self,
        spool: Spool,
        database: BatchWriter,
        instance: InstanceInfo,
        on_lost: Callable[[str, int | None], None],
        on_other_run: Callable[[str], None],
        on_new_instance: Callable[[int | None], None],
        on_rewound: Callable[[Rewind], None],
    ) -> None:
        """``on_lost`` receives why entries are lost, and since when (µs); None if coverage in the database is right.

        ``on_other_run`` receives why this spool became another instance without a loss. ``on_new_instance`` receives
        since when (µs) an instance that begins in the middle of the spool has everything; None: from its next entry on.
        """
        self._spool = spool
        self._database = database
        self._instance = instance
        self._on_lost = on_lost
        self._on_other_run = on_other_run
        self._on_new_instance = on_new_instance
        self._on_rewound = on_rewound
        self._is_registered = False  # or was, since the start
        self._is_reported = False  # what this registration changes, by an earlier attempt
        self._lost: LostSpan | None = None  # to be recorded with the new instance

    def register(self, published_us: int | None) -> int:
        """Become the run that writes as this spool's instance, and return the position that it has committed.

        If the instance is not ours, or lacks entries that the spool no longer has, become another one. If it lacks
        entries that the spool keeps, rewind the spool. ``published_us`` is the last heartbeat that this run has
        published. Raises DatabaseUnavailable.
        """
        found = self._become_instance(published_us)
        while found.position < self._spool.acked and not self._rewind(found):
            found = self._become_instance(published_us)  # the spool has just dropped what was to be written again
        self._is_registered, self._is_reported, self._lost = True, False, None
        return found.position

    def _become_instance(self, published_us: int | None) -> Registration:
        self._check_unknown_spool(published_us)
        found = self._claim()
        if found.ownership in (Ownership.WENT_BACK, Ownership.FOREIGN):
            self._leave(found)
            found = self._claim()
        if found.ownership is Ownership.NEW and found.position > 0:
            self._on_new_instance(self._recorded_us(found.position + 1))
        return found

    def _rewind(self, found: Registration) -> bool:
        """Let the spool write again what the database lacks. Returns False if it no longer has all of that."""
        entries = self._spool.acked - found.position
        if not self._spool.rewind(found.position):
            return False
        if found.ownership is Ownership.NEW:
            reason = "the database has nothing of this instance"
        else:
            reason = f"the database is back at entry {found.position}: it was restored, or a standby has taken over"
        self._on_rewound(Rewind(found.position, entries, self._recorded_us(found.position + 1), reason))
        return True

    def _recorded_us(self, seq: int) -> int | None:
        """Return when an entry was received; None if the spool does not have it."""
        entries = self._spool.read(seq - 1, max_entries=1)
        return recorded_us(entries[0][1]) if entries and entries[0][0] == seq else None

    def _check_unknown_spool(self, published_us: int | None) -> None:
        """Report a loss if this spool dropped entries, and the database has never seen it."""
        first_seq = self._spool.first_seq()
        if self._is_reported or first_seq == 1 or self._database.has_instance(self._spool.spool_id):
            return
        self._is_reported = True
        since_us = (published_us or self._instance.started_us) if self._is_registered else None
        kept_us = self._recorded_us(first_seq)
        if since_us is not None and kept_us is not None and kept_us <= since_us:
            since_us = None  # the spool keeps all that was received since
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
        """Give the spool a new id: it becomes another instance, from its oldest entry on.

        What it keeps is written as that instance, unless another run has written it as this one.
        """
        now_us = time.time_ns() // 1000
        is_written = found.ownership is Ownership.FOREIGN and found.position >= self._spool.acked
        if found.ownership is Ownership.WENT_BACK:
            self._close_coverage_as_lost(self._until_us(found, now_us))
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
        self._spool.reset_id(keep=not is_written)

    def _until_us(self, found: Registration, now_us: int) -> int:
        """Return until when entries are lost that were received after its heartbeat: until the first that is kept."""
        kept_us = self._recorded_us(self._spool.first_seq())
        is_later = kept_us is not None and kept_us > (found.heartbeat_us or 0)  # unless the clock was set back since
        return kept_us if kept_us is not None and is_later else now_us

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

    def _close_coverage_as_lost(self, until_us: int) -> None:
        try:
            self._database.close_coverage_as_lost(until_us)
        except PositionConflict as error:
            raise DatabaseUnavailable(f"{error} meanwhile; registering again") from None
