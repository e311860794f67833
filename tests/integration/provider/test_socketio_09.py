"""The client of Socket.IO 0.8 and 0.9 with a server that sends anything at any time."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ingestor.config.model import Subscription
from ingestor.errors import ConnectionFailed, ConnectionRefused, ProtocolUnsupported
from ingestor.provider.auth import Token
from ingestor.provider.socket import connection as connection_module
from ingestor.provider.socket import socketio_09_client
from ingestor.provider.socket.connection import Connection, ConnectionSettings
from ingestor.provider.socket.protocol import ProtocolVersion
from ingestor.provider.transport import make_tls_context

from .conftest import TOKEN
from .raw_engineio_server import ClientSocket, Memory
from .raw_socketio_09_server import RawSocketIo09Server, end_by_fin, send_bytes_as_they_are

Connect = Callable[[str], Connection]
Serve = Callable[..., Awaitable[RawSocketIo09Server]]
AAPL = Subscription("/real-time/crowd-sentiment", "get", {"ticker": "AAPL"})
END = '5:::{"name":"res","args":["end"]}'
END_TEXT = '42["res","end"]'


@pytest.fixture
def make(make_connection: Callable[..., Connection]) -> Connect:
    """`make(url)`: a connection that speaks 0.9."""
    return lambda url: make_connection(url, ProtocolVersion.SOCKET_IO_0)


def event(text: str) -> str:
    """Return the packet of an event: its name and its arguments as JSON."""
    return f"5:::{text}"


def text_frame(payload: bytes, length: int | None = None) -> bytes:
    """Return a websocket frame with a length of 16 bits, right or wrong."""
    return b"\x81\x7e" + (len(payload) if length is None else length).to_bytes(2, "big") + payload


def sent_ids(client: ClientSocket) -> list[str]:
    """Return the ids of the requests that the client has sent."""
    return [text[2:].partition("+::")[0] for text in client.received if text.startswith("5:")]


# --- receiving ---


@pytest.mark.parametrize(
    ("message", "name", "text"),
    [
        pytest.param(event('{"name":"res","args":[[{"a":0.10}]]}'), "res", '42["res",[{"a":0.10}]]', id="data event"),
        pytest.param(
            event('{"name":"res","args":[1,"é😀\u2028"]}'), "res", '42["res",1,"é😀\u2028"]', id="two arguments"
        ),
        pytest.param(event('{"name":"res"}'), "res", '42["res"]', id="no arguments"),
        pytest.param(event('{"name":"res","args":[]}'), "res", '42["res"]', id="empty arguments"),
        pytest.param(event('{"args":[[0.10]],"name":"res"}'), "res", '42["res",[0.10]]', id="another order"),
        pytest.param(event(' { "name" : "res" , "args" : [ 0.10 ] } '), "res", '42["res",0.10]', id="blanks"),
        pytest.param(event('{"name":"\\u0072es","args":[1]}'), "res", '42["\\u0072es",1]', id="escaped name"),
        pytest.param(
            event('{"name":"res","args":[not json]}'), "res", '42["res",not json]', id="bad JSON in arguments"
        ),
        pytest.param('5::/ns:{"name":"res","args":[0.10]}', "res", '42["res",0.10]', id="namespace"),
        pytest.param('5:7+::{"name":"res","args":[0.10]}', "res", '42["res",0.10]', id="id"),
        pytest.param(event('{"name":"connect","args":[1]}'), "connect", '42["connect",1]', id="event named connect"),
        pytest.param("3:::hello:wörld", "message", '42["message","hello:wörld"]', id="message"),
        pytest.param('4:::{"a":0.10}', "message", '42["message",{"a":0.10}]', id="JSON message"),
        pytest.param(event('{"args":[1]}'), "", '5:::{"args":[1]}', id="no name"),
        pytest.param(event('{"name":7,"args":[1]}'), "", '5:::{"name":7,"args":[1]}', id="number as name"),
        pytest.param(event('{"name":"other","args":{}}'), "", '5:::{"name":"other","args":{}}', id="no list"),
        pytest.param(event('{"name":"other","args":['), "", '5:::{"name":"other","args":[', id="truncated"),
        pytest.param(event('{"name":"other"}}'), "", '5:::{"name":"other"}}', id="too long"),
        pytest.param(event('["other",1]'), "", '5:::["other",1]', id="no object"),
        pytest.param(event('{"name" "other"}'), "", '5:::{"name" "other"}', id="no colon"),
        pytest.param(event('{"name""other"}'), "", '5:::{"name""other"}', id="no colon and no blank"),
        pytest.param(event(',"name":"other"}'), "", '5:::,"name":"other"}', id="no brace"),
        pytest.param(event('{"name":"other"{"args":[1]}'), "", '5:::{"name":"other"{"args":[1]}', id="two braces"),
        pytest.param(event(f'{{"x":{"1" * 4400}}}'), "", f'5:::{{"x":{"1" * 4400}}}', id="integer of 4400 digits"),
        pytest.param(event("[" * 100_000), "", event("[" * 100_000), id="nested too deeply"),
        pytest.param("5", "", "5", id="no packet"),
        pytest.param("9:::", "", "9:::", id="unknown packet"),
        pytest.param('42["res",1]', "", '42["res",1]', id="another generation"),
        pytest.param("6:::x+[1]", "", "6:::x+[1]", id="acknowledgement of nothing"),
        pytest.param("6:::1+[", "", "6:::1+[", id="acknowledgement with bad JSON"),
        pytest.param(b"\x01\x02", "", "bAQI=", id="binary"),
        pytest.param(b"0::", "", "bMDo6", id="binary that looks like a packet"),
    ],
)
async def test_any_message_is_kept_in_the_form_of_later_versions(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token, message: str | bytes, name: str, text: str
) -> None:
    server = await raw_09_server(lambda client: client.send(message, END))
    connection = make(server.url)
    await connection.open(token)
    await memory.until(lambda: END_TEXT in memory.texts)
    assert [(frame.event, frame.text) for frame in memory.frames] == [(name, text), ("res", END_TEXT)]
    assert connection.alive


@pytest.mark.parametrize("message", ["1::/ns", "0::/ns", "8::", "2::", "6:::99", "6:::99+[1]", "1::"])
async def test_packets_without_data_are_no_frames(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token, message: str
) -> None:
    server = await raw_09_server(lambda client: client.send(message, END))
    connection = make(server.url)
    await connection.open(token)
    await memory.until(lambda: END_TEXT in memory.texts)
    assert memory.texts == [END_TEXT]
    assert memory.facts() == []
    assert connection.alive


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        pytest.param(b"\xed\xa0\x80", "\\ud800", id="half a surrogate pair"),
        pytest.param(b"\xed\xa0\xbd\xed\xb8\x80", "\\ud83d\\ude00", id="both halves"),
        pytest.param(b"\xff", "\ufffd", id="no text"),
    ],
)
async def test_text_that_is_no_utf_8_is_kept_and_connection_stays_open(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token, raw: bytes, text: str
) -> None:
    async def talk(client: ClientSocket) -> None:
        payload = b'5:::{"name":"res","args":["' + raw + b"x" * 200 + b'"]}'
        send_bytes_as_they_are(client, text_frame(payload))
        await client.send(END)

    server = await raw_09_server(talk)
    connection = make(server.url)
    await connection.open(token)
    await memory.until(lambda: END_TEXT in memory.texts)
    assert memory.texts == [f'42["res","{text}{"x" * 200}"]', END_TEXT]
    assert connection.alive


async def test_message_of_ten_megabytes_is_received(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token
) -> None:
    server = await raw_09_server(lambda client: client.send(event(f'{{"name":"res","args":["{"x" * 10_000_000}"]}}')))
    await make(server.url).open(token)
    await memory.until(lambda: memory.frames)
    assert memory.texts == [f'42["res","{"x" * 10_000_000}"]']


async def test_error_event_is_a_fact_and_no_frame(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token
) -> None:
    errors = ['{"name":"err","args":[{"type":"api_error","message":"later"}]}', '{"name":"error","args":["plain"]}']
    server = await raw_09_server(lambda client: client.send(*map(event, errors), "7::/oops:undefined", "7:::odd", END))
    await make(server.url).open(token)
    await memory.until(lambda: memory.frames)
    texts = [fact.detail["text"] for fact in memory.facts("provider_error")]
    assert texts == ["api_error: later", "plain", "/oops: undefined", "odd"]
    assert memory.texts == [END_TEXT]


async def test_event_is_acknowledged_once_it_is_durable(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token
) -> None:
    memory.synced.clear()
    server = await raw_09_server(
        lambda client: client.send('5:1+::{"name":"res","args":[1]}', '5:2::{"name":"err","args":[1]}', "2::")
    )
    await make(server.url).open(token)
    client = await server.client()
    await client.until(lambda: client.received)
    assert client.received == ["2::"], "a heartbeat is answered at once"
    memory.synced.set()
    await client.until(lambda: len(client.received) == 3)
    assert client.received[1:] == ["6:::1", "6:::2"]


async def test_event_of_another_namespace_is_stored_and_not_acknowledged(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token
) -> None:
    server = await raw_09_server(
        lambda client: client.send('5:7+:/ns:{"name":"res","args":[1]}', '5:8+::{"name":"res","args":[2]}')
    )
    await make(server.url).open(token)
    client = await server.client()
    await client.until(lambda: client.received)
    assert client.received == ["6:::8"]
    assert memory.texts == ['42["res",1]', '42["res",2]']


async def test_reading_pauses_while_sink_is_congested(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token
) -> None:
    memory.congested = True
    messages = [event(f'{{"name":"res","args":[{n}]}}') for n in range(50)]
    server = await raw_09_server(lambda client: client.send(*messages))
    opening = asyncio.create_task(make(server.url).open(token))
    await memory.until(lambda: memory.facts("paused"))
    assert len(memory.frames) <= 1
    memory.congested = False
    memory.has_space.set()
    await opening
    await memory.until(lambda: len(memory.frames) == 50)
    assert memory.texts == [f'42["res",{n}]' for n in range(50)]


async def test_heartbeats_are_sent_while_reading_pauses_and_not_after(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token
) -> None:
    server = await raw_09_server(handshake="a:1:1:websocket")
    connection = make(server.url)
    await connection.open(token)
    client = await server.client()
    memory.congested = True
    await client.send(END, "2::", "2::", "2::")
    await client.until(lambda: len(client.received) >= 5)
    assert set(client.received) == {"2::"}
    assert memory.texts == [END_TEXT]
    memory.congested = False
    memory.has_space.set()
    await memory.until(lambda: memory.facts("resumed"))
    await client.send("8::")
    await asyncio.sleep(0.1)
    count = len(client.received)
    await asyncio.sleep(0.7)
    assert len(client.received) == count
    assert connection.alive


# --- opening ---


async def test_token_is_sent_in_the_handshake_only_and_cookies_go_along(
    raw_09_server: Serve, make: Connect, token: Token
) -> None:
    server = await raw_09_server()
    server.cookies = {"route": "node-2", "other": "a b"}
    await make(server.url).open(token)
    upgrade = (await server.client()).request
    assert server.handshakes[0].query["token"] == TOKEN
    assert server.handshakes[0].query["t"].isdigit()
    assert upgrade.path_qs == "/socket.io/1/websocket/a%2Fb%3Fc"
    assert dict(upgrade.cookies) == server.cookies
    assert upgrade.headers["Origin"] == server.handshakes[0].headers["Origin"] == server.url
    assert "cookie" not in server.handshakes[0].headers


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        pytest.param(403, "handshake unauthorized", ConnectionRefused, "403.*handshake unauthorized", id="403"),
        pytest.param(401, "", ConnectionRefused, "401", id="401"),
        pytest.param(
            403, "handshake bad origin", ConnectionFailed, "403: .*origin.*handshake bad origin", id="bad origin"
        ),
        pytest.param(431, "", ConnectionFailed, "431", id="token too long"),
        pytest.param(500, "handshake error", ConnectionFailed, "500.*handshake error", id="500"),
        pytest.param(400, '{"code":0}', ProtocolUnsupported, "no server of Socket.IO 0.9", id="4.x"),
        pytest.param(404, "", ProtocolUnsupported, "no server of Socket.IO 0.9", id="404"),
        pytest.param(200, "<html>", ConnectionFailed, "not a Socket.IO 0.9 handshake", id="web site"),
        pytest.param(200, ":60:60:websocket", ConnectionFailed, "not a Socket.IO 0.9 handshake", id="no session"),
        pytest.param(200, "a:.:60:websocket", ConnectionFailed, "not a Socket.IO 0.9 handshake", id="no number"),
        pytest.param(200, "a:x:60:websocket", ConnectionFailed, "not a Socket.IO 0.9 handshake", id="no time"),
        pytest.param(200, "a:60:60:xhr-polling", ProtocolUnsupported, "only xhr-polling", id="polling only"),
        pytest.param(200, "a:99999:60:websocket", ConnectionFailed, "unusable", id="timeout of a day"),
        pytest.param(
            200, "a:-99:-99:websocket", ConnectionFailed, "not a Socket.IO 0.9 handshake", id="negative timeout"
        ),
    ],
)
async def test_refused_handshake_says_why(
    raw_09_server: Serve, make: Connect, token: Token, status: int, body: str, error: type, words: str
) -> None:
    server = await raw_09_server(status=status, handshake=body)
    with pytest.raises(ConnectionFailed, match=words) as caught:
        await make(server.url).open(token)
    assert type(caught.value) is error
    assert server.clients == []


async def test_handshake_answered_by_fin_is_named(web_server: Any, make: Connect, token: Token) -> None:
    server = await web_server(b"")
    with pytest.raises(ConnectionFailed, match=r"not a Socket\.IO 0\.9 handshake \(ServerDisconnectedError\)"):
        await make(server.url).open(token)


async def test_any_exception_of_the_http_client_is_a_failed_connection(
    raw_09_server: Serve, make: Connect, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise AssertionError("a text that may hold the token")

    monkeypatch.setattr(aiohttp.ClientSession, "ws_connect", fail)
    with pytest.raises(ConnectionFailed, match=r"\(AssertionError\)"):
        await make((await raw_09_server()).url).open(token)


async def test_http_status_instead_of_websocket_is_named(raw_09_server: Serve, make: Connect, token: Token) -> None:
    server = await raw_09_server(handshake="a/b:60:60:websocket")
    server.websocket_status = 502
    with pytest.raises(ConnectionFailed, match="HTTP 502 instead of a websocket"):
        await make(server.url).open(token)


async def test_websocket_answered_by_fin_names_socket_io_0_7(raw_09_server: Serve, make: Connect, token: Token) -> None:
    server = await raw_09_server(upgrades=False)
    with pytest.raises(ConnectionFailed, match=r"as Socket\.IO 0\.7 does"):
        await make(server.url).open(token)


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        pytest.param("7:::1+0", ConnectionFailed, "does not know the session", id="unknown session"),
        pytest.param("7:::2", ConnectionRefused, "unauthorized", id="unauthorized"),
        pytest.param("7:::0", ConnectionFailed, "transport not supported", id="transport"),
        pytest.param("7::", ConnectionFailed, "an error without a text", id="no text"),
        pytest.param("0::", ConnectionFailed, "disconnected", id="kick"),
    ],
)
async def test_error_instead_of_connect_fails_at_once(
    raw_09_server: Serve, make: Connect, token: Token, message: str, error: type, words: str
) -> None:
    server = await raw_09_server(lambda client: client.send(message), greets=False)
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionFailed, match=words) as caught:
            await make(server.url).open(token)
    assert type(caught.value) is error


async def test_certificate_is_verified(
    memory: Memory, raw_09_server: Serve, token: Token, server_side: ssl.SSLContext, certificate: Path
) -> None:
    async def open_with(ca_file: Path | None) -> None:
        settings = ConnectionSettings(
            url=server.url, path="/p", params="{}", events=("res",), tls_context=make_tls_context(ca_file)
        )
        connection = Connection(settings, ProtocolVersion.SOCKET_IO_0, memory, memory.append)
        await connection.open(token)
        await connection.close("stopped", "opened")

    server = await raw_09_server(tls=server_side)
    with pytest.raises(ConnectionFailed, match="server's certificate was not accepted"):
        await open_with(None)
    assert server.handshakes == []
    await open_with(certificate)
    assert len(server.clients) == 1


async def test_path_of_the_url_is_kept(raw_09_server: Serve, make: Connect, token: Token) -> None:
    server = await raw_09_server(handshake="a:60:60:websocket", prefix="/api/v1")
    await make(f"{server.url}/api/v1").open(token)
    assert server.handshakes[0].path == "/api/v1/socket.io/1/"
    assert (await server.client()).request.path == "/api/v1/socket.io/1/websocket/a"


async def test_each_connection_has_a_session_of_its_own(raw_09_server: Serve, make: Connect, token: Token) -> None:
    server = await raw_09_server()
    for number in (1, 2):  # a session that is used twice leaves its first websocket mute
        await make(server.url).open(token)
        assert len(server.handshakes) == len(server.clients) == number


@pytest.mark.parametrize("settings", [{"handshake": None}, {"greets": False}], ids=["handshake", "websocket"])
async def test_mute_server_is_given_up(
    raw_09_server: Serve, make: Connect, token: Token, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(connection_module, "OPEN_SECONDS", 0.2)
    server = await raw_09_server(**settings)
    with pytest.raises(ConnectionFailed, match=r"within 0\.2 s"):
        await make(server.url).open(token)


# --- closing ---


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        pytest.param(lambda client: client.send("0::"), "kicked", id="kick"),
        pytest.param(lambda client: client.send("7:::1+0"), "closed", id="unknown session"),
        pytest.param(lambda client: client.close(), "closed", id="websocket close"),
        pytest.param(lambda client: asyncio.sleep(0, end_by_fin(client)), "lost", id="FIN"),
        pytest.param(lambda client: asyncio.sleep(0, client.abort()), "lost", id="RST"),
    ],
)
async def test_close_reason_has_the_cause_and_what_came_before_is_kept(
    memory: Memory,
    raw_09_server: Serve,
    make: Connect,
    token: Token,
    end: Callable[[ClientSocket], Awaitable[None]],
    cause: str,
) -> None:
    server = await raw_09_server()
    connection = make(server.url)
    await connection.open(token)
    client = await server.client()
    await client.send(END)
    await end(client)
    async with asyncio.timeout(5):
        assert (await connection.wait_closed()).cause == cause
    assert memory.texts[:1] == [END_TEXT]


async def test_frame_of_65_536_bytes_ends_the_connection_and_is_named(
    memory: Memory, raw_09_server: Serve, make: Connect, token: Token
) -> None:
    server = await raw_09_server()
    connection = make(server.url)
    await connection.open(token)
    client = await server.client()
    await client.send(END)
    await memory.until(lambda: memory.frames)
    heard_at = connection.last_activity_at
    send_bytes_as_they_are(client, text_frame(b"x" * 65_536, 0))
    async with asyncio.timeout(5):
        reason = await connection.wait_closed()
    assert (reason.cause, "65,536 bytes" in reason.reason) == ("lost", True)
    assert memory.texts == [END_TEXT]
    assert connection.last_activity_at == heard_at


@pytest.mark.parametrize(
    ("handshake", "seconds"),
    [
        pytest.param("a:60:60:websocket", 65, id="0.9"),
        pytest.param("a:15:25:websocket", 30, id="0.8, with an interval of 20 s"),
        pytest.param("a:15::websocket", 20, id="no close timeout"),
        pytest.param("a::60:websocket", 65, id="no heartbeats"),
        pytest.param("a:::websocket", 55, id="no times"),
        pytest.param("a:1.5:0.5:websocket", 6.5, id="fractions of a second"),
        pytest.param("a:60:86400:websocket", 305, id="close timeout of a day"),
        pytest.param("a:b:15:25:websocket,htmlfile", 30, id="session id with a colon"),
    ],
)
async def test_silence_limit_is_the_longer_timeout_and_some_seconds(
    raw_09_server: Serve, make: Connect, token: Token, handshake: str, seconds: float
) -> None:
    server = await raw_09_server(handshake=handshake)
    connection = make(server.url)
    await connection.open(token)
    assert connection._client is not None
    assert connection._client.silence_seconds == seconds


async def test_server_without_heartbeats_is_asked_and_closed_if_it_does_not_answer(
    raw_09_server: Serve, make: Connect, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketio_09_client, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(socketio_09_client, "SLACK_SECONDS", 0.4)
    server = await raw_09_server(handshake="a:::websocket")
    connection = make(server.url)
    await connection.open(token)
    client = await server.client()
    for asked in range(1, 8):
        await client.until(lambda: len(client.received) >= asked)  # noqa: B023 - is waited for here
        assert connection.alive
        await client.send(f"6:::{asked}")
    assert client.received[:3] == ["8:1::", "8:2::", "8:3::"]
    async with asyncio.timeout(5):
        assert (await connection.wait_closed()).cause == "mute"


async def test_server_with_heartbeats_is_not_asked(
    raw_09_server: Serve, make: Connect, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketio_09_client, "ASK_SECONDS", 0.02)
    server = await raw_09_server()
    await make(server.url).open(token)
    await asyncio.sleep(0.2)
    assert (await server.client()).received == []


async def test_websocket_is_never_pinged(raw_09_server: Serve, make: Connect, token: Token) -> None:
    connection = make((await raw_09_server()).url)
    await connection.open(token)
    client: Any = connection._client
    assert client._socket._heartbeat is None, "the real servers answer a ping with bytes that are no frame"


async def test_close_leaves_nothing(raw_09_server: Serve, make: Connect, token: Token) -> None:
    server = await raw_09_server(handshake="a:::websocket")
    before = len(asyncio.all_tasks())
    connection = make(server.url)
    await connection.open(token)
    client = await server.client()
    await connection.close("stopped", "by us")
    await client.until(client.closed.is_set)
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.01)


async def test_provider_that_does_not_read_is_cut(
    raw_09_server: Serve, make: Connect, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(client: ClientSocket) -> None:
        client.request.transport.pause_reading()  # type: ignore[union-attr]
        while not client.closed.is_set():
            await client.send("2::")

    monkeypatch.setattr(socketio_09_client, "MAX_UNSENT_BYTES", 10_000)
    server = await raw_09_server()
    connection = make(server.url)
    await connection.open(token)
    talking = asyncio.create_task(talk(await server.client()))
    async with asyncio.timeout(20):
        reason = await connection.wait_closed()
    talking.cancel()
    assert (reason.cause, reason.reason) == ("limit", "the provider does not read what is sent to it")


# --- subscribing ---


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("", None),
        ("+[null]", None),
        ("+[]", None),
        ("+[false]", None),
        ("+null", None),
        ('+"plain text"', "plain text"),
        ('+["plain text"]', "plain text"),
        ('+[{"type":"invalid_request_error","message":"No such ticker"}]', "invalid_request_error: No such ticker"),
        ("+[{}]", "{}"),
    ],
)
async def test_request_is_answered_by_an_ack_of_any_shape(
    raw_09_server: Serve, make: Connect, token: Token, answer: str, error: str | None
) -> None:
    async def talk(client: ClientSocket) -> None:
        await client.until(lambda: client.received)
        await client.send(f"6:::1{answer}", f"6:::1{answer}")  # a server may call back twice

    server = await raw_09_server(talk)
    connection = make(server.url)
    await connection.open(token)
    answers: list[str | None] = []
    await connection.subscribe([AAPL], lambda _, error: answers.append(error))
    assert answers == [error]
    (request,) = (await server.client()).received
    head, _, body = request.partition("::")
    args = [{"path": AAPL.path, "method": "get", "params": {"ticker": "AAPL"}}]
    assert (head, json.loads(body)) == ("5:1+", {"name": "subscribe", "args": args})


async def test_twenty_requests_of_all_rounds_are_in_flight(raw_09_server: Serve, make: Connect, token: Token) -> None:
    async def talk(client: ClientSocket) -> None:
        for answered in range(100):
            await client.until(lambda: len(sent_ids(client)) >= min(answered + 20, 100))  # noqa: B023
            in_flight.append(len(sent_ids(client)) - answered)
            await client.send(f"6:::{sent_ids(client)[answered]}+[null]")

    in_flight: list[int] = []
    answers: list[str | None] = []
    server = await raw_09_server(talk)
    connection = make(server.url)
    await connection.open(token)
    subscriptions = [Subscription("/p", "get", {"ticker": f"T{n}"}) for n in range(100)]
    rounds = [
        connection.subscribe(subscriptions[:40], lambda _, error: answers.append(error)),
        connection.subscribe(subscriptions[40:85], lambda _, error: answers.append(error)),
        connection.unsubscribe(subscriptions[85:95], lambda _, error: answers.append(error)),
        connection.resubscribe(subscriptions[95:], lambda _, error: answers.append(error)),
    ]
    await asyncio.gather(*rounds)
    assert answers == [None] * 100
    assert max(in_flight) == 20


async def test_repeated_requests_are_in_flight_one_by_one(raw_09_server: Serve, make: Connect, token: Token) -> None:
    async def talk(client: ClientSocket) -> None:
        for answered in range(10):
            await client.until(lambda: len(sent_ids(client)) > answered)  # noqa: B023
            await asyncio.sleep(0.02)
            in_flight.append(len(sent_ids(client)) - answered)
            await client.send(f"6:::{sent_ids(client)[answered]}+[null]")

    in_flight: list[int] = []
    server = await raw_09_server(talk)
    connection = make(server.url)
    await connection.open(token)
    answers: list[str | None] = []
    await connection.resubscribe([AAPL] * 10, lambda _, error: answers.append(error))
    assert answers == [None] * 10
    assert in_flight == [1] * 10


async def test_subscribe_on_closed_connection_returns_at_once(
    raw_09_server: Serve, make: Connect, token: Token
) -> None:
    server = await raw_09_server()
    connection = make(server.url)
    await connection.open(token)
    client: Any = connection._client
    end_by_fin(await server.client())
    await connection.wait_closed()
    with pytest.raises(ConnectionFailed):
        await client.emit("subscribe", {}, print)


async def test_callbacks_are_bounded(
    raw_09_server: Serve, make: Connect, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketio_09_client, "MAX_CALLBACKS", 3)
    connection = make((await raw_09_server()).url)
    await connection.open(token)
    client: Any = connection._client
    for _ in range(9):
        await client.emit("subscribe", {}, print)
    assert list(client._callbacks) == [7, 8, 9]


# --- secrets ---


@pytest.mark.parametrize(
    "settings", [{"status": 500}, {"upgrades": False}, {"handshake": "a:x:y:websocket"}], ids=["500", "FIN", "no times"]
)
async def test_token_is_not_in_logs_or_errors(
    raw_09_server: Serve, make: Connect, token: Token, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await raw_09_server(**settings)
    with pytest.raises(ConnectionFailed) as caught:
        await make(server.url).open(token)
    links: list[BaseException] = [caught.value]
    while (link := links[-1].__cause__ or links[-1].__context__) is not None:
        links.append(link)
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith("aiohttp.access")]
    output = " ".join([*logged, *map(str, links)])
    assert TOKEN.split(".")[1] not in output
