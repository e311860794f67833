"""Looks through what came off the socket after a gap, for the answers that reach back to its start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from ingestor.core.entries import Frame
from ingestor.core.times import to_us
from ingestor.pipeline.decoder import Decoder
from ingestor.repair.verification import covers_start
from ingestor.store.engine import Engine
from ingestor.store.maintenance.repairs import Repair, ResumedRepair, StoredPayload, stream_payloads

PAGE_ROWS = 200  # payloads read together
MAX_SCAN_ENTRIES = 100_000  # looked through at most: with ten thousand tickers, those of ten minutes

_Pending: TypeAlias = dict[tuple[str, str], list[Repair]]  # by feed and ticker


def has_rolling_window(repair: Repair) -> bool:
    """Whether its answers are rolling windows. A bare stream says what is new, and an old row there proves nothing."""
    return repair.path.startswith("/")


def find_repaired(
    engine: Engine,
    decoder: Decoder,
    instance_id: int,
    resumed: Sequence[ResumedRepair],
    looked: dict[tuple[int, int], int],
    stop: Callable[[], bool],
) -> list[Repair]:
    """Those for which ``instance_id`` received, once the gap was over, an answer that reaches back to its start.

    ``looked`` remembers from one call to the next up to which seq was looked: (repair, instance) → seq. What is not
    among the ``resumed`` any more is forgotten.
    """
    asked_about = {one.repair.repair_id for one in resumed}
    for key in [key for key in looked if key[0] not in asked_about]:
        del looked[key]
    found: list[Repair] = []
    waiting = [
        one._replace(seq=max(one.seq, looked.get((one.repair.repair_id, instance_id), 0)))
        for one in resumed
        if one.instance_id == instance_id and has_rolling_window(one.repair)
    ]
    seen = 0
    pending: _Pending = {}
    for one in waiting:
        pending.setdefault((one.repair.feed, one.repair.ticker), []).append(one.repair)
    for answer in _answers(engine, instance_id, waiting, pending, stop):
        frame = _frame(answer)
        decoded = decoder.decode(frame)
        for name in {(decoded.feed, ""), *((decoded.feed, series[2]) for series, _, _, _ in decoded.observations)}:
            asked = pending.pop(name, [])
            after = [one for one in asked if answer.received_at >= one.to_ts]
            done = [one for one in after if covers_start(decoded, one, frame.received_us)]
            found += done
            if rest := [one for one in asked if one not in done]:
                pending[name] = rest
        seen = answer.seq
    for repair_id in (one.repair_id for some in pending.values() for one in some):
        looked[repair_id, instance_id] = max(seen, looked.get((repair_id, instance_id), 0))
    return found


def _answers(
    engine: Engine, instance_id: int, waiting: Sequence[ResumedRepair], pending: _Pending, stop: Callable[[], bool]
) -> Iterator[StoredPayload]:
    """What was received since the first of them was asked for again, while any is ``pending``."""
    after = min((one.seq for one in waiting), default=0)
    last = max((one.seq for one in waiting), default=0) + MAX_SCAN_ENTRIES
    while pending and not stop():
        repairs = [repair for some in pending.values() for repair in some]
        paths, since = {one.path for one in repairs}, min(one.to_ts for one in repairs)
        page = stream_payloads(engine, instance_id, range(after + 1, last + 1), since, paths, PAGE_ROWS)
        yield from page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].seq


def _frame(answer: StoredPayload) -> Frame:
    # As a REST answer: its text is the body alone.
    received_us = to_us(answer.received_at)
    return Frame(received_us, "", "snapshot", answer.event, answer.path, answer.params, answer.body)
