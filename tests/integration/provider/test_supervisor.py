"""The supervisor under every fault: states, reconnects, renewals, and no frame is lost."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ingestor.config.model import Subscription
from ingestor.core.backoff import Backoff
from ingestor.core.clock import read_clocks
from ingestor.core.entries import Frame
from ingestor.errors import SpoolFailed
from ingestor.provider.socket import connection
from ingestor.provider.subscriptions import connection_group, state_tracker
from tests.support.daemon import until
from tests.support.faulty_simulator import Fault, FaultySimulator

from .raw_engineio_server import ClientSocket, Memory
from .raw_http_server import token_reply
from .running_supervisor import AAPL, BUZZ, CROWD, TSLA, StartSupervisor, run_simulated

pytestmark = pytest.mark.usefixtures("quick")


# --- without faults ---


async def test_subscription_goes_from_pending_to_live_to_stopped(
    run: StartSupervisor, simulator: FaultySimulator
) -> None:
    running = await run_simulated(run, simulator, AAPL, TSLA, BUZZ)
    await running.supervisor.stop()
    for subscription in (AAPL, TSLA, BUZZ):
        assert running.states(subscription) == ["pending", "live", "stopped"]
    assert simulator.logins == 1
    assert simulator.handshakes == 2


async def test_acks_close_together_make_one_fact_that_is_not_early(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    await run_simulated(run, simulator, AAPL, TSLA)
    (fact,) = memory.facts("subscribed")
    (connected,) = memory.facts("connected")
    assert set(fact.subscriptions) == {AAPL.key, TSLA.key}
    assert fact.since_us is not None
    assert connected.at_us < fact.since_us <= fact.at_us


async def test_stop_counts_from_the_last_received_byte(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL)
    await memory.until(lambda: len(memory.frames) > 5)
    await running.supervisor.stop()
    (stopped,) = memory.facts("stopped")
    before = memory.all[: memory.all.index(stopped)]  # more may come while the connection closes
    last = [entry for entry in before if isinstance(entry, Frame)][-1]
    assert stopped.since_us == pytest.approx(last.received_us, abs=1000)


async def test_frames_carry_path_and_params_of_their_connection(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    special = Subscription(CROWD, "get", {"ticker": "AAPL", "period": "30"})
    await run_simulated(run, simulator, AAPL, special, BUZZ)
    await memory.until(lambda: len({(frame.path, frame.params) for frame in memory.frames}) == 3)
    assert {(frame.path, frame.params) for frame in memory.frames} == {
        (CROWD, "{}"),
        (CROWD, '{"period":"30"}'),
        (BUZZ.path, "{}"),
    }


async def test_status_shows_connections_and_states(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL, BUZZ)
    await memory.until(lambda: len(memory.frames) > 3)
    status = running.supervisor.status()
    assert [group.path for group in status.groups] == [CROWD, BUZZ.path]
    for group in status.groups:
        assert group.connected
        assert len(group.connection_id) == 12
        assert (group.protocol, group.last_error, dict(group.reconnects)) == ("4", "", {})
    assert sum(group.frames for group in status.groups) == len(memory.frames)
    assert max(group.last_frame_us or 0 for group in status.groups) == memory.frames[-1].received_us
    assert {key: current.state for key, current in status.subscriptions.items()} == {
        AAPL.key: "live",
        BUZZ.key: "live",
    }
    await running.supervisor.stop()
    after = running.supervisor.status()
    assert sum(group.frames for group in after.groups) == len(memory.frames)
    assert not any(group.connected for group in after.groups)


# --- connections that end ---


@pytest.mark.parametrize(
    ("close", "cause"),
    [
        pytest.param(lambda simulator: simulator.kick(), "kicked", id="41"),
        pytest.param(lambda simulator: simulator.close_transport(), "closed", id="1"),
        pytest.param(lambda simulator: simulator.close_transport("reset"), "lost", id="RST"),
    ],
)
async def test_after_any_close_all_resubscribe_and_gap_is_recorded(
    run: StartSupervisor,
    simulator: FaultySimulator,
    memory: Memory,
    close: Callable[[FaultySimulator], Awaitable[None]],
    cause: str,
) -> None:
    running = await run_simulated(run, simulator, AAPL, TSLA)
    await memory.until(lambda: memory.frames)
    await close(simulator)
    await memory.until(lambda: memory.facts("disconnected"))
    await running.until("live", AAPL, TSLA)
    (disconnected,) = memory.facts("disconnected")
    first_id = memory.facts("connected")[0].detail["connection"]
    last = max(frame.received_us for frame in memory.frames if frame.connection_id == first_id)
    assert disconnected.detail["cause"] == cause
    assert disconnected.since_us is not None
    # The one is a reading of the wall clock, the other is computed by CLOCK_BOOTTIME.
    assert last - 1_000 <= disconnected.since_us <= disconnected.at_us
    assert running.states(AAPL) == ["pending", "live", "disconnected", "pending", "live"]
    assert dict(running.supervisor.status().groups[0].reconnects) == {cause: 1}


OPEN = '0{"sid":"x","upgrades":[],"pingInterval":25000,"pingTimeout":20000}'


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda client: client.send(OPEN, '40{"sid":"x"}', "41"), id="kick during connect"),
        pytest.param(lambda client: client.send('42["res",[]]', OPEN, '40{"sid":"x"}'), id="frame before OPEN"),
        pytest.param(lambda client: client.send(), id="no OPEN at all"),
        pytest.param(lambda client: client.send(OPEN), id="no CONNECT"),
        pytest.param(lambda client: client.send(OPEN, '40{"sid":"x"}', "1"), id="close right after CONNECT"),
        pytest.param(lambda client: client.close(), id="closed websocket"),
        pytest.param(lambda client: asyncio.sleep(0, client.abort()), id="aborted connection"),
    ],
)
async def test_connection_that_fails_at_start_is_followed_by_another(
    run: StartSupervisor,
    raw_server: Any,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[ClientSocket], Awaitable[None]],
) -> None:
    async def talk(client: ClientSocket) -> None:
        if len(server.clients) == 1:
            await fault(client)
        else:
            await server.greet(client)
            await client.acknowledge()

    monkeypatch.setattr(connection, "OPEN_SECONDS", 0.3)
    server = await raw_server(talk, greets=False)
    running = await run(server.url, "key", [AAPL], protocol="4")
    await running.until("live", AAPL)
    assert len(server.clients) == 2
    assert memory.facts("connect_failed", "disconnected")


async def test_supervisor_reconnects_after_server_restart(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL)
    await simulator.stop()
    await until(lambda: running.supervisor.status().groups[0].failed_attempts >= 5)
    assert "connection refused" in running.supervisor.status().groups[0].last_error
    assert len(memory.facts("connect_failed")) <= 2, "one, and one more if the server was still closing at first"
    await simulator.start()
    await running.until("live", AAPL)
    assert memory.facts("connected")[-1].detail["failed_attempts"] >= 5
    assert memory.facts("connected")[-1].detail["outage_seconds"] > 0
    assert running.supervisor.status().groups[0].failed_attempts == 0
    states = running.states(AAPL)
    assert states == ["pending", "live", "disconnected", "pending", "live"], "a failed attempt changes no state"


async def test_healthy_server_is_retried_fast_until_away_too_long(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_group, "HEALTHY_SECONDS", 0.0)
    monkeypatch.setattr(connection_group, "RECONNECT_AFTER_RESTART", Backoff(first_seconds=0.01, cap_seconds=0.01))
    used: list[Backoff] = []
    monkeypatch.setattr(Backoff, "full_jitter", lambda self, *_: used.append(self) or 0.01)  # type: ignore[func-returns-value]
    await run_simulated(run, simulator, AAPL)
    await simulator.stop()
    await until(lambda: len(used) >= 4)
    assert used[1:3] == [connection_group.RECONNECT_AFTER_RESTART, connection_group.RECONNECT_AFTER_RESTART]
    monkeypatch.setattr(connection_group, "RESTART_SECONDS", 0.0)
    await until(lambda: used[-1] == connection_group.RECONNECT)
    await simulator.start()


async def test_server_that_kicks_at_once_is_retried_ever_slower(
    run: StartSupervisor, raw_server: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_group, "RECONNECT", Backoff(first_seconds=0.01, cap_seconds=60))
    failures: list[int] = []
    monkeypatch.setattr(Backoff, "full_jitter", lambda self, count, _: failures.append(count) or 0.0)  # type: ignore[func-returns-value]

    async def talk(client: ClientSocket) -> None:
        await client.acknowledge()
        await client.send("41")

    server = await raw_server(talk)
    await run(server.url, "key", [AAPL], protocol="4")
    await memory.until(lambda: len(memory.facts("disconnected", "connect_failed")) >= 4)
    assert failures[:3] == [1, 2, 3]


async def test_half_open_connection_gap_begins_at_last_byte(
    run: StartSupervisor, make_simulator: Any, memory: Memory, tcp_proxy: Any
) -> None:
    simulator = await make_simulator(ping_interval_seconds=1, ping_timeout_seconds=1)
    proxy = await tcp_proxy(simulator.url)
    running = await run(proxy.url, simulator.api_key, [AAPL])
    await running.until("live", AAPL)
    proxy.half_open = True
    await memory.until(lambda: memory.facts("disconnected"))
    (disconnected,) = memory.facts("disconnected")
    assert disconnected.detail["cause"] == "mute"
    assert disconnected.since_us is not None
    assert disconnected.at_us - disconnected.since_us > 1_900_000
    assert disconnected.since_us >= memory.frames[-1].received_us
    proxy.half_open = False
    proxy.cut()
    await running.until("live", AAPL)


async def test_connection_without_data_after_ack_was_live_for_no_time(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    settings = {"ping_interval_seconds": 0.3, "ping_timeout_seconds": 0.2}
    server = await raw_server(lambda client: client.acknowledge(), **settings)
    await run(server.url, "key", [AAPL], protocol="4")
    await memory.until(lambda: memory.facts("disconnected"))
    (subscribed,), (disconnected, *_) = memory.facts("subscribed"), memory.facts("disconnected")
    assert subscribed.since_us is not None
    assert disconnected.since_us is not None
    assert disconnected.since_us <= subscribed.since_us


# --- interruptions of the process ---


async def test_interruption_ends_when_the_connection_shows_life(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL, TSLA, BUZZ)
    before = read_clocks()
    await memory.until(lambda: len(memory.frames) > 5)
    running.interrupt(before)
    ended = read_clocks()
    await running.until("live", AAPL, TSLA, BUZZ)
    (interrupted,) = memory.facts("stood_still")
    assert (interrupted.state, set(interrupted.subscriptions)) == ("silent", {AAPL.key, TSLA.key, BUZZ.key})
    assert before.wall_us - 1_000_000 < (interrupted.since_us or 0) <= before.wall_us
    for confirmed in memory.facts("heard_again"):
        assert confirmed.since_us == pytest.approx(ended.wall_us, abs=20_000)
        assert confirmed.since_us <= confirmed.at_us
    assert running.states(TSLA) == ["pending", "live", "silent", "live"]
    assert len(memory.facts("connected")) == 2


async def test_connection_lost_in_interruption_is_not_live_after_it(
    run: StartSupervisor, make_simulator: Any, memory: Memory, tcp_proxy: Any
) -> None:
    simulator = await make_simulator(ping_interval_seconds=0.5, ping_timeout_seconds=0.5)
    proxy = await tcp_proxy(simulator.url)
    running = await run(proxy.url, simulator.api_key, [AAPL])
    await running.until("live", AAPL)
    proxy.half_open = True
    await asyncio.sleep(0.05)
    running.interrupt(read_clocks())
    running.interrupt(read_clocks(), step_seconds=3600.0)
    await running.until("disconnected", AAPL)
    assert running.states(AAPL) == ["pending", "live", "silent", "disconnected"]
    proxy.half_open = False
    proxy.cut()
    await running.until("live", AAPL)
    assert memory.facts("heard_again") == []


async def test_later_of_two_interruptions_counts(run: StartSupervisor, raw_server: Any, memory: Memory) -> None:
    server = await raw_server(lambda client: client.acknowledge())
    running = await run(server.url, "key", [AAPL], protocol="4")
    await running.until("live", AAPL)
    running.interrupt(read_clocks())
    await asyncio.sleep(0.01)
    later = read_clocks()
    running.interrupt(read_clocks())
    await (await server.client()).send("2")
    await running.until("live", AAPL)
    (confirmed,) = memory.facts("heard_again")
    assert confirmed.since_us is not None
    assert confirmed.since_us >= later.wall_us


async def test_handover_while_unconfirmed_is_live_at_once(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(lambda client: client.acknowledge())
    running = await run(server.url, "key", [AAPL], protocol="4")
    await running.until("live", AAPL)
    running.interrupt(read_clocks())
    await running.tokens.get(fresh=True)
    await running.until("live", AAPL)
    assert running.states(AAPL) == ["pending", "live", "silent", "live"]
    assert len(memory.facts("connected")) == 2
    assert memory.facts("heard_again") == []


# --- many subscriptions ---


async def test_five_thousand_acks_within_ten_seconds_make_one_fact(
    run: StartSupervisor, raw_server: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def acknowledge_all(client: ClientSocket) -> None:
        done = 0
        while not client.closed.is_set():
            new, done = client.received[done:], len(client.received)
            await client.send(*[f"43{text[2:].partition('[')[0]}[null]" for text in new if text.startswith("42")])
            await asyncio.sleep(0.001)

    monkeypatch.setattr(connection, "ACK_SECONDS", 10)
    monkeypatch.setattr(state_tracker, "ROUND_PUBLISH_SECONDS", 8.0)  # a pause of a busy machine divides no fact
    subscriptions = [Subscription(CROWD, "get", {"ticker": f"T{number}"}) for number in range(5000)]
    server = await raw_server(acknowledge_all)
    running = await run(server.url, "key", subscriptions, protocol="4")
    await memory.until(lambda: sum(len(fact.subscriptions) for fact in memory.facts("subscribed")) == 5000)
    (connected,), subscribed = memory.facts("connected"), memory.facts("subscribed")
    seconds = ((subscribed[-1].since_us or 0) - connected.at_us) / 1e6
    print(f"acknowledged in {seconds:.1f} s, {len(subscribed)} facts")
    assert seconds < 10
    assert [fact.kind for fact in memory.facts()] == ["pending", "token_renewed", "connected", "subscribed"]
    assert {current.state for current in running.supervisor.status().subscriptions.values()} == {"live"}
    (client,) = server.clients
    assert len(client.requests("subscribe")) == 5000


# --- subscriptions that are refused or not answered ---


async def test_refused_subscription_is_retried_on_same_connection(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    simulator.refuse("TSLA", "not yours")
    running = await run(simulator.url, simulator.api_key, [AAPL, TSLA])
    await running.until("live", AAPL)
    await running.until("refused", TSLA)
    (refused,) = memory.facts("refused")
    assert "not yours" in refused.detail["reason"]
    simulator.allow("TSLA")
    await running.until("live", TSLA)
    assert len(memory.facts("connected")) == 1
    assert running.states(AAPL) == ["pending", "live"]
    assert running.states(TSLA) == ["pending", "refused", "live"]


async def test_unanswered_subscription_is_refused_and_retried(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    simulator.unanswered.add("TSLA")
    running = await run(simulator.url, simulator.api_key, [AAPL, TSLA])
    await running.until("refused", TSLA)
    current = running.supervisor.status().subscriptions[TSLA.key]
    assert (current.state, current.reason) == ("refused", "not acknowledged within 0.3 s")
    simulator.unanswered.clear()
    await running.until("live", TSLA)
    assert len(memory.facts("connected")) == 1
    assert running.states(AAPL) == ["pending", "live"]
    assert running.states(TSLA) == ["pending", "refused", "live"]


async def test_late_ack_ends_refusal_whatever_the_retry_gets(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server()
    running = await run(server.url, "key", [AAPL], protocol="4")
    await running.until("refused", AAPL)
    client = await server.client()
    await client.until(lambda: len(client.requests("subscribe")) == 2)
    (first, _), (second, _) = client.requests("subscribe")
    await client.send(f"43{first}[null]", f'43{second}["subscribed already"]')
    await running.until("live", AAPL)
    await asyncio.sleep(3 * state_tracker.PUBLISH_SECONDS)
    assert running.states(AAPL) == ["pending", "refused", "live"]


async def test_provider_errors_are_quoted_once_and_all_counted(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL)
    for _ in range(3):
        await simulator.send_event("err", {"type": "api_error", "message": "overloaded"})
    await simulator.send_event("error", {"message": "other"})
    await memory.until(lambda: dict(running.supervisor.status().provider_errors) == {"err": 3, "error": 1}, seconds=5)
    assert [fact.detail["text"] for fact in memory.facts("provider_error")] == ["api_error: overloaded", "other"]
    assert running.in_state("live", AAPL)
    await running.supervisor.stop()
    assert [fact.detail.get("suppressed") for fact in memory.facts("provider_error")] == [None, None, 1]


async def test_flood_of_provider_errors_makes_few_facts(run: StartSupervisor, raw_server: Any, memory: Memory) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.acknowledge()
        await client.send(*[f'42["err",{{"message":"no. {n}"}}]' for n in range(3000)], '42["res",[]]')

    server = await raw_server(talk)
    running = await run(server.url, "key", [AAPL], protocol="4")
    await memory.until(lambda: memory.frames)
    assert dict(running.supervisor.status().provider_errors) == {"err": 3000}
    await running.supervisor.stop()
    facts = memory.facts("provider_error")
    assert [fact.detail["text"] for fact in facts] == [*(f"no. {n}" for n in range(10)), "no. 2999"]
    assert sum(1 + fact.detail.get("suppressed", 0) for fact in facts) == 3000


# --- tokens ---


async def test_refused_token_is_replaced_by_a_fresh_one(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL)
    simulator.refusal = "token revoked"
    await simulator.kick()
    await memory.until(lambda: memory.facts("connect_failed"))
    simulator.refusal = None
    await running.until("live", AAPL)
    assert "token revoked" in memory.facts("connect_failed")[0].detail["reason"]
    assert simulator.logins >= 2


async def test_paths_not_in_token_are_reported_and_subscribed(
    run: StartSupervisor, web_server: Any, memory: Memory
) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"endpoint_paths": [CROWD]}).encode()).decode().rstrip("=")
    server = await web_server(token_reply(f"head.{claims}.tail"))
    await run(server.url, "key", [AAPL, BUZZ])
    await memory.until(lambda: memory.facts("not_entitled"))
    assert memory.facts("not_entitled")[0].detail["paths"] == [BUZZ.path]


async def test_subscriptions_without_a_token_are_token_failed(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    simulator.login_fault = Fault(status=503)
    running = await run(simulator.url, simulator.api_key, [AAPL, BUZZ])
    await running.until("token_failed", AAPL, BUZZ)
    first = memory.facts("token_failed")[0]
    assert set(first.subscriptions) == {AAPL.key, BUZZ.key}
    assert "503" in first.detail["reason"]
    await until(lambda: running.tokens.status().logins.get("unavailable", 0) >= 5)
    assert running.states(AAPL) == ["pending", "token_failed"]
    assert len(memory.facts("token_failed")) == 1, "a repeated failure is counted"
    simulator.login_fault = None
    await running.until("live", AAPL, BUZZ)
    assert memory.facts("token_renewed")[0].detail["failed_attempts"] >= 5


async def test_renewal_by_overlap_has_no_gap_and_loses_no_frame(
    run: StartSupervisor, make_simulator: Any, memory: Memory
) -> None:
    simulator = await make_simulator(token_lifetime_seconds=2, kick_expired=True)
    running = await run_simulated(run, simulator, AAPL, TSLA)
    await memory.until(lambda: len(memory.facts("connected")) >= 4)
    await running.supervisor.stop()
    assert running.states(AAPL) == ["pending", "live", "stopped"]
    assert memory.facts("disconnected", "connect_failed") == []
    received = [json.dumps(json.loads(text[2:])) for text in memory.texts]
    sent = [json.dumps([emission.event, emission.rows]) for emission in simulator.emitted]
    until_stopped = sent[: len(sent) - sent[::-1].index(received[-1])]
    assert set(until_stopped) - set(received) == set()


async def test_renewal_by_reconnect_closes_first(run: StartSupervisor, make_simulator: Any, memory: Memory) -> None:
    simulator = await make_simulator(token_lifetime_seconds=2)
    running = await run_simulated(run, simulator, AAPL, renewal="reconnect")
    await memory.until(lambda: len(memory.facts("connected")) >= 2)
    await running.until("live", AAPL)
    assert memory.facts("disconnected")[0].detail["cause"] == "renewed"
    assert running.states(AAPL) == ["pending", "live", "disconnected", "pending", "live"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param({"login_fault": Fault(status=503)}, "token_failed", id="no new token"),
        pytest.param({"refusal": "no more connections"}, "connect_failed", id="no second connection"),
    ],
)
async def test_failed_renewal_keeps_the_old_connection(
    run: StartSupervisor, make_simulator: Any, memory: Memory, fault: dict[str, Any], kind: str
) -> None:
    simulator = await make_simulator(token_lifetime_seconds=2)
    running = await run_simulated(run, simulator, AAPL)
    for name, value in fault.items():
        setattr(simulator, name, value)
    await memory.until(lambda: memory.facts(kind))
    assert memory.facts(kind)[0].state is None
    seen = len(memory.frames)
    await memory.until(lambda: len(memory.frames) > seen + 5)
    assert running.in_state("live", AAPL)
    simulator.login_fault = simulator.refusal = None
    await memory.until(lambda: len(memory.facts("connected")) >= 2)
    assert running.states(AAPL) == ["pending", "live"]


async def test_close_during_handover_is_recorded_at_once(run: StartSupervisor, raw_server: Any, memory: Memory) -> None:
    server = await raw_server(lambda client: client.acknowledge())
    running = await run(server.url, "key", [AAPL], protocol="4", token={"lifetime": "2s", "renew_before": "1s"})
    await running.until("live", AAPL)
    server.greets = False
    second = await server.client(2)
    server.clients[0].abort()
    await running.until("disconnected", AAPL)
    await server.greet(second)
    await running.until("live", AAPL)
    assert running.states(AAPL) == ["pending", "live", "disconnected", "live"]


async def test_refusal_after_handover_counts_from_old_last_byte(
    run: StartSupervisor, make_simulator: Any, memory: Memory
) -> None:
    simulator = await make_simulator(token_lifetime_seconds=2)
    running = await run_simulated(run, simulator, AAPL, TSLA)
    simulator.unanswered.add("TSLA")
    await running.until("refused", TSLA)
    first_id = memory.facts("connected")[0].detail["connection"]
    (refused,) = memory.facts("refused")
    last_us = max(
        frame.received_us for frame in memory.frames if frame.connection_id == first_id and "TSLA" in frame.text
    )
    assert refused.since_us == pytest.approx(last_us, abs=1000)
    simulator.unanswered.clear()
    await running.until("live", TSLA)
    assert running.states(AAPL) == ["pending", "live"]


@pytest.mark.parametrize("answers", [100, 1], ids=["old connection answers", "old connection is half-open"])
async def test_handover_of_a_quiet_feed_leaves_a_gap_only_if_the_old_connection_is_dead(
    run: StartSupervisor, raw_server: Any, memory: Memory, answers: int
) -> None:
    async def talk(client: ClientSocket) -> None:
        for count in range(1, 100 if len(server.clients) > 1 else answers + 1):
            await client.until(lambda count=count: len(client.requests("subscribe")) >= count or client.closed.is_set())
            if client.closed.is_set():
                break
            await client.send(f"43{client.requests('subscribe')[-1][0]}[null]")

    server = await raw_server(talk)
    running = await run(server.url, "key", [AAPL], protocol="4")
    await running.until("live", AAPL)
    last_byte_us = read_clocks().wall_us
    await asyncio.sleep(0.2)
    await running.tokens.get(fresh=True)
    await server.clients[0].closed.wait()
    if answers > 1:
        assert running.states(AAPL) == ["pending", "live"]
        assert server.clients[0].close_code == 1000
        return
    (disconnected,), subscribed = memory.facts("disconnected"), memory.facts("subscribed")[-1]
    assert (disconnected.since_us or 0) <= last_byte_us < last_byte_us + 200_000 < (subscribed.since_us or 0)
    assert running.states(AAPL) == ["pending", "live", "disconnected", "live"]


async def test_handover_of_a_quiet_feed_leaves_no_gap_while_requests_are_unanswered(
    run: StartSupervisor, make_simulator: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take all slots of 0.9 but the one for repeated subscribes."""
    monkeypatch.setattr(connection, "ACK_SECONDS", 5.0)
    simulator: FaultySimulator = await make_simulator(protocol="0.9", interval_seconds=None)
    others = [Subscription(CROWD, "get", {"ticker": f"T{number}"}) for number in range(20)]
    simulator.unanswered |= {other.params["ticker"] for other in others}
    running = await run(simulator.url, simulator.api_key, [AAPL, *others])
    await running.until("live", AAPL)
    simulator.unanswered.clear()
    await asyncio.sleep(0.1)
    await running.tokens.get(fresh=True)
    await running.until("live", *others)
    assert running.states(AAPL) == ["pending", "live"]


async def test_eviction_is_reported_with_a_remedy(run: StartSupervisor, raw_server: Any, memory: Memory) -> None:
    async def talk(client: ClientSocket) -> None:
        for earlier in server.clients[:-1]:
            if not earlier.closed.is_set():
                await earlier.send("41")
        await client.acknowledge()

    server = await raw_server(talk)
    running = await run(server.url, "key", [AAPL], protocol="4")
    for count in range(1, 4):
        await memory.until(lambda count=count: running.states(AAPL).count("live") == count)
        assert len(memory.facts("evicted")) == (count == 3)
        await running.tokens.get(fresh=True)
    await memory.until(lambda: running.states(AAPL).count("live") == 4)
    (evicted,) = memory.facts("evicted")
    assert "set provider.renewal: reconnect" in evicted.detail["reason"]


async def test_old_connection_stays_until_the_new_one_has_data(
    run: StartSupervisor, raw_server: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await raw_server(lambda client: client.acknowledge())
    running = await run(server.url, "key", [AAPL], protocol="4")
    await running.until("live", AAPL)
    for number, has_data, overlap_seconds in ((2, True, 60.0), (3, False, 3.0)):
        monkeypatch.setattr(connection_group, "OVERLAP_SECONDS", overlap_seconds)
        await running.tokens.get(fresh=True)
        old, new = server.clients[number - 2], await server.client(number)
        await new.until(lambda new=new: new.requests("subscribe"))
        started = asyncio.get_running_loop().time()
        await asyncio.sleep(0.25)
        assert not old.closed.is_set()
        await old.send('42["res",[]]')
        if has_data:
            await new.send('42["res",[]]')
        async with asyncio.timeout(10):
            await old.closed.wait()
        assert has_data or asyncio.get_running_loop().time() - started > 2.5
    assert len(memory.frames) == 3
    assert running.states(AAPL) == ["pending", "live"]


# --- a full spool ---


async def test_full_spool_closes_connections_until_resume(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL, BUZZ)
    await running.supervisor.disconnect_all("the spool is full")
    await running.until("spool_full", AAPL, BUZZ)
    seen = len(memory.frames)
    await asyncio.sleep(0.4)
    assert len(memory.frames) == seen
    assert simulator.connections == []
    running.supervisor.resume()
    await running.until("live", AAPL, BUZZ)
    assert running.states(AAPL) == ["pending", "live", "spool_full", "pending", "live"]
    assert {fact.detail["cause"] for fact in memory.facts("disconnected")} == {"spool_full"}


async def test_full_spool_does_not_end_a_group_that_still_retries(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    simulator.refuse("TSLA", "not yours")
    running = await run(simulator.url, simulator.api_key, [AAPL, TSLA])
    await running.until("refused", TSLA)
    await running.supervisor.disconnect_all("the spool is full")
    running.supervisor.resume()
    await memory.until(lambda: running.states(AAPL).count("live") == 2)


async def test_connection_opening_when_spool_fills_is_not_used(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(lambda client: client.acknowledge(), greets=False)
    running = await run(server.url, "key", [AAPL], protocol="4")
    client = await server.client()
    await running.supervisor.disconnect_all("the spool is full")
    await server.greet(client)
    async with asyncio.timeout(5):
        await client.closed.wait()
    assert client.requests("subscribe") == []
    assert running.states(AAPL) == ["pending", "spool_full"]
    server.greets = True
    running.supervisor.resume()
    await running.until("live", AAPL)


# --- the end ---


async def test_spool_failure_ends_the_supervisor_with_its_error(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL, BUZZ)
    memory.fault = SpoolFailed("disk gone")
    with pytest.raises(SpoolFailed):
        async with asyncio.timeout(5):
            await running.task


async def test_stop_while_connecting_is_quick(run: StartSupervisor, raw_server: Any, memory: Memory) -> None:
    server = await raw_server(greets=False)
    running = await run(server.url, "key", [AAPL], protocol="4")
    await server.client()
    async with asyncio.timeout(10):
        await running.supervisor.stop()
    assert running.states(AAPL) == ["pending", "stopped"]
