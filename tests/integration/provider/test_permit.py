"""Nothing is opened without the permit, and what is open stays open; another instance that receives closes it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from ingestor.core.clock import boottime
from ingestor.core.permit import Permit
from ingestor.errors import ConnectionFailed
from ingestor.provider.subscriptions.connect_gate import ConnectGate
from tests.support.daemon import until
from tests.support.faulty_simulator import FaultySimulator

from .raw_engineio_server import Memory
from .running_supervisor import AAPL, BUZZ, TSLA, StartSupervisor, run_simulated

pytestmark = pytest.mark.usefixtures("quick")
OTHER = {"reason": "instance 7 (other) receives"}
SETTLE_SECONDS = 0.3  # several times as long as every retry


@pytest.fixture
async def permit() -> Permit:
    """A permit that is held, and does not end by itself."""
    return Permit()


def requests_to(simulator: FaultySimulator) -> tuple[int, int]:
    return simulator.login_attempts, simulator.handshakes


async def test_without_permit_neither_login_nor_connection_is_attempted(
    run: StartSupervisor, simulator: FaultySimulator, permit: Permit
) -> None:
    permit.revoke()
    running = await run(simulator.url, simulator.api_key, [AAPL], permit)
    await running.until("pending", AAPL)
    running.supervisor.apply([AAPL, TSLA, BUZZ])
    login = asyncio.create_task(running.tokens.get())
    await asyncio.wait([login], timeout=1.0)  # a login takes milliseconds, on a busy machine more
    assert not login.done()
    assert requests_to(simulator) == (0, 0)
    permit.grant(math.inf)
    running.supervisor.end_standby()
    await running.until("live", AAPL, TSLA, BUZZ)
    assert await login == running.tokens.current
    assert requests_to(simulator) == (1, 2)


async def test_connection_stays_open_when_permit_ends_and_is_not_replaced_once_lost(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory, permit: Permit
) -> None:
    running = await run_simulated(run, simulator, AAPL, permit=permit)
    permit.grant(boottime() + 0.05)
    await until(lambda: not permit.held)
    seen = len(memory.frames)
    await memory.until(lambda: len(memory.frames) > seen + 5)
    await simulator.kick()
    await running.until("disconnected", AAPL)
    await asyncio.sleep(SETTLE_SECONDS)
    assert requests_to(simulator) == (1, 1)
    permit.grant(math.inf)
    running.supervisor.end_standby()
    await running.until("live", AAPL)
    assert requests_to(simulator) == (1, 2)


@pytest.mark.parametrize("renewal", ["overlap", "reconnect"])
async def test_connection_with_an_old_token_is_kept_until_permit_is_held(
    run: StartSupervisor, simulator: FaultySimulator, permit: Permit, renewal: str
) -> None:
    running = await run_simulated(run, simulator, AAPL, permit=permit, renewal=renewal)
    permit.revoke()
    assert running.tokens.current
    running.tokens.discard(running.tokens.current)
    (group,) = running.supervisor._groups.values()
    group.wake_up.set()
    await asyncio.sleep(SETTLE_SECONDS)
    assert requests_to(simulator) == (1, 1)
    assert running.in_state("live", AAPL)
    permit.grant(math.inf)
    running.supervisor.end_standby()
    await until(lambda: requests_to(simulator) == (2, 2))
    await running.until("live", AAPL)


async def test_renewal_of_the_token_waits_for_the_permit(
    run: StartSupervisor, make_simulator: Callable[..., Any], permit: Permit
) -> None:
    simulator = await make_simulator(token_lifetime_seconds=0.6)
    running = await run_simulated(run, simulator, AAPL, permit=permit, token={"renew_before": "100ms"})
    permit.revoke()
    before = requests_to(simulator)
    await until(lambda: not running.tokens.current or boottime() > running.tokens.current.expires_at + SETTLE_SECONDS)
    assert requests_to(simulator) == before
    permit.grant(math.inf)
    await until(lambda: simulator.logins > before[0])


async def test_connection_that_is_opening_when_permit_ends_is_not_used(
    run: StartSupervisor, raw_server: Any, permit: Permit
) -> None:
    server = await raw_server(lambda client: client.acknowledge(), greets=False)
    running = await run(server.url, "key", [AAPL], permit, protocol="4")
    client = await server.client()
    permit.revoke()
    await server.greet(client)
    async with asyncio.timeout(5):
        await client.closed.wait()
    assert client.requests("subscribe") == []
    assert running.states(AAPL) == ["pending"]
    server.greets = True
    permit.grant(math.inf)
    running.supervisor.end_standby()
    await running.until("live", AAPL)


async def test_opening_ends_with_the_permit(permit: Permit) -> None:
    permit.grant(boottime() + 0.05)
    with pytest.raises(ConnectionFailed, match="must not be opened now"):
        async with asyncio.timeout(5), ConnectGate(permit).time_limit():
            await asyncio.Event().wait()
    async with ConnectGate(Permit()).time_limit():
        pass


async def test_opening_ends_soon_if_the_permit_ends_earlier_than_granted(permit: Permit) -> None:
    permit.grant(boottime() + 60)  # after a suspend it ends as early for a timer, which stood still
    asyncio.get_running_loop().call_later(0.1, permit.revoke)
    with pytest.raises(ConnectionFailed, match="must not be opened now"):
        async with asyncio.timeout(10), ConnectGate(permit).time_limit():
            await asyncio.Event().wait()


async def test_opening_goes_on_while_the_permit_is_renewed(permit: Permit) -> None:
    permit.grant(boottime() + 0.3)
    opened = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, lambda: permit.grant(boottime() + 5))
    loop.call_later(0.5, opened.set)
    async with ConnectGate(permit).time_limit():
        await opened.wait()


async def test_spool_that_is_full_when_standby_ends_is_the_state(
    run: StartSupervisor, simulator: FaultySimulator, permit: Permit
) -> None:
    permit.revoke()
    running = await run(simulator.url, simulator.api_key, [AAPL], permit)
    await running.until("pending", AAPL)
    await running.supervisor.disconnect_all("the spool is full")
    await running.supervisor.stand_by(OTHER)
    await running.until("standby", AAPL)
    permit.grant(math.inf)
    running.supervisor.end_standby()
    await running.until("spool_full", AAPL)
    running.supervisor.resume()
    await running.until("live", AAPL)


async def test_standing_by_closes_connections_as_of_the_last_byte(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory, permit: Permit
) -> None:
    running = await run_simulated(run, simulator, AAPL, BUZZ, permit=permit)
    permit.revoke()
    await running.supervisor.stand_by(OTHER)
    await running.until("standby", AAPL, BUZZ)
    await until(lambda: not simulator.connections)
    assert [fact.detail for fact in memory.facts("standing_by")] == [OTHER]
    ends = memory.facts("disconnected")
    assert {(fact.state, fact.detail["cause"], fact.detail["reason"]) for fact in ends} == {
        ("standby", "standby", OTHER["reason"])
    }
    assert all(fact.since_us is not None and fact.since_us <= memory.frames[-1].received_us + 10_000 for fact in ends)
    running.supervisor.apply([AAPL, TSLA])
    await running.until("standby", TSLA)
    await asyncio.sleep(SETTLE_SECONDS)
    assert requests_to(simulator) == (1, 2)
    permit.grant(math.inf)
    running.supervisor.end_standby()
    await running.until("live", AAPL, TSLA)
    assert running.states(AAPL) == ["pending", "live", "standby", "pending", "live"]


async def test_spool_that_fills_and_drains_while_standing_by_leaves_it_standing_by(
    run: StartSupervisor, simulator: FaultySimulator, permit: Permit
) -> None:
    permit.revoke()
    running = await run(simulator.url, simulator.api_key, [AAPL], permit)
    await running.until("pending", AAPL)
    await running.supervisor.stand_by(OTHER)
    await running.supervisor.disconnect_all("the spool is full")
    await running.until("spool_full", AAPL)
    running.supervisor.resume()
    await running.until("standby", AAPL)
    assert running.states(AAPL) == ["pending", "standby", "spool_full", "standby"]
    permit.grant(math.inf)
    running.supervisor.end_standby()
    await running.until("live", AAPL)


async def test_failed_login_while_standing_by_changes_no_state(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory, permit: Permit
) -> None:
    running = await run(simulator.url, "wrong", [AAPL], permit)
    await running.until("token_failed", AAPL)
    permit.revoke()
    await running.supervisor.stand_by(OTHER)
    running.tokens._report(RuntimeError("the key file is gone"))  # type: ignore[arg-type]
    assert memory.facts("token_failed")[-1].subscriptions == ()
    assert running.in_state("standby", AAPL)
