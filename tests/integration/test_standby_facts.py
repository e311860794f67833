"""What a stand-by records about its lease. The lease answers late, as it does after a SIGSTOP."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ingestor.core.entries import Fact
from ingestor.core.permit import Permit
from ingestor.daemon.standby import Standby
from ingestor.store.receiver_lease import LeaseAnswer

LEASE_SECONDS = 2.5  # longer than a busy machine stands still


class LateLease:
    """Ours at each request; the second answer comes after the lease has ended."""

    def __init__(self) -> None:
        self.requests = 0

    def take(self, *, only_look: bool) -> LeaseAnswer:
        assert not only_look
        self.requests += 1
        if self.requests == 2:
            time.sleep(2 * LEASE_SECONDS)
        return LeaseAnswer(True)


class PromptLease:
    """Ours at each request, at once."""

    def take(self, *, only_look: bool) -> LeaseAnswer:
        assert not only_look
        return LeaseAnswer(True)


class ConnectedSupervisor:
    is_connected = True

    def __init__(self) -> None:
        self.ends_of_standby = 0

    def end_standby(self) -> None:
        self.ends_of_standby += 1


def make_standby(lease: Any, supervisor: Any, facts: list[Fact], *, poll_seconds: float) -> Standby:
    seconds = {"lease_seconds": LEASE_SECONDS, "poll_seconds": poll_seconds, "yield_seconds": 60.0}
    return Standby(lease, Permit(), supervisor, facts.append, **seconds)


async def test_lease_that_ends_during_a_request_is_reported_as_expired_and_regained() -> None:
    facts: list[Fact] = []
    lease, supervisor = LateLease(), ConnectedSupervisor()
    standby = make_standby(lease, supervisor, facts, poll_seconds=0.01)
    running = asyncio.create_task(standby.run())
    async with asyncio.timeout(10):
        while lease.requests < 4:
            await asyncio.sleep(0.01)
    running.cancel()
    assert [fact.kind for fact in facts][:2] == ["lease_expired", "lease_regained"]
    assert facts[0].detail["reason"] == "not renewed for 2.5 s: the answer came too late"


async def test_lease_that_ends_between_two_requests_is_reported_as_expired_and_regained() -> None:
    facts: list[Fact] = []
    lease, supervisor = PromptLease(), ConnectedSupervisor()
    standby = make_standby(lease, supervisor, facts, poll_seconds=60)
    running = asyncio.create_task(standby.run())
    async with asyncio.timeout(10):
        while not supervisor.ends_of_standby:
            await asyncio.sleep(0.01)
    time.sleep(2 * LEASE_SECONDS)  # the process is stopped
    standby.wake()
    async with asyncio.timeout(10):
        while supervisor.ends_of_standby < 2:
            await asyncio.sleep(0.01)
    running.cancel()
    assert [fact.kind for fact in facts] == ["lease_expired", "lease_regained"]
