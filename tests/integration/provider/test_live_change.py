"""Config changes while the daemon runs: only the difference is sent, and no other subscription is affected."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from ingestor.config.model import Subscription
from ingestor.provider.socket import connection, engineio_client
from ingestor.provider.subscriptions.supervisor import SubscriptionDiff
from tests.support.faulty_simulator import FaultySimulator

from .raw_engineio_server import Memory
from .raw_http_server import token_reply
from .running_supervisor import AAPL, BUZZ, CROWD, TSLA, StartSupervisor, run_simulated
from .scripted_replies import ScriptedReplies, count_requests, empty_list

pytestmark = pytest.mark.usefixtures("quick")

ON = Subscription(CROWD, "get", {"ticker": "ON"})
REMOVED = "removed from the config"


async def test_change_under_load_sends_only_the_difference(
    run: StartSupervisor, make_simulator: Any, memory: Memory
) -> None:
    simulator: FaultySimulator = await make_simulator(interval_seconds=None)
    running = await run_simulated(run, simulator, AAPL, TSLA)
    before = running.supervisor.status().groups[0]
    load = asyncio.create_task(simulator.burst(6000))
    await memory.until(lambda: len(memory.frames) > 500)
    assert running.supervisor.apply([AAPL, ON]) == SubscriptionDiff((ON,), (TSLA,))
    assert running.supervisor.apply([AAPL, ON]) == SubscriptionDiff((), ())
    await running.until("live", ON)
    assert not load.done()
    await load
    await memory.until(lambda: memory.facts("unsubscribed") and memory.texts[-1] == text_of(simulator.emitted[-1]))

    (after,) = running.supervisor.status().groups
    assert after.connection_id == before.connection_id
    assert simulator.handshakes == 1
    assert simulator.request_counts == {
        ("subscribe", CROWD): 3,
        ("subscribe", "AAPL"): 1,
        ("subscribe", "TSLA"): 1,
        ("subscribe", "ON"): 1,
        ("unsubscribe", CROWD): 1,
        ("unsubscribe", "TSLA"): 1,
    }
    assert memory.texts == [text_of(emission) for emission in simulator.emitted]
    assert running.states(AAPL) == ["pending", "live"]
    assert running.states(ON) == ["pending", "live"]
    assert running.states(TSLA) == ["pending", "live", "stopped"]
    (stopped,) = memory.facts("stopped")
    assert stopped.detail["reason"] == REMOVED
    assert stopped.since_us is not None
    assert stopped.at_us - 100_000 < stopped.since_us <= stopped.at_us
    assert list(running.supervisor.status().subscriptions) == [AAPL.key, ON.key]


def text_of(emission: Any) -> str:
    return "42" + json.dumps([emission.event, emission.rows], separators=(",", ":"))


async def test_connections_come_and_go_with_their_paths(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL)
    running.supervisor.apply([AAPL, BUZZ])
    await running.until("live", BUZZ)
    _, buzz = running.supervisor.status().groups
    running.supervisor.apply([BUZZ])
    await memory.until(lambda: len(memory.facts("stopped")) == 2)
    assert running.states(AAPL) == ["pending", "live", "stopped"]
    assert [fact.detail["reason"] for fact in memory.facts("stopped")] == [
        REMOVED,
        "no subscriptions left on this connection",
    ]
    assert [group.connection_id for group in running.supervisor.status().groups] == [buzz.connection_id]
    running.supervisor.apply([AAPL, BUZZ])
    await running.until("live", AAPL)
    assert running.states(AAPL)[2:] == ["stopped", "pending", "live"]
    assert running.states(BUZZ) == ["pending", "live"]
    assert simulator.handshakes == 3
    assert len(simulator.connections) == 2
    await running.supervisor.stop()
    assert running.in_state("stopped", AAPL, BUZZ)


async def test_path_with_all_tickers_replaced_keeps_its_connection(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL)
    running.supervisor.apply([TSLA, ON])
    await running.until("live", TSLA, ON)
    assert [subscription.params["ticker"] for subscription in simulator.subscriptions()] == ["ON", "TSLA"]
    assert simulator.handshakes == 1


async def test_change_without_connection_applies_to_the_next(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL, TSLA)
    await simulator.stop()
    await running.until("disconnected", AAPL, TSLA)
    await memory.until(lambda: memory.facts("connect_failed"))
    running.supervisor.apply([AAPL, ON])
    await running.until("disconnected", ON)
    await simulator.start()
    await running.until("live", AAPL, ON)
    assert running.states(TSLA) == ["pending", "live", "disconnected", "stopped"]
    assert running.states(ON) == ["pending", "disconnected", "pending", "live"]
    assert simulator.request_counts["subscribe", "TSLA"] == simulator.request_counts["subscribe", "ON"] == 1
    assert simulator.request_counts["unsubscribe", CROWD] == 0


async def test_change_during_renewal_reaches_both_connections(
    run: StartSupervisor, raw_server: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4")
    await running.until("live", AAPL, TSLA)
    first = await server.client()
    server.greets = False
    await running.tokens.get(fresh=True)
    second = await server.client(2)
    running.supervisor.apply([AAPL, ON])  # while the new connection opens
    await first.until(lambda: count_requests(first, "TSLA", "unsubscribe") == count_requests(first, "ON") == 1)
    await running.until("live", ON)
    monkeypatch.setattr(connection, "ACK_SECONDS", 5)
    replies.unanswered = {"AAPL"}
    await server.greet(second)
    await second.until(lambda: count_requests(second, "ON") == 1)
    running.supervisor.apply([AAPL, BUZZ, TSLA])  # while its subscribes are answered
    for client, count in ((first, 2), (second, 1)):
        await client.until(lambda client=client: count_requests(client, "ON", "unsubscribe") == 1)
        await client.until(lambda client=client, count=count: count_requests(client, "TSLA") == count)
    replies.unanswered = set()
    await first.closed.wait()
    await running.until("live", TSLA)
    assert count_requests(second, "ON") == count_requests(second, "AAPL") == 1
    assert running.states(AAPL) == ["pending", "live"]
    assert running.states(ON) == ["pending", "live", "stopped"]
    assert running.states(TSLA) == ["pending", "live", "stopped", "pending", "live"]


async def test_change_while_spool_is_full_applies_after_resume(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL, TSLA)
    await running.supervisor.disconnect_all("the spool is full")
    await running.until("spool_full", AAPL, TSLA)
    running.supervisor.apply([AAPL, ON, BUZZ])
    await running.until("spool_full", ON, BUZZ)
    await asyncio.sleep(0.3)
    assert simulator.handshakes == 1
    running.supervisor.resume()
    await running.until("live", AAPL, ON, BUZZ)
    assert running.states(TSLA) == ["pending", "live", "spool_full", "stopped"]
    assert running.states(BUZZ)[:2] == ["pending", "spool_full"]


async def test_removed_and_readded_ticker_ends_up_subscribed(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4")
    await running.until("live", AAPL, TSLA)
    running.supervisor.apply([AAPL])
    running.supervisor.apply([AAPL, Subscription(CROWD, "get", {"ticker": "TSLA"})])
    await running.until("live", TSLA)
    client = await server.client()
    assert [json.loads(text[text.index("[") :])[0] for text in client.received[-2:]] == ["unsubscribe", "subscribe"]
    assert running.states(TSLA) == ["pending", "live", "stopped", "pending", "live"]


async def test_delayed_unsubscribe_does_not_undo_a_new_subscribe(
    run: StartSupervisor, raw_server: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engineio_client.EngineIoClient, "max_in_flight", 1)
    server = await raw_server(replies := ScriptedReplies())
    running = await run(server.url, "key", [ON, AAPL, TSLA], protocol="4")
    await running.until("live", ON, AAPL, TSLA)
    client = await server.client()
    replies.unanswered = {"AAPL"}
    running.supervisor.apply([ON])
    await client.until(lambda: count_requests(client, "AAPL", "unsubscribe"))
    running.supervisor.apply([ON, TSLA, AAPL])
    await running.until("live", TSLA)
    replies.unanswered = set()
    await running.until("live", AAPL)
    await memory.until(lambda: memory.facts("unsubscribed"))
    assert [count_requests(client, ticker, "unsubscribe") for ticker in ("AAPL", "TSLA")] == [1, 0]


async def test_ticker_removed_before_its_turn_is_never_subscribed(
    run: StartSupervisor, raw_server: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engineio_client.EngineIoClient, "max_in_flight", 1)
    server = await raw_server(replies := ScriptedReplies())
    replies.unanswered = {"AAPL"}
    running = await run(server.url, "key", [AAPL, TSLA, ON], protocol="4")
    client = await server.client()
    await client.until(lambda: count_requests(client, "AAPL"))
    running.supervisor.apply([AAPL, ON])
    await running.until("live", ON)
    assert count_requests(client, "TSLA") == count_requests(client, "TSLA", "unsubscribe") == 0


async def test_silent_ticker_removed_before_its_turn_is_not_resubscribed(
    run: StartSupervisor, make_simulator: Any, memory: Memory
) -> None:
    simulator: FaultySimulator = await make_simulator(protocol="0.9", interval_seconds=0.05)  # one repeat at a time
    simulator.muted |= {"TSLA", "ON"}
    running = await run_simulated(run, simulator, AAPL, TSLA, ON, silence="300ms")
    simulator.unanswered |= {"TSLA", "ON"}
    counts = simulator.request_counts
    await memory.until(lambda: counts["subscribe", "TSLA"] + counts["subscribe", "ON"] == 3)
    await running.until("silent", TSLA, ON)
    waiting = TSLA if counts["subscribe", "TSLA"] == 1 else ON
    running.supervisor.apply([AAPL, ON if waiting is TSLA else TSLA])
    await memory.until(lambda: memory.facts("asked_again") and memory.facts("unsubscribed"))
    await asyncio.sleep(0.2)
    assert counts["subscribe", waiting.params["ticker"]] == 1


async def test_refused_ticker_is_not_retried_once_removed(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(replies := ScriptedReplies())
    replies.errors = {"TSLA": "not yours", "ON": "unknown"}
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4")
    await running.until("refused", TSLA)
    running.supervisor.apply([AAPL, ON])
    client = await server.client()
    await client.until(lambda: count_requests(client, "ON") == 1)  # a retry of before may be on its way until then
    count = count_requests(client, "TSLA")
    await client.until(lambda: count_requests(client, "ON") == 3)
    assert count_requests(client, "TSLA") == count
    assert count_requests(client, "AAPL") == 1
    (unsubscribed,) = memory.facts("unsubscribed")
    assert unsubscribed.detail["refused"] == {"not yours": 1}
    assert running.states(TSLA) == ["pending", "refused", "stopped"]


async def test_added_ticker_without_data_becomes_silent(run: StartSupervisor, raw_server: Any, memory: Memory) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL], protocol="4", silence="300ms")
    await running.until("live", AAPL)
    running.supervisor.apply([AAPL, TSLA])
    await running.until("silent", TSLA)
    replies.payloads["TSLA"] = replies.payloads["AAPL"]
    await running.until("live", TSLA)
    assert running.states(AAPL) == ["pending", "live"]


async def test_single_subscription_counts_any_frame_as_activity(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="300ms")
    await running.until("live", AAPL)
    replies.payloads = {"AAPL": empty_list}
    running.supervisor.apply([AAPL])
    await asyncio.sleep(0.6)
    assert running.states(AAPL) == ["pending", "live"]


async def test_changed_method_stops_the_old_subscription_first(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    posted = Subscription(CROWD, "post", {"ticker": "AAPL"})
    server = await raw_server(ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL], protocol="4")
    await running.until("live", AAPL)
    running.supervisor.apply([posted])
    await running.until("live", posted)
    client = await server.client()
    assert [json.loads(text[text.index("[") :])[0] for text in client.received[-2:]] == ["unsubscribe", "subscribe"]
    changes = [(fact.state, fact.subscriptions) for fact in memory.facts("stopped", "pending")]
    assert changes[1:] == [("stopped", (AAPL.key,)), ("pending", (posted.key,))]


async def test_removed_subscription_is_not_rerecorded(
    run: StartSupervisor, simulator: FaultySimulator, memory: Memory
) -> None:
    running = await run_simulated(run, simulator, AAPL, TSLA)
    running.supervisor.apply([AAPL])
    running.supervisor.rerecord_states()
    assert [(fact.state, fact.subscriptions) for fact in memory.facts("restated")] == [("live", (AAPL.key,))]


async def test_added_path_not_in_token_is_reported(run: StartSupervisor, web_server: Any, memory: Memory) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"endpoint_paths": [CROWD]}).encode()).decode().rstrip("=")
    server = await web_server(token_reply(f"head.{claims}.tail"))
    running = await run(server.url, "key", [AAPL])
    await memory.until(lambda: memory.facts("token_renewed"))
    running.supervisor.apply([AAPL, BUZZ])
    assert memory.facts("not_entitled")[0].detail["paths"] == [BUZZ.path]
