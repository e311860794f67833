"""Count events in the bytes of the socket without parsing them: measures what the load generator can push."""

import json
import socket
import sys
from urllib.parse import urlsplit

from tests.tools.benchmarks.scripts.minimal_client import SUBSCRIBE

MARK = b'42["res",'
url, wanted = urlsplit(sys.argv[1]), int(sys.argv[3])


def frame(text: str) -> bytes:
    """Return a client's websocket frame, masked with zeros."""
    body = text.encode()
    head = bytes([0x81, 0x80 | len(body)]) if len(body) < 126 else bytes([0x81, 0xFE]) + len(body).to_bytes(2)
    return head + bytes(4) + body


with socket.create_connection((url.hostname, url.port)) as connection:
    connection.sendall(
        b"GET /socket.io/?EIO=4&transport=websocket&token=t HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    received = b""
    for reply, expected in (("40", b'0{"sid'), (f"420{json.dumps(SUBSCRIBE)}", b'40{"sid'), (None, b"430[")):
        while expected not in received:
            received += connection.recv(4096)
        if reply is not None:
            connection.sendall(frame(reply))
    print("ready", flush=True)
    count, tail = 0, b""
    while count < wanted:
        block = tail + connection.recv(1 << 20)
        count += block.count(MARK)
        tail = block[-len(MARK) + 1 :]
print("done", flush=True)
