"""A loop round aiohttp's websocket, counting only: what is to be had in Python."""

import asyncio
import sys

from tests.tools.benchmarks.scripts.wire import texts

url, wanted = sys.argv[1], int(sys.argv[3])


async def main() -> None:
    count = 0
    async for _ in texts(url):
        count += 1
        if count == wanted:
            break
    print("done", flush=True)


asyncio.run(main())
