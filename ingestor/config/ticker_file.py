"""Read the files that ``tickers_file`` names, and edit their text: one ticker a line, # begins a comment."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ingestor.config import validators
from ingestor.config.validation_errors import limit_problems
from ingestor.config.yaml_document import line_and_column
from ingestor.core.os_errors import describe_os_error
from ingestor.errors import ConfigProblem

MAX_BYTES = 1024 * 1024
ONE_A_LINE = "write one ticker a line"

_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_LINE = re.compile(r"[^\n]*\n?")


@dataclass(frozen=True, slots=True)
class ListedTicker:
    """A ticker, and its place as ``file:line:column``."""

    ticker: str
    location: str


@dataclass(frozen=True, slots=True)
class TickerList:
    """The contents of a file, and what is wrong with it."""

    path: Path
    text: str
    tickers: tuple[ListedTicker, ...] = ()
    problems: tuple[ConfigProblem, ...] = ()


@dataclass(slots=True)
class TickerFiles:
    """The files of tickers of one configuration, each read once. Relative paths start from ``base``."""

    base: Path = field(default_factory=Path)
    lists: dict[Path, TickerList] = field(default_factory=dict)
    original: dict[Path, str] = field(default_factory=dict)  # texts before they were edited

    def read(self, written: str) -> TickerList:
        """Return the list in a file. Raises ValueError if the file cannot be read, or contains no ticker."""
        path = self.resolve(written)
        if path not in self.lists:
            self.lists[path] = parse_ticker_list(read_text_file(path), path)
        found = self.lists[path]
        if not (found.tickers or found.problems):
            raise ValueError(f"{path} contains no ticker; {ONE_A_LINE} into it")
        return found

    def resolve(self, written: object) -> Path:
        """Return the path as messages show it. Raises ValueError for what is no path."""
        return validators.resolve_path(written, self.base)

    def replace(self, path: Path, text: str) -> None:
        """Edit the text of a file that has been read, in memory only."""
        self.original.setdefault(path, self.lists[path].text)
        self.lists[path] = parse_ticker_list(text, path)


def parse_ticker_list(text: str, path: Path) -> TickerList:
    """Find the tickers and their places."""
    tickers, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if word := _word(line):
            location = f"{path}:{number}:{line.index(word) + 1}"
            try:
                tickers.append(ListedTicker(check_word(word), location))
            except ValueError as error:
                problems.append(ConfigProblem(location, "", str(error)))
    return TickerList(path, text, tuple(tickers), limit_problems(problems))  # of the wrong file, every line is one


def check_word(word: str) -> str:
    """Return a ticker that has a line to itself. Raises ValueError."""
    if re.search(r"\s", word):
        raise ValueError(f"a ticker must not contain spaces; {ONE_A_LINE}")
    return validators.ticker(word)


def read_text_file(path: Path) -> str:
    """Return the text of a file. Raises ValueError, which names the file."""
    return decode(read_bytes(path), str(path))


def decode(raw: bytes, name: str) -> str:
    """Return a text of at most ``MAX_BYTES`` in UTF-8. Raises ValueError."""
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES >> 20} MiB; is it the right file?")
    text, end = "", raw.find(0)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        end = error.start
    if end >= 0:
        line, column = line_and_column(raw[:end].decode("utf-8", "replace"))
        raise ValueError(f"{name}:{line}:{column}: is not text in UTF-8; name a text file: {ONE_A_LINE}")
    return text


def read_bytes(path: Path) -> bytes:
    """Return the contents of a regular file, at most one byte more than is allowed. Raises ValueError."""
    try:
        # Without O_NONBLOCK, opening a named pipe would block until it has a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{path} is not a regular file; name a text file: {ONE_A_LINE}")
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        message = f"the file {path} does not exist; create it, or correct the path"
    except OSError as error:
        message = f"{path} cannot be read ({describe_os_error(error.errno)}); correct the path or the permissions"
    raise ValueError(message)


def append_lines(text: str, tickers: Iterable[str]) -> str:
    """Return the text with a line for each ticker at its end."""
    newline = "\r\n" if "\r\n" in text else "\n"
    start = text if not text or text.endswith("\n") else text + newline
    return start + "".join(ticker + newline for ticker in tickers)


def remove_lines(text: str, tickers: Collection[str]) -> str:
    """Return the text without the lines of these tickers. A comment in such a line is removed too."""
    return "".join(line for line in _LINE.findall(text) if _word(line) not in tickers)


def _word(line: str) -> str:
    """Return what is before the comment, and after a byte order mark."""
    return line.removeprefix(_BOM).partition("#")[0].strip()
