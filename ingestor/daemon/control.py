"""The socket through which commands ask the running daemon: one JSON object a line, one answer each.

It lies in the spool's folder, which is nobody else's, and is 0600 besides.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from ingestor.errors import IngestorError

SOCKET_NAME = "control.sock"
MAX_REQUEST_BYTES = 1 << 20  # of a question; an answer may be longer
RESPONSE_TIMEOUT_SECONDS = 60.0

ControlResponse: TypeAlias = dict[str, Any]
ControlFunction: TypeAlias = Callable[[dict[str, Any]], Awaitable[ControlResponse]]


class ControlError(IngestorError):
    """The daemon is there, and cannot do what was asked; the message is its own."""

    def __init__(self, message: str, exit_code: int = 69) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ControlServer:
    """The daemon's end, for as long as the block lasts. ``handlers`` by the word that stands in ``do``."""

    def __init__(self, folder: Path, handlers: Mapping[str, ControlFunction]) -> None:
        self._folder = folder
        self._handlers = handlers

    async def __aenter__(self) -> ControlServer:
        (self._folder / SOCKET_NAME).unlink(missing_ok=True)  # of a run that was killed; the spool's lock is ours
        with ExitStack() as stack:
            address = stack.enter_context(_address(self._folder))
            mask = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(self._serve, address, limit=MAX_REQUEST_BYTES)
            finally:
                os.umask(mask)
            # From 3.13 on, asyncio uses the address once more as it closes.
            self._held = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self._held.close()
        (self._folder / SOCKET_NAME).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), RESPONSE_TIMEOUT_SECONDS)
            writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # whoever asked has gone, or asked for more than a line
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> ControlResponse:
        try:
            asked = json.loads(line)
            handler = self._handlers[asked["do"]]
        except (ValueError, KeyError, TypeError):
            return {"error": f"unknown request; this daemon knows: {', '.join(self._handlers)}"}
        try:
            return await handler(asked)
        except IngestorError as error:
            return {"error": str(error), "exit_code": error.exit_code}


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """The socket's path by the handle of its folder: a socket's path has 107 bytes, and the folder's may have more."""
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET_NAME}"
    finally:
        os.close(handle)


def send_request(folder: Path, do: str, **more: Any) -> ControlResponse | None:
    """What the daemon answers; None if there is none. Raises ControlError with the daemon's own words."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(RESPONSE_TIMEOUT_SECONDS)
        try:
            with _address(folder) as address:
                line.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, PermissionError):
            return None  # nobody there, or not for this user
        line.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
        try:
            with line.makefile() as answers:
                answer: ControlResponse = json.loads(answers.readline() or '{"error": "the daemon hung up"}')
        except TimeoutError:
            raise ControlError(
                f"no answer within {RESPONSE_TIMEOUT_SECONDS:g} s; the daemon goes on with it if it can: see `ingestor status`"
            ) from None
    if "error" in answer:
        raise ControlError(answer["error"], answer.get("exit_code", 69))
    return answer
