"""Turn stored payloads and dead letters back into frames, and append dead letters to the spool to retry them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ingestor.core.entries import Frame, LetterOrigin
from ingestor.core.times import to_us
from ingestor.spool.spool import Spool
from ingestor.store.engine import Engine
from ingestor.store.read import status_queries

RETRY_SHARE = 0.25  # of spool.max_bytes: while the spool is fuller, dead letters wait
POLL_SECONDS = 0.25  # between checks of that


def rebuild_frame(stored: Mapping[str, Any]) -> Frame:
    """Return the frame of a row of ``payloads``, or one that retries a row of ``dead_letters``.

    It keeps the original time of receipt. The dead letter of a row becomes a frame with that row only.
    """
    source, event, body = stored["source"], stored["event"], stored["body"]
    needs_event = source == "stream" and event and not body.startswith("42")  # unreadable events are stored whole
    letter_id, origin = stored.get("dead_letter_id"), None
    if letter_id is not None and "row_index" in stored:
        origin = LetterOrigin(stored["instance_id"], stored["seq"], stored["row_index"])
    return Frame(
        to_us(stored["received_at"]),
        stored["connection_id"],
        source,
        event,
        stored["path"],
        stored["params"],
        f'42["{event}",{body}]' if needs_event else body,
        letter_id,
        origin,
    )


async def requeue_dead_letters(spool: Spool, engine: Engine, ids: Sequence[int]) -> int:
    """Append the dead letters ``ids`` (empty: all that were never retried) as frames. Returns how many, all durable.

    Space is left in the spool: data that arrives now must not be refused because of data from long ago.
    """
    # Without this bound, dead letters that are rejected again meanwhile would be retried forever.
    upto = await asyncio.to_thread(status_queries.newest_dead_letter_id, engine)
    count, after = 0, 0
    while letters := await asyncio.to_thread(
        status_queries.next_dead_letters, engine, ids=ids, after_id=after, max_id=upto
    ):
        while spool.live_bytes > spool.max_bytes * RETRY_SHARE:
            spool.purge_acknowledged()
            await asyncio.sleep(POLL_SECONDS)
        for letter in letters:
            spool.append(rebuild_frame(letter))
        await spool.durable(spool.head)
        count, after = count + len(letters), letters[-1]["dead_letter_id"]
    return count
