"""cryptofeed's PostgreSQL writer behind python-socketio. It inserts everything received since its last insert."""

import asyncio
import sys
import time
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import socketio
from cryptofeed.backends.postgres import PostgresCallback
from naive_writer import TABLE

url, database, wanted = sys.argv[1], urlsplit(sys.argv[2]), int(sys.argv[3])
client = socketio.AsyncClient()
done = asyncio.Event()


class Sentiment(PostgresCallback):
    """The unchanged writer, with our columns."""

    committed = 0

    def format(self, data: tuple[Any, ...]) -> str:
        return str(self._custom_format(data))

    async def write_batch(self, updates: list[Any]) -> None:
        await super().write_batch(updates)
        self.committed += len(updates)
        if self.committed >= wanted:
            done.set()


account = {"host": database.hostname, "port": database.port, "user": database.username}
columns = {"symbol": "ticker", "timestamp": "ts", "value": "value"}
writer = Sentiment(**account, db=database.path[1:], table="samples", custom_columns=columns)


@client.on("res")
async def on_res(rows: list[dict[str, str]]) -> None:
    now = time.time()
    for row in rows:
        stamp = datetime.fromisoformat(row["ts"].replace("Z", "+00:00")).timestamp()
        sample = {"exchange": "", "symbol": row["ticker"], "timestamp": stamp, "receipt_timestamp": now}
        await writer.write(sample | {"value": float(row["average_sentiment"])})


async def main() -> None:
    connection = await asyncpg.connect(**account, database=database.path[1:])
    await connection.execute(TABLE)
    await connection.close()
    writer.start(asyncio.get_running_loop())
    await client.connect(f"{url}?token=t", transports=["websocket"], wait_timeout=10)
    await client.call("subscribe", {"path": "/real-time/crowd-sentiment", "method": "get", "params": {"ticker": "A"}})
    print("ready", flush=True)
    await done.wait()
    print("done", flush=True)
    await client.disconnect()


asyncio.run(main())
