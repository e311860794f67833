"""Commands that take data elsewhere: export, replay."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from ingestor.cli.output import MOMENT, ConfigOption, Output, OutputOption, load_config, moment, print_as, say
from ingestor.core.files import sync_folder
from ingestor.core.redaction import redactor
from ingestor.errors import FileWriteFailed

if TYPE_CHECKING:
    from ingestor.commands.replay import ReplayResult
    from ingestor.store.engine import Engine
    from ingestor.store.read.export import ExportQuery
    from ingestor.store.read.export_formats import ExportWriter
    from ingestor.store.read.fingerprint import Fingerprint


class ExportFormat(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


ALWAYS = datetime.min.replace(tzinfo=UTC)
FOREVER = datetime.max.replace(tzinfo=UTC)


def export(
    feed: Annotated[str, typer.Option(help="As the view `observations` names it: crowd-sentiment.")],
    ticker: Annotated[list[str] | None, typer.Option(help="Of these only; may be repeated. Default: all.")] = None,
    since: Annotated[str, typer.Option(help=f"From this ts on. {MOMENT}", show_default="the first")] = "",
    until: Annotated[str, typer.Option(help="Up to this ts, and without it.", show_default="the last")] = "",
    format_: Annotated[ExportFormat, typer.Option("--format", help="What to write.")] = ExportFormat.CSV,
    file: Annotated[
        Path | None, typer.Option("-o", "--file", help="Where to: whole or not at all.", show_default="stdout")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Write the observations of a feed to a file or to stdout, with the columns of the view of that name."""
    from ingestor.store.open_database import opened
    from ingestor.store.read.export import ExportQuery

    now = datetime.now(UTC)
    if file is None and format_ is ExportFormat.PARQUET and sys.stdout.isatty():
        raise typer.BadParameter("Parquet is nothing for a terminal: name a file with -o, or redirect the output")
    wanted = ExportQuery(
        feed=feed,
        tickers=tuple(ticker or ()),
        since=moment(since, now, "--since") if since else None,
        until=moment(until, now, "--until") if until else None,
    )
    with opened(load_config(config).database.url.get_secret_value()) as engine:
        _refuse_unknown(engine, feed)
        if file is None:
            with _to_stdout() as target:
                _export(engine, wanted, format_, target)
            return
        with _whole_file(file) as target:
            rows = _export(engine, wanted, format_, target)
    say(f"{file}: {rows:,} rows")


def replay(
    into: Annotated[str, typer.Option(help="Another database; it may be empty, or a SQLite file that is not there.")],
    since: Annotated[str, typer.Option("--from", help=f"Received from then on. {MOMENT}", show_default="all")] = "",
    until: Annotated[str, typer.Option("--to", help="Received before then.", show_default="now")] = "",
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make the samples and their revisions anew, in another database, of the payloads and dead letters that are kept.

    Then both are compared. May be repeated and interrupted. The daemon may go on.
    """
    from ingestor.commands import replay as replaying
    from ingestor.store.engine import snapshot
    from ingestor.store.open_database import opened
    from ingestor.store.read import replay_source
    from ingestor.store.read.fingerprint import compute_fingerprint

    now = datetime.now(UTC)
    url, target_url = load_config(config).database.url.get_secret_value(), _database_url(into)
    with (
        opened(url) as engine,
        replaying.open_target(engine, target_url) as target,
        snapshot(engine) as source,  # what the daemon goes on to write is neither told nor compared
    ):
        start = moment(since, now, "--from") if since else ALWAYS
        end = moment(until, now, "--to") if until else FOREVER
        try:
            work = replaying.Replayer(source, target, replay_source.entry_ranges(source, start, end))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--from") from None
        with progress("entries", work.count) as advance:
            done = work.run(advance)
        start = max(start, replay_source.oldest_payload_at(source) or now)  # of what was before, the payloads are gone
        kept = compute_fingerprint(source, start, end)
        with snapshot(target) as written:
            made = compute_fingerprint(written, start, end)
    data = {
        "from": start,
        "to": min(end, now),
        **asdict(done),
        "same": kept == made,
        "read": asdict(kept),
        "written": asdict(made),
    }
    print_as(output, data, lambda: _replayed(done, kept, made))


def _database_url(text: str) -> str:
    from ingestor.config.urls import database_url, passwords

    try:
        url = database_url(text, Path.cwd())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--into") from None
    for password in passwords(url):
        redactor.add(password)
    return url


def _replayed(done: ReplayResult, kept: Fingerprint, made: Fingerprint) -> str:
    rows = f"{done.new:,} new, {done.revised:,} revised, {done.duplicate:,} duplicate, {done.dead:,} dead"
    told = f"{done.entries:,} entries with {done.rows:,} rows: {rows}"
    if kept == made:
        return f"{told}\nthe same in both: {_described(made)}"
    return (
        f"{told}\nwhat was read:    {_described(kept)}\nwhat was written: {_described(made)}\n"
        "they differ: one of them was also told what the other was not, before, after or beside this time"
    )


def _described(one: Fingerprint) -> str:
    return f"{one.values:,} values and {one.others:,} revisions, sha256 {one.sha256}"


def _refuse_unknown(engine: Engine, feed: str) -> None:
    from ingestor.provider.catalog import FEEDS
    from ingestor.store.read.export import list_feeds

    known = list_feeds(engine)
    if feed not in known and feed not in FEEDS:
        there = ", ".join(known) or "no feed yet"
        raise typer.BadParameter(f'there is no feed "{feed}"; in the database: {there}', param_hint="--feed")


def _export(engine: Engine, wanted: ExportQuery, format_: ExportFormat, target: BinaryIO) -> int:
    """How many rows were written."""
    from ingestor.store.read.export import count_series, read_pages

    rows = 0
    made = _made(format_, target)
    count = partial(count_series, engine, wanted)
    data_on_screen = target is sys.stdout.buffer and sys.stdout.isatty()
    with progress("series", count, shown=not data_on_screen) as advance, closing(read_pages(engine, wanted)) as found:
        for done, page in found:
            made.write(page)
            rows += len(page)
            advance(done)
    made.close()
    return rows


def _made(format_: ExportFormat, target: BinaryIO) -> ExportWriter:
    from ingestor.store.read.export_formats import CsvWriter, JsonLinesWriter, ParquetWriter

    made: dict[ExportFormat, Callable[[BinaryIO], ExportWriter]] = {
        ExportFormat.CSV: CsvWriter,
        ExportFormat.JSONL: JsonLinesWriter,
        ExportFormat.PARQUET: ParquetWriter,
    }
    return made[format_](target)


@contextmanager
def progress(what: str, count: Callable[[], int], *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal. It takes how many of ``count()`` are done."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=count())
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _to_stdout() -> Iterator[BinaryIO]:
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Whoever read it has seen enough. The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
    except OSError as error:
        raise FileWriteFailed(f"stdout cannot be written: {error.strerror or error}") from None


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is there under its name once it is complete and on the disk; if that fails nothing is left of it."""
    path = path.resolve()
    try:
        if path.exists() and not path.is_file():  # a pipe, a terminal: there is nothing to be put in its place
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
