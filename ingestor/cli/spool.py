"""Command spool salvage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config
from ingestor.cli.output import echo_stderr, print_result, printable, progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestor.commands.salvage import SalvageResult
    from ingestor.config import Config
    from ingestor.spool.salvage import SeqRange

MAX_RANGES = 20  # that are listed; JSON has all

spool_app = typer.Typer(name="spool", help="Look after the queue between socket and database.")


@spool_app.callback()
def _group() -> None:
    """Keep `salvage` a subcommand: typer would merge the only command of a group into it."""


@spool_app.command()
def salvage(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of the spool. Default: the newest that was set aside.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write what can be read of a damaged spool.

    `run` sets a spool aside if it cannot be read, and begins a new one. This writes what is left of it: each entry
    once, also if it is interrupted and repeated. The gap remains in coverage, since what cannot be read is missing.
    The folder is kept. With SQLite, stop the daemon first.

    \b
    Example:
      ingestor spool salvage
    """
    from ingestor.commands import salvage as command

    loaded = load_config(config)
    chosen = folder or _newest(loaded)
    if chosen.resolve() == loaded.spool.path.resolve():
        raise typer.BadParameter("this is the spool in use; `ingestor run` writes what is in it", param_hint="FOLDER")
    with command.open_salvage(loaded, chosen) as opened, progress_bar("entries", opened.count) as advance:
        result = opened.run(advance)
    print_result(output, _to_dict(result), lambda: "\n".join(map(printable, _lines(result))))


def _newest(config: Config) -> Path:
    from ingestor.commands.salvage import find_set_aside

    found = find_set_aside(config.spool.path)
    if not found:
        raise typer.BadParameter(f"no spool was set aside in {config.spool.path}; name its folder", param_hint="FOLDER")
    if len(found) > 1:
        echo_stderr(f"salvaging {found[0]}, the newest of {len(found)}; for another, name its folder")
    return found[0]


def _to_dict(result: SalvageResult) -> dict[str, Any]:
    origin = result.origin and result.origin._asdict()
    return asdict(result) | {"origin": origin, "rows": _counts(result)}


def _counts(result: SalvageResult) -> dict[str, int]:
    rows = result.rows
    dead = rows.dead_rows + rows.dead_frames
    return {name: getattr(rows, name) for name in ("new", "revised", "duplicate", "expired")} | {"dead": dead}


def _lines(result: SalvageResult) -> list[str]:
    origin = result.origin
    if origin is None:
        lines = [f"{result.folder}: the database does not know this spool"]
    else:
        written = f"had written its entries up to {origin.position}"
        lines = [f"{result.folder}: the spool of instance {origin.instance_id} ({origin.name}), which {written}"]
    for state, ranges in (("readable", result.readable), ("unreadable", result.unreadable)):
        lines.append(f"{state} after that: {_describe(ranges)}")
    if not result.end_known:
        lines.append("the spool's header cannot be read, so how many entries came after these is unknown")
    lines.append(f"written before: {result.written_before:,}; written now: {result.written:,}")
    if result.written:
        lines.append("rows: " + ", ".join(f"{count:,} {name}" for name, count in _counts(result).items() if count))
    if result.instance_id is not None:
        lines.append(f"they belong to instance {result.instance_id} (salvage) in the database")
    return [
        *lines,
        f"the folder was kept; everything readable is in the database, so it can be deleted: {result.folder}",
    ]


def _describe(ranges: Sequence[SeqRange]) -> str:
    total = sum(last - first + 1 for first, last in ranges)
    if not total:
        return "no entries"
    shown = ", ".join(f"{first} to {last}" for first, last in ranges[:MAX_RANGES])
    return f"{total:,} entries ({shown}{', …' if len(ranges) > MAX_RANGES else ''})"
