from __future__ import annotations

import pytest

from ingestor.errors import ConnectionFailed, ConnectionRefused, ProtocolUnsupported
from ingestor.provider.socket.protocol import ProtocolVersion, classify, socketio_path


@pytest.mark.parametrize(
    ("body", "version"),
    [
        pytest.param(b'0{"sid":"a","upgrades":["websocket"]}', ProtocolVersion.SOCKET_IO_4, id="3.x and 4.x"),
        pytest.param(b'97:0{"sid":"a"}2:40', ProtocolVersion.SOCKET_IO_2, id="2.x"),
        pytest.param(b'\x00\x09\x07\xff0{"sid":"a"}', ProtocolVersion.SOCKET_IO_2, id="1.x"),
        pytest.param(b'\x00\x01\x00\x05\xff0{"sid"', ProtocolVersion.SOCKET_IO_2, id="1.x, truncated"),
        pytest.param(b"Welcome to socket.io.", ProtocolVersion.SOCKET_IO_0, id="0.9"),
    ],
)
def test_classify_detects_version_by_first_bytes(body: bytes, version: ProtocolVersion) -> None:
    assert classify(200, body) is version


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        pytest.param(200, b"<html>", ProtocolUnsupported, "check provider.url", id="web site"),
        pytest.param(200, b"", ProtocolUnsupported, "check provider.url", id="empty body"),
        pytest.param(404, b"Cannot GET", ProtocolUnsupported, "check provider.url", id="404"),
        pytest.param(
            400, b'{"code":0,"message":"Transport unknown"}', ProtocolUnsupported, "provider.protocol", id="no polling"
        ),
        pytest.param(401, b"", ConnectionRefused, "token", id="401"),
        pytest.param(403, b'{"code":4,"message":"Forbidden"}', ConnectionRefused, "Forbidden", id="403"),
        pytest.param(502, b"Bad Gateway", ConnectionFailed, "502", id="502"),
        pytest.param(301, b"", ConnectionFailed, "301", id="redirect"),
    ],
)
def test_classify_raises_for_other_bodies(status: int, body: bytes, error: type[ConnectionFailed], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        classify(status, body)
    assert type(caught.value) is error


def test_classify_masks_token_in_error() -> None:
    with pytest.raises(ConnectionRefused) as caught:
        classify(403, b"bad token eyJhbGciOiJIUzI1NiJ9.eyJhcGkiOiJzZWNyZXQifQ.c2ln")
    assert "eyJ" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://host", "socket.io"),
        ("https://host/", "socket.io"),
        ("https://host:8443/api/v1", "api/v1/socket.io"),
    ],
)
def test_socketio_path_is_under_configured_root(url: str, path: str) -> None:
    assert socketio_path(url) == path
