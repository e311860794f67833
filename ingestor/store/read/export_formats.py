"""Write pages of exported observations to a binary file as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, BinaryIO

from ingestor.errors import MissingExtra
from ingestor.store.read.export import COLUMNS, ExportRow

GROUP_ROWS = 50_000  # per row group of a Parquet file; buffered in memory

# Spreadsheets interpret a cell that starts with one of these as a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class ExportWriter:
    """Writes one file."""

    def write(self, page: Sequence[ExportRow]) -> None:
        """Append a page of rows."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is still buffered. Does not close the file."""


class CsvWriter(ExportWriter):
    """Writes CSV as in RFC 4180, with a header. Prefixes text that a spreadsheet would execute with an apostrophe."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.write([COLUMNS])

    def write(self, page: Sequence[ExportRow]) -> None:
        text = io.StringIO()
        csv.writer(text).writerows([_cell(value) for value in row] for row in page)
        self._file.write(text.getvalue().encode())


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return value.isoformat() if isinstance(value, datetime) else value


class JsonLinesWriter(ExportWriter):
    """Writes one JSON object per line, with times in ISO 8601."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encode = json.JSONEncoder(ensure_ascii=False, default=datetime.isoformat).encode

    def write(self, page: Sequence[ExportRow]) -> None:
        self._file.write("".join(f"{self._encode(dict(zip(COLUMNS, row, strict=True)))}\n" for row in page).encode())


class ParquetWriter(ExportWriter):
    """Writes typed columns: timestamps in microseconds with time zone, doubles, integers. Raises MissingExtra."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise MissingExtra(
                "Parquet needs pyarrow: pip install 'ingestor[export]', or choose csv or jsonl"
            ) from None
        self._arrow = pyarrow
        self._schema = _arrow_schema(pyarrow)
        self._writer = parquet.ParquetWriter(pyarrow.PythonFile(file, mode="w"), self._schema)
        self._buffer: list[ExportRow] = []

    def write(self, page: Sequence[ExportRow]) -> None:
        self._buffer += page
        if len(self._buffer) >= GROUP_ROWS:
            self._write_group()

    def close(self) -> None:
        if self._buffer:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        columns = zip(zip(*self._buffer, strict=True), self._schema.types, strict=True)
        arrays = [self._arrow.array(values, type_) for values, type_ in columns]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._buffer = []


def _arrow_schema(arrow: Any) -> Any:
    timestamp = arrow.timestamp("us", tz="UTC")
    numbers = {"value": arrow.float64(), "revision": arrow.int32(), "instance_id": arrow.int32(), "seq": arrow.int64()}
    types = {
        name: timestamp if name == "ts" or name.endswith("_at") else numbers.get(name, arrow.string())
        for name in COLUMNS
    }
    return arrow.schema([arrow.field(name, type_, nullable=name == "published_at") for name, type_ in types.items()])
