"""One socket against a server that says anything at any time: every trap of the library has its test here."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from engineio import base_client

from ingestor.config.model import Subscription
from ingestor.errors import ConnectionFailed, ConnectionRefused, SpoolFailed
from ingestor.provider.auth import Token
from ingestor.provider.socket import connection
from ingestor.provider.socket.connection import Connection
from ingestor.provider.socket.protocol import ProtocolVersion

from .conftest import TOKEN
from .raw_engineio_server import Memory, RawServer, Visitor

Make = Callable[..., Connection]
Serve = Callable[..., Awaitable[RawServer]]
AAPL = Subscription("/real-time/crowd-sentiment", "get", {"ticker": "AAPL"})
TSLA = Subscription("/real-time/crowd-sentiment", "get", {"ticker": "TSLA"})
OPEN = '0{"sid":"a","upgrades":[],"pingInterval":25000,"pingTimeout":20000}'
END = '42["res","end"]'
HEADER = '451-["res",{"_placeholder":true,"num":0}]'  # of an event whose attachment follows


def nobody(_: Subscription, __: str | None) -> None:
    pass


async def hear(memory: Memory, messages: int) -> None:
    await memory.until(lambda: len(memory.frames) >= messages)


# --- what comes in ---


async def test_a_data_event_is_handed_over_as_it_came(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    text = '42["res",[{"ts":"2014-06-09T20:19:00.000Z","ticker":"AAPL","average_sentiment":0.10}]]'
    server = await raw_server(lambda visitor: visitor.say(text))
    one = make_connection(server.url)
    await one.open(token)
    await hear(memory, 1)
    frame = memory.frames[0]
    assert (frame.text, frame.event, frame.source, frame.path) == (text, "res", "stream", "/real-time/crowd-sentiment")
    assert frame.connection_id == one.id
    assert len(one.id) == 12
    assert (one.frames, one.last_frame_us) == (1, frame.received_us)


@pytest.mark.parametrize(
    ("said", "event", "text"),
    [
        pytest.param(['42["data",{"a":1}]'], "data", '42["data",{"a":1}]', id="data"),
        pytest.param(['42["res",not json]'], "res", '42["res",not json]', id="bad JSON in a data event"),
        pytest.param(['42["res"]'], "res", '42["res"]', id="no payload"),
        pytest.param(['42 [ "res" , [0.10]]'], "res", '42[ "res" , [0.10]]', id="odd spacing"),
        pytest.param(['42/ns,["res",[0.10]]'], "res", '42["res",[0.10]]', id="a namespace"),
        pytest.param(['42/n[s,7["res",[0.10]]'], "res", '42["res",[0.10]]', id="an odd namespace and an ack"),
        pytest.param(['42["\\u0072es",1]'], "res", '42["\\u0072es",1]', id="an escaped name"),
        pytest.param(['42["other",1]'], "other", '42["other",1]', id="an event nobody told us of"),
        pytest.param(['42["connect",1]'], "connect", '42["connect",1]', id="an event called connect"),
        pytest.param(['42["disconnect",1]'], "disconnect", '42["disconnect",1]', id="an event called disconnect"),
        pytest.param(['42["connect_error",1]'], "connect_error", '42["connect_error",1]', id="called connect_error"),
        pytest.param([HEADER, b"\x01"], "res", '42["res",{"base64":"AQ=="}]', id="binary"),
        pytest.param(["42[]"], "", "42[]", id="no name"),
        pytest.param(["42"], "", "42", id="no event"),
        pytest.param(['42{"a":1}'], "", '42{"a":1}', id="an object"),
        pytest.param(["42[1,2]"], "", "42[1,2]", id="a number for a name"),
        pytest.param(['42["other",'], "", '42["other",', id="cut off"),
        pytest.param([f'42["other",{"1" * 4400}]'], "", f'42["other",{"1" * 4400}]', id="an integer of 4400 digits"),
        pytest.param(["42" + "[" * 100_000], "", "42" + "[" * 100_000, id="nested too deeply"),
        pytest.param(["47[1]"], "", "47[1]", id="no such Socket.IO packet"),
        pytest.param(['4{"a":1}'], "", '4{"a":1}', id="a message that is no packet"),
        pytest.param(["9what"], "", "9what", id="no such Engine.IO packet"),
        pytest.param([""], "", "", id="nothing at all"),
        pytest.param(["hello"], "", "hello", id="prose"),
        pytest.param([b"\x01\x02"], "", "bAQI=", id="stray binary"),
        pytest.param([b'2["res",1]'], "", "bMlsicmVzIiwxXQ==", id="stray binary that looks like an event"),
        pytest.param([HEADER, '42["other",1]'], "", HEADER, id="an attachment that never came"),
    ],
)
async def test_whatever_comes_is_kept_and_the_connection_lasts(
    memory: Memory,
    raw_server: Serve,
    make_connection: Make,
    token: Token,
    said: list[str | bytes],
    event: str,
    text: str,
) -> None:
    server = await raw_server(lambda visitor: visitor.say(*said, END))
    one = make_connection(server.url)
    await one.open(token)
    await memory.until(lambda: END in memory.texts)
    assert (memory.frames[0].event, memory.frames[0].text) == (event, text)
    assert one.alive


async def test_an_attachment_that_never_came_takes_nothing_else_with_it(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server(lambda visitor: visitor.say(HEADER, '42["other",1]', END))
    await make_connection(server.url).open(token)
    await hear(memory, 3)
    assert [(one.event, one.text) for one in memory.frames] == [("", HEADER), ("other", '42["other",1]'), ("res", END)]


async def test_what_the_library_parses_keeps_its_place_among_the_rest(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    said = [f'42["res",{n}]' if n % 3 else f'42 ["res",{n}]' for n in range(300)]
    server = await raw_server(lambda visitor: visitor.say(*said))
    await make_connection(server.url).open(token)
    await hear(memory, 300)
    assert memory.texts == [text.replace("42 ", "42") for text in said]


async def test_what_comes_before_the_connect_packet_is_kept(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    async def talk(visitor: Visitor) -> None:
        await visitor.say(OPEN, '42["res",1]', "40")

    server = await raw_server(talk, greets=False)
    await make_connection(server.url).open(token)
    await hear(memory, 1)
    assert memory.texts == ['42["res",1]']


async def test_a_message_of_ten_megabytes_arrives(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    big = '42["res","' + "x" * 10_000_000 + '"]'
    server = await raw_server(lambda visitor: visitor.say(big, END))
    await make_connection(server.url).open(token)
    await hear(memory, 2)
    assert memory.texts == [big, END]


async def test_an_error_event_is_a_fact_without_secrets_and_not_a_frame(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    said = f'42["err",{{"type":"api_error","message":"bad {TOKEN} {"x" * 900}"}}]'
    server = await raw_server(lambda visitor: visitor.say(said, '42["error","plain"]', END))
    await make_connection(server.url).open(token)
    await hear(memory, 1)
    first, second = memory.facts("provider_error")
    assert first.detail["text"].startswith("api_error: bad *** xxx")
    assert len(first.detail["text"]) == 500
    assert (second.detail["event"], second.detail["text"]) == ("error", "plain")
    assert memory.texts == [END]


async def test_an_acknowledgement_is_sent_once_the_frame_is_durable(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    memory.synced.clear()
    server = await raw_server(lambda visitor: visitor.say('4217["res",1]', END))
    await make_connection(server.url).open(token)
    await hear(memory, 2)
    visitor = await server.visitor()
    await visitor.say("2probe")
    await visitor.until(lambda: "3probe" in visitor.heard)
    assert "4317[]" not in visitor.heard
    memory.synced.set()
    await visitor.until(lambda: "4317[]" in visitor.heard)


async def test_pings_are_answered_and_count_as_a_sign_of_life(
    raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server()
    one = make_connection(server.url)
    await one.open(token)
    before, visitor = one.last_activity_us, await server.visitor()
    await visitor.say("2")
    await visitor.until(lambda: visitor.pongs == 1)
    assert one.last_activity_us > before
    assert one.frames == 0


async def test_reading_pauses_while_the_sink_is_behind(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    memory.congested = True
    server = await raw_server(lambda visitor: visitor.say(*[f'42["res",{n}]' for n in range(50)]))
    one = make_connection(server.url)
    opening = asyncio.create_task(one.open(token))
    await memory.until(lambda: memory.facts("paused"))
    assert len(memory.frames) <= 1
    memory.congested = False
    memory.roomy.set()
    await opening
    await hear(memory, 50)
    assert [fact.kind for fact in memory.facts()] == ["paused", "resumed"]
    assert memory.texts == [f'42["res",{n}]' for n in range(50)]


async def test_what_the_sink_raises_ends_the_connection_and_reaches_whoever_waits(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    memory.fault = SpoolFailed("disk gone")
    server = await raw_server(lambda visitor: visitor.until(lambda: visitor.asked("subscribe")))
    one = make_connection(server.url)
    await one.open(token)
    await (await server.visitor()).say('42["res",1]')
    with pytest.raises(SpoolFailed):
        await one.wait_closed()
    assert not one.alive


# --- opening ---


@pytest.mark.parametrize(
    ("version", "said", "why"),
    [
        pytest.param(ProtocolVersion.SOCKET_IO_4, ['44{"message":"token expired"}'], "token expired", id="4"),
        pytest.param(
            ProtocolVersion.SOCKET_IO_2, ['44"not authorized"'], "not authorized", id="3, with an error packet"
        ),
        pytest.param(
            ProtocolVersion.SOCKET_IO_2, ["40", '44"not authorized"'], "not authorized", id="3, after a CONNECT"
        ),
    ],
)
async def test_a_refused_token_is_told_from_a_failure(
    raw_server: Serve, make_connection: Make, token: Token, version: ProtocolVersion, said: list[str], why: str
) -> None:
    async def talk(visitor: Visitor) -> None:
        await visitor.say(OPEN)
        if version is ProtocolVersion.SOCKET_IO_4:
            await visitor.until(lambda: visitor.heard)
        for message in said:
            await visitor.say(message)
            await asyncio.sleep(0.02)  # so that the first is heard alone

    server = await raw_server(talk, greets=False, generation=version.value)
    with pytest.raises(ConnectionRefused, match=why):
        await make_connection(server.url, version).open(token)


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_refusal_by_http_is_a_refusal(
    raw_server: Serve, make_connection: Make, token: Token, status: int
) -> None:
    server = await raw_server(status=status)
    with pytest.raises(ConnectionRefused, match=str(status)):
        await make_connection(server.url).open(token)


async def test_any_other_status_is_a_failure(raw_server: Serve, make_connection: Make, token: Token) -> None:
    server = await raw_server(status=503)
    with pytest.raises(ConnectionFailed, match="503") as caught:
        await make_connection(server.url).open(token)
    assert not isinstance(caught.value, ConnectionRefused)


async def test_a_redirect_is_not_followed(raw_server: Serve, make_connection: Make, token: Token) -> None:
    elsewhere = await raw_server()
    server = await raw_server(status=302, headers={"Location": f"{elsewhere.url}/socket.io/?transport=websocket"})
    with pytest.raises(ConnectionFailed, match="redirect"):
        await make_connection(server.url).open(token)
    assert elsewhere.visitors == []


async def test_a_server_that_is_not_there_is_a_failure_in_words(make_connection: Make, token: Token) -> None:
    with pytest.raises(ConnectionFailed, match="refused"):
        await make_connection("http://127.0.0.1:9").open(token)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([], id="nothing, and it closes"),
        pytest.param(['42["res",1]'], id="a frame before OPEN"),
        pytest.param([""], id="an empty message"),
        pytest.param(["0nonsense"], id="an OPEN without its data"),
        pytest.param([b"\x00"], id="binary"),
    ],
)
async def test_a_server_that_does_not_begin_with_open_is_a_failure(
    raw_server: Serve, make_connection: Make, token: Token, said: list[str | bytes]
) -> None:
    async def talk(visitor: Visitor) -> None:
        await visitor.say(*said)
        await visitor.leave()

    server = await raw_server(talk, greets=False)
    with pytest.raises(ConnectionFailed):
        await make_connection(server.url).open(token)


async def test_a_server_that_never_opens_is_given_up(
    raw_server: Serve, make_connection: Make, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "OPEN_SECONDS", 0.1)
    server = await raw_server(greets=False)
    with pytest.raises(ConnectionFailed, match=r"within 0\.1 s"):
        await make_connection(server.url).open(token)


async def leave(visitor: Visitor) -> None:
    await visitor.say(OPEN)
    await visitor.leave()


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        pytest.param(leave, "closed", id="instead of the connect packet"),
        pytest.param(lambda visitor: visitor.say(OPEN, "40", "41"), "disconnected", id="together with it"),
    ],
)
async def test_an_end_while_connecting_is_a_failure_at_once_and_leaves_no_zombie(
    raw_server: Serve, make_connection: Make, token: Token, talk: Callable[[Visitor], Awaitable[None]], why: str
) -> None:
    server = await raw_server(talk, greets=False)
    one = make_connection(server.url)
    async with asyncio.timeout(5):  # the library would wait for a CONNECT packet as long as it was told to
        with pytest.raises(ConnectionFailed, match=why):
            await one.open(token)
    assert not one.alive


# --- the end ---


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        pytest.param(lambda visitor: visitor.say("41"), "kicked", id="41"),
        pytest.param(lambda visitor: visitor.say("1"), "closed", id="1"),
        pytest.param(lambda visitor: visitor.leave(), "closed", id="websocket close"),
        pytest.param(lambda visitor: asyncio.sleep(0, visitor.cut()), "lost", id="TCP"),
    ],
)
async def test_every_end_is_noticed_with_its_cause(
    raw_server: Serve, make_connection: Make, token: Token, end: Callable[[Visitor], Awaitable[None]], cause: str
) -> None:
    server = await raw_server()
    one = make_connection(server.url)
    await one.open(token)
    await end(await server.visitor())
    async with asyncio.timeout(5):
        assert (await one.wait_closed()).cause == cause


@pytest.mark.parametrize("version", list(ProtocolVersion))
async def test_a_connection_on_which_nothing_is_heard_is_over(
    raw_server: Serve, make_connection: Make, token: Token, version: ProtocolVersion
) -> None:
    server = await raw_server(generation=version.value, ping_interval_seconds=0.3, ping_timeout_seconds=0.2)
    one = make_connection(server.url, version)
    await one.open(token)
    async with asyncio.timeout(3):
        ended = await one.wait_closed()
    assert (ended.cause, ended.reason) == ("mute", "nothing received for 0.5 s")


@pytest.mark.parametrize("sign_of_life", ["2", "3", '42["res",1]', "6"])
async def test_any_message_keeps_it_alive(
    raw_server: Serve, make_connection: Make, token: Token, sign_of_life: str
) -> None:
    async def talk(visitor: Visitor) -> None:
        while True:
            await visitor.say(sign_of_life)
            await asyncio.sleep(0.1)

    server = await raw_server(talk, ping_interval_seconds=0.3, ping_timeout_seconds=0.2)
    one = make_connection(server.url)
    await one.open(token)
    await asyncio.sleep(1.2)
    assert one.alive


async def test_a_pause_of_ours_is_no_silence_of_theirs(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server(ping_interval_seconds=0.2, ping_timeout_seconds=0.1)
    one = make_connection(server.url)
    await one.open(token)
    memory.congested = True
    await (await server.visitor()).say('42["res",1]')
    await memory.until(lambda: memory.facts("paused"))
    await asyncio.sleep(0.9)
    assert one.alive


async def test_generation_3_is_pinged_by_the_client_and_not_asked_to_connect(
    raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server(generation="3", ping_interval_seconds=0.1, ping_timeout_seconds=5)
    one = make_connection(server.url, ProtocolVersion.SOCKET_IO_2)
    await one.open(token)
    visitor = await server.visitor()
    await visitor.until(lambda: visitor.pings >= 3)
    assert visitor.request.query["EIO"] == "3"
    assert "40" not in visitor.heard


async def test_binary_of_generation_3_is_read_without_its_type_byte(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    said = [HEADER, b"\x04\x01", b"\x04\x09"]
    server = await raw_server(lambda visitor: visitor.say(*said), generation="3")
    await make_connection(server.url, ProtocolVersion.SOCKET_IO_2).open(token)
    await hear(memory, 2)
    assert memory.texts == ['42["res",{"base64":"AQ=="}]', "bBAk="]


async def test_an_error_packet_on_a_live_connection_is_a_complaint(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server(generation="3")
    one = make_connection(server.url, ProtocolVersion.SOCKET_IO_2)
    await one.open(token)
    await (await server.visitor()).say('44"too many"', END)
    await hear(memory, 1)
    assert [fact.detail["text"] for fact in memory.facts("provider_error")] == ["too many"]
    assert one.alive


async def test_closing_is_in_order_and_leaves_nothing_behind(
    raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server()
    one = make_connection(server.url)
    await one.open(token)
    tasks = len(asyncio.all_tasks())
    await one.close("stopped", "by us")
    visitor = await server.visitor()
    await visitor.until(visitor.gone.is_set)
    assert visitor.close_code == 1000
    assert (await one.wait_closed()).cause == "stopped"
    assert base_client.connected_clients == []
    assert len(asyncio.all_tasks()) < tasks
    gc.collect()


@pytest.mark.parametrize("steps", range(6))
async def test_closing_while_something_is_being_sent_does_not_wait_for_the_library(
    raw_server: Serve, make_connection: Make, token: Token, steps: int
) -> None:
    server = await raw_server(generation="3")
    one = make_connection(server.url, ProtocolVersion.SOCKET_IO_2)  # which sends its first ping at once
    await one.open(token)
    for _ in range(steps):
        await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await one.close("stopped", "by us")


async def test_closing_a_connection_whose_server_does_not_answer_takes_a_bounded_time(
    raw_server: Serve, make_connection: Make, token: Token, tcp_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CLOSE_SECONDS", 0.2)
    proxy = await tcp_proxy((await raw_server()).url)
    one = make_connection(proxy.url)
    await one.open(token)
    proxy.half_open = True
    async with asyncio.timeout(2):
        await one.close("stopped", "by us")
    assert base_client.connected_clients == []


# --- subscribing ---


async def test_subscriptions_are_asked_for_in_a_pipeline_and_answered_one_by_one(
    raw_server: Serve, make_connection: Make, token: Token
) -> None:
    async def talk(visitor: Visitor) -> None:
        await visitor.until(lambda: len(visitor.asked("subscribe")) == 2)  # both, before any answer
        (first, wish), (second, _) = visitor.asked("subscribe")
        assert wish == {"path": AAPL.path, "method": "get", "params": {"ticker": "AAPL"}}
        await visitor.say(f'43{second}[{{"type":"invalid_request_error","message":"no TSLA"}}]', f"43{first}[null]")

    server = await raw_server(talk)
    one = make_connection(server.url)
    await one.open(token)
    answers: list[tuple[str, str | None]] = []
    await one.subscribe([AAPL, TSLA], lambda sub, error: answers.append((sub.ticker, error)))
    assert answers == [("TSLA", "invalid_request_error: no TSLA"), ("AAPL", None)]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("", None),
        ("null", None),
        ("false", None),
        ('""', None),
        ("null,[1]", None),
        ('"denied"', "denied"),
        ('{"message":"denied"}', "denied"),
        ('{"type":"api_error"}', "api_error"),
        ('{"code":7}', '{"code": 7}'),
        ("{}", "{}"),
        ("[1]", "[1]"),
    ],
)
async def test_an_answer_of_any_shape_is_understood(
    raw_server: Serve, make_connection: Make, token: Token, answer: str, error: str | None
) -> None:
    async def talk(visitor: Visitor) -> None:
        await visitor.until(lambda: visitor.asked("subscribe"))
        await visitor.say(f"43{visitor.asked('subscribe')[0][0]}[{answer}]")

    server = await raw_server(talk)
    one = make_connection(server.url)
    await one.open(token)
    answers: list[str | None] = []
    await one.subscribe([AAPL], lambda _, error: answers.append(error))
    assert answers == [error]


async def test_no_answer_in_time_is_told_as_a_refusal_and_a_late_answer_still_counts(
    raw_server: Serve, make_connection: Make, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ACK_SECONDS", 0.1)
    server = await raw_server()
    one = make_connection(server.url)
    await one.open(token)
    answers: list[str | None] = []
    late = asyncio.Event()
    await one.subscribe([AAPL], lambda _, error: answers.append(error) or (error is None and late.set()))  # type: ignore[func-returns-value]
    assert answers == ["not acknowledged within 0.1 s"]
    await (await server.visitor()).acknowledge()
    await late.wait()
    assert answers[1:] == [None]


async def test_no_more_than_a_bounded_number_is_in_flight(
    raw_server: Serve, make_connection: Make, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_IN_FLIGHT", 5)
    server = await raw_server()
    one = make_connection(server.url)
    await one.open(token)
    many = [Subscription("/p", "get", {"ticker": f"T{n}"}) for n in range(12)]
    asking = asyncio.create_task(one.subscribe(many, nobody))
    visitor = await server.visitor()
    answered: set[int] = set()
    while len(answered) < 12:
        await visitor.until(lambda: len(visitor.asked("subscribe")) > len(answered))
        assert len(visitor.asked("subscribe")) - len(answered) <= 5
        number = next(number for number, _ in visitor.asked("subscribe") if number not in answered)
        answered.add(number)
        await visitor.say(f"43{number}[null]")
    await asking


async def test_asking_on_a_connection_that_has_ended_is_over_at_once_and_no_refusal(
    raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server()
    one = make_connection(server.url)
    await one.open(token)
    await (await server.visitor()).leave()
    await one.wait_closed()
    answers: list[str | None] = []
    async with asyncio.timeout(2):
        await one.subscribe([AAPL], lambda _, error: answers.append(error))
    assert answers == []


async def test_an_end_while_the_answer_is_awaited_is_no_refusal(
    raw_server: Serve, make_connection: Make, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ACK_SECONDS", 0.3)

    async def talk(visitor: Visitor) -> None:
        await visitor.until(lambda: visitor.asked("subscribe"))
        await visitor.leave()

    server = await raw_server(talk)
    one = make_connection(server.url)
    await one.open(token)
    answers: list[str | None] = []
    await one.subscribe([AAPL], lambda _, error: answers.append(error))
    assert answers == []


async def test_unsubscribing_asks_to_be_left_alone(raw_server: Serve, make_connection: Make, token: Token) -> None:
    async def talk(visitor: Visitor) -> None:
        await visitor.until(lambda: visitor.asked("unsubscribe"))
        await visitor.say(f"43{visitor.asked('unsubscribe')[0][0]}[null]")

    server = await raw_server(talk)
    one = make_connection(server.url)
    await one.open(token)
    answers: list[str | None] = []
    await one.unsubscribe([AAPL], lambda _, error: answers.append(error))
    assert answers == [None]


# --- secrets, and the library we do not know ---


async def test_the_token_is_in_no_log_no_error_and_no_traceback(
    raw_server: Serve, make_connection: Make, token: Token, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await raw_server()
    await make_connection(server.url).open(token)
    broken = await raw_server(status=500)
    with pytest.raises(ConnectionFailed) as caught:
        await make_connection(broken.url).open(token)
    links: list[BaseException] = [caught.value]
    while (link := links[-1].__cause__ or links[-1].__context__) is not None:
        links.append(link)
    # aiohttp's own server, ours here, logs requests: only what the client's side says counts.
    said = [record.getMessage() for record in caplog.records if not record.name.startswith("aiohttp.access")]
    seen = " ".join([*said, *map(str, links), *capfd.readouterr()])
    assert TOKEN not in seen
    assert TOKEN.split(".")[1] not in seen
