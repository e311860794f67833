"""Which client speaks which version of the protocol."""

from __future__ import annotations

import aiohttp

from ingestor.provider.socket.client import Client, ClientListener
from ingestor.provider.socket.engineio_client import EngineIo3Client, EngineIoClient
from ingestor.provider.socket.protocol import ProtocolVersion
from ingestor.provider.socket.socketio_09_client import SocketIo09Client


def make_client(
    version: ProtocolVersion, listener: ClientListener, events: tuple[str, ...], session: aiohttp.ClientSession
) -> Client:
    """Return a client for one socket. ``events`` carry data."""
    match version:
        case ProtocolVersion.SOCKET_IO_4:
            return EngineIoClient(listener, events, session)
        case ProtocolVersion.SOCKET_IO_2:
            return EngineIo3Client(listener, events, session)
        case ProtocolVersion.SOCKET_IO_0:
            return SocketIo09Client(listener, events, session)
