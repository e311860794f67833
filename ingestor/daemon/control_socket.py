"""The Unix socket through which commands talk to the running daemon: one JSON object per line, one response each.

The socket is in the spool's folder, which only the daemon's user can open, and has mode 0600 as well.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ingestor.errors import IngestorError

SOCKET_NAME = "control.sock"
MAX_REQUEST_BYTES = 1 << 20  # responses are not limited
RESPONSE_TIMEOUT_SECONDS = 60.0

ControlResponse: TypeAlias = dict[str, Any]
ControlFunction: TypeAlias = Callable[[dict[str, Any]], Awaitable[ControlResponse]]


class ControlError(IngestorError):
    """The daemon is running and could not carry out the command. The message is the daemon's own."""

    def __init__(self, message: str, exit_code: int = 69) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@asynccontextmanager
async def control_server(folder: Path, handlers: Mapping[str, ControlFunction]) -> AsyncIterator[None]:
    """Serve requests in ``folder`` during the block. ``handlers`` maps the request's ``command`` to a function."""
    # A killed daemon leaves its socket behind. We hold the spool's lock, so no other daemon uses it.
    (folder / SOCKET_NAME).unlink(missing_ok=True)
    # The address must stay valid: from Python 3.13 on, asyncio uses it again when it closes the server.
    with _socket_address(folder) as address:
        mask = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(partial(_serve, handlers), address, limit=MAX_REQUEST_BYTES)
        finally:
            os.umask(mask)
        try:
            yield
        finally:
            server.close()
            (folder / SOCKET_NAME).unlink(missing_ok=True)


async def _serve(
    handlers: Mapping[str, ControlFunction], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        line = await asyncio.wait_for(reader.readline(), RESPONSE_TIMEOUT_SECONDS)
        writer.write(json.dumps(await _respond(handlers, line)).encode() + b"\n")
        await writer.drain()
    except (OSError, ValueError, TimeoutError):
        pass  # the client disconnected, or sent more than a line may have
    finally:
        writer.close()


async def _respond(handlers: Mapping[str, ControlFunction], line: bytes) -> ControlResponse:
    try:
        request = json.loads(line)
        handler = handlers[request["command"]]
    except (ValueError, KeyError, TypeError):
        return {"error": f"unknown command; this daemon, perhaps of another version, knows: {', '.join(handlers)}"}
    try:
        return await handler(request)
    except IngestorError as error:
        return {"error": str(error), "exit_code": error.exit_code}


@contextmanager
def _socket_address(folder: Path) -> Iterator[str]:
    """Yield the socket's path through a descriptor of its folder, whose own path may exceed a socket's 107 bytes."""
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET_NAME}"
    finally:
        os.close(handle)


def send_request(folder: Path, command: str, **arguments: Any) -> ControlResponse | None:
    """Send a command to the daemon and return its response; None if no daemon can be reached.

    Raises ControlError with the daemon's own message, or if there is no response in time.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(RESPONSE_TIMEOUT_SECONDS)
        try:
            with _socket_address(folder) as address:
                client.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, PermissionError):
            return None  # no daemon is running, or this user may not connect to it
        client.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        try:
            with client.makefile() as lines:
                line = lines.readline() or '{"error": "the daemon closed the connection"}'
        except TimeoutError:
            timeout = f"no response from the daemon within {RESPONSE_TIMEOUT_SECONDS:g} s"
            raise ControlError(f"{timeout}; it may still carry out the command, see `ingestor status`") from None
    response: ControlResponse = json.loads(line)
    if "error" in response:
        raise ControlError(response["error"], response.get("exit_code", 69))
    return response
