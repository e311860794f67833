from __future__ import annotations

import json
from typing import Any

from ingestor.monitoring.load_history import LoadHistory, MaxRing


def decoded(history: LoadHistory, now: float) -> Any:
    return json.loads(history.to_json(now))


def test_ring_keeps_the_maxima_of_a_step() -> None:
    ring = MaxRing(step_seconds=10, max_points=5)
    for at, sample in ((100, (1, 9)), (109, (3, 2)), (110, (0, 0))):
        ring.add(at, sample)
    assert ring.points(115) == [(15, 3, 9), (5, 0, 0)]


def test_ring_keeps_a_limited_number_of_steps() -> None:
    ring = MaxRing(step_seconds=1, max_points=3)
    for at in range(10):
        ring.add(at, (at,))
    assert [point[1] for point in ring.points(9)] == [7, 8, 9]


def test_history_has_the_rate_of_entries_received() -> None:
    history = LoadHistory()
    history.record(1000.0, head_seq=500, waiting=0, lag_seconds=0.0)
    assert decoded(history, 1000.0)["hour"]["points"] == []  # the time in which the first 500 arrived is unknown
    history.record(1002.0, head_seq=510, waiting=4, lag_seconds=0.257)
    history.record(1002.0, head_seq=510, waiting=4, lag_seconds=0.257)
    assert decoded(history, 1003.0)["hour"] == {"step_seconds": 10, "points": [[3.0, 5.0, 4, 0.26]]}
    assert decoded(history, 1003.0)["day"] == {"step_seconds": 240, "points": [[43.0, 5.0, 4, 0.26]]}


def test_history_has_no_point_for_a_step_without_samples() -> None:
    history = LoadHistory()
    for at in (1000.0, 1001.0, 1100.0):
        history.record(at, head_seq=0, waiting=0, lag_seconds=0.0)
    assert [point[0] for point in decoded(history, 1100.0)["hour"]["points"]] == [100.0, 0.0]
