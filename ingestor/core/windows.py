"""Rolling windows: a response of a minute feed has 60 rows, of which 59 were in the response before, word for word.

``spool.window_texts`` and ``store.write.window_strips`` store such a row once, ``pipeline.windows`` reads it once.
"""

from __future__ import annotations

MIN_CHARACTERS = 500  # of a response: a shorter one is stored or read in the time that a comparison takes


def first_ticker(text: str) -> str:
    """Return the first ticker of a response, as it is written there, by which to find the response before.

    What it finds must be compared: the same text may stand in another response.
    """
    start = text.find('"ticker"')
    return text[start : text.find(",", start)]
