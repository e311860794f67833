"""What one writes first: python-socketio's client and a commit per event.   naive.py URL DATABASE EVENTS"""

import asyncio
import sys

import requests
import socketio
import sqlalchemy as sa

url, database, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
engine = sa.create_engine(database)
metadata = sa.MetaData()
samples = sa.Table(
    "samples",
    metadata,
    sa.Column("ticker", sa.String(64), primary_key=True),
    sa.Column("ts", sa.String(32), primary_key=True),
    sa.Column("value", sa.Double),
)
metadata.create_all(engine)
client = socketio.AsyncClient()
done = asyncio.Event()
count = 0


@client.on("res")
async def on_res(rows: list[dict[str, str]]) -> None:
    global count
    with engine.begin() as connection:
        for row in rows:
            values = {"ticker": row["ticker"], "ts": row["ts"], "value": float(row["average_sentiment"])}
            connection.execute(sa.insert(samples).values(values))
    count += 1
    if count == wanted:
        done.set()


async def main() -> None:
    token = requests.post(f"{url}/jwt", auth=("key", ""), timeout=10).json()["token"]
    await client.connect(f"{url}?token={token}", transports=["websocket"], wait_timeout=10)
    await client.call("subscribe", {"path": "/real-time/crowd-sentiment", "method": "get", "params": {"ticker": "A"}})
    print("ready", flush=True)
    await done.wait()
    print("done", flush=True)
    await client.disconnect()


asyncio.run(main())
