"""The rows of windows are joined, and each window is cut out of them to the character."""

from __future__ import annotations

import json
from random import Random

import pytest

from ingestor.store.write import window_strips
from ingestor.store.write.window_strips import cut_window, join_windows
from tests.support.entries import row

WINDOW = 60


def window(first_minute: int, ticker: str = "AAPL") -> str:
    return json.dumps([row(ticker, first_minute + minute) for minute in range(WINDOW)])


def size_of(bodies: list[str]) -> int:
    """Return how much is left of texts, which must be cut out as they were."""
    joined = join_windows(bodies)
    assert joined
    assert [cut_window(joined.text, place) for place in joined.places] == bodies
    return len(joined.text)


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("tickers", [1, 5])
def test_each_row_is_kept_once(step: int, tickers: int) -> None:
    bodies = [window(step * (number // tickers), f"T{number % tickers}") for number in range(100)]
    rows = tickers * (WINDOW + step * (100 // tickers - 1))
    assert size_of(bodies) == pytest.approx(rows * len(bodies[0]) / WINDOW, rel=0.01)


def test_restated_newest_row_begins_another_window() -> None:
    bodies = [window(minute) for minute in range(50)]
    restated = bodies[-1].replace("0.5}]", "0.7}]")
    assert size_of([*bodies, restated, restated]) == pytest.approx(size_of(bodies) + len(restated), abs=2)


def test_envelopes_are_kept_around_their_rows() -> None:
    bodies = [f'{{"timestamp":{minute},"results":{window(minute)},"é":{minute}}}' for minute in range(50)]
    assert size_of(bodies) < 3 * len(bodies[0])


@pytest.mark.parametrize("text", ["[]", "[{}]", "x" * 1_000])
def test_texts_that_are_short_or_have_no_rows_are_left_as_they_are(text: str) -> None:
    assert join_windows([text] * 50) is None


def test_texts_with_more_around_their_rows_than_in_them_are_left_as_they_are() -> None:
    note = "x" * len(window(0))
    assert join_windows([f'{{"note":"{note}","results":{window(0)}}}' for _ in range(50)]) is None


def test_windows_with_other_characters_than_ascii_are_left_as_they_are() -> None:
    bodies = [window(minute) for minute in range(50)]
    assert join_windows(bodies)
    assert join_windows([body.replace("AAPL", "ÄAPL") for body in bodies]) is None
    joined = join_windows([f'{{"é":1,"results":{body}}}' for body in bodies])
    assert joined
    assert joined.text.isascii()


def test_windows_without_common_rows_are_left_as_they_are() -> None:
    assert join_windows([window(minute, f"T{minute}") for minute in range(50)]) is None


def mutated(random: Random, text: str) -> str:
    """Cut out, repeat or insert something at a random place."""
    start, end = sorted(random.randrange(len(text) + 1) for _ in range(2))
    inserted = random.choice(["", "{", "}]", "[{", "]", '"ticker":"e",', "\n", text[start:end] * 2])
    return text[:start] + inserted + text[random.choice([start, start, end]) :]


@pytest.mark.parametrize("seed", range(30))
def test_any_texts_are_cut_out_as_they_were(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_strips, "MIN_CHARACTERS", 0)
    monkeypatch.setattr(window_strips, "_LEAST_GAIN", 0)
    random = Random(seed)
    bodies = ["", "[]", "[{", "}]", "}][{", "[{}]", *(window(minute, f"T{minute % 3}") for minute in range(20))]
    for _ in range(60):
        bodies.insert(random.randrange(len(bodies)), mutated(random, random.choice(bodies)))
    size_of(bodies)
