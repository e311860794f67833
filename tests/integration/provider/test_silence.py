"""Subscriptions for which no data comes while their connection lives: asked for again, at nobody else's cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from ingestor.config.model import Subscription

from .raw_engineio_server import Memory
from .running_supervisor import AAPL, CROWD, TSLA, Run
from .scripted_replies import Talker, asked_for, bare, empty, empty_envelope

pytestmark = pytest.mark.usefixtures("quick")

ALL = Subscription(CROWD)


def last_of(memory: Memory, ticker: str) -> int:
    return max(frame.received_us for frame in memory.frames if ticker in frame.text)


async def test_a_mute_ticker_is_silent_since_its_last_data_and_asked_for_again_on_the_same_connection(
    run: Run, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(talker := Talker("AAPL", "TSLA"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="400ms")
    await memory.until(lambda: len(memory.frames) > 10)
    del talker.says["TSLA"]
    await running.until("silent", TSLA)
    (silent,) = memory.facts("silent")
    assert (silent.since_us, silent.subscriptions) == (last_of(memory, "TSLA"), (TSLA.key,))
    assert silent.at_us - silent.since_us == pytest.approx(400_000, abs=200_000)
    visitor = await server.visitor()
    await visitor.until(lambda: asked_for(visitor, "TSLA") == 3)

    mute_until = memory.frames[-1].received_us
    running.decodes = False
    talker.says["TSLA"] = bare
    await memory.until(lambda: last_of(memory, "TSLA") > mute_until + 100_000)
    running.decodes = True
    await running.until("live", TSLA)
    (again,) = memory.facts("heard_again")
    first = min(one.received_us for one in memory.frames if one.received_us > mute_until and "TSLA" in one.text)
    assert again.since_us == first
    assert running.states(TSLA) == ["pending", "live", "silent", "live"]
    assert running.states(AAPL) == ["pending", "live"]
    assert asked_for(visitor, "AAPL") == 1
    assert len(server.visitors) == 1


async def test_it_is_asked_for_ever_more_rarely_and_stays_silent_whatever_the_answer(
    run: Run, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(talker := Talker("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="200ms")
    await running.until("live", AAPL, TSLA)
    talker.errors["TSLA"] = "subscribed already"
    await memory.until(lambda: len(memory.facts("asked_again")) == 4)
    times = [fact.at_us for fact in memory.facts("asked_again")]
    first, second, third = (later - earlier for earlier, later in pairwise(times))
    # From half to all of 0.2, 0.4 and 0.8 s.
    assert 80_000 < first < 300_000
    assert 180_000 < second < 500_000
    assert 380_000 < third < 900_000
    assert memory.facts("asked_again")[0].detail["refused"] == {"subscribed already": 1}
    assert running.states(TSLA) == ["pending", "live", "silent"]


async def test_nobody_is_silent_while_the_writer_is_behind(run: Run, raw_server: Any, memory: Memory) -> None:
    server = await raw_server(talker := Talker("AAPL", "TSLA"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="200ms")
    await memory.until(lambda: len(memory.frames) > 10)
    running.decodes = False
    await asyncio.sleep(0.1)
    del talker.says["TSLA"]
    await asyncio.sleep(0.6)
    assert running.states(AAPL) == running.states(TSLA) == ["pending", "live"]
    running.decodes = True
    await running.until("silent", TSLA)
    (silent,) = memory.facts("silent")
    assert silent.since_us == last_of(memory, "TSLA")
    assert running.states(AAPL) == ["pending", "live"]


@pytest.mark.parametrize(
    ("asked", "text", "silent"),
    [
        pytest.param([AAPL, TSLA], empty, [AAPL, TSLA], id="a list of nothing does not say for whom"),
        pytest.param([AAPL, TSLA], empty_envelope, [], id="an envelope does"),
        pytest.param([AAPL], empty, [], id="alone on its connection"),
        pytest.param([ALL], empty, [], id="asked for without a ticker"),
    ],
)
async def test_nothing_is_data_too_where_it_is_known_for_whom(
    run: Run,
    raw_server: Any,
    memory: Memory,
    asked: list[Subscription],
    text: Callable[[str], str],
    silent: list[Subscription],
) -> None:
    server = await raw_server(talker := Talker("AAPL", "TSLA"))
    talker.says = dict.fromkeys(talker.says, text)
    running = await run(server.url, "key", asked, protocol="4", silence="300ms")
    await running.until("live", *asked)
    await asyncio.sleep(0.8)
    assert [one for one in asked if running.in_state("silent", one)] == silent
    assert len(server.visitors) == 1, "it is data for the connection"


async def test_a_connection_without_data_is_renewed_though_it_pings_and_stays_silent(
    run: Run, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(talker := Talker())
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="300ms")
    await server.visitor(3)
    assert "renewing" in [fact.detail["reason"].rpartition(" ")[2] for fact in memory.facts("silent")]
    assert running.states(AAPL) == running.states(TSLA) == ["pending", "live", "silent"]
    assert memory.facts("disconnected", "connect_failed") == []
    talker.says = {"AAPL": bare}
    await running.until("live", AAPL)
    assert running.in_state("silent", TSLA)


async def test_empty_lists_keep_a_connection_and_any_data_keeps_who_asked_for_all(
    run: Run, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(talker := Talker("AAPL"))
    running = await run(server.url, "key", [ALL, AAPL, TSLA], protocol="4", silence="300ms")
    await running.until("silent", TSLA)
    assert running.in_state("live", ALL, AAPL)
    talker.says = {"": empty}
    await running.until("silent", AAPL)
    await asyncio.sleep(0.4)
    assert running.in_state("live", ALL)
    assert len(server.visitors) == 1


async def test_another_connection_proves_nothing_of_a_silent_ticker(run: Run, raw_server: Any, memory: Memory) -> None:
    server = await raw_server(Talker("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="300ms")
    await running.until("silent", TSLA)
    await running.tokens.get(fresh=True)
    second = await server.visitor(2)
    await second.until(lambda: asked_for(second, "TSLA") == 1)
    await server.visitors[0].gone.wait()
    await asyncio.sleep(0.2)
    assert running.states(TSLA) == ["pending", "live", "silent"]


async def test_what_was_silent_and_is_refused_is_live_when_that_ends(run: Run, raw_server: Any, memory: Memory) -> None:
    server = await raw_server(talker := Talker("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="300ms")
    await running.until("silent", TSLA)
    talker.errors["TSLA"] = "not yours"
    await running.tokens.get(fresh=True)
    await running.until("refused", TSLA)
    talker.errors.clear()
    await memory.until(lambda: "live" in running.states(TSLA)[2:])
    assert running.states(TSLA)[:5] == ["pending", "live", "silent", "refused", "live"]


async def test_a_silence_counts_anew_from_an_interruption_and_from_every_connection(
    run: Run, raw_server: Any, memory: Memory
) -> None:
    server = await raw_server(Talker("AAPL"))
    running = await run(server.url, "key", [AAPL, TSLA], protocol="4", silence="600ms")
    await running.until("live", TSLA)
    await asyncio.sleep(0.4)
    running.supervisor.record_interruption("stood_still", {"reason": "slept"}, memory.frames[-1].received_us)
    await running.until("live", TSLA)
    await asyncio.sleep(0.4)
    assert memory.facts("silent") == []
    server.visitors[0].cut()
    await running.until("disconnected", TSLA)
    await running.until("live", TSLA)
    connected_us = memory.facts("connected")[1].at_us
    await running.until("silent", TSLA)
    (silent,) = memory.facts("silent")
    assert silent.at_us - connected_us > 600_000
    server.visitors[1].cut()
    await running.until("live", TSLA)
    assert running.states(TSLA)[-5:] == ["live", "silent", "disconnected", "pending", "live"]
