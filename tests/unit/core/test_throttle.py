from __future__ import annotations

from ingestor.core.throttle import MAX_KEYS, Throttle


def test_first_item_passes_and_repetitions_are_suppressed() -> None:
    throttle: Throttle[str] = Throttle(60)
    assert [throttle.admit("a", "x", now) for now in range(3)] == [0, None, None]
    assert throttle.admit("b", "x", 3) == 0


def test_window_end_reports_the_last_item_and_the_count() -> None:
    throttle: Throttle[str] = Throttle(60)
    for now, item in enumerate(["first", "second", "third"]):
        throttle.admit("a", item, now)
    assert list(throttle.due(59.9)) == []
    assert list(throttle.due(60)) == [("third", 2)]


def test_window_with_repetitions_opens_another_window() -> None:
    throttle: Throttle[str] = Throttle(60)
    throttle.admit("a", "x", 0)
    throttle.admit("a", "x", 1)
    assert list(throttle.due(60)) == [("x", 1)]
    assert throttle.admit("a", "x", 61) is None
    assert list(throttle.due(120)) == [("x", 1)]


def test_window_without_repetitions_is_forgotten() -> None:
    throttle: Throttle[str] = Throttle(60)
    throttle.admit("a", "x", 0)
    assert (list(throttle.due(60)), len(throttle), throttle.next_due()) == ([], 0, None)
    assert throttle.admit("a", "x", 61) == 0


def test_other_variants_pass_up_to_the_limit() -> None:
    throttle: Throttle[str] = Throttle(60, variants=2)
    admitted = [throttle.admit("a", "x", 0, variant) for variant in ("1", "1", "2", "3", "1")]
    # The second variant passes, and reports the one that was suppressed before it.
    assert admitted == [0, None, 1, None, None]


def test_window_after_suppression_knows_the_variant_it_reported() -> None:
    throttle: Throttle[str] = Throttle(60, variants=2)
    for variant in ("1", "2", "3"):
        throttle.admit("a", f"item {variant}", 0, variant)
    assert list(throttle.due(60)) == [("item 3", 1)]
    assert [throttle.admit("a", "x", 61, variant) for variant in ("3", "1", "2")] == [None, 1, None]


def test_next_due_is_the_end_of_the_first_window() -> None:
    throttle: Throttle[str] = Throttle(60)
    throttle.admit("a", "x", 10)
    throttle.admit("b", "x", 20)
    assert throttle.next_due() == 70


def test_flush_reports_what_was_suppressed_once() -> None:
    throttle: Throttle[str] = Throttle(60)
    for key in ("a", "a", "b", "c", "c"):
        throttle.admit(key, key, 0)
    assert throttle.flush() == [("a", 1), ("c", 1)]
    assert throttle.flush() == []


def test_keys_beyond_the_limit_pass_untracked() -> None:
    throttle: Throttle[str] = Throttle(60)
    assert {throttle.admit(str(number), "x", 0) for number in range(2 * MAX_KEYS)} == {0}
    assert len(throttle) == MAX_KEYS
    assert throttle.admit(str(2 * MAX_KEYS), "x", 0) == 0
