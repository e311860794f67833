from __future__ import annotations

import json
from typing import Any

from ingestor.monitoring.history import LoadHistory, MaxRing


def told(history: LoadHistory, now: float) -> Any:
    return json.loads(history.to_json(now))


def test_a_step_shows_the_most_that_was_seen_in_it() -> None:
    ring = MaxRing(step_seconds=10, keep=5)
    for at, seen in ((100, (1, 9)), (109, (3, 2)), (110, (0, 0))):
        ring.add(at, seen)
    assert ring.points(115) == [(15, 3, 9), (5, 0, 0)]


def test_only_so_many_steps_are_kept() -> None:
    ring = MaxRing(step_seconds=1, keep=3)
    for at in range(10):
        ring.add(at, (at,))
    assert [point[1] for point in ring.points(9)] == [7, 8, 9]


def test_what_was_received_is_told_by_the_second() -> None:
    history = LoadHistory()
    history.record(1000.0, head_seq=500, waiting=0, lag_seconds=0.0)
    assert told(history, 1000.0)["hour"]["points"] == []  # since when the first 500 came nobody knows
    history.record(1002.0, head_seq=510, waiting=4, lag_seconds=0.257)
    history.record(1002.0, head_seq=510, waiting=4, lag_seconds=0.257)
    assert told(history, 1003.0)["hour"] == {"step_seconds": 10, "points": [[3.0, 5.0, 4, 0.26]]}
    assert told(history, 1003.0)["day"] == {"step_seconds": 240, "points": [[43.0, 5.0, 4, 0.26]]}


def test_where_nobody_looked_there_is_no_point() -> None:
    history = LoadHistory()
    for at in (1000.0, 1001.0, 1100.0):
        history.record(at, head_seq=0, waiting=0, lag_seconds=0.0)
    assert [point[0] for point in told(history, 1100.0)["hour"]["points"]] == [100.0, 0.0]
