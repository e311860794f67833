"""Export days as a folder of Parquet files that DuckDB, polars and others read as one table, and keep it up to date.

Each file has what the database had of its day in its metadata; a day for which both agree is not written again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from ingestor.core.files import is_missing, replace_atomically
from ingestor.core.times import DAY_US, day_start_us, to_datetime, to_us
from ingestor.errors import FileWriteFailed
from ingestor.store.engine import Connection
from ingestor.store.read.days import DAY, DayContent, day_start, deleted_before, is_final, list_days
from ingestor.store.read.export import COLUMNS, ExportQuery, read_pages
from ingestor.store.read.export_formats import ParquetWriter, read_metadata

Days: TypeAlias = dict[tuple[str, date], DayContent]  # by feed and day

FILE_COLUMNS = tuple(name for name in COLUMNS if name != "feed")  # the feed is in the path
CONTENT = "ingestor.day"  # a key in the metadata


class DayOutcome(StrEnum):
    """What the export did with a day."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"
    NOT_FINAL = "not final"
    KEPT = "kept (the database has deleted values of them)"


class Lake:
    """A folder with a file for each feed and day: ``feed=…/date=…/observations.parquet``, or ``revisions.parquet``."""

    def __init__(self, folder: Path, *, revisions: bool) -> None:
        """Raise FileWriteFailed if the folder has files of the other kind, which a reader would mix with these."""
        self._folder = folder
        self._file = "revisions.parquet" if revisions else "observations.parquet"
        if other := next((path for path in folder.glob("feed=*/*/*.parquet") if path.name != self._file), None):
            raise FileWriteFailed(f"{folder}: has {other.name} of another kind; name a folder of its own")

    def path(self, feed: str, day: date) -> Path:
        """Return the file of a day, with the feed encoded as in a URL."""
        return self._folder / f"feed={quote(feed, safe='')}" / f"date={day}" / self._file

    def read_content(self, feed: str, day: date) -> DayContent | None:
        """Return what the database had when the file of this day was written, None without one.

        Raises FileWriteFailed for a file that is not of this lake: it is left as it is.
        """
        path = self.path(feed, day)
        if is_missing(path):
            return None
        try:
            return DayContent.from_text(read_metadata(path)[CONTENT])
        except (KeyError, TypeError, ValueError):
            raise FileWriteFailed(f"{path}: was not written by `ingestor export`; move it away") from None

    def write(self, connection: Connection, query: ExportQuery, day: date, content: DayContent) -> None:
        """Write the values of the only feed of the query. Raises FileWriteFailed, DatabaseUnavailable."""
        path = self.path(query.feeds[0], day)
        of_day = replace(query, since=day_start(day), until=day_start(day) + DAY)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileWriteFailed(f"{path.parent}: cannot be made: {error.strerror}") from None
        metadata = {CONTENT: content.to_text()}
        with replace_atomically(path) as file, ParquetWriter(file, FILE_COLUMNS, metadata) as writer:
            for _, page in read_pages(connection, of_day):
                writer.write(page)


def find_days(connection: Connection, query: ExportQuery) -> Days:
    """Return the content of all days that the query touches, whole."""
    since = query.since and to_datetime(day_start_us(to_us(query.since)))
    until = query.until and to_datetime(day_start_us(to_us(query.until) + DAY_US - 1))
    return list_days(connection, replace(query, since=since, until=until))


def export_days(
    connection: Connection, lake: Lake, query: ExportQuery, days: Days, *, all_days: bool
) -> Iterator[tuple[DayOutcome, int]]:
    """Bring the files of these days up to date. Yields what was done with each, and the number of its rows.

    ``connection``: of ``repeatable_read``, so that a file has what its metadata says. ``all_days``: also write days
    that are not final. A day is not written again if retention has deleted some of it.
    """
    deleted = deleted_before(connection)
    for (feed, day), content in days.items():
        is_whole = deleted is None or day_start(day) >= deleted
        present = lake.read_content(feed, day)
        if present == content:
            outcome = DayOutcome.UNCHANGED
        elif present and (present.rows > content.rows or not is_whole):
            outcome = DayOutcome.KEPT
        elif not all_days and not (is_whole and is_final(connection, feed, day)):
            outcome = DayOutcome.NOT_FINAL
        else:
            lake.write(connection, replace(query, feeds=(feed,)), day, content)
            outcome = DayOutcome.WRITTEN
        yield outcome, content.rows


def describe(outcomes: Iterable[tuple[DayOutcome, int]]) -> str:
    """Return one line for what was done with all days."""
    found = list(outcomes)
    counts = Counter(outcome for outcome, _ in found)
    rows = sum(rows for outcome, rows in found if outcome is DayOutcome.WRITTEN)
    parts = [f"{counts[outcome]:,} {outcome}" for outcome in DayOutcome if counts[outcome]]
    return f"days: {', '.join(parts) or 'none'}; {rows:,} rows written"
