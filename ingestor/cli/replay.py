"""Command replay."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ingestor.cli.options import (
    TIME_HELP,
    ConfigOption,
    Output,
    OutputOption,
    load_config,
    open_database,
    parse_target_url,
    parse_time,
    require_order,
)
from ingestor.cli.output import print_result, progress_bar

if TYPE_CHECKING:
    from ingestor.commands.replay import ReplayResult
    from ingestor.store.engine import Connection, Engine
    from ingestor.store.read.fingerprint import Fingerprint

MIN_TIME = datetime.min.replace(tzinfo=UTC)
MAX_TIME = datetime.max.replace(tzinfo=UTC)


def replay(
    into: Annotated[str, typer.Option(help="URL of another database. It may be empty or a SQLite file to create.")],
    since: Annotated[
        str, typer.Option("--since", "--from", help=f"Received at or after. {TIME_HELP}", show_default="all")
    ] = "",
    until: Annotated[str, typer.Option("--until", "--to", help="Received before.", show_default="now")] = "",
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Rebuild the samples in another database, and compare.

    Decodes the stored payloads and dead letters again, writes samples and revisions to the other database, and
    compares the contents of both by a hash. May be interrupted and repeated. The daemon may keep running.

    \b
    Example:
      ingestor replay --into sqlite:///copy.db --since 24h
    """
    from ingestor.commands.replay import open_target
    from ingestor.store.engine import repeatable_read
    from ingestor.store.read.fingerprint import compute_fingerprint
    from ingestor.store.read.replay_source import oldest_payload_at

    now = datetime.now(UTC)
    start = parse_time(since, now, "--since") if since else MIN_TIME
    end = parse_time(until, now, "--until") if until else MAX_TIME
    require_order(start, end, "--until")
    with (
        open_database(load_config(config)) as engine,
        open_target(engine, parse_target_url(into)) as target,
        repeatable_read(engine) as source,  # excludes what the daemon writes in the meantime
    ):
        result = _replay(source, target, start, end)
        start = max(start, oldest_payload_at(source) or now)  # older payloads have been pruned
        with repeatable_read(target) as connection:
            read, written = compute_fingerprint(source, start, end), compute_fingerprint(connection, start, end)
    data = {
        "from": start,
        "to": min(end, now),
        **asdict(result),
        "same": read == written,
        "read": asdict(read),
        "written": asdict(written),
    }
    print_result(output, data, lambda: _format_result(result, read, written))


def _replay(source: Connection, target: Engine, start: datetime, end: datetime) -> ReplayResult:
    from ingestor.commands.replay import Replayer
    from ingestor.store.read.replay_source import entry_ranges

    try:
        replayer = Replayer(source, target, entry_ranges(source, start, end))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    with progress_bar("entries", replayer.count) as advance:
        return replayer.run(advance)


def _format_result(result: ReplayResult, source: Fingerprint, target: Fingerprint) -> str:
    rows = f"{result.new:,} new, {result.revised:,} revised, {result.duplicate:,} duplicate, {result.dead:,} dead"
    counts = f"{result.entries:,} entries with {result.rows:,} rows: {rows}"
    if source == target:
        return f"{counts}\nboth databases have the same contents: {_format_fingerprint(target)}"
    return (
        f"{counts}\nsource: {_format_fingerprint(source)}\ntarget: {_format_fingerprint(target)}\n"
        "the contents differ: one of the databases also received data from outside this selection"
    )


def _format_fingerprint(contents: Fingerprint) -> str:
    return f"{contents.values:,} values and {contents.others:,} revisions, sha256 {contents.sha256}"
