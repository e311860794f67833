"""The private names and habits of python-engineio and python-socketio that ``client`` leans on.

If a test here fails after an upgrade: read what it names in the new release, mend ``ingestor/provider/client.py``, run
tests/integration/provider, and add the release to TESTED_ENGINEIO or TESTED_SOCKETIO. Until then the plain client is
used.
"""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version

import engineio
import pytest
import socketio
from engineio import base_client, packet
from socketio import packet as socketio_packet

from ingestor.provider.socket import client

ENGINE = engineio.AsyncClient
SOCKET = socketio.AsyncClient


def signature(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def source(function: object) -> str:
    return re.sub(r"\s+", " ", inspect.getsource(function))  # type: ignore[arg-type]


def test_the_installed_releases_are_ones_that_the_lean_client_was_tested_with() -> None:
    installed = f"python-engineio {version('python-engineio')}, python-socketio {version('python-socketio')}"
    assert client.known_release(), f"{installed}: not among {client.TESTED_ENGINEIO} and {client.TESTED_SOCKETIO}"


def test_an_unknown_release_gets_the_plain_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "version", lambda _: "99.0.0")
    assert not client.known_release()


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (ENGINE, "_read_loop_websocket", ["self"]),
        (ENGINE, "_receive_packet", ["self", "pkt"]),
        (ENGINE, "_send_packet", ["self", "pkt"]),
        (ENGINE, "_trigger_event", ["self", "event", "args", "kwargs"]),
        (ENGINE, "_reset", ["self"]),
        (ENGINE, "_get_engineio_url", ["self", "url", "engineio_path", "transport"]),
        (SOCKET, "_engineio_client_class", ["self"]),
        (SOCKET, "_handle_eio_connect", ["self"]),
        (SOCKET, "_handle_eio_message", ["self", "data"]),
        (SOCKET, "_handle_event", ["self", "namespace", "id", "data"]),
        (SOCKET, "_handle_disconnect", ["self", "namespace"]),
        (SOCKET, "_handle_error", ["self", "namespace", "data"]),
        (SOCKET, "_send_packet", ["self", "pkt"]),
    ],
)
def test_a_method_that_we_override_or_call_is_there(owner: type, name: str, parameters: list[str]) -> None:
    assert signature(getattr(owner, name)) == parameters, f"{owner.__module__}: {name} has other parameters now"


@pytest.mark.parametrize(
    ("function", "trait", "why"),
    [
        pytest.param(
            ENGINE._connect_websocket,
            "self.ws = ws self.write_loop_task = self.start_background_task(self._write_loop) "
            "self.read_loop_task = self.start_background_task( self._read_loop_websocket)",
            "the read loop that we override is started when ws and write_loop_task are set",
            id="who starts the read loop",
        ),
        pytest.param(
            ENGINE._connect_websocket,
            "self.ping_interval = int(open_packet.data['pingInterval']) / 1000.0",
            "the ping interval is kept in seconds",
            id="seconds",
        ),
        pytest.param(
            ENGINE._read_loop_websocket,
            "await self._receive_packet(pkt)",
            "the library's read loop waits for _receive_packet, where the plain client pauses it",
            id="who pauses the plain read loop",
        ),
        pytest.param(
            ENGINE._write_loop, "if packets == [None]:", "None in the queue ends the write loop", id="end of writing"
        ),
        pytest.param(
            ENGINE._write_loop,
            "while self.state == 'connected':",
            "the write loop ends when the state is another, even if it swallows a cancellation",
            id="end of writing, by state",
        ),
        pytest.param(
            ENGINE.disconnect,
            "if not abort: await self.read_loop_task",
            "disconnect waits for the read loop, so the read loop must never call it",
            id="who waits for whom",
        ),
        pytest.param(
            SOCKET._handle_eio_message,
            "elif pkt.packet_type == packet.EVENT: await self._handle_event(pkt.namespace, pkt.id, pkt.data)",
            "an event reaches _handle_event in the same step in which it was parsed",
            id="event",
        ),
        pytest.param(
            SOCKET._handle_eio_message,
            "packet.BINARY_ACK: self._binary_packet = pkt",
            "an event that waits for its attachments is in _binary_packet",
            id="attachments",
        ),
        pytest.param(
            SOCKET._handle_eio_connect,
            "self.sid = self.eio.sid",
            "the session's id is taken over here, which our override for 1.x and 2.x does too",
            id="sid",
        ),
        pytest.param(
            SOCKET._handle_disconnect,
            "if not self.connected: return",
            "a kick during connect() is ignored by the library; if it no longer is, our override may go",
            id="kick while connecting",
        ),
        pytest.param(
            SOCKET.connect,
            "+ ', '.join(self.failed_namespaces))",
            "a refused namespace makes connect() fail",
            id="refusal",
        ),
    ],
)
def test_the_library_still_has_the_habit_that_we_rely_on(function: object, trait: str, why: str) -> None:
    assert trait in source(function), f"no longer so: {why}"


def test_the_url_ends_with_the_revision_that_we_replace() -> None:
    url = client.FastEngineV3(handle_sigint=False)._get_engineio_url(
        "http://127.0.0.1:1?token=t", "socket.io", "websocket"
    )
    assert url.endswith("&EIO=3")
    assert "EIO=4" not in url


async def test_the_socket_client_registers_its_message_handler_with_the_engine() -> None:
    made = SOCKET(handle_sigint=False)
    assert made.eio.handlers["message"] == made._handle_eio_message, "handlers['message'] is not the parser any more"
    assert made._binary_packet is None
    assert made.namespaces == {}


def test_the_names_of_packets_are_what_they_were() -> None:
    assert (packet.PING, packet.PONG, packet.MESSAGE) == (2, 3, 4)
    assert socketio_packet.ACK == 3
    assert isinstance(base_client.connected_clients, list)
    assert ENGINE.reason.TRANSPORT_ERROR
