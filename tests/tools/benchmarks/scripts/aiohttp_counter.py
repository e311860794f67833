"""Count messages in a loop around aiohttp's websocket: an upper bound for clients in Python."""

import asyncio
import sys

from tests.tools.benchmarks.scripts.minimal_client import texts

url, wanted = sys.argv[1], int(sys.argv[3])


async def main() -> None:
    count = 0
    async for _ in texts(url):
        count += 1
        if count == wanted:
            break
    print("done", flush=True)


asyncio.run(main())
