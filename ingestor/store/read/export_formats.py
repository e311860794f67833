"""Write pages of observations to a binary file as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Self

from ingestor.core.times import to_datetime
from ingestor.store.read.export import COLUMNS, NAMES, Page
from ingestor.store.read.sample_columns import EPOCH_US, NULL_TIME
from ingestor.store.schema import SOURCE_CODES

MAX_KNOWN_TIMES = 100_000  # whose text is kept in memory
GROUP_ROWS = 250_000  # of a row group of a Parquet file, at least; buffered in memory, some 100 bytes each

# Spreadsheets interpret a cell that starts with one of these as a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SOURCES = {code: source for source, code in SOURCE_CODES.items()}


class ExportWriter:
    """Writes one file. It is complete at the end of a ``with`` block, but after an exception it stays incomplete."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abandon()

    def write(self, page: Page) -> None:
        """Append a page of rows."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is still buffered. Does not close the file."""

    def abandon(self) -> None:
        """Write nothing more."""


class CsvWriter(ExportWriter):
    """Writes CSV as in RFC 4180, with a header. Prefixes text that a spreadsheet would execute with an apostrophe."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(_csv_line(COLUMNS).encode())

    def write(self, page: Page) -> None:
        names = [_csv_line(map(_cell, row)).removesuffix("\r\n") for row in page.names]
        # One format for a row: in half the time of csv.writer. Only names can need quotes.
        lines = [
            f"{names[series]},{_cached_iso(ts)},{value!r},{revision},{_csv_time(published)},{_iso(received)},"
            f"{_SOURCES[source]},{instance},{seq}\r\n"
            for series, ts, value, revision, published, received, source, instance, seq in _rows(page)
        ]
        self._file.write("".join(lines).encode())


def _csv_line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


class JsonLinesWriter(ExportWriter):
    """Writes one JSON object per line, with times in ISO 8601."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encode = json.JSONEncoder(ensure_ascii=False).encode

    def write(self, page: Page) -> None:
        names = [self._encode(dict(zip(NAMES, row, strict=True))).removesuffix("}") for row in page.names]
        lines = [
            f'{names[series]}, "ts": "{_cached_iso(ts)}", "value": {value!r}, "revision": {revision}, "published_at": '
            f'{_json_time(published)}, "received_at": "{_iso(received)}", "source": "{_SOURCES[source]}", '
            f'"instance_id": {instance_id}, "seq": {seq}}}\n'
            for series, ts, value, revision, published, received, source, instance_id, seq in _rows(page)
        ]
        self._file.write("".join(lines).encode())


def _rows(page: Page) -> Iterator[tuple[Any, ...]]:
    return zip(*page.columns.values(), strict=True)


def _csv_time(us: int) -> str:
    return _iso(us) if us > NULL_TIME else ""


def _json_time(us: int) -> str:
    return f'"{_iso(us)}"' if us > NULL_TIME else "null"


def _iso(us: int) -> str:
    """Return the text of µs since 2000, as ``datetime.isoformat`` does."""
    second, fraction = divmod(us, 1_000_000)
    return f"{_second_text(second)}.{fraction:06}+00:00" if fraction else f"{_second_text(second)}+00:00"


@lru_cache(maxsize=MAX_KNOWN_TIMES)
def _second_text(second: int) -> str:
    return (to_datetime(EPOCH_US) + timedelta(seconds=second)).isoformat().removesuffix("+00:00")


_cached_iso = lru_cache(maxsize=MAX_KNOWN_TIMES)(_iso)  # all series have values at the same times


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a Parquet file. Raises FileWriteFailed if it is none, MissingExtra."""
    from ingestor.store.read import arrow_table

    return arrow_table.read_metadata(path)


class _Output:
    """Writes to a file until it is abandoned: pyarrow ends each file when it forgets the writer, also after an error.

    A reader would take such a file for a complete one.
    """

    closed = False  # pyarrow asks

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.abandoned = False

    def write(self, data: bytes) -> None:
        if not self.abandoned:
            self._file.write(data)


class ParquetWriter(ExportWriter):
    """Writes typed columns: timestamps in microseconds with time zone, doubles, integers. Raises MissingExtra."""

    def __init__(
        self, file: BinaryIO, columns: tuple[str, ...] = COLUMNS, metadata: Mapping[str, str] | None = None
    ) -> None:
        from ingestor.store.read import arrow_table

        self._arrow = arrow_table
        self._columns = list(columns)
        self._output = _Output(file)
        self._writer = arrow_table.open_parquet(self._output, self._columns, metadata or {})
        self._buffer: list[Any] = []

    def write(self, page: Page) -> None:
        self._buffer.append(self._arrow.to_batch(page, self._columns))
        if sum(batch.num_rows for batch in self._buffer) >= GROUP_ROWS:
            self._write_group()

    def close(self) -> None:
        if self._buffer:
            self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        self._output.abandoned = True

    def _write_group(self) -> None:
        self._writer.write_table(self._arrow.to_table(self._buffer))
        self._buffer = []
