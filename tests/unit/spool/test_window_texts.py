"""A text that repeats an earlier one of its chunk is stored as the difference, and restored to the character."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ingestor.core.entries import Frame
from ingestor.spool.chunk_store import ChunkReader, ChunkWriter, SpoolUnreadable, pack, unpack
from ingestor.spool.window_texts import Difference, WindowRun
from tests.support.entries import fact, frame, row

WINDOW = 60


def windows(count: int, *, tickers: int = 1) -> list[Frame]:
    """Windows of the tickers in turn, each of which has one row that the one before it has not."""
    return [
        frame([row(f"T{number % tickers}", number // tickers + minute) for minute in range(WINDOW)])
        for number in range(count)
    ]


def restore(*frames: Frame) -> list[str]:
    return [entry.text for _, entry in unpack(pack(1, frames)) if isinstance(entry, Frame)]


@pytest.mark.parametrize("tickers", [1, 7])
def test_repeated_rows_are_stored_once(tickers: int) -> None:
    frames = windows(100, tickers=tickers)
    whole = len(frames[0].text)
    assert pack(1, frames)[2] < tickers * whole + 100 * (2 * whole / WINDOW + 30)
    assert unpack(pack(1, frames)) == list(enumerate(frames, 1))


def test_restated_newest_row_is_stored_with_the_new_one() -> None:
    rows = [row(minute=minute) for minute in range(WINDOW)]
    frames = [frame(rows), frame([*rows[1:-1], row(minute=WINDOW - 1, value=0.7), row(minute=WINDOW)])]
    assert pack(1, frames)[2] < 1.2 * len(frames[0].text)
    assert restore(*frames) == [frame.text for frame in frames]


def test_rows_in_an_envelope_are_stored_once() -> None:
    frames = [frame({"timestamp": f"{n}", "results": json.loads(f.text[9:-1])}) for n, f in enumerate(windows(50), 10)]
    assert pack(1, frames)[2] < 50 * len(frames[0].text) / 10
    assert restore(*frames) == [frame.text for frame in frames]


def test_windows_of_two_connections_share_their_rows() -> None:
    frames = [
        msgspec.structs.replace(window, connection_id=name) for window in windows(20) for name in ("a" * 12, "b" * 12)
    ]
    assert pack(1, frames)[2] < 40 * len(frames[0].text) / 8
    assert unpack(pack(1, frames)) == list(enumerate(frames, 1))


def test_lone_surrogate_in_a_window_becomes_an_escape() -> None:
    rows = [f'{{"ticker":"\ud800","minute":{minute}}}' for minute in range(WINDOW + 1)]
    frames = [frame(f"[{','.join(part)}]") for part in (rows[:-1], rows[1:])]
    assert restore(*frames) == [frame.text.encode("utf-8", "backslashreplace").decode() for frame in frames]


def mutated(random: Random, text: str) -> str:
    """Cut out, repeat or insert something at a random place."""
    start, end = sorted(random.randrange(len(text) + 1) for _ in range(2))
    inserted = random.choice(["", "{", "}", "[{", "]", '"ticker":"é",', "é\U0001f600", text[start:end] * 2])
    return text[:start] + inserted + text[random.choice([start, start, end]) :]


@pytest.mark.parametrize("seed", range(20))
def test_any_texts_are_restored(seed: int) -> None:
    random = Random(seed)
    texts = [window.text for window in windows(20, tickers=3)]
    for _ in range(60):
        texts.insert(random.randrange(len(texts)), mutated(random, random.choice(texts)))
    entries: list[Any] = [frame("", connection=random.choice("ab") * 12) for _ in texts]
    entries = [msgspec.structs.replace(entry, text=text) for entry, text in zip(entries, texts, strict=True)]
    entries.insert(random.randrange(len(entries)), fact())
    assert unpack(pack(1, entries)) == list(enumerate(entries, 1))


@pytest.mark.parametrize("base", [0, 1, -1])
def test_difference_to_a_text_that_does_not_come_before_is_unreadable(base: int) -> None:
    run = WindowRun("c", "stream", "res", "/", "{}", [1], [Difference(base, 0, 9, "", "")])
    body = msgspec.msgpack.encode([run])
    with pytest.raises(SpoolUnreadable, match="spool entries 1 to 1"):
        unpack((1, 1, len(body), zlib.crc32(body), body))


@pytest.mark.parametrize(("tickers", "most_windows"), [(1, 15), (40, 25)])
def test_read_is_bounded_by_the_restored_size(tmp_path: Path, tickers: int, most_windows: int) -> None:
    writer, frames = ChunkWriter(tmp_path / "spool.db"), windows(40, tickers=tickers)
    for start in range(0, 40, 10):
        writer.write([pack(start + 1, frames[start : start + 10])], acked=0)
    writer.close()
    reader = ChunkReader(tmp_path / "spool.db")
    items = reader.read_items(0, max_entries=1_000, max_bytes=most_windows * len(frames[0].text))
    reader.close()
    assert [seq for seq, _ in items] == [1, 11]
