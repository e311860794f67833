"""Find the responses that arrived on the socket after a gap, and contain all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

from ingestor.core.entries import Frame
from ingestor.core.times import to_us
from ingestor.pipeline.decoder import Decoder
from ingestor.repair.verification import covers_end, covers_start
from ingestor.store.engine import Engine
from ingestor.store.maintenance.repairs import Repair, ResumedRepair, stream_payloads
from ingestor.store.write.payload_blocks import StoredPayload

PAGE_ROWS = 200  # payloads between two calls of `stop`
MAX_SCAN_ENTRIES = 100_000  # after the subscription; with ten thousand tickers, ten minutes of payloads

_Pending: TypeAlias = dict[tuple[str, str], list[Repair]]  # by feed and ticker


def has_rolling_window(repair: Repair) -> bool:
    """Return whether its responses are rolling windows of what is missing.

    In those of a bare stream, an old row proves nothing. A window of one ticker proves nothing about the others.
    """
    return repair.path.startswith("/") and bool(repair.ticker or repair.user_id)


def find_repaired(
    engine: Engine,
    decoder: Decoder,
    instance_id: int,
    resumed: Sequence[ResumedRepair],
    scanned: dict[tuple[int, int], int],
    stop: Callable[[], bool],
) -> list[Repair]:
    """Return the repairs for which ``instance_id`` received, after the gap, a response that contains all of it.

    ``scanned`` keeps from one call to the next up to which seq payloads were scanned: (repair, instance) → seq. Repairs
    that are no longer among ``resumed`` are removed from it.
    """
    repair_ids = {item.repair.repair_id for item in resumed}
    for key in [key for key in scanned if key[0] not in repair_ids]:
        del scanned[key]
    waiting = [
        item._replace(seq=max(item.seq, scanned.get((item.repair.repair_id, instance_id), 0)))
        for item in resumed
        if item.instance_id == instance_id and has_rolling_window(item.repair)
    ]
    pending: _Pending = {}
    for item in waiting:
        pending.setdefault((item.repair.feed, item.repair.ticker), []).append(item.repair)
    repaired: list[Repair] = []
    last_seq = 0
    for payload in _payloads(engine, instance_id, waiting, pending, stop):
        repaired += _take_repaired(decoder, payload, pending)
        last_seq = payload.seq
    for repair in _repairs_in(pending):
        key = repair.repair_id, instance_id
        scanned[key] = max(last_seq, scanned.get(key, 0))
    return repaired


def _take_repaired(decoder: Decoder, payload: StoredPayload, pending: _Pending) -> list[Repair]:
    """Return the pending repairs that this payload proves, and remove them from ``pending``."""
    received_us = to_us(payload.received_at)
    # The source is "snapshot", because a payload's body is not wrapped in a Socket.IO message.
    frame = Frame(received_us, "", "snapshot", payload.event, payload.path, payload.params, payload.body)
    decoded = decoder.decode(frame)
    repaired: list[Repair] = []
    for name in {(decoded.feed, ""), *((decoded.feed, series[2]) for series, _, _, _ in decoded.observations)}:
        repairs = pending.pop(name, [])
        after_gap = [repair for repair in repairs if payload.received_at >= repair.to_ts]
        proven = [
            repair
            for repair in after_gap
            if covers_start(decoded, repair, received_us) and covers_end(decoded, repair, received_us)
        ]
        repaired += proven
        if unproven := [repair for repair in repairs if repair not in proven]:
            pending[name] = unproven
    return repaired


def _payloads(
    engine: Engine, instance_id: int, waiting: Sequence[ResumedRepair], pending: _Pending, stop: Callable[[], bool]
) -> Iterator[StoredPayload]:
    """Yield what was received since the first of the subscriptions resumed, while a repair is ``pending``."""
    after = min((item.seq for item in waiting), default=0)
    last = max((item.seq for item in waiting), default=0) + MAX_SCAN_ENTRIES
    if not pending:
        return
    paths = {repair.path for repair in _repairs_in(pending)}
    since = min(repair.to_ts for repair in _repairs_in(pending))
    payloads = stream_payloads(engine, instance_id, range(after + 1, last + 1), since, paths)
    while pending and not stop() and (page := list(islice(payloads, PAGE_ROWS))):
        paths = {repair.path for repair in _repairs_in(pending)}
        yield from (payload for payload in page if payload.path in paths)


def _repairs_in(pending: _Pending) -> Iterator[Repair]:
    return (repair for repairs in pending.values() for repair in repairs)
