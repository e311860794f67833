"""Stand-by: of several daemons with one API key, the holder of a lease in the database receives; the others wait.

The lease is taken and renewed through a connection of its own, in threads that nothing else waits for. Here it ends by
our own clock, before it ends by the database's, so that this daemon stops opening connections before another may begin,
however long it was stopped or suspended in between. While the database is away, open connections stay open, since
no other daemon can take over either.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from ingestor.config import Config
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import Fact
from ingestor.core.permit import Permit
from ingestor.core.redaction import redactor
from ingestor.core.threads import run_in_daemon_thread
from ingestor.errors import IngestorError
from ingestor.monitoring.status import StandbyStatus
from ingestor.provider.subscriptions.supervisor import Supervisor
from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine
from ingestor.store.receiver_lease import LeaseAnswer, LeaseHolder, ReceiverLease

LEASE_SECONDS = 15.0
POLL_SECONDS = 5.0
RETRY_SECONDS = 1.0  # after no answer, and until this run has registered in the database
AFTER_END_SECONDS = 0.1  # from the end of the other instance's lease to the attempt to take it
RELEASE_SECONDS = 2.0  # for the last request, at the end of the daemon
YIELD_SECONDS = 60.0  # without any connection; then another instance gets the chance
MAX_YIELD_SECONDS = 300.0  # the same, after it was in vain several times

Change = Literal["", "taken", "regained", "other"]

log = logging.getLogger(__name__)


class Standing:
    """Whether we hold the lease, by what the database answered. Free of I/O; times are boottimes."""

    def __init__(self, lease_seconds: float) -> None:
        self.other: LeaseHolder | None = None  # holds the lease, as the last answer said
        self.held_until = -math.inf
        self.is_receiver = False  # by the last answer; the lease may have ended since
        self._lease_seconds = lease_seconds
        self._asked_at = -math.inf  # of the last answer
        self._expiry_reported = False

    def note(self, answer: LeaseAnswer, asked_at: float) -> Change:
        """Take note of an answer to a request that was sent at ``asked_at``, and return what changed with it."""
        self._asked_at = asked_at
        if answer.is_ours:
            had_ended, was_receiver = self._expiry_reported, self.is_receiver
            self.other, self.is_receiver, self.held_until = None, True, asked_at + self._lease_seconds
            self._expiry_reported = False
            if answer.other or not was_receiver:
                return "taken"
            return "regained" if had_ended else ""
        if answer.other is None:  # free, but not for us now
            self.other = None
            return ""
        before, self.other = self.other, answer.other
        self.held_until, self.is_receiver, self._expiry_reported = -math.inf, False, False
        return "" if before and before.instance_id == answer.other.instance_id else "other"

    def has_expired(self, now: float) -> bool:
        """Return once whether our lease ended because it could not be renewed."""
        expired = self.is_receiver and now >= self.held_until and not self._expiry_reported
        self._expiry_reported |= expired
        return expired

    def give_up(self) -> None:
        """Note that we released the lease."""
        self.held_until, self.is_receiver = -math.inf, False

    def is_standby(self, now: float) -> bool:
        """Whether another instance receives, as far as was proven within the time of one lease."""
        return self.other is not None and now < self._asked_at + self._lease_seconds


class Standby:
    """Keeps the permit as long as the lease is held, and lets the supervisor stand by while another instance has it."""

    def __init__(
        self,
        lease: ReceiverLease,
        permit: Permit,
        supervisor: Supervisor,
        record: Callable[[Fact], object],
        *,
        lease_seconds: float,
        poll_seconds: float,
        yield_seconds: float,
    ) -> None:
        self._lease = lease
        self._permit = permit
        self._supervisor = supervisor
        self._record = record
        self._poll_seconds = poll_seconds
        self._yield_seconds = yield_seconds
        self._patience_seconds = yield_seconds
        self._standing = Standing(lease_seconds)
        self._lease_seconds = lease_seconds
        self._error = "the database has not answered yet"
        self._wake = asyncio.Event()
        self._connected_at = 0.0  # boottime of the last moment with a connection, or of taking the lease
        self._look_until = 0.0  # boottime until which others may take the lease that we released
        self._yield_reported = False

    def wake(self) -> None:
        """Ask the database at once: the process may have been stopped, or the machine suspended."""
        self._wake.set()

    async def run(self) -> None:
        """Take and renew the lease until cancelled."""
        while True:
            self._wake.clear()
            await self._poll()
            self._report_expiry()
            await self._yield_if_in_vain()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._pause_seconds())

    async def release(self) -> None:
        """Let another instance take over at once. Call it when no connection is open, and ``run`` was cancelled."""
        self._permit.revoke()
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await run_in_daemon_thread(self._lease.release, "lease")
                self._lease.close()
        except (IngestorError, OSError, TimeoutError) as error:
            if self._standing.is_receiver:
                reason = str(error) or "no answer"
                log.info("the lease was not released; it ends by itself", extra={"reason": reason})

    def status(self) -> StandbyStatus:
        """Return the state for the status page."""
        standing, now = self._standing, boottime()
        if self._permit.held:
            return StandbyStatus(role="receiver", reason="this instance holds the lease")
        if standing.is_standby(now):
            return StandbyStatus(role="standby", reason=_reason(standing.other), receiver=str(standing.other))
        return StandbyStatus(role="waiting", reason=f"the lease is not held: {self._error}")

    # -- one round

    async def _poll(self) -> None:
        asked_at = boottime()  # before the request is sent, so that the lease ends here before it ends there
        only_look = asked_at < self._look_until
        try:
            answer = await run_in_daemon_thread(lambda: self._lease.take(only_look=only_look), "lease")
        except (IngestorError, OSError) as error:  # an outage, whatever it is: the writer decides what is fatal
            self._error = redactor.scrub(str(error))
            return
        self._report_expiry()  # also if the answer is that it is ours again
        self._error = "" if answer.is_ours or answer.other else "no instance holds it, and this one may not take it yet"
        change = self._standing.note(answer, asked_at)
        if answer.is_ours:
            self._permit.grant(self._standing.held_until)
        if change == "other":
            await self._stand_by()
        elif change:
            self._receive(change, answer.other)

    def _report_expiry(self) -> None:
        if self._standing.has_expired(boottime()):
            reason = f"not renewed for {self._lease_seconds:g} s: {self._error or 'the answer came too late'}"
            self._report("lease_expired", {"reason": reason})

    async def _stand_by(self) -> None:
        self._permit.revoke()
        await self._supervisor.stand_by({"reason": _reason(self._standing.other), **_details(self._standing.other)})

    def _receive(self, change: Change, before: LeaseHolder | None) -> None:
        self._connected_at = boottime()
        if before:
            silent = None if before.silent_seconds is None else round(before.silent_seconds, 1)
            reason = f"{before} no longer renews its lease"
            self._report("took_over", {"reason": reason, **_details(before), "silent_seconds": silent})
        elif change == "regained":
            self._report("lease_regained", {"reason": "the database answers again"})
        self._supervisor.end_standby()

    async def _yield_if_in_vain(self) -> None:
        """Release a lease with which we cannot connect: the key may be refused here only, or our network be away."""
        now = boottime()
        if self._supervisor.is_connected:
            self._connected_at, self._patience_seconds, self._yield_reported = now, self._yield_seconds, False
        if not self._permit.held or now < self._connected_at + self._patience_seconds:
            return
        if not self._yield_reported:
            seconds = round(now - self._connected_at)
            self._report("lease_yielded", {"reason": f"no connection to the provider for {seconds} s"})
        self._yield_reported = True
        self._patience_seconds = min(2 * self._patience_seconds, MAX_YIELD_SECONDS)
        self._look_until = now + 2 * self._poll_seconds
        self._permit.revoke()
        self._standing.give_up()
        with suppress(IngestorError, OSError):  # then it ends by itself
            await run_in_daemon_thread(self._lease.release, "lease")
        self._lease.resume()

    def _pause_seconds(self) -> float:
        if self._error:
            return min(RETRY_SECONDS, self._poll_seconds)
        other = self._standing.other
        return min(self._poll_seconds, max(0.0, other.left_seconds) + AFTER_END_SECONDS if other else math.inf)

    def _report(self, kind: str, detail: dict[str, Any]) -> None:
        self._record(Fact(kind, wall_us(), detail))


def build_standby(
    config: Config, spool: Spool, permit: Permit, supervisor: Supervisor, record: Callable[[Fact], object]
) -> Standby:
    """Build what takes and renews the lease in the configured database, for this run of the spool."""
    # A replaced primary that came back would give the lease to two.
    engine = make_engine(config.database.url.get_secret_value(), known_server=lambda: spool.server)
    lease = ReceiverLease(engine, spool.run_id, LEASE_SECONDS, known_server=lambda: spool.server)
    seconds = {"lease_seconds": LEASE_SECONDS, "poll_seconds": POLL_SECONDS, "yield_seconds": YIELD_SECONDS}
    return Standby(lease, permit, supervisor, record, **seconds)


def _reason(other: LeaseHolder | None) -> str:
    return f"{other} receives"


def _details(other: LeaseHolder | None) -> dict[str, Any]:
    return {"instance_id": other.instance_id, "name": other.name} if other else {}
