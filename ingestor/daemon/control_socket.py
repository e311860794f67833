"""The Unix socket through which commands talk to the running daemon: one JSON object per line, one response each.

The socket is in the spool's folder, which only the daemon's user can open, and has mode 0600 as well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ingestor.errors import IngestorError, PermissionDenied, SpoolFailed

SOCKET_NAME = "control.sock"
MAX_REQUEST_BYTES = 1 << 20  # responses are not limited
MAX_CLIENTS = 32  # whose requests are read or answered at the same time
REQUEST_TIMEOUT_SECONDS = 5.0  # for a client to send its request, and to read the response
RESPONSE_TIMEOUT_SECONDS = 60.0
STOP_SECONDS = 0.5  # that the end of the server waits for commands which are being carried out

ControlResponse: TypeAlias = dict[str, Any]
ControlFunction: TypeAlias = Callable[[dict[str, Any]], Awaitable[ControlResponse]]

log = logging.getLogger(__name__)


class ControlError(IngestorError):
    """The daemon is running and could not carry out the command. The message is the daemon's own."""

    def __init__(self, message: str, exit_code: int = 69) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InvalidRequest(ControlError):
    """The daemon did not understand the request. Nothing was done."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=2)


@asynccontextmanager
async def control_server(folder: Path, handlers: Mapping[str, ControlFunction]) -> AsyncIterator[None]:
    """Serve requests in ``folder`` during the block. ``handlers`` maps the request's ``command`` to a function.

    Raises SpoolFailed if the socket cannot be created.
    """
    path = folder / SOCKET_NAME
    clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
    serve = partial(_serve, handlers, clients)
    # The address must stay valid: from Python 3.13 on, asyncio uses it again when it closes the server.
    with _socket_address(folder) as address:
        mask = os.umask(0o177)
        try:
            # A killed daemon leaves its socket behind. We hold the spool's lock, so no other daemon uses it.
            path.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(serve, address, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise SpoolFailed(f"{path}: cannot be created ({reason}); move away what is there") from None
        finally:
            os.umask(mask)
        try:
            yield
        finally:
            server.close()
            for writer in clients.values():
                writer.transport.abort()
            if clients:
                await asyncio.wait(clients, timeout=STOP_SECONDS)
            with suppress(OSError):
                path.unlink()


async def _serve(
    handlers: Mapping[str, ControlFunction],
    clients: dict[asyncio.Task[None], asyncio.StreamWriter],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Answer one request, and close the connection in bounded time, whatever the client does."""
    task = asyncio.current_task()
    assert task  # noqa: S101
    clients[task] = writer
    try:
        if len(clients) > MAX_CLIENTS:
            response: ControlResponse = {
                "error": f"{MAX_CLIENTS} commands are being carried out; repeat this one later"
            }
        else:
            response = await _respond(handlers, reader)
        writer.write(json.dumps(response).encode() + b"\n")
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), REQUEST_TIMEOUT_SECONDS)
    except (OSError, TimeoutError):
        pass  # the client disconnected, or does not read
    finally:
        writer.transport.abort()
        del clients[task]


async def _respond(handlers: Mapping[str, ControlFunction], reader: asyncio.StreamReader) -> ControlResponse:
    try:
        request = await _read_request(reader)
        handler = handlers.get(str(request.get("command")))
        if handler is None:
            known = ", ".join(handlers)
            return {"error": f"unknown command; this daemon, perhaps of another version, knows: {known}"}
        return await handler(request)
    except IngestorError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    except Exception:
        log.exception("a command on the control socket failed, the daemon continues")
        return {"error": "an error in the daemon, its log has the details", "exit_code": IngestorError.exit_code}


async def _read_request(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return a request. Raises InvalidRequest with what is wrong."""
    try:
        line = await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT_SECONDS)
    except TimeoutError:
        raise InvalidRequest(f"the request was not complete within {REQUEST_TIMEOUT_SECONDS:g} s") from None
    except ValueError:
        raise InvalidRequest(f"the request is longer than {MAX_REQUEST_BYTES:,} bytes") from None
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidRequest("the request is not JSON; send one JSON object on one line") from None
    if not isinstance(request, dict):
        raise InvalidRequest("the request is not a JSON object")
    return request


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

    Raises ControlError with the daemon's own message, or if there is no response in time, and PermissionDenied if
    somebody else serves the socket.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(RESPONSE_TIMEOUT_SECONDS)
        try:
            with _socket_address(folder) as address:
                client.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, PermissionError):
            return None  # no daemon is running, or this user may not connect to it
        except BlockingIOError:
            raise ControlError("the daemon has too many connections; repeat the command later") from None
        _check_server(client, folder)
        line = _exchange(client, json.dumps({"command": command, **arguments}).encode() + b"\n")
    try:
        response: ControlResponse = json.loads(line)
    except ValueError:  # nothing, or a part
        raise ControlError("the daemon closed the connection; see its log, and repeat the command") from None
    if "error" in response:
        raise ControlError(response["error"], response.get("exit_code", 69))
    return response


def _check_server(client: socket.socket, folder: Path) -> None:
    """Raise PermissionDenied unless the server runs as this user, root or the owner of the folder.

    In a folder that others may write, they could put their own socket in the place of the daemon's.
    """
    _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if uid not in _trusted_users(folder):
        raise PermissionDenied(
            f"{folder / SOCKET_NAME}: is served by user {uid}, who does not own the folder; chmod 700 the folder,"
            " or set spool.path to one that only the daemon may write"
        )


def _trusted_users(folder: Path) -> set[int]:
    return {os.geteuid(), 0, folder.stat().st_uid}


def _exchange(client: socket.socket, request: bytes) -> bytes:
    """Return the line that is the response, which may be incomplete. Raises ControlError if there is none in time."""
    with suppress(BrokenPipeError, ConnectionResetError):  # a daemon that rejects it responds before it has read it all
        client.sendall(request)
    try:
        with client.makefile("rb") as lines:
            return lines.readline()
    except ConnectionResetError:
        return b""
    except TimeoutError:
        timeout = f"no response from the daemon within {RESPONSE_TIMEOUT_SECONDS:g} s"
        raise ControlError(f"{timeout}; it may still carry out the command, see `ingestor status`") from None
