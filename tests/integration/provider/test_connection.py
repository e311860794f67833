"""One connection to a server that sends anything at any time: each flaw of the library has its test here."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from engineio import base_client

from ingestor.config.model import Subscription
from ingestor.core.entries import Frame
from ingestor.errors import ConnectionFailed, ConnectionRefused, SpoolFailed
from ingestor.provider.auth import Token
from ingestor.provider.socket import connection as connection_module
from ingestor.provider.socket import engineio_client
from ingestor.provider.socket.connection import Connection, ConnectionSettings
from ingestor.provider.socket.protocol import ProtocolVersion

from .conftest import TOKEN
from .raw_engineio_server import ClientSocket, Memory, RawServer

Make = Callable[..., Connection]
Serve = Callable[..., Awaitable[RawServer]]
AAPL = Subscription("/real-time/crowd-sentiment", "get", {"ticker": "AAPL"})
TSLA = Subscription("/real-time/crowd-sentiment", "get", {"ticker": "TSLA"})
OPEN = '0{"sid":"a","upgrades":[],"pingInterval":25000,"pingTimeout":20000}'
END = '42["res","end"]'
HEADER = '451-["res",{"_placeholder":true,"num":0}]'  # of an event whose attachment follows


def ignore_ack(_: Subscription, __: str | None) -> None:
    pass


async def receive(memory: Memory, messages: int) -> None:
    await memory.until(lambda: len(memory.frames) >= messages)


# --- receiving ---


async def test_data_event_is_passed_on_unchanged(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    text = '42["res",[{"ts":"2014-06-09T20:19:00.000Z","ticker":"AAPL","average_sentiment":0.10}]]'
    server = await raw_server(lambda client: client.send(text))
    connection = make_connection(server.url)
    await connection.open(token)
    await receive(memory, 1)
    frame = memory.frames[0]
    assert (frame.text, frame.event, frame.source, frame.path) == (text, "res", "stream", "/real-time/crowd-sentiment")
    assert frame.connection_id == connection.id
    assert len(connection.id) == 12
    assert (connection.frames, connection.last_frame_us) == (1, frame.received_us)


@pytest.mark.parametrize(
    ("messages", "event", "text"),
    [
        pytest.param(['42["data",{"a":1}]'], "data", '42["data",{"a":1}]', id="data"),
        pytest.param(['42["res",not json]'], "res", '42["res",not json]', id="bad JSON in data event"),
        pytest.param(['42["res"]'], "res", '42["res"]', id="no payload"),
        pytest.param(['42 [ "res" , [0.10]]'], "res", '42[ "res" , [0.10]]', id="odd spacing"),
        pytest.param(['42/ns,["res",[0.10]]'], "res", '42["res",[0.10]]', id="namespace"),
        pytest.param(['42/n[s,7["res",[0.10]]'], "res", '42["res",[0.10]]', id="odd namespace and ack id"),
        pytest.param(['42["\\u0072es",1]'], "res", '42["\\u0072es",1]', id="escaped name"),
        pytest.param(['42["other",1]'], "other", '42["other",1]', id="unknown event"),
        pytest.param(['42["connect",1]'], "connect", '42["connect",1]', id="event named connect"),
        pytest.param(['42["disconnect",1]'], "disconnect", '42["disconnect",1]', id="event named disconnect"),
        pytest.param(
            ['42["connect_error",1]'], "connect_error", '42["connect_error",1]', id="event named connect_error"
        ),
        pytest.param([HEADER, b"\x01"], "res", '42["res",{"base64":"AQ=="}]', id="binary"),
        pytest.param(["42[]"], "", "42[]", id="no name"),
        pytest.param(["42"], "", "42", id="no event"),
        pytest.param(['42{"a":1}'], "", '42{"a":1}', id="object"),
        pytest.param(["42[1,2]"], "", "42[1,2]", id="number as name"),
        pytest.param(['42["other",'], "", '42["other",', id="truncated"),
        pytest.param([f'42["other",{"1" * 4400}]'], "", f'42["other",{"1" * 4400}]', id="integer of 4400 digits"),
        pytest.param(["42" + "[" * 100_000], "", "42" + "[" * 100_000, id="nested too deeply"),
        pytest.param(["47[1]"], "", "47[1]", id="unknown Socket.IO packet"),
        pytest.param(['4{"a":1}'], "", '4{"a":1}', id="no packet"),
        pytest.param(["9what"], "", "9what", id="unknown Engine.IO packet"),
        pytest.param([""], "", "", id="empty message"),
        pytest.param(["hello"], "", "hello", id="prose"),
        pytest.param([b"\x01\x02"], "", "bAQI=", id="stray binary"),
        pytest.param([b'2["res",1]'], "", "bMlsicmVzIiwxXQ==", id="stray binary that looks like an event"),
        pytest.param([HEADER, '42["other",1]'], "", HEADER, id="missing attachment"),
    ],
)
async def test_any_message_is_kept_and_connection_stays_open(
    memory: Memory,
    raw_server: Serve,
    make_connection: Make,
    token: Token,
    messages: list[str | bytes],
    event: str,
    text: str,
) -> None:
    server = await raw_server(lambda client: client.send(*messages, END))
    connection = make_connection(server.url)
    await connection.open(token)
    await memory.until(lambda: END in memory.texts)
    assert (memory.frames[0].event, memory.frames[0].text) == (event, text)
    assert connection.alive


async def test_missing_attachment_does_not_consume_next_message(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server(lambda client: client.send(HEADER, '42["other",1]', END))
    await make_connection(server.url).open(token)
    await receive(memory, 3)
    expected = [("", HEADER), ("other", '42["other",1]'), ("res", END)]
    assert [(frame.event, frame.text) for frame in memory.frames] == expected


async def test_parsed_messages_keep_their_order(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    messages = [f'42["res",{n}]' if n % 3 else f'42 ["res",{n}]' for n in range(300)]
    server = await raw_server(lambda client: client.send(*messages))
    await make_connection(server.url).open(token)
    await receive(memory, 300)
    assert memory.texts == [text.replace("42 ", "42") for text in messages]


async def test_data_before_connect_packet_is_kept(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.send(OPEN, '42["res",1]', "40")

    server = await raw_server(talk, greets=False)
    await make_connection(server.url).open(token)
    await receive(memory, 1)
    assert memory.texts == ['42["res",1]']


async def test_message_of_ten_megabytes_is_received(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    big = '42["res","' + "x" * 10_000_000 + '"]'
    server = await raw_server(lambda client: client.send(big, END))
    await make_connection(server.url).open(token)
    await receive(memory, 2)
    assert memory.texts == [big, END]


async def test_error_event_is_a_scrubbed_fact_and_no_frame(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    error = f'42["err",{{"type":"api_error","message":"bad {TOKEN} {"x" * 900}"}}]'
    server = await raw_server(lambda client: client.send(error, '42["error","plain"]', END))
    await make_connection(server.url).open(token)
    await receive(memory, 1)
    first, second = memory.facts("provider_error")
    assert first.detail["text"].startswith("api_error: bad *** xxx")
    assert len(first.detail["text"]) == 500
    assert (second.detail["event"], second.detail["text"]) == ("error", "plain")
    assert memory.texts == [END]


async def test_ack_is_sent_once_the_frame_is_durable(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    memory.synced.clear()
    server = await raw_server(lambda client: client.send('4217["res",1]', END))
    await make_connection(server.url).open(token)
    await receive(memory, 2)
    client = await server.client()
    await client.send("2probe")
    await client.until(lambda: "3probe" in client.received)
    assert "4317[]" not in client.received
    memory.synced.set()
    await client.until(lambda: "4317[]" in client.received)


async def test_what_is_read_soon_after_a_pause_may_be_old_and_is_no_sign_of_life(
    memory: Memory, make_connection: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.has_space.set()
    connection = make_connection("http://127.0.0.1:1")
    connection.on_activity()
    before = connection.last_activity_at
    await connection.wait_for_space()
    connection.on_activity()
    assert connection.last_activity_at == before
    monkeypatch.setattr(connection_module, "BACKLOG_SECONDS", 0.0)
    connection.on_activity()
    assert connection.last_activity_at > before


async def test_ping_is_answered_and_counts_as_activity(raw_server: Serve, make_connection: Make, token: Token) -> None:
    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    before, client = connection.last_activity_at, await server.client()
    await client.send("2")
    await client.until(lambda: client.pongs == 1)
    assert connection.last_activity_at > before
    assert connection.frames == 0


async def test_reading_pauses_while_sink_is_congested(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    memory.congested = True
    server = await raw_server(lambda client: client.send(*[f'42["res",{n}]' for n in range(50)]))
    connection = make_connection(server.url)
    opening = asyncio.create_task(connection.open(token))
    await memory.until(lambda: memory.facts("paused"))
    assert len(memory.frames) <= 1
    memory.congested = False
    memory.has_space.set()
    await opening
    await receive(memory, 50)
    assert [fact.kind for fact in memory.facts()] == ["paused", "resumed"]
    assert memory.texts == [f'42["res",{n}]' for n in range(50)]


async def test_frames_of_one_pass_have_one_time_and_stay_in_order_with_what_came_between(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    messages = [
        '42["res",1]',
        '42["data",2]',
        '42["res",3]',
        '42["err",{"message":"x"}]',
        '42["res",4]',
        '427["res",5]',
    ]
    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    client = await server.client()
    for message in messages:
        await client.send(message)
    await receive(memory, 5)
    order = [entry.text if isinstance(entry, Frame) else entry.kind for entry in memory.all]
    assert order == ['42["res",1]', '42["data",2]', '42["res",3]', "provider_error", '42["res",4]', '42["res",5]']
    stamps = [entry.received_us if isinstance(entry, Frame) else entry.at_us for entry in memory.all]
    assert stamps == sorted(stamps)
    connection.on_frame("res", "6")
    connection.on_frame("res", "7")
    assert connection.frames == 7
    await receive(memory, 7)
    assert memory.frames[5].received_us == memory.frames[6].received_us == connection.last_frame_us


async def test_server_was_there_when_what_is_read_had_certainly_come(memory: Memory) -> None:
    settings, came_at = ConnectionSettings(url="http://127.0.0.1:9", path="", params="{}", events=("res",)), 5.0
    connection = Connection(settings, ProtocolVersion.SOCKET_IO_4, memory, memory.append, lambda: came_at)
    connection.on_activity()
    assert connection.last_activity_at == 5.0
    came_at = 6.0
    connection.on_data("res", '42["res",[]]')
    assert connection.last_activity_at == 6.0


async def test_nothing_is_heard_while_reading_pauses(memory: Memory, make_connection: Make) -> None:
    connection = make_connection("http://127.0.0.1:9")
    heard_at = connection.last_activity_at
    memory.has_space.set()
    await connection.wait_for_space()
    assert [fact.kind for fact in memory.facts()] == ["paused", "resumed"]
    assert connection.last_activity_at == heard_at


async def test_sink_error_closes_connection_and_is_raised(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    memory.fault = SpoolFailed("disk gone")
    server = await raw_server(lambda client: client.until(lambda: client.requests("subscribe")))
    connection = make_connection(server.url)
    await connection.open(token)
    await (await server.client()).send('42["res",1]')
    with pytest.raises(SpoolFailed):
        await connection.wait_closed()
    assert not connection.alive


# --- opening ---


@pytest.mark.parametrize(
    ("version", "messages", "why"),
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
async def test_refused_token_raises_connection_refused(
    raw_server: Serve,
    make_connection: Make,
    token: Token,
    version: ProtocolVersion,
    messages: list[str],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engineio_client, "LATE_ERROR_SECONDS", 5.0)  # on a busy machine, it comes later

    async def talk(client: ClientSocket) -> None:
        await client.send(OPEN)
        if version is ProtocolVersion.SOCKET_IO_4:
            await client.until(lambda: client.received)
        for message in messages:
            await client.send(message)
            await asyncio.sleep(0.02)  # so that the first is received separately

    server = await raw_server(talk, greets=False, generation=version.value)
    with pytest.raises(ConnectionRefused, match=why):
        await make_connection(server.url, version).open(token)


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_http_refusal_raises_connection_refused(
    raw_server: Serve, make_connection: Make, token: Token, status: int
) -> None:
    server = await raw_server(status=status)
    with pytest.raises(ConnectionRefused, match=str(status)):
        await make_connection(server.url).open(token)


async def test_other_status_raises_connection_failed(raw_server: Serve, make_connection: Make, token: Token) -> None:
    server = await raw_server(status=503)
    with pytest.raises(ConnectionFailed, match="503") as caught:
        await make_connection(server.url).open(token)
    assert not isinstance(caught.value, ConnectionRefused)


async def test_redirect_is_not_followed(raw_server: Serve, make_connection: Make, token: Token) -> None:
    elsewhere = await raw_server()
    server = await raw_server(status=302, headers={"Location": f"{elsewhere.url}/socket.io/?transport=websocket"})
    with pytest.raises(ConnectionFailed, match="redirect"):
        await make_connection(server.url).open(token)
    assert elsewhere.clients == []


async def test_unreachable_server_raises_connection_failed(make_connection: Make, token: Token) -> None:
    with pytest.raises(ConnectionFailed, match="refused"):
        await make_connection("http://127.0.0.1:9").open(token)


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([], id="nothing, then close"),
        pytest.param(['42["res",1]'], id="frame before OPEN"),
        pytest.param([""], id="empty message"),
        pytest.param(["0nonsense"], id="OPEN without data"),
        pytest.param([b"\x00"], id="binary"),
    ],
)
async def test_handshake_without_open_raises_connection_failed(
    raw_server: Serve, make_connection: Make, token: Token, messages: list[str | bytes]
) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.send(*messages)
        await client.close()

    server = await raw_server(talk, greets=False)
    with pytest.raises(ConnectionFailed):
        await make_connection(server.url).open(token)


async def test_handshake_times_out(
    raw_server: Serve, make_connection: Make, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "OPEN_SECONDS", 0.1)
    server = await raw_server(greets=False)
    with pytest.raises(ConnectionFailed, match=r"within 0\.1 s"):
        await make_connection(server.url).open(token)


async def leave(client: ClientSocket) -> None:
    await client.send(OPEN)
    await client.close()


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        pytest.param(leave, "closed", id="instead of CONNECT"),
        pytest.param(lambda client: client.send(OPEN, "40", "41"), "disconnected", id="with CONNECT"),
    ],
)
async def test_close_while_connecting_fails_at_once(
    raw_server: Serve, make_connection: Make, token: Token, talk: Callable[[ClientSocket], Awaitable[None]], why: str
) -> None:
    server = await raw_server(talk, greets=False)
    connection = make_connection(server.url)
    async with asyncio.timeout(5):  # the library would wait for CONNECT until its own timeout
        with pytest.raises(ConnectionFailed, match=why):
            await connection.open(token)
    assert not connection.alive


# --- closing ---


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        pytest.param(lambda client: client.send("41"), "kicked", id="41"),
        pytest.param(lambda client: client.send("1"), "closed", id="1"),
        pytest.param(lambda client: client.close(), "closed", id="websocket close"),
        pytest.param(lambda client: asyncio.sleep(0, client.abort()), "lost", id="TCP"),
    ],
)
async def test_close_reason_has_the_cause(
    raw_server: Serve, make_connection: Make, token: Token, end: Callable[[ClientSocket], Awaitable[None]], cause: str
) -> None:
    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    await end(await server.client())
    async with asyncio.timeout(5):
        assert (await connection.wait_closed()).cause == cause


@pytest.mark.parametrize("version", [ProtocolVersion.SOCKET_IO_4, ProtocolVersion.SOCKET_IO_2])
async def test_silent_connection_is_closed(
    raw_server: Serve, make_connection: Make, token: Token, version: ProtocolVersion
) -> None:
    server = await raw_server(generation=version.value, ping_interval_seconds=0.3, ping_timeout_seconds=0.2)
    connection = make_connection(server.url, version)
    await connection.open(token)
    async with asyncio.timeout(10):
        close_reason = await connection.wait_closed()
    assert (close_reason.cause, close_reason.reason) == ("mute", "nothing received for 0.5 s")


@pytest.mark.parametrize("sign_of_life", ["2", "3", '42["res",1]', "6"])
async def test_any_message_keeps_connection_alive(
    raw_server: Serve, make_connection: Make, token: Token, sign_of_life: str
) -> None:
    async def talk(client: ClientSocket) -> None:
        while True:
            await client.send(sign_of_life)
            await asyncio.sleep(0.1)

    server = await raw_server(talk, ping_interval_seconds=0.3, ping_timeout_seconds=0.2)
    connection = make_connection(server.url)
    await connection.open(token)
    await asyncio.sleep(1.2)
    assert connection.alive


async def test_paused_reading_does_not_count_as_silence(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server(ping_interval_seconds=0.2, ping_timeout_seconds=0.1)
    connection = make_connection(server.url)
    await connection.open(token)
    memory.congested = True
    await (await server.client()).send('42["res",1]')
    await memory.until(lambda: memory.facts("paused"))
    await asyncio.sleep(0.9)
    assert connection.alive


async def test_v3_client_pings_and_sends_no_connect(raw_server: Serve, make_connection: Make, token: Token) -> None:
    server = await raw_server(generation="3", ping_interval_seconds=0.1, ping_timeout_seconds=5)
    connection = make_connection(server.url, ProtocolVersion.SOCKET_IO_2)
    await connection.open(token)
    client = await server.client()
    await client.until(lambda: client.pings >= 3)
    assert client.request.query["EIO"] == "3"
    assert "40" not in client.received


async def test_v3_binary_is_read_without_type_byte(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    messages = [HEADER, b"\x04\x01", b"\x04\x09"]
    server = await raw_server(lambda client: client.send(*messages), generation="3")
    await make_connection(server.url, ProtocolVersion.SOCKET_IO_2).open(token)
    await receive(memory, 2)
    assert memory.texts == ['42["res",{"base64":"AQ=="}]', "bBAk="]


async def test_error_packet_on_open_connection_is_provider_error(
    memory: Memory, raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server(generation="3")
    connection = make_connection(server.url, ProtocolVersion.SOCKET_IO_2)
    await connection.open(token)
    await (await server.client()).send('44"too many"', END)
    await receive(memory, 1)
    assert [fact.detail["text"] for fact in memory.facts("provider_error")] == ["too many"]
    assert connection.alive


async def test_close_sends_closing_handshake_and_leaves_nothing(
    raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    tasks = len(asyncio.all_tasks())
    await connection.close("stopped", "by us")
    client = await server.client()
    await client.until(client.closed.is_set)
    assert client.close_code == 1000
    assert (await connection.wait_closed()).cause == "stopped"
    assert base_client.connected_clients == []
    assert len(asyncio.all_tasks()) < tasks
    gc.collect()


@pytest.mark.parametrize("steps", range(6))
async def test_close_while_sending_does_not_wait(
    raw_server: Serve, make_connection: Make, token: Token, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "CLOSE_SECONDS", 60.0)
    server = await raw_server(generation="3")
    connection = make_connection(server.url, ProtocolVersion.SOCKET_IO_2)  # which sends its first ping at once
    await connection.open(token)
    for _ in range(steps):
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await connection.close("stopped", "by us")


async def test_close_with_unresponsive_server_takes_bounded_time(
    raw_server: Serve, make_connection: Make, token: Token, tcp_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "CLOSE_SECONDS", 0.2)
    proxy = await tcp_proxy((await raw_server()).url)
    connection = make_connection(proxy.url)
    await connection.open(token)
    proxy.half_open = True
    async with asyncio.timeout(10):
        await connection.close("stopped", "by us")
    assert base_client.connected_clients == []


# --- subscribing ---


async def test_subscribe_pipelines_requests_and_reports_each_ack(
    raw_server: Serve, make_connection: Make, token: Token
) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.until(lambda: len(client.requests("subscribe")) == 2)  # both, before any answer
        (first, wish), (second, _) = client.requests("subscribe")
        assert wish == {"path": AAPL.path, "method": "get", "params": {"ticker": "AAPL"}}
        await client.send(f'43{second}[{{"type":"invalid_request_error","message":"no TSLA"}}]', f"43{first}[null]")

    server = await raw_server(talk)
    connection = make_connection(server.url)
    await connection.open(token)
    answers: list[tuple[str, str | None]] = []
    await connection.subscribe([AAPL, TSLA], lambda sub, error: answers.append((sub.ticker, error)))
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
async def test_ack_of_any_shape_is_parsed(
    raw_server: Serve, make_connection: Make, token: Token, answer: str, error: str | None
) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.until(lambda: client.requests("subscribe"))
        await client.send(f"43{client.requests('subscribe')[0][0]}[{answer}]")

    server = await raw_server(talk)
    connection = make_connection(server.url)
    await connection.open(token)
    answers: list[str | None] = []
    await connection.subscribe([AAPL], lambda _, error: answers.append(error))
    assert answers == [error]


async def test_missing_ack_is_an_error_and_late_ack_is_reported(
    raw_server: Serve, make_connection: Make, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "ACK_SECONDS", 0.1)
    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    answers: list[str | None] = []
    late = asyncio.Event()
    await connection.subscribe([AAPL], lambda _, error: answers.append(error) or (error is None and late.set()))  # type: ignore[func-returns-value]
    assert answers == ["not acknowledged within 0.1 s"]
    await (await server.client()).acknowledge()
    await late.wait()
    assert answers[1:] == [None]


async def test_requests_in_flight_are_bounded(
    raw_server: Serve, make_connection: Make, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engineio_client.EngineIoClient, "max_in_flight", 5)
    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    subscriptions = [Subscription("/p", "get", {"ticker": f"T{n}"}) for n in range(12)]
    subscribing = asyncio.create_task(connection.subscribe(subscriptions, ignore_ack))
    client = await server.client()
    answered: set[int] = set()
    while len(answered) < 12:
        await client.until(lambda: len(client.requests("subscribe")) > len(answered))
        assert len(client.requests("subscribe")) - len(answered) <= 5
        number = next(number for number, _ in client.requests("subscribe") if number not in answered)
        answered.add(number)
        await client.send(f"43{number}[null]")
    await subscribing


async def test_subscribe_on_closed_connection_returns_at_once(
    raw_server: Serve, make_connection: Make, token: Token
) -> None:
    server = await raw_server()
    connection = make_connection(server.url)
    await connection.open(token)
    await (await server.client()).close()
    await connection.wait_closed()
    answers: list[str | None] = []
    async with asyncio.timeout(8):  # less than it waits for an acknowledgement
        await connection.subscribe([AAPL], lambda _, error: answers.append(error))
    assert answers == []


async def test_close_before_ack_is_no_refusal(
    raw_server: Serve, make_connection: Make, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "ACK_SECONDS", 0.3)

    async def talk(client: ClientSocket) -> None:
        await client.until(lambda: client.requests("subscribe"))
        await client.close()

    server = await raw_server(talk)
    connection = make_connection(server.url)
    await connection.open(token)
    answers: list[str | None] = []
    await connection.subscribe([AAPL], lambda _, error: answers.append(error))
    assert answers == []


async def test_unsubscribe_sends_request(raw_server: Serve, make_connection: Make, token: Token) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.until(lambda: client.requests("unsubscribe"))
        await client.send(f"43{client.requests('unsubscribe')[0][0]}[null]")

    server = await raw_server(talk)
    connection = make_connection(server.url)
    await connection.open(token)
    answers: list[str | None] = []
    await connection.unsubscribe([AAPL], lambda _, error: answers.append(error))
    assert answers == [None]


# --- secrets ---


async def test_token_is_not_in_logs_errors_or_tracebacks(
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
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith("aiohttp.access")]
    output = " ".join([*logged, *map(str, links), *capfd.readouterr()])
    assert TOKEN not in output
    assert TOKEN.split(".")[1] not in output
