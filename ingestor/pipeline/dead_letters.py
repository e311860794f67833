"""What was stored as a frame again: the same decode, and for a dead letter the same write under a seq of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ingestor.core.entries import Frame
from ingestor.core.times import to_us
from ingestor.spool.spool import Spool
from ingestor.store.engine import Engine
from ingestor.store.read import status

RETRY_SHARE = 0.25  # of spool.max_bytes: fuller than that, dead letters wait
POLL_SECONDS = 0.25  # between looks whether there is room


def rebuild_frame(stored: Mapping[str, Any]) -> Frame:
    """The frame that a row of ``payloads`` was, or that tries one of ``dead_letters`` again: stamped with its receipt.

    A row's letter is a frame of that row.
    """
    source, event, body = stored["source"], stored["event"], stored["body"]
    wrapped = source == "stream" and event and not body.startswith("42")  # a frame that never was one keeps its text
    return Frame(
        to_us(stored["received_at"]),
        stored["connection_id"],
        source,
        event,
        stored["path"],
        stored["params"],
        f'42["{event}",{body}]' if wrapped else body,
        stored.get("dead_letter_id"),
    )


async def requeue_dead_letters(spool: Spool, engine: Engine, ids: Sequence[int]) -> int:
    """Append the named dead letters (none: all that nobody tried again) as frames. Returns how many, durable.

    The spool is left room: what comes from the provider now must not be turned away for what came long ago.
    """
    # Those that die again meanwhile would be tried again and again.
    upto = await asyncio.to_thread(status.newest_dead_letter_id, engine)
    count, after = 0, 0
    while letters := await asyncio.to_thread(status.next_dead_letters, engine, ids=ids, after_id=after, max_id=upto):
        while spool.live_bytes > spool.max_bytes * RETRY_SHARE:
            spool.purge_acknowledged()
            await asyncio.sleep(POLL_SECONDS)
        for letter in letters:
            spool.append(rebuild_frame(letter))
        await spool.durable(spool.head)
        count, after = count + len(letters), letters[-1]["dead_letter_id"]
    return count
