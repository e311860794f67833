"""Rolling windows in a chunk: a text that repeats most of an earlier text of the chunk is stored as the difference.

To find the difference takes 1.5 µs, to write 60 rows once more 25 µs. It refers to a text of the same chunk only,
because chunks are dropped and salvaged one by one.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from ingestor.core.entries import FrameRun, Source
from ingestor.core.windows import MIN_CHARACTERS, first_ticker

_Count = Annotated[int, Meta(ge=0)]


class Difference(Struct, frozen=True, array_like=True, gc=False):
    """``before``, the characters from ``start`` to ``end`` of text number ``base`` of the chunk, ``after``."""

    base: _Count
    start: _Count
    end: _Count
    before: str
    after: str


StoredText: TypeAlias = str | Difference


class WindowRun(Struct, frozen=True, array_like=True, tag="w"):
    """A run with long texts, as it is stored. Only the texts of such runs are numbered."""

    connection_id: str
    source: Source
    event: str
    path: str
    params: str
    received_us: list[int]
    texts: list[StoredText]


class WindowPacker:
    """Finds the repetitions in one chunk. Call ``pack`` for its runs in order."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, str]] = {}  # the first ticker in a text → the last such text and its number
        self._count = 0

    def pack(self, run: FrameRun) -> FrameRun | WindowRun:
        if max(map(len, run.texts), default=0) < MIN_CHARACTERS:
            return run
        texts = [self._store(text) for text in run.texts]
        return WindowRun(run.connection_id, run.source, run.event, run.path, run.params, run.received_us, texts)

    def _store(self, text: str) -> StoredText:
        ticker = first_ticker(text)
        last = self._last.get(ticker)
        self._last[ticker] = self._count, text
        self._count += 1
        return (last and _difference(*last, text)) or text


def _difference(number: int, base: str, text: str) -> Difference | None:
    """Look for the first row of a text in ``base``, and compare what follows: with or without the newest row."""
    first = text.find("[{") + 1
    start = base.find(text[first : text.find("{", first + 1)])
    if start < 0:
        return None
    for end in (base.rfind("}") + 1, base.rfind("{")):
        if end > start and text.startswith(base[start:end], first):
            return Difference(number, start, end, text[:first], text[first + end - start :])
    return None


class WindowUnpacker:
    """Restores the texts of one chunk. Call ``unpack`` for its runs in order."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.repeated_characters = 0  # by which the texts are longer than what the chunk has of them

    def unpack(self, run: WindowRun) -> FrameRun:
        """Raises ValueError."""
        first = len(self._texts)
        for text in run.texts:
            self._texts.append(text if isinstance(text, str) else self._restore(text))
        texts = self._texts[first:]
        return FrameRun(run.connection_id, run.source, run.event, run.path, run.params, run.received_us, texts)

    def _restore(self, difference: Difference) -> str:
        if difference.base >= len(self._texts):
            raise ValueError("a text refers to one that does not come before it")
        repeated = self._texts[difference.base][difference.start : difference.end]
        self.repeated_characters += len(repeated)
        return f"{difference.before}{repeated}{difference.after}"
