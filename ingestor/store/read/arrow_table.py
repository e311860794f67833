"""Observations as Arrow tables, for ``ingestor.read`` and for Parquet files. Needs the extra `export`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from ingestor.config.urls import normalize_database_url
from ingestor.config.validation_errors import suggest
from ingestor.core.extras import missing_extra
from ingestor.core.times import to_datetime, to_us
from ingestor.errors import FileWriteFailed, UnknownName
from ingestor.store import migrate
from ingestor.store.engine import repeatable_read
from ingestor.store.open_database import open_database
from ingestor.store.read.export import COLUMNS, NAMES, ExportQuery, Page, check_names, read_pages
from ingestor.store.read.sample_columns import EPOCH_US, NULL_TIME, TYPES
from ingestor.store.schema import SOURCE_CODES

try:
    import pyarrow
    from pyarrow import compute, parquet
except ImportError:
    raise missing_extra("export", "Parquet or ingestor.read") from None

_KNOWN = {"received_at": "known_from", "revision": "", "published_at": ""}  # "": a column that the past has not
KNOWN_COLUMNS = tuple(known for name in COLUMNS if (known := _KNOWN.get(name, name)))  # with ``as_of``

_TIME = pyarrow.timestamp("us", tz="UTC")
_NUMBERS = {
    "value": pyarrow.float64(),
    "revision": pyarrow.int32(),
    "instance_id": pyarrow.int32(),
    "seq": pyarrow.int64(),
}
_NUMBER_TYPES = {"i": pyarrow.int32(), "q": pyarrow.int64(), "d": pyarrow.float64(), "h": pyarrow.int16()}
_SOURCES = pyarrow.array(["", *SOURCE_CODES])  # by code: 1, 2, 3
# In rows sorted by ticker and ts, differences of neighbors are small. Values are not: they stay as they are.
_ENCODINGS = dict.fromkeys(("ts", "published_at", "received_at", "seq"), "DELTA_BINARY_PACKED") | {"value": "PLAIN"}
_DICTIONARIES = (*NAMES, "source", "revision", "instance_id")


def read(
    url: str,
    feed: str,
    *,
    tickers: str | Iterable[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    as_of: datetime | None = None,
    columns: Sequence[str] | None = None,
) -> pyarrow.Table:
    """Return the observations of a feed as a ``pyarrow.Table``, all from one snapshot of the database.

    ``url``: of the database, as in the config: ``postgresql://user@host/database`` or ``sqlite:///path``.
    ``feed``: as in the view ``observations``, such as ``crowd-sentiment``.
    ``tickers``: one or several; all without it.
    ``start``, ``end``: aware datetimes; ``start <= ts < end``.
    ``as_of``: an aware datetime; the values that were known at that moment, of the view ``history``, with
    ``known_from`` in place of ``revision``, ``published_at`` and ``received_at``. Without it, the current values.
    ``columns``: some of those of the view ``observations``, in this order; all without it.

    Rows are ordered by metric, ticker, user_id and ts. Times have microseconds and the zone UTC. The table takes some
    130 bytes of memory a row; ``read_batches`` reads more than fits. Convert it by ``table.to_pandas()`` or
    ``polars.from_arrow(table)``.

    Raises ValueError for a naive datetime, an empty ``tickers`` or an invalid URL, UnknownName for a feed, ticker or
    column that does not exist, DatabaseUnavailable, MissingExtra without pyarrow.
    """
    with read_batches(url, feed, tickers=tickers, start=start, end=end, as_of=as_of, columns=columns) as batches:
        return batches.read_all()


def read_batches(
    url: str,
    feed: str,
    *,
    tickers: str | Iterable[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    as_of: datetime | None = None,
    columns: Sequence[str] | None = None,
) -> pyarrow.RecordBatchReader:
    """Return the same as ``read``, as a ``pyarrow.RecordBatchReader`` of at most 50,000 rows a batch.

    All are from one snapshot, which keeps PostgreSQL from cleaning up, and SQLite's WAL from being emptied, until the
    last batch is read or the reader is dropped; to close it is not enough. Reading a batch raises DatabaseUnavailable,
    too.
    """
    available = COLUMNS if as_of is None else KNOWN_COLUMNS
    names = list(available if columns is None else columns)
    for name in names:
        if name not in available:
            raise UnknownName(f'unknown column "{name}"{suggest(name, available)}')
    query = ExportQuery(
        feeds=(feed,),
        tickers=_ticker_names(tickers),
        since=_aware("start", start),
        until=_aware("end", end),
        as_of=_aware("as_of", as_of),
    )
    batches = _read(normalize_database_url(url, Path.cwd()), query, names)
    first = next(batches)  # raises what is wrong with the arguments here, not where the rows are used
    return pyarrow.RecordBatchReader.from_batches(make_schema(names), chain([first], batches))


def _ticker_names(tickers: str | Iterable[str] | None) -> tuple[str, ...]:
    if tickers is None:
        return ()
    names = (tickers,) if isinstance(tickers, str) else tuple(tickers)
    if not names:
        raise ValueError("tickers is empty: name at least one, or leave it out to read all")
    return names


def _aware(name: str, at: datetime | None) -> datetime | None:
    if at is None:
        return None
    if getattr(at, "tzinfo", None) is None:
        raise ValueError(f"{name}={at!r}: pass a datetime with a time zone, such as datetime(2026, 1, 31, tzinfo=UTC)")
    return to_datetime(to_us(at))  # a plain one, in UTC, also from pandas


def _read(url: str, query: ExportQuery, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
    """Yield an empty batch once the arguments are checked, and then the rows."""
    with open_database(url) as engine:
        migrate.refuse_pre_release(migrate.current_revision(engine))
        check_names(engine, query)
        yield pyarrow.RecordBatch.from_pylist([], schema=make_schema(columns))
        with repeatable_read(engine) as connection:
            for _, page in read_pages(connection, query):
                yield to_batch(page, columns)


def make_schema(columns: Sequence[str]) -> pyarrow.Schema:
    """Return the schema of these columns of the view ``observations``."""
    return pyarrow.schema([pyarrow.field(name, _type(name), nullable=name == "published_at") for name in columns])


def _type(name: str) -> Any:
    return _TIME if _is_time(name) else _NUMBERS.get(name, pyarrow.string())


def _is_time(name: str) -> bool:
    return name in ("ts", "known_from") or name.endswith("_at")


def to_batch(page: Page, columns: Sequence[str]) -> pyarrow.RecordBatch:
    """Convert a page to these columns."""
    arrays = [_to_array(page, name) for name in columns]
    return pyarrow.RecordBatch.from_arrays(arrays, schema=make_schema(columns))


def _to_array(page: Page, name: str) -> pyarrow.Array:
    if name in NAMES:
        place = NAMES.index(name)
        return pyarrow.array([row[place] for row in page.names], pyarrow.string()).take(_numbers(page, "series"))
    numbers = _numbers(page, "received_at" if name == "known_from" else name)
    if name == "source":
        return _SOURCES.take(numbers)
    if not _is_time(name):
        return numbers
    if name == "published_at":
        numbers = compute.if_else(compute.equal(numbers, NULL_TIME), None, numbers)
    return compute.add(numbers, EPOCH_US).cast(_TIME)


def _numbers(page: Page, name: str) -> pyarrow.Array:
    column = page.columns[name]
    return pyarrow.Array.from_buffers(_NUMBER_TYPES[TYPES[name]], len(column), [None, pyarrow.py_buffer(column)])


def to_table(batches: list[pyarrow.RecordBatch]) -> pyarrow.Table:
    """Return the rows of some batches as one table."""
    return pyarrow.Table.from_batches(batches).combine_chunks()


def open_parquet(file: Any, columns: Sequence[str], metadata: Mapping[str, str]) -> parquet.ParquetWriter:
    """Return a writer of tables with these columns, which keeps ``metadata`` in the file: an object with ``write``."""
    return parquet.ParquetWriter(
        pyarrow.PythonFile(file, mode="w"),
        make_schema(columns).with_metadata(metadata),
        compression="zstd",
        use_dictionary=[name for name in columns if name in _DICTIONARIES],
        column_encoding={name: encoding for name, encoding in _ENCODINGS.items() if name in columns},
    )


def read_metadata(path: Path) -> dict[str, str]:
    """Return what ``open_parquet`` was given. Raises FileWriteFailed if this is no Parquet file."""
    try:
        found = parquet.read_schema(path).metadata or {}
    except (OSError, pyarrow.ArrowException) as error:
        raise FileWriteFailed(f"{path}: cannot be read: {error}; move it away") from None
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in found.items()}
