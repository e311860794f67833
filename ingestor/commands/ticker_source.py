"""Read tickers from a text: one a line, or the first column of a CSV; # begins a comment."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ingestor.config import ticker_file, validators
from ingestor.config.ticker_file import ONE_A_LINE

# A line with one value, which may be followed by a comment; the value may be missing.
_SINGLE = re.compile(r"""\s*("[^"]*"|[^,;|\t"#]*?)\s*(#.*)?""")
_FIRST_COLUMN = re.compile(r"""\s*(?:"(?:[^"]|"")*"|[^,;|\t"]*)\s*([,;|\t])""")
_TITLE = re.compile(r"\b(ticker|symbol)s?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TickerSource:
    """The tickers of a text in their order, and how it was read."""

    tickers: list[str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    location: str
    cells: list[str]


def read_tickers(raw: bytes, name: str, *, force: bool = False) -> TickerSource:
    """Return the tickers. Raises ValueError, with the location, for what is none; ``force`` accepts what may be one."""
    rows = list(_read_rows(ticker_file.decode(raw, name).removeprefix("\ufeff"), name))
    header = rows.pop(0) if rows and _is_header(rows[0]) else None
    if not rows:
        raise ValueError(f"{name} contains no ticker; {ONE_A_LINE}")
    width = max(len(row.cells) for row in rows)
    if width > 1 and not header:
        _verify_table(rows)
    tickers, problems = [], []
    for row in rows:
        try:
            tickers.append(check_ticker(ticker_file.check_word(row.cells[0].strip()), force=force))
        except ValueError as error:
            problems.append(f"{row.location}: {error}")
    if problems:
        more = f" (and {len(problems) - 1:,} more like this)" if len(problems) > 1 else ""
        raise ValueError(problems[0] + more)
    return TickerSource(tickers, _describe(name, width, header))


def check_ticker(text: str, *, force: bool = False) -> str:
    """Return a ticker. Raises ValueError for what cannot be one, and, unless ``force``, for what surely is none."""
    ticker = validators.ticker(text)
    if (doubt := validators.doubt_ticker(ticker)) and not force:
        raise ValueError(f"{doubt} (--force adds it as it is)")
    return ticker


def _read_rows(text: str, name: str) -> Iterator[_Row]:
    lines = [_without_comment(line) for line in text.splitlines()]
    delimiter = next((found[1] for line in lines if (found := _FIRST_COLUMN.match(line))), ",")
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, skipinitialspace=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield _Row(f"{name}:{line}:1", cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{name}:{line}:1: is not CSV ({error}); {ONE_A_LINE}") from None


def _without_comment(line: str) -> str:
    single = _SINGLE.fullmatch(line)
    return single[1] if single else line


def _is_header(row: _Row) -> bool:
    return any(_TITLE.search(cell) for cell in row.cells)


def _verify_table(rows: list[_Row]) -> None:
    """Reject a list of tickers in one line, of which the first column would be one ticker."""
    width = len(rows[0].cells)
    if len(rows) == 1:
        raise ValueError(f"{rows[0].location}: has {width} values in one line; {ONE_A_LINE}")
    for row in rows:
        if len(row.cells) != width:
            message = f"has {len(row.cells)} columns, the first line {width}, and no header line names them"
            raise ValueError(f"{row.location}: {message}; {ONE_A_LINE}")


def _describe(name: str, width: int, header: _Row | None) -> str:
    parts = [f"the first of {width} columns is read"] if width > 1 else []
    parts += [f'the header line "{header.cells[0].strip()}" is skipped'] if header else []
    return f"{name}: {', '.join(parts)}" if parts else ""
