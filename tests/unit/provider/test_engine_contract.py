"""The private names and behaviors of python-engineio and python-socketio that ``engineio_client.py`` depends on.

pyproject.toml pins both libraries to the minor release that these tests were written for. To move the pin to a new
minor release: install it, run these tests and tests/integration/provider, adapt the client to what changed, and change
pyproject.toml, TESTED and .ci/constraints.txt in one commit.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import engineio
import pytest
import socketio
from engineio import base_client, packet
from socketio import packet as socketio_packet

from ingestor.provider.socket import engineio_client as client

TESTED = {"python-engineio": "4.15", "python-socketio": "5.18"}
PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
HOW_TO_MOVE_THE_PIN = "see the docstring of tests/unit/provider/test_engine_contract.py for how to move the pin"
ENGINE = engineio.AsyncClient
SOCKET = socketio.AsyncClient


def signature(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def source(function: object) -> str:
    return re.sub(r"\s+", " ", inspect.getsource(function))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TESTED)
def test_installed_release_is_the_tested_minor(name: str) -> None:
    minor = ".".join(version(name).split(".")[:2])
    assert minor == TESTED[name], f"{name} {version(name)} is not the tested {TESTED[name]}: {HOW_TO_MOVE_THE_PIN}"


@pytest.mark.parametrize("name", TESTED)
def test_pyproject_pins_the_tested_minor(name: str) -> None:
    requirements = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    (pin,) = (requirement for requirement in requirements if requirement.startswith(name))
    major, minor = TESTED[name].split(".")
    assert f">={TESTED[name]}" in pin, HOW_TO_MOVE_THE_PIN
    assert pin.endswith(f",<{major}.{int(minor) + 1}"), HOW_TO_MOVE_THE_PIN


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (ENGINE, "_read_loop_websocket", ["self"]),
        (ENGINE, "_send_packet", ["self", "pkt"]),
        (ENGINE, "_trigger_event", ["self", "event", "args", "kwargs"]),
        (ENGINE, "_reset", ["self"]),
        (ENGINE, "create_queue", ["self", "args", "kwargs"]),
        (ENGINE, "_get_engineio_url", ["self", "url", "engineio_path", "transport"]),
        (SOCKET, "_engineio_client_class", ["self"]),
        (SOCKET, "_handle_eio_connect", ["self"]),
        (SOCKET, "_handle_eio_message", ["self", "data"]),
        (SOCKET, "_handle_event", ["self", "namespace", "id", "data"]),
        (SOCKET, "_handle_disconnect", ["self", "namespace"]),
        (SOCKET, "_handle_error", ["self", "namespace", "data"]),
        (SOCKET, "_handle_connect", ["self", "namespace", "data"]),
        (SOCKET, "_generate_ack_id", ["self", "namespace", "callback"]),
        (SOCKET, "_send_packet", ["self", "pkt"]),
    ],
)
def test_private_method_has_expected_parameters(owner: type, name: str, parameters: list[str]) -> None:
    assert signature(getattr(owner, name)) == parameters, f"{owner.__module__}: the parameters of {name} changed"


@pytest.mark.parametrize(
    ("function", "trait", "why"),
    [
        pytest.param(
            ENGINE._connect_websocket,
            "self.ws = ws self.write_loop_task = self.start_background_task(self._write_loop) "
            "self.read_loop_task = self.start_background_task( self._read_loop_websocket)",
            "the read loop is started after ws and write_loop_task are set",
            id="start of the read loop",
        ),
        pytest.param(
            ENGINE._connect_websocket,
            "self.ping_interval = int(open_packet.data['pingInterval']) / 1000.0",
            "the ping interval is stored in seconds",
            id="ping interval in seconds",
        ),
        pytest.param(
            ENGINE._write_loop,
            "if packets == [None]:",
            "None in the queue ends the write loop",
            id="write loop ends on None",
        ),
        pytest.param(
            ENGINE._write_loop,
            "while self.state == 'connected':",
            "the write loop ends when the state changes, even if it swallows a cancellation",
            id="write loop ends by state",
        ),
        pytest.param(
            ENGINE.disconnect,
            "if not abort: await self.read_loop_task",
            "disconnect waits for the read loop, so the read loop must never call it",
            id="disconnect waits for the read loop",
        ),
        pytest.param(
            SOCKET._handle_eio_message,
            "elif pkt.packet_type == packet.EVENT: await self._handle_event(pkt.namespace, pkt.id, pkt.data)",
            "an event reaches _handle_event in the step in which it is parsed, without a task",
            id="event",
        ),
        pytest.param(
            SOCKET._handle_eio_message,
            "packet.BINARY_ACK: self._binary_packet = pkt",
            "an event that waits for its attachments is stored in _binary_packet",
            id="attachments",
        ),
        pytest.param(
            SOCKET._handle_eio_connect,
            "self.sid = self.eio.sid",
            "the session id is set here, which our override for 1.x and 2.x repeats",
            id="sid",
        ),
        pytest.param(
            SOCKET._handle_disconnect,
            "if not self.connected: return",
            "a disconnect packet is ignored during connect(); otherwise our override is not needed",
            id="disconnect packet during connect",
        ),
        pytest.param(
            SOCKET.connect,
            "+ ', '.join(self.failed_namespaces))",
            "a refused namespace makes connect() fail",
            id="namespace refused",
        ),
    ],
)
def test_library_source_has_expected_statement(function: object, trait: str, why: str) -> None:
    assert trait in source(function), f"no longer true: {why}"


def test_v3_engine_replaces_revision_in_url() -> None:
    url = client.FastEngineV3(handle_sigint=False)._get_engineio_url(
        "http://127.0.0.1:1?token=t", "socket.io", "websocket"
    )
    assert url.endswith("&EIO=3")
    assert "EIO=4" not in url


async def test_client_registers_message_handler_with_engine() -> None:
    socket = SOCKET(handle_sigint=False)
    assert socket.eio.handlers["message"] == socket._handle_eio_message, "handlers['message'] is no longer the parser"
    assert socket._binary_packet is None
    assert socket.namespaces == {}


def test_packet_constants_have_expected_values() -> None:
    assert (packet.PING, packet.PONG, packet.MESSAGE) == (2, 3, 4)
    assert socketio_packet.ACK == 3
    assert isinstance(base_client.connected_clients, list)
    assert ENGINE.reason.TRANSPORT_ERROR
