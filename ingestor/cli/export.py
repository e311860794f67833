"""Command export."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from ingestor.cli.options import TIME_HELP, ConfigOption, load_config, open_database, parse_time
from ingestor.cli.output import echo, progress_bar
from ingestor.core.files import sync_folder
from ingestor.errors import FileWriteFailed

if TYPE_CHECKING:
    from ingestor.store.engine import Engine
    from ingestor.store.read.export import ExportQuery
    from ingestor.store.read.export_formats import ExportWriter


class ExportFormat(StrEnum):
    """File formats of an export."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


def export(
    feed: Annotated[str, typer.Option(help="Feed, as in the view `observations`, for example crowd-sentiment.")],
    ticker: Annotated[list[str] | None, typer.Option(help="Only this ticker; may be repeated. Default: all.")] = None,
    since: Annotated[str, typer.Option(help=f"First ts. {TIME_HELP}", show_default="the first")] = "",
    until: Annotated[str, typer.Option(help="End of the range; this ts is excluded.", show_default="the last")] = "",
    format_: Annotated[ExportFormat, typer.Option("--format", help="File format.")] = ExportFormat.CSV,
    file: Annotated[
        Path | None,
        typer.Option("-o", "--file", help="Output file. It appears only when complete.", show_default="stdout"),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Export the observations of a feed as CSV, JSON or Parquet.

    The columns are those of the feed's view.

    \b
    Example:
      ingestor export --feed crowd-sentiment --since 7d --format parquet -o week.parquet
    """
    from ingestor.store.read.export import ExportQuery

    now = datetime.now(UTC)
    if file is None and format_ is ExportFormat.PARQUET and sys.stdout.isatty():
        raise typer.BadParameter("Parquet cannot be shown on a terminal; name a file with -o, or redirect the output")
    query = ExportQuery(
        feed=feed,
        tickers=tuple(ticker or ()),
        since=parse_time(since, now, "--since") if since else None,
        until=parse_time(until, now, "--until") if until else None,
    )
    with open_database(load_config(config)) as engine:
        _check_feed(engine, feed)
        with _open_atomically(file) if file else _open_stdout() as target:
            rows = _export(engine, query, format_, target)
    if file:
        echo(f"{file}: {rows:,} rows")


def _check_feed(engine: Engine, feed: str) -> None:
    from ingestor.provider.catalog import FEEDS
    from ingestor.store.read.export import list_feeds

    stored = list_feeds(engine)
    if feed not in stored and feed not in FEEDS:
        names = ", ".join(stored) or "no feed yet"
        raise typer.BadParameter(f'unknown feed "{feed}"; in the database: {names}', param_hint="--feed")


def _export(engine: Engine, query: ExportQuery, format_: ExportFormat, target: BinaryIO) -> int:
    """Write the rows and return their number."""
    from ingestor.store.read.export import count_series, read_pages
    from ingestor.store.read.export_formats import CsvWriter, JsonLinesWriter, ParquetWriter

    rows = 0
    writers: dict[ExportFormat, Callable[[BinaryIO], ExportWriter]] = {
        ExportFormat.CSV: CsvWriter,
        ExportFormat.JSONL: JsonLinesWriter,
        ExportFormat.PARQUET: ParquetWriter,
    }
    writer = writers[format_](target)
    data_on_terminal = target is sys.stdout.buffer and sys.stdout.isatty()
    with (
        progress_bar("series", partial(count_series, engine, query), visible=not data_on_terminal) as advance,
        closing(read_pages(engine, query)) as result,
    ):
        for series_done, page in result:
            writer.write(page)
            rows += len(page)
            advance(series_done)
    writer.close()
    return rows


@contextmanager
def _open_stdout() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextmanager
def _open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name once it is complete and synced. On failure, nothing is left."""
    path = path.resolve()
    try:
        if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
            with path.open("wb") as file:
                yield file
            return
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise FileWriteFailed(f"{path}: cannot be written: {error.strerror or error}") from None
