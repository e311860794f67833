"""A first attempt without asyncio: python-socketio's synchronous client, and a commit per event."""

import sys
import threading

import socketio
from naive_writer import Writer

url, database, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
writer = Writer(database)
client = socketio.Client()
lock = threading.Lock()  # the client calls the handler of each event in a new thread
done = threading.Event()
count = 0


@client.on("res")
def on_res(rows: list[dict[str, str]]) -> None:
    global count
    with lock:
        writer.write(rows)
        count += 1
        if count == wanted:
            done.set()


client.connect(f"{url}?token=t", transports=["websocket"], wait_timeout=10)
client.call("subscribe", {"path": "/real-time/crowd-sentiment", "method": "get", "params": {"ticker": "A"}})
print("ready", flush=True)
done.wait()
print("done", flush=True)
client.disconnect()
