"""Command export."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from ingestor.cli.options import TIME_HELP, ConfigOption, load_config, open_database, parse_time, require_order
from ingestor.cli.output import echo, progress_bar
from ingestor.core.files import replace_atomically

if TYPE_CHECKING:
    from ingestor.store.engine import Connection, Engine
    from ingestor.store.read.export import ExportQuery
    from ingestor.store.read.export_formats import ExportWriter


class ExportFormat(StrEnum):
    """File formats of an export; each is a file name's suffix, too."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


FormatOption = Annotated[
    ExportFormat | None,
    typer.Option("--format", help="File format.", show_default="the suffix of the file, else csv"),
]
FileOption = Annotated[
    Path | None,
    typer.Option("-o", "--file", help="Output file. It appears only when complete.", show_default="stdout"),
]


class Partition(StrEnum):
    """What a file of a lake contains."""

    DAY = "day"


FeedOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Feed, as in the view `observations`, such as crowd-sentiment; may be repeated.",
        show_default="with --partition all, else none",
    ),
]
PartitionOption = Annotated[
    Partition | None,
    typer.Option(
        "--partition", help="Write a Parquet file for each feed and UTC day into FOLDER, where it is new or changed."
    ),
]
AllDaysOption = Annotated[
    bool, typer.Option("--all-days", help="With --partition: also days that are not final, such as today.")
]


def export(
    folder: Annotated[Path | None, typer.Argument(help="With --partition: the folder.", show_default=False)] = None,
    feed: FeedOption = None,
    ticker: Annotated[list[str] | None, typer.Option(help="Only this ticker; may be repeated. Default: all.")] = None,
    since: Annotated[str, typer.Option(help=f"First ts. {TIME_HELP}", show_default="the first")] = "",
    until: Annotated[str, typer.Option(help="End of the range; this ts is excluded.", show_default="the last")] = "",
    format_: FormatOption = None,
    file: FileOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
    revisions: Annotated[
        bool, typer.Option("--revisions", help="The values that are not current, in place of those that are.")
    ] = False,
    partition: PartitionOption = None,
    all_days: AllDaysOption = False,
    config: ConfigOption = None,
) -> None:
    """Export the observations of feeds as CSV, JSON or Parquet.

    The columns are those of the view `observations`. Rows are ordered by feed, metric, ticker, user_id and ts.

    \b
    Examples:
      ingestor export --feed crowd-sentiment --since 7d -o week.parquet
      ingestor export --partition day lake
    """
    from ingestor.store.read.export import ExportQuery

    now = datetime.now(UTC)
    query = ExportQuery(
        feeds=tuple(feed or ()),
        tickers=tuple(ticker or ()),
        since=parse_time(since, now, "--since") if since else None,
        until=parse_time(until, now, "--until") if until else None,
        revisions=revisions,
    )
    require_order(query.since, query.until, "--until")
    if partition:
        _check_lake_options(folder, {"--file": file, "--format": format_, "--ticker": ticker, "--force": force})
        _export_lake(query, Path(folder or ""), all_days=all_days, config=config)
        return
    if folder or all_days:
        raise typer.BadParameter("only with --partition day", param_hint="FOLDER" if folder else "--all-days")
    if not feed:
        raise typer.BadParameter("name at least one, such as --feed crowd-sentiment", param_hint="--feed")
    _export_file(query, file, _choose_format(format_, file, force=force), config)


def _export_file(query: ExportQuery, file: Path | None, format_: ExportFormat, config: Path | None) -> None:
    from ingestor.provider.catalog import FEEDS
    from ingestor.store.engine import repeatable_read
    from ingestor.store.read.export import check_names

    with open_database(load_config(config)) as engine:
        check_names(engine, query, FEEDS)
        with (
            repeatable_read(engine) as connection,
            replace_atomically(file) if file else _open_stdout() as target,
            _show_progress(engine, query, target) as advance,
        ):
            rows = _export(connection, query, format_, target, advance)
    if file:
        echo(f"{file}: {rows:,} rows")


def _choose_format(format_: ExportFormat | None, file: Path | None, *, force: bool) -> ExportFormat:
    """Return the format, by the option or the name of the file. Raises typer.BadParameter."""
    if file is None:
        if format_ is ExportFormat.PARQUET and sys.stdout.isatty():
            raise typer.BadParameter(
                "Parquet cannot be shown on a terminal; name a file with -o, or redirect the output"
            )
        return format_ or ExportFormat.CSV
    if file.is_file() and not force:
        raise typer.BadParameter(f"{file} exists; name another file, or replace it with --force", param_hint="-o")
    suffix = file.suffix.lower().removeprefix(".")
    by_name = ExportFormat(suffix) if suffix in list(ExportFormat) else None
    if format_ and by_name and format_ is not by_name:
        raise typer.BadParameter(f"{file} is named like {by_name}, not {format_}", param_hint="--format")
    if not format_ and not by_name and suffix:
        raise typer.BadParameter(
            f"the suffix of {file} is none of {', '.join(ExportFormat)}; add --format", param_hint="-o"
        )
    return format_ or by_name or ExportFormat.CSV


def _show_progress(
    engine: Engine, query: ExportQuery, target: BinaryIO
) -> AbstractContextManager[Callable[[int], None]]:
    from ingestor.store.read.export import count_series

    data_on_terminal = target is sys.stdout.buffer and sys.stdout.isatty()
    return progress_bar("series", partial(count_series, engine, query), visible=not data_on_terminal)


def _export(
    connection: Connection,
    query: ExportQuery,
    format_: ExportFormat,
    target: BinaryIO,
    advance: Callable[[int], None],
) -> int:
    """Write the rows and return their number."""
    from ingestor.store.read.export import read_pages
    from ingestor.store.read.export_formats import CsvWriter, JsonLinesWriter, ParquetWriter

    rows = 0
    writers: dict[ExportFormat, Callable[[BinaryIO], ExportWriter]] = {
        ExportFormat.CSV: CsvWriter,
        ExportFormat.JSONL: JsonLinesWriter,
        ExportFormat.PARQUET: ParquetWriter,
    }
    with writers[format_](target) as writer:
        for series_done, page in read_pages(connection, query):
            writer.write(page)
            rows += len(page)
            advance(series_done)
    return rows


def _check_lake_options(folder: Path | None, others: Mapping[str, object]) -> None:
    """Raise typer.BadParameter for an option that --partition has no use for."""
    if folder is None:
        raise typer.BadParameter("name the folder, too: --partition day FOLDER", param_hint="--partition")
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder; name another one", param_hint="FOLDER")
    for name, value in others.items():
        if value:
            raise typer.BadParameter("cannot be combined with --partition", param_hint=name)


def _export_lake(query: ExportQuery, folder: Path, *, all_days: bool, config: Path | None) -> None:
    from ingestor.commands.lake import Lake, describe, export_days, find_days
    from ingestor.provider.catalog import FEEDS
    from ingestor.store.engine import repeatable_read
    from ingestor.store.read.export import check_names, list_feeds

    lake = Lake(folder, revisions=query.revisions)
    with open_database(load_config(config)) as engine:
        check_names(engine, query, FEEDS)
        query = replace(query, feeds=query.feeds or tuple(list_feeds(engine)))
        with repeatable_read(engine) as connection:
            days = find_days(connection, query)
            with progress_bar("days", lambda: len(days)) as advance:
                outcomes = []
                for outcome in export_days(connection, lake, query, days, all_days=all_days):
                    outcomes.append(outcome)
                    advance(len(outcomes))
    echo(f"{folder}: {describe(outcomes)}")


@contextmanager
def _open_stdout() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()
