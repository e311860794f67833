"""Bytes off the socket, and events counted in them without reading any: what the load generator can push."""

import json
import socket
import sys
from urllib.parse import urlsplit

from tests.tools.benchmarks.scripts.wire import WISH

MARK = b'42["res",'
url, wanted = urlsplit(sys.argv[1]), int(sys.argv[3])


def frame(text: str) -> bytes:
    """A client's: masked, with a mask of zeros."""
    body = text.encode()
    head = bytes([0x81, 0x80 | len(body)]) if len(body) < 126 else bytes([0x81, 0xFE]) + len(body).to_bytes(2)
    return head + bytes(4) + body


with socket.create_connection((url.hostname, url.port)) as line:
    line.sendall(
        b"GET /socket.io/?EIO=4&transport=websocket&token=t HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    heard = b""
    for said, answer in (("40", b'0{"sid'), (f"420{json.dumps(WISH)}", b'40{"sid'), (None, b"430[")):
        while answer not in heard:
            heard += line.recv(4096)
        if said is not None:
            line.sendall(frame(said))
    print("ready", flush=True)
    count, tail = 0, b""
    while count < wanted:
        block = tail + line.recv(1 << 20)
        count += block.count(MARK)
        tail = block[-len(MARK) + 1 :]
print("done", flush=True)
