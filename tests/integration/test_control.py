from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from ingestor.daemon import control_socket
from ingestor.daemon.control_socket import SOCKET_NAME, ControlError, control_server, send_request
from ingestor.errors import DatabaseUnavailable


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
        await asyncio.sleep(1)
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


async def test_malformed_requests_do_not_stop_server(tmp_path: Path) -> None:
    async with control_server(tmp_path, {"echo": _echo}):
        for malformed in (b"\n", b"[]\n", b"\xff\n", b"{"):
            reader, writer = await asyncio.open_unix_connection(tmp_path / SOCKET_NAME)
            writer.write(malformed)
            writer.write_eof()
            await reader.read()
            writer.close()
        assert await asyncio.to_thread(send_request, tmp_path, "echo", word="a") == {"echo": "a"}
