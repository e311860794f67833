"""The common part of failover tests: a database goes back in time under a daemon, and what is missing is measured."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from .daemon import until
from .db_reader import Row
from .fork_server import ForkedCommand
from .outage_scenario import OutageScenario
from .reconciliation import reconcile, spool_head

STOP_SECONDS = 1  # by which a gap may begin before a stop: with the last byte that was heard
CRASH_SECONDS = 8  # by which a gap may begin before a kill: the period of the heartbeat, and more

Span: TypeAlias = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a run has lost or written too often. Each figure but the last must be 0."""

    missing: int  # events that were acknowledged after their fsync, and are not in the tables
    twice: int  # events that an instance has stored more than once
    gaps: int  # intervals on record as not covered while the daemon was live
    audit: int  # exit code of `ingestor audit`
    new_instances: int  # beyond one for each host
    stored: int  # payloads

    def __str__(self) -> str:
        return (
            f"{self.missing} rows missing, {self.twice} twice, {self.gaps} gaps, audit {self.audit},"
            f" {self.new_instances} new instances, {self.stored} events stored"
        )

    @property
    def none(self) -> bool:
        return not (self.missing or self.twice or self.gaps or self.audit or self.new_instances)


class FailoverScenario(OutageScenario):
    """An ``OutageScenario`` that knows when its daemon was away on purpose, and counts instead of asserting."""

    async def __aenter__(self) -> FailoverScenario:
        self._away = [(datetime.min.replace(tzinfo=UTC), datetime.now(UTC))]
        await super().__aenter__()
        self._note_return()
        self._live_at, self._first_event = time.monotonic(), self.feed.event_count
        return self

    @property
    def event_rate(self) -> float:
        """The events per second that the feed has sent so far; fewer than its ``rate`` on a busy machine."""
        return (self.feed.event_count - self._first_event) / (time.monotonic() - self._live_at)

    async def restart_daemon(self) -> None:
        """Start the daemon, which was killed or stopped, and wait until it is live."""
        self.daemon.start()
        await self.wait_for_return()

    async def wait_for_return(self) -> None:
        """Wait until the daemon, which was started, is live."""
        await self.daemon.wait_until_live()
        self._note_return()

    def kill_daemon(self) -> None:
        """Kill it with SIGKILL; ``restart_daemon`` must follow."""
        self.expect_gap(CRASH_SECONDS)
        self.daemon.kill()

    async def stop_daemon(self) -> None:
        """Stop it with SIGTERM; ``restart_daemon`` must follow."""
        self.expect_gap(STOP_SECONDS)
        assert await self.daemon.terminate(timeout_seconds=30) == 0

    def expect_gap(self, earlier_seconds: float = 0) -> None:
        """Expect that the daemon is not live from now, or earlier, until ``wait_for_return``."""
        began_at = datetime.now(UTC) - timedelta(seconds=earlier_seconds)
        self._away.append((began_at, datetime.max.replace(tzinfo=UTC)))

    async def receive_for(self, seconds: float) -> None:
        """Wait until the feed has sent for this time."""
        end = time.monotonic() + seconds
        await until(lambda: time.monotonic() >= end, seconds + 10)

    async def measure_losses(self, hosts: int = 1) -> Losses:
        """Stop feed and daemon, and compare what was acknowledged with what is stored, by ``hosts`` daemons in all."""
        await self.stop_feed()
        await self.stop_daemon()
        audit = await self._audit()
        found = reconcile(self.daemon.db, self.feed.event_count, self.feed.acknowledged)
        assert found.acknowledged, "nothing was acknowledged, so nothing was tested"
        losses = Losses(
            missing=len(found.lost),
            twice=len(found.duplicated),
            gaps=len(self._unexplained_gaps()),
            audit=audit,
            new_instances=self.daemon.db.scalar("SELECT count(*) FROM instances") - hosts,
            stored=found.stored,
        )
        if losses.none:
            self._assert_whole()
        return losses

    async def _audit(self) -> int:
        command = ("audit", "--config", self.daemon.config_file)
        async with ForkedCommand(self._fork_server, *command, folder=self._folder) as audit:
            return await audit.wait_for_exit(timeout_seconds=120)

    def _assert_whole(self) -> None:
        """Assert that every entry is in the ledger once, up to the last one of the spool."""
        self.daemon.db.assert_consistent()
        head = spool_head(self.spool)
        position = self.daemon.db.scalar(f"SELECT position FROM instances WHERE spool_id = '{head['spool_id']}'")
        assert position == head["next_seq"] - 1

    def _unexplained_gaps(self) -> list[Row]:
        gaps = self.daemon.db.rows("SELECT ticker, states, reason, from_at, to_at FROM gaps")
        away = _join(self._away)
        return [gap for gap in gaps if not any(_is_within(gap, span) for span in away)]

    def _note_return(self) -> None:
        self._away[-1] = (self._away[-1][0], datetime.now(UTC))


def _join(spans: Iterable[Span]) -> list[Span]:
    """Join spans that overlap: where kills follow each other faster than heartbeats, so do the gaps."""
    joined: list[Span] = []
    for began_at, ended_at in sorted(spans):
        if joined and began_at <= joined[-1][1]:
            began_at, ended_at = joined[-1][0], max(joined.pop()[1], ended_at)
        joined.append((began_at, ended_at))
    return joined


def _is_within(gap: Row, away: Span) -> bool:
    began_at, ended_at = away
    return bool(began_at <= gap["from_at"] and gap["to_at"] <= ended_at)
