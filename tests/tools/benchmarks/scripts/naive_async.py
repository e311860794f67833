"""A first attempt with asyncio: python-socketio's client, and a commit per event."""

import asyncio
import sys

import socketio
from naive_writer import Writer

url, database, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
writer = Writer(database)
client = socketio.AsyncClient()
done = asyncio.Event()
count = 0


@client.on("res")
async def on_res(rows: list[dict[str, str]]) -> None:
    global count
    writer.write(rows)
    count += 1
    if count == wanted:
        done.set()


async def main() -> None:
    await client.connect(f"{url}?token=t", transports=["websocket"], wait_timeout=10)
    await client.call("subscribe", {"path": "/real-time/crowd-sentiment", "method": "get", "params": {"ticker": "A"}})
    print("ready", flush=True)
    await done.wait()
    print("done", flush=True)
    await client.disconnect()


asyncio.run(main())
