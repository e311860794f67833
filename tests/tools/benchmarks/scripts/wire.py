"""A Socket.IO 4 client in a few lines of aiohttp: no library of it could be quicker."""

import json
from collections.abc import AsyncIterator

import aiohttp

WISH = ["subscribe", {"path": "/real-time/crowd-sentiment", "method": "get", "params": {"ticker": "A"}}]


async def texts(url: str) -> AsyncIterator[str]:
    """What comes after the subscription was acknowledged, message by message."""
    address = f"{url}/socket.io/?EIO=4&transport=websocket&token=t"
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
        await socket.receive_str()  # OPEN
        await socket.send_str("40")
        await socket.receive_str()  # CONNECT
        await socket.send_str(f"420{json.dumps(WISH)}")
        await socket.receive_str()  # the acknowledgement
        print("ready", flush=True)
        receive = socket.receive
        while isinstance(text := (await receive()).data, str):
            if text == "2":
                await socket.send_str("3")
            else:
                yield text
