"""Blocking calls beside the event loop that neither the loop nor the end of the process waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def aside(call: Callable[[], T], name: str) -> T:
    """Run it in a daemon thread: the end of the process waits for the loop's own threads, and neither a connect into
    nothing nor a file on a server that has gone can be cut.
    """
    loop = asyncio.get_running_loop()
    landed: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            tell = partial(landed.set_result, call())
        except Exception as error:
            tell = partial(landed.set_exception, error)
        try:
            loop.call_soon_threadsafe(lambda: landed.done() or tell())
        except RuntimeError:
            pass  # the loop has ended, and nobody waits any more

    threading.Thread(target=run, name=name, daemon=True).start()
    return await landed
