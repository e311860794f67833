"""Commands that go on: run, demo, simulate."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ingestor.cli.output import ConfigOption, load_config, say

if TYPE_CHECKING:
    from rich.table import Table

    from ingestor.commands.demo import DemoView

# How long one thread computes while another waits for its turn. The interpreter's 5 ms would be lost at nearly every
# answer of the database, and as often the event loop's.
THREAD_SECONDS = 0.001
_BARS = "▁▂▃▄▅▆▇█"


def run(config: ConfigOption = None) -> None:
    """Receive and write until SIGTERM: the daemon."""
    import asyncio
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # a reload; until that is possible, it waits

    from ingestor.config import require_api_key
    from ingestor.daemon.service import Service
    from ingestor.monitoring import log_setup

    loaded = load_config(config)
    api_key = require_api_key(loaded)
    log_setup.configure(loaded.log.level, loaded.log.format)
    log_setup.log_uncaught_errors()
    service = Service(loaded, api_key)
    _look_for_cycles_seldom()
    sys.setswitchinterval(THREAD_SECONDS)
    asyncio.run(service.run())


def _look_for_cycles_seldom() -> None:
    """A batch is thousands of small objects without a cycle among them. With the interpreter's own thresholds the
    collector goes through them, and all that was imported, again and again: a quarter of the writer's time.
    """
    gc.collect()
    gc.freeze()  # what was imported stays
    gc.set_threshold(20_000, 20, 50)


def simulate(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    api_key: Annotated[str, typer.Option(help="The key to accept; default: a random one.")] = "",
    seed: Annotated[int, typer.Option(help="Of the random walk that the values are.")] = 0,
    cadence: Annotated[int, typer.Option(help="Seconds between two values of a ticker; 0: as documented.")] = 0,
) -> None:
    """Serve a stand-in for the provider on loopback; print its URL and key."""
    import asyncio

    asyncio.run(_simulate(port, api_key, seed, cadence))


async def _simulate(port: int, api_key: str, seed: int, cadence: int) -> None:
    from ingestor.simulator import Simulator

    cadence_seconds = cadence or None
    window = 60 * (cadence or 60)
    simulator = Simulator(
        seed=seed, port=port, api_key=api_key or None, cadence_seconds=cadence_seconds, window_seconds=window
    )
    try:
        await simulator.start()
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # asyncio wraps the system's words in its own
        raise typer.BadParameter(f"{port} cannot be had ({reason}); name another", param_hint="--port") from None
    try:
        say(f"provider.url: {simulator.url}\nINGESTOR_PROVIDER__API_KEY={simulator.api_key}")
        await _until_signalled()
    finally:
        await simulator.stop()


async def _until_signalled() -> None:
    import asyncio
    import signal

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()


def demo(
    seconds: Annotated[float | None, typer.Option(help="End after so long; default: at Ctrl-C.")] = None,
) -> None:
    """Try it without an account: simulator, daemon and SQLite in a temporary folder, with a live view."""
    import asyncio

    from rich.console import Console
    from rich.live import Live

    from ingestor.commands import demo as demonstration
    from ingestor.monitoring import log_setup

    log_setup.configure("warning", "auto")
    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        path = asyncio.run(demonstration.run(seconds, lambda view: live.update(_table(view), refresh=True)))
        last = live.get_renderable()
    if not console.is_terminal:
        console.print(last)
    say(f"The database is {path}. Two queries to try:")
    for query in demonstration.QUERIES:
        say(f'  sqlite3 {path} "{query}"')


def _table(view: DemoView) -> Table:
    from rich.table import Table
    from rich.text import Text

    page = f", status on {view.page}" if view.page else ""
    title = f"{view.rows:,} rows from {view.frames:,} frames, {view.revised:,} restated, {view.spooled} waiting{page}"
    table = Table(title=title, title_justify="left")
    for name in ("ticker", "last", "", "rows", "lag"):
        table.add_column(name, justify="left" if name in ("ticker", "") else "right")
    for line in view.lines:
        table.add_row(
            Text(line.ticker),
            f"{line.values[-1]:+.4f}",
            sparkline(line.values),
            f"{line.rows:,}",
            f"{line.lag_seconds:.1f} s",
        )
    return table


def sparkline(values: Sequence[float]) -> str:
    """One block per value, from the lowest to the highest of them."""
    low, high = min(values), max(values)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(_BARS[round((value - low) / step)] for value in values)
