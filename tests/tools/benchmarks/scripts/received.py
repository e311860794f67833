"""Our way in without the rest of the daemon: a connection, and a spool that makes durable what it hands over.

With ``-`` for DATABASE there is no spool, and the connection's frames are only counted.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from ingestor.config.model import Subscription
from ingestor.core.entries import Fact, Frame
from ingestor.provider.auth import Token
from ingestor.provider.socket.connection import Connection, ConnectionSettings, Sink
from ingestor.provider.socket.protocol import ProtocolVersion
from ingestor.spool.spool import Spool

url, database, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
PATH = "/real-time/crowd-sentiment"


class Count:
    """A sink that keeps nothing."""

    head = 0
    congested = False

    def append(self, what: Frame | Fact) -> int:
        self.head += 1
        return self.head

    async def wait_for_space(self) -> None:
        """There is always room."""

    async def durable(self, seq: int) -> None:
        """Nothing ever is."""


async def measure(sink: Sink) -> None:
    line = ConnectionSettings(url=url, path=PATH, params="{}", events=("res",))
    connection = Connection(line, ProtocolVersion.SOCKET_IO_4, sink, sink.append)
    await connection.open(Token(value="t", fetched_at=0.0, life_seconds=3600.0))
    wish = Subscription(path=PATH, method="get", params={"ticker": "A"})
    await connection.subscribe([wish], lambda _subscription, _error: None)
    print("ready", flush=True)
    while connection.frames < wanted:
        await asyncio.sleep(0.01)
    await sink.durable(sink.head)
    print("done", flush=True)
    await connection.close("stopped", "counted")


async def main() -> None:
    if database == "-":
        await measure(Count())
        return
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool", max_bytes=1 << 30, sync_every_seconds=0.02)
        spool.start(print)
        await measure(spool)
        await spool.close()


asyncio.run(main())
