"""The decoder's times compared with a strict reader, over generated spellings."""

from __future__ import annotations

import random

import pytest

from tests.support.entries import decoder, frame, row
from tests.support.strict_times import strict_us

SPELLINGS = 10_000
_DATES = ("2024-02-29", "2023-02-29", "1970-01-01", "0000-01-01", "20260101", "2026-W01-4", "2026-001", "2026-1-1", "")
_CLOCKS = ("12:34", "1234", "12", "123456", "24:00", "23:59:60", "05:00", "", "12:34:56:7", "12:60", "1:2:3")
_FRACTIONS = (".5", ",5", ".123456000", ".1234567", ".", ".1_2", ".5.5")
_OFFSETS = (
    "",
    "+00:00",
    "-05:00",
    "+0530",
    "-05",
    "+05:99",
    "-00:00:30",
    "+24:00",
    " +01:00",
    "+1:00",
    "z",
    "EST",
    "ZZ",
)


def _spelling(chance: random.Random) -> str:
    """Return a time in one of many spellings; in one of three, a character is added, changed or missing."""
    pick, number = chance.choice, chance.randrange
    date = f"{pick([1970, 2026, 2199])}-{1 + number(12):02}-{1 + number(31):02}" if number(8) else pick(_DATES)
    clock = f"{number(24):02}:{number(60):02}:{number(60):02}" if number(4) else pick(_CLOCKS)
    fraction = pick(["", ".123", pick(_FRACTIONS)])
    offset = pick(["Z", "Z", pick(_OFFSETS)])
    epoch = str(number(10 ** pick([8, 10, 13, 16])))
    whole = date + pick("TTTTTT t_-+") + clock + fraction + offset
    text = pick([whole] * 7 + [date, date + offset, epoch])
    if number(3) == 0:
        at = number(len(text) + 1)
        text = text[:at] + pick(["", *"0123456789TZ:-+. ,W٣"]) + text[at + number(2) :]
    return text


def _decoded(texts: list[str]) -> dict[str, int]:
    decoded = decoder().decode(frame([row() | {"ts": text} for text in texts]))
    assert decoded.dead_frame is None
    return {texts[index]: ts_us for _, ts_us, _, index in decoded.observations}


def test_no_generated_time_is_misread() -> None:
    chance = random.Random(13)
    texts = sorted({_spelling(chance) for _ in range(SPELLINGS)})
    chance.shuffle(texts)
    expected = {text: us for text in texts if (us := strict_us(text)) is not None}
    assert len(expected) > SPELLINGS / 10  # else few of them are read by either
    read: dict[str, int] = {}
    for start in range(0, len(texts), 500):  # a frame with more bad rows is rejected whole
        read |= _decoded(texts[start : start + 500])
    assert read == expected


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01-05:00",  # a date and an offset
        "2026-01-01+05:00",
        "1970010112345",  # milliseconds since the epoch
        "20260101",  # seconds
        "2026-01-01T12:34.5",  # half a minute
        "2026-01-01T12:34:56+05:99",
        "2026-01-01T12:34:56+05:00:61",
        "2026-01-01T12:34:56.1234567Z",  # more digits than are stored
        "2026-01-01T12-05",
        "2026-01-01T24:00:00Z",  # Python 3.14 reads it, 3.11 does not
        "2026-W01-4",
        "2026-01-01t00:00:00z",
    ],
)
def test_ambiguous_time_is_rejected_with_its_text(text: str) -> None:
    decoded = decoder().decode(frame([row() | {"ts": text}]))
    assert decoded.observations == []
    assert [(dead.reason, text in dead.body) for dead in decoded.dead] == [("ts is not a time", True)]
