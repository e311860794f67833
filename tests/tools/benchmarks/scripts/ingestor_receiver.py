"""The daemon's receive path alone: a connection, and a spool that makes its frames durable.

With ``-`` for DATABASE there is no spool, and frames are only counted.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from ingestor.config.model import Subscription
from ingestor.provider.auth import Token
from ingestor.provider.socket.connection import Connection, ConnectionSettings, Sink
from ingestor.provider.socket.protocol import ProtocolVersion
from ingestor.spool.spool import Spool
from tests.tools.benchmarks.scripts.counting_sink import CountingSink

url, database, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
PATH = "/real-time/crowd-sentiment"


async def measure(sink: Sink) -> None:
    settings = ConnectionSettings(url=url, path=PATH, params="{}", events=("res",))
    connection = Connection(settings, ProtocolVersion.SOCKET_IO_4, sink, sink.append)
    await connection.open(Token(value="t", requested_at=0.0, life_seconds=3600.0))
    subscription = Subscription(path=PATH, method="get", params={"ticker": "A"})
    await connection.subscribe([subscription], lambda _subscription, _error: None)
    print("ready", flush=True)
    while connection.frames < wanted:
        await asyncio.sleep(0.01)
    await sink.durable(sink.head)
    print("done", flush=True)
    await connection.close("stopped", "counted")


async def main() -> None:
    if database == "-":
        await measure(CountingSink())
        return
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool", max_bytes=1 << 30, sync_every_seconds=0.02)
        spool.start(print)
        await measure(spool)
        await spool.close()


asyncio.run(main())
