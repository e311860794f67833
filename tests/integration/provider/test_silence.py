"""Subscriptions without data on an open connection: they are silent and resubscribed, and no other is affected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from ingestor.config.model import Subscription
from ingestor.core.clock import read_clocks

from .raw_engineio_server import Memory
from .running_supervisor import AAPL, CROWD, TSLA, StartSupervisor
from .scripted_replies import ScriptedReplies, count_requests, empty_envelope, empty_list, one_row

pytestmark = pytest.mark.usefixtures("quick")

ALL = Subscription(CROWD)


def last_received_us(memory: Memory, ticker: str) -> int:
    return max(frame.received_us for frame in memory.frames if ticker in frame.text)


async def test_data_of_another_ticker_does_not_keep_the_only_one_live(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL], protocol="4", silence="300ms")
    await memory.until(lambda: len(memory.frames) > 10)
    replies.payloads = {"TSLA": one_row}
    await running.until("silent", AAPL)
    assert running.states(AAPL) == ["pending", "live", "silent"]
    assert len(server.clients) == 1, "it counts as data of the connection"


async def test_ticker_without_data_is_silent_and_resubscribed(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL", "TSLA"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="400ms")
    await memory.until(lambda: len(memory.frames) > 10)
    del replies.payloads["TSLA"]
    await running.until("silent", TSLA)
    (silent,) = memory.facts("silent")
    assert (silent.since_us, silent.subscriptions) == (last_received_us(memory, "TSLA"), (TSLA.key,))
    assert silent.at_us - silent.since_us > 390_000
    client = await server.client()
    await client.until(lambda: count_requests(client, "TSLA") == 3)

    silent_until_us = memory.frames[-1].received_us
    running.decoding = False
    replies.payloads["TSLA"] = one_row
    await memory.until(lambda: last_received_us(memory, "TSLA") > silent_until_us + 100_000)
    running.decoding = True
    await running.until("live", TSLA)
    (confirmed,) = memory.facts("heard_again")
    first_us = min(
        frame.received_us for frame in memory.frames if frame.received_us > silent_until_us and "TSLA" in frame.text
    )
    assert confirmed.since_us == first_us
    assert running.states(TSLA) == ["pending", "live", "silent", "live"]
    assert running.states(AAPL) == ["pending", "live"]
    assert count_requests(client, "AAPL") == 1
    assert len(server.clients) == 1


async def test_silent_ticker_is_resubscribed_ever_more_rarely(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="200ms")
    await running.until("live", AAPL, TSLA)
    replies.errors["TSLA"] = "subscribed already"
    await memory.until(lambda: len(memory.facts("asked_again")) == 4)
    times = [fact.at_us for fact in memory.facts("asked_again")]
    first, second, third = (later - earlier for earlier, later in pairwise(times))
    # Between 50 % and 100 % of 0.2, 0.4 and 0.8 s; on a busy machine more.
    assert first > 80_000
    assert second > 180_000
    assert third > 380_000
    assert memory.facts("asked_again")[0].detail["refused"] == {"subscribed already": 1}
    assert running.states(TSLA) == ["pending", "live", "silent"]


async def test_nothing_is_silent_while_the_writer_is_behind(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL", "TSLA"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="200ms")
    await memory.until(lambda: len(memory.frames) > 10)
    running.decoding = False
    await asyncio.sleep(0.1)
    del replies.payloads["TSLA"]
    await asyncio.sleep(0.6)
    assert running.states(AAPL) == running.states(TSLA) == ["pending", "live"]
    running.decoding = True
    await running.until("silent", TSLA)
    (silent,) = memory.facts("silent")
    assert silent.since_us == last_received_us(memory, "TSLA")
    assert running.states(AAPL) == ["pending", "live"]


@pytest.mark.parametrize(
    ("subscriptions", "text", "silent"),
    [
        pytest.param([AAPL, TSLA], empty_list, [AAPL, TSLA], id="an empty list names no ticker"),
        pytest.param([AAPL, TSLA], empty_envelope, [], id="an empty envelope does"),
        pytest.param([AAPL], empty_list, [], id="only subscription of the connection"),
        pytest.param([ALL], empty_list, [], id="without a ticker"),
    ],
)
async def test_empty_data_counts_where_its_subscription_is_known(
    run: StartSupervisor,
    raw_server: Any,
    memory: Memory,
    subscriptions: list[Subscription],
    text: Callable[[str], str],
    silent: list[Subscription],
) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL", "TSLA"))
    replies.payloads = dict.fromkeys(replies.payloads, text)
    running = await run(server.url, "key", subscriptions, protocol="4", silence="300ms")
    await running.until("live", *subscriptions)
    await asyncio.sleep(0.8)
    assert [subscription for subscription in subscriptions if running.in_state("silent", subscription)] == silent
    assert len(server.clients) == 1, "it counts as data of the connection"


async def test_connection_without_data_is_replaced_and_stays_silent(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(replies := ScriptedReplies())
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="300ms")
    await server.client(3)
    assert any(fact.detail["reason"].endswith("; replacing the connection") for fact in memory.facts("silent"))
    assert running.states(AAPL) == running.states(TSLA) == ["pending", "live", "silent"]
    assert memory.facts("disconnected", "connect_failed") == []
    replies.payloads = {"AAPL": one_row}
    await running.until("live", AAPL)
    assert running.in_state("silent", TSLA)


async def test_any_data_keeps_a_subscription_to_all_tickers_live(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [ALL, AAPL, TSLA], protocol="4", silence="300ms")
    await running.until("silent", TSLA)
    assert running.in_state("live", ALL, AAPL)
    replies.payloads = {"": empty_list}
    await running.until("silent", AAPL)
    await asyncio.sleep(0.4)
    assert running.in_state("live", ALL)
    assert len(server.clients) == 1


async def test_silent_ticker_stays_silent_on_a_new_connection(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="300ms")
    await running.until("silent", TSLA)
    await running.tokens.get(fresh=True)
    second = await server.client(2)
    await second.until(lambda: count_requests(second, "TSLA") == 1)
    await server.clients[0].closed.wait()
    await asyncio.sleep(0.2)
    assert running.states(TSLA) == ["pending", "live", "silent"]


async def test_silent_ticker_is_live_after_a_refusal_ends(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(replies := ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="300ms")
    await running.until("silent", TSLA)
    replies.errors["TSLA"] = "not yours"
    await running.tokens.get(fresh=True)
    await running.until("refused", TSLA)
    replies.errors.clear()
    await memory.until(lambda: "live" in running.states(TSLA)[2:])
    assert running.states(TSLA)[:5] == ["pending", "live", "silent", "refused", "live"]


async def test_silence_restarts_with_interruption_and_connection(
    run: StartSupervisor, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(ScriptedReplies("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="600ms")
    await running.until("live", TSLA)
    await asyncio.sleep(0.4)
    running.interrupt(read_clocks())
    await running.until("live", TSLA)
    await asyncio.sleep(0.4)
    assert memory.facts("silent") == []
    server.clients[0].abort()
    await running.until("disconnected", TSLA)
    await running.until("live", TSLA)
    connected_us = memory.facts("connected")[1].at_us
    await running.until("silent", TSLA)
    (silent,) = memory.facts("silent")
    assert silent.at_us - connected_us > 600_000
    server.clients[1].abort()
    await running.until("live", TSLA)
    assert running.states(TSLA)[-5:] == ["live", "silent", "disconnected", "pending", "live"]
