"""Count events with python-socketio, used as in its documentation."""

import asyncio
import sys

import socketio

url, wanted = sys.argv[1], int(sys.argv[3])
client = socketio.AsyncClient()
done = asyncio.Event()
count = 0


@client.on("res")
async def on_res(rows: list[dict[str, str]]) -> None:
    global count
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
