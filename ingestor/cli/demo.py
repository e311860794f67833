"""Command demo."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ingestor.cli.output import echo, exit_on_interrupt

if TYPE_CHECKING:
    from rich.table import Table

    from ingestor.commands.demo import DemoView

_BARS = "▁▂▃▄▅▆▇█"
_OTHER_COLUMNS = 34  # characters of a row beside the sparkline


def demo(
    seconds: Annotated[
        float | None, typer.Option(min=0, help="End after this many seconds. Default: at Ctrl-C.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder with the database, and print queries.")] = False,
) -> None:
    """Try the ingestor without an account, with a live view.

    Runs a simulated provider and the daemon, and writes to a SQLite database in a temporary folder, which is removed in
    the end.

    \b
    Example:
      ingestor demo --seconds 30
    """
    import asyncio

    from rich.console import Console
    from rich.live import Live

    from ingestor.commands.demo import QUERIES, demo_folder, run
    from ingestor.monitoring import log_setup

    log_setup.configure("warning", "auto")
    console = Console(stderr=True)
    with _end_at_sigterm(), exit_on_interrupt(), demo_folder(keep=keep) as folder:
        with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
            asyncio.run(run(folder, seconds, lambda view: live.update(_table(view, console.width), refresh=True)))
            last = live.get_renderable()
        if not console.is_terminal:
            console.print(last)
    if not keep:
        echo(f"The demo's folder {folder} was removed. To query its database: ingestor demo --keep")
        return
    echo(f"The demo's folder is {folder}. Two queries to try:")
    for query in QUERIES:
        echo(f'  sqlite3 {folder / "ingestor.db"} "{query}"')


@contextmanager
def _end_at_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, also before the daemon handles it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _table(view: DemoView, width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    page = f", status page {view.page}" if view.page else ""
    rows, frames = view.status.rows, sum(connection.frames for connection in view.status.connections)
    title = f"{rows.new:,} rows from {frames:,} frames, {rows.revised:,} restated"
    title += f", {view.status.spool.entries} spooled{page}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("ticker", "last", "", "rows", "lag"):
        table.add_column(name, justify="left" if name in ("ticker", "") else "right", no_wrap=True)
    for line in view.tickers:
        value, lag = f"{line.values[-1]:+.4f}", f"{line.lag_seconds:.1f} s"
        table.add_row(
            Text(line.ticker), value, _sparkline(line.values[-max(4, width - _OTHER_COLUMNS) :]), f"{line.rows:,}", lag
        )
    return table


def _sparkline(values: Sequence[float]) -> str:
    """Draw one block per value, scaled between the lowest and the highest."""
    low, high = min(values), max(values)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(_BARS[round((value - low) / step)] for value in values)
