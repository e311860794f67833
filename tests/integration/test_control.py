from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from ingestor.daemon import control
from ingestor.daemon.control import SOCKET_NAME, ControlError, ControlServer, send_request
from ingestor.errors import DatabaseUnavailable


async def _echo(asked: dict[str, Any]) -> dict[str, Any]:
    return {"echo": asked["word"]}


async def _fail(_asked: dict[str, Any]) -> dict[str, Any]:
    raise DatabaseUnavailable("away")


async def test_a_command_is_answered(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, {"echo": _echo}):
        assert await asyncio.to_thread(send_request, tmp_path, "echo", word="π") == {"echo": "π"}


async def test_nobody_else_may_ask(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, {}):
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600


async def test_a_failure_is_told_in_the_daemons_own_words(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, {"fail": _fail}):
        with pytest.raises(ControlError, match="away"):
            await asyncio.to_thread(send_request, tmp_path, "fail")


async def test_an_answer_that_is_long_in_coming_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hesitate(_asked: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(1)
        return {}

    monkeypatch.setattr(control, "RESPONSE_TIMEOUT_SECONDS", 0.1)
    async with ControlServer(tmp_path, {"hesitate": hesitate}):
        with pytest.raises(ControlError, match="no answer within"):
            await asyncio.to_thread(send_request, tmp_path, "hesitate")


async def test_an_unknown_word_is_told_which_are_known(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, {"echo": _echo}):
        with pytest.raises(ControlError, match="knows: echo"):
            await asyncio.to_thread(send_request, tmp_path, "dance")


async def test_without_a_daemon_there_is_no_answer(tmp_path: Path) -> None:
    assert send_request(tmp_path, "echo") is None
    async with ControlServer(tmp_path, {"echo": _echo}):
        pass
    assert send_request(tmp_path, "echo") is None


async def test_the_socket_of_a_killed_daemon_is_in_nobodys_way(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / SOCKET_NAME))
    assert send_request(tmp_path, "echo") is None
    async with ControlServer(tmp_path, {"echo": _echo}):
        assert await asyncio.to_thread(send_request, tmp_path, "echo", word="a") == {"echo": "a"}


async def test_a_folder_whose_path_is_longer_than_a_sockets_may_be_is_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / ("s" * 120)
    folder.mkdir()
    async with ControlServer(folder, {"echo": _echo}):
        assert await asyncio.to_thread(send_request, folder, "echo", word="π") == {"echo": "π"}
    assert list(folder.iterdir()) == []


async def test_a_file_in_the_folders_place_is_no_daemon(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()
    assert send_request(tmp_path / "spool", "echo") is None


async def test_no_handle_is_left_open(tmp_path: Path) -> None:
    before = list(Path("/proc/self/fd").iterdir())
    async with ControlServer(tmp_path, {"echo": _echo}):
        pass
    assert send_request(tmp_path, "echo") is None
    assert list(Path("/proc/self/fd").iterdir()) == before


async def test_garbage_does_not_stop_it(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, {"echo": _echo}):
        for garbage in (b"\n", b"[]\n", b"\xff\n", b"{"):
            reader, writer = await asyncio.open_unix_connection(tmp_path / SOCKET_NAME)
            writer.write(garbage)
            writer.write_eof()
            await reader.read()
            writer.close()
        assert await asyncio.to_thread(send_request, tmp_path, "echo", word="a") == {"echo": "a"}
