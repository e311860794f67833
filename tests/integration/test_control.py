from __future__ import annotations

import asyncio
import json
import re
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ingestor.daemon import control_socket
from ingestor.daemon.control_handlers import build_handlers
from ingestor.daemon.control_socket import (
    MAX_CLIENTS,
    SOCKET_NAME,
    ControlError,
    InvalidRequest,
    control_server,
    send_request,
)
from ingestor.errors import DatabaseUnavailable, PermissionDenied, SpoolFailed


async def _echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"echo": request["word"]}


async def _fail(_request: dict[str, Any]) -> dict[str, Any]:
    raise DatabaseUnavailable("away")


async def test_command_gets_response(tmp_path: Path) -> None:
    async with control_server(tmp_path, {"echo": _echo}):
        assert await asyncio.to_thread(send_request, tmp_path, "echo", word="π") == {"echo": "π"}


async def test_socket_is_accessible_to_its_owner_only(tmp_path: Path) -> None:
    async with control_server(tmp_path, {}):
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600


async def test_handler_error_reaches_client_with_its_message(tmp_path: Path) -> None:
    async with control_server(tmp_path, {"fail": _fail}):
        with pytest.raises(ControlError, match="away"):
            await asyncio.to_thread(send_request, tmp_path, "fail")


async def test_slow_response_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond_late(_request: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.3)
        return {}

    monkeypatch.setattr(control_socket, "RESPONSE_TIMEOUT_SECONDS", 0.1)
    async with control_server(tmp_path, {"respond_late": respond_late}):
        with pytest.raises(ControlError, match="no response from the daemon within"):
            await asyncio.to_thread(send_request, tmp_path, "respond_late")


async def test_unknown_command_lists_known_commands(tmp_path: Path) -> None:
    async with control_server(tmp_path, {"echo": _echo}):
        with pytest.raises(ControlError, match="knows: echo"):
            await asyncio.to_thread(send_request, tmp_path, "unknown")


async def test_request_without_daemon_returns_none(tmp_path: Path) -> None:
    assert send_request(tmp_path, "echo") is None
    async with control_server(tmp_path, {"echo": _echo}):
        pass
    assert send_request(tmp_path, "echo") is None


async def test_socket_of_killed_daemon_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / SOCKET_NAME))
    assert send_request(tmp_path, "echo") is None
    async with control_server(tmp_path, {"echo": _echo}):
        assert await asyncio.to_thread(send_request, tmp_path, "echo", word="a") == {"echo": "a"}


async def test_folder_path_may_exceed_socket_path_limit(tmp_path: Path) -> None:
    folder = tmp_path / ("s" * 120)
    folder.mkdir()
    async with control_server(folder, {"echo": _echo}):
        assert await asyncio.to_thread(send_request, folder, "echo", word="π") == {"echo": "π"}
    assert list(folder.iterdir()) == []


async def test_request_to_file_instead_of_folder_returns_none(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()
    assert send_request(tmp_path / "spool", "echo") is None


async def test_no_file_descriptor_is_leaked(tmp_path: Path) -> None:
    before = list(Path("/proc/self/fd").iterdir())
    async with control_server(tmp_path, {"echo": _echo}):
        pass
    assert send_request(tmp_path, "echo") is None
    assert list(Path("/proc/self/fd").iterdir()) == before


async def _exchange(folder: Path, sent: bytes, *, half_close: bool = False) -> bytes:
    return await asyncio.to_thread(_exchange_blocking, folder, sent, half_close)


def _exchange_blocking(folder: Path, sent: bytes, half_close: bool) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(folder / SOCKET_NAME))
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(sent)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as lines:
            return lines.readline()


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"\n", "not JSON"),
        (b"GET / HTTP/1.1\r\n\r\n", "not JSON"),
        (b"\xff\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"1" * 100_000 + b"\n", "not JSON"),
        (b"[]\n", "not a JSON object"),
        (b"null\n", "not a JSON object"),
        (b"{}\n", "unknown command"),
        (b'{"command": ["echo"]}\n', "unknown command"),
        (b'{"command": {}}\n', "unknown command"),
        (b'{"command": "echo"}\n', "error in the daemon"),
        (b"x" * (2 << 20) + b"\n", "longer than 1,048,576 bytes"),
    ],
    ids=lambda value: str(value[:20]),
)
async def test_malformed_request_is_answered_and_closed(tmp_path: Path, sent: bytes, says: str) -> None:
    async with control_server(tmp_path, {"echo": _echo}):
        response = json.loads(await _exchange(tmp_path, sent))
        assert re.search(says, response["error"])
        assert await _exchange(tmp_path, b'{"command": "echo", "word": 1}', half_close=True) == b'{"echo": 1}\n'


async def test_client_that_never_sends_or_reads_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond_at_length(_request: dict[str, Any]) -> dict[str, Any]:
        return {"text": "x" * (8 << 20)}

    monkeypatch.setattr(control_socket, "REQUEST_TIMEOUT_SECONDS", 0.05)
    async with control_server(tmp_path, {"respond_at_length": respond_at_length}):
        for sent in (b"", b'{"comm', b'{"command": "respond_at_length"}\n'):
            with socket.socket(socket.AF_UNIX) as client:
                await asyncio.to_thread(client.connect, str(tmp_path / SOCKET_NAME))
                client.sendall(sent)
                await asyncio.sleep(0.3)
                received = await asyncio.to_thread(read_all, client)
                assert (b"not complete within" in received) is (not sent.endswith(b"\n"))
                assert len(received) < 8 << 20


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


async def test_number_of_clients_is_bounded_and_others_are_answered_at_once(tmp_path: Path) -> None:
    async with control_server(tmp_path, {"echo": _echo}):
        idle = [await asyncio.open_unix_connection(tmp_path / SOCKET_NAME) for _ in range(MAX_CLIENTS)]
        request = b'{"command": "echo", "word": 1}\n'
        assert b"repeat this one later" in await asyncio.wait_for(_exchange(tmp_path, request), 4)
        idle[0][1].close()
        while b"later" in (response := await _exchange(tmp_path, request)):
            pass
        assert response == b'{"echo": 1}\n'
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("response", [b"", b'{"echo": ', b"\xff\n"])
async def test_daemon_that_ends_during_a_response_is_reported(tmp_path: Path, response: bytes) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, tmp_path / SOCKET_NAME):
        with pytest.raises(ControlError, match="closed the connection"):
            await asyncio.to_thread(send_request, tmp_path, "echo", word="x" * (4 << 20))


async def test_socket_of_another_user_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with control_server(tmp_path, {"echo": _echo}):
        with monkeypatch.context() as patched:
            patched.setattr(control_socket, "_trusted_users", lambda _folder: {12345})
            with pytest.raises(PermissionDenied, match="does not own the folder"):
                await asyncio.to_thread(send_request, tmp_path, "echo", word="a")
        assert await asyncio.to_thread(send_request, tmp_path, "echo", word="a") == {"echo": "a"}


async def test_folder_in_place_of_the_socket_is_named(tmp_path: Path) -> None:
    (tmp_path / SOCKET_NAME / "x").mkdir(parents=True)
    with pytest.raises(SpoolFailed, match=r"control.sock: cannot be created .*; move away what is there"):
        async with control_server(tmp_path, {}):
            pass


@pytest.mark.parametrize("ids", ["1", {"a": 1}, 3, [True], [1.5], [0], [1 << 63], [None]])
async def test_ids_of_a_wrong_type_are_refused(ids: object) -> None:
    handlers = build_handlers(**dict.fromkeys(("status", "reloader", "repair", "spool", "database_url")))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="ids must be"):
        await handlers["retry"]({"ids": ids})


@pytest.mark.parametrize("requests", [None, "x", [1], [{}], [{"path": 1}]])
async def test_backfill_of_a_wrong_type_is_refused(requests: object) -> None:
    handlers = build_handlers(**dict.fromkeys(("status", "reloader", "repair", "spool", "database_url")))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="requests: "):
        await handlers["backfill"]({"requests": requests})
