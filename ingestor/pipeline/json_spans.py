"""Find the original text of each row in a JSON text, and read JSON that the fast parser rejects. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

_BLANKS = re.compile(r"[ \t\n\r]*")


def _parse_int(digits: str) -> int | float:
    # The interpreter refuses to convert thousands of digits; one such value must not cost the frame's other rows.
    return int(digits) if len(digits) <= 400 else math.inf


_LENIENT = json.JSONDecoder(parse_int=_parse_int)


def loads_leniently(text: str) -> Any:
    """Parse JSON with NaN, lone surrogates or integers of any length. Raises ValueError, RecursionError."""
    return _LENIENT.decode(text)


def first_argument(text: str) -> str:
    """Return the text of the second item of the list in ``text``: ``42["event", argument, …]``.

    Raises ValueError, IndexError, RecursionError.
    """
    _, (start, end, _) = _items(text, text.index("["))
    return text[start:end]


def row_texts(body: str, rows: list[Any], count: int) -> Callable[[int], str]:
    """Return a function from the index of one of the first ``count`` rows to its original text."""
    try:
        spans = _row_spans(body, count)
        if len(spans) == count:
            return lambda index: body[slice(*spans[index])]
    except (ValueError, RecursionError):
        pass  # parsed by a parser that accepts more than this one: encode the row again
    return lambda index: json.dumps(rows[index])


def _row_spans(body: str, count: int) -> list[tuple[int, int]]:
    """(start, end) of the first rows: in a list, in an envelope's ``results``, or the only one."""
    start = _skip_blanks(body, 0)
    if body[start] == "{":
        results = _find_value("results", body, start)
        start = start if results is None else results
    if body[start] == "{":
        return [(start, _LENIENT.raw_decode(body, start)[1])]
    return [(first, last) for first, last, _ in islice(_items(body, start), count)]


def _find_value(key: str, body: str, start: int) -> int | None:
    """Return where the value of an object's key begins; of equal keys the last counts, as in parsers."""
    found, is_wanted = None, False
    for first, last, delimiter in _items(body, start):
        if delimiter == ":":
            is_wanted = json.loads(body[first:last]) == key
        elif is_wanted:
            found, is_wanted = first, False
    return found


def _items(body: str, start: int) -> Iterator[tuple[int, int, str]]:
    """(start, end, delimiter after it) of the items of a list, or of the keys and values of an object in turn."""
    at = _skip_blanks(body, start + 1)
    while body[at] not in "]}":
        _, end = _LENIENT.raw_decode(body, at)
        delimiter_at = _skip_blanks(body, end)
        yield at, end, body[delimiter_at]
        at = _skip_blanks(body, delimiter_at + 1) if body[delimiter_at] in ",:" else delimiter_at


def _skip_blanks(body: str, start: int) -> int:
    found = _BLANKS.match(body, start)
    return found.end() if found else start
