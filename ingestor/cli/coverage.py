"""Command coverage."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import groupby
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.options import (
    TIME_HELP,
    ConfigOption,
    Output,
    OutputOption,
    load_config,
    open_database,
    parse_time,
    require_order,
)
from ingestor.cli.output import format_repair, print_result, printable, repair_to_dict
from ingestor.core.times import DAY_US, split_into_cells

if TYPE_CHECKING:
    from rich.table import Table

    from ingestor.store.maintenance.repairs import Repair
    from ingestor.store.read.coverage_report import InstanceGap, SubscriptionCoverage, TimeSpan

STRIP_DURATION = timedelta(days=1)
STRIP_CELLS = 48
FIGURES_WIDTH = 26  # of the three columns of figures
FILE_WIDTH = 200  # of the output that is not for a terminal
STRIP_WIDTH, REASON_WIDTH = 120, 60  # the narrowest terminal that has room for the strips, for the reasons
MAX_ROWS = 200  # subscriptions in the table; --output json has all
MAX_INSTANCES = 20  # below the table; --output json has all
MAX_REPAIRS = 20  # below the table; --output json has all
# The shape of a cell says how much of the wanted time was covered; its color repeats it for quick reading.
FULL, PARTIAL, NONE, UNWANTED = "█", "▄", "x", "·"
_STYLES = {FULL: "green", PARTIAL: "yellow", NONE: "red", UNWANTED: "dim"}


def coverage(
    ticker: Annotated[str, typer.Option(help="Only subscriptions that deliver this ticker.")] = "",
    since: Annotated[str, typer.Option(help=f"Start of the report. {TIME_HELP}")] = "24h",
    until: Annotated[str, typer.Option(help="End of the report.", show_default="now")] = "",
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the covered share and the gaps of each subscription.

    Subscriptions with the most missing time come first. The strip on the right is the last 24 hours, half an hour per
    cell. A gap is time in which no instance received the subscription. Below: what each instance by itself did not
    receive, and repairs that are in progress or have failed.

    \b
    Example:
      ingestor coverage --ticker AAPL --since 30d
    """
    from ingestor.store.maintenance.repairs import unfinished_repairs
    from ingestor.store.read.coverage_report import load_coverage, load_instance_gaps

    loaded = load_config(config)
    now = datetime.now(UTC)
    start = parse_time(since, now, "--since")
    end = min(parse_time(until, now, "--until"), now) if until else now
    require_order(start, end, "--until" if until else "--since")
    strip_start = now - STRIP_DURATION
    with open_database(loaded) as engine:
        subscriptions = load_coverage(engine, start, end, ticker)
        last_day = (
            subscriptions if (start, end) == (strip_start, now) else load_coverage(engine, strip_start, now, ticker)
        )
        instance_gaps = load_instance_gaps(engine, start, end, subscriptions)
        repairs = unfinished_repairs(engine, ticker)
    strips = {subscription.subscription_id: strip(subscription, now) for subscription in last_day}
    data = {
        "from": start,
        "to": end,
        "subscriptions": [_to_dict(subscription, strips) for subscription in subscriptions],
        "instance_gaps": [_instance_gap_to_dict(gap) for gap in instance_gaps],
        "repairs": [repair_to_dict(repair) for repair in repairs],
    }
    footer = [*_format_instances(instance_gaps), *_format_repairs(repairs)]
    print_result(output, data, lambda: _render(_table(subscriptions, strips, start, _width()), footer))


def strip(subscription: SubscriptionCoverage, end: datetime) -> str:
    """Draw the day before ``end``, half an hour per cell, oldest first."""
    wanted = _cell_totals([subscription.wanted] if subscription.wanted else [], end)
    return "".join(map(_cell, wanted, _cell_totals(subscription.covered, end)))


def _cell_totals(spans: Sequence[TimeSpan], end: datetime) -> list[int]:
    """Return how many µs of each cell the spans cover."""
    totals = [0] * STRIP_CELLS
    start = end - STRIP_DURATION
    for begin, until in spans:
        for cell, us in split_into_cells(begin, until, start=start, cell_us=DAY_US // STRIP_CELLS, cells=STRIP_CELLS):
            totals[cell] += us
    return totals


def _cell(wanted_us: int, covered_us: int) -> str:
    if not wanted_us:
        return UNWANTED
    if not covered_us:
        return NONE
    return FULL if covered_us >= wanted_us else PARTIAL


def _to_dict(subscription: SubscriptionCoverage, strips: Mapping[int, str]) -> dict[str, Any]:
    names = ("subscription_id", "feed", "path", "params", "ticker", "wanted_seconds", "covered_seconds")
    return {name: getattr(subscription, name) for name in names} | {
        "percent": _percent(subscription),
        "gaps": [
            {"from": gap.from_at, "to": gap.to_at, "states": gap.states, "reason": gap.reason}
            for gap in subscription.gaps
        ],
        "last_day": strips[subscription.subscription_id],
    }


def _instance_gap_to_dict(gap: InstanceGap) -> dict[str, Any]:
    names = ("instance_id", "instance_name", "subscription_id", "states", "reason", "covered_seconds")
    return {"from": gap.from_at, "to": gap.to_at} | {name: getattr(gap, name) for name in names}


def _percent(subscription: SubscriptionCoverage) -> float | None:
    wanted = subscription.wanted_seconds
    return 100 * subscription.covered_seconds / wanted if wanted else None


def _width() -> int:
    """Return the width of the terminal, or one with room for everything."""
    return get_terminal_size().columns if sys.stdout.isatty() else FILE_WIDTH


def _table(
    subscriptions: Sequence[SubscriptionCoverage], strips: Mapping[int, str], start: datetime, width: int
) -> Table:
    from rich.table import Table
    from rich.text import Text

    worst = sorted(subscriptions, key=lambda subscription: subscription.covered_seconds - subscription.wanted_seconds)
    total = len(subscriptions)
    truncated = f", the {MAX_ROWS} worst of {total:,} (--output json has all)" if total > MAX_ROWS else ""
    legend = f"{FULL} covered  {PARTIAL} partly covered  {NONE} not covered  {UNWANTED} not subscribed"
    title = f"since {start:%Y-%m-%d %H:%M} UTC{truncated}"
    with_strip, with_reason = width >= STRIP_WIDTH, width >= REASON_WIDTH
    if with_strip:
        title += f"; right: the last 24 hours: {legend}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(
        "subscription",
        overflow="fold" if with_strip else "ellipsis",
        no_wrap=not with_strip,
        max_width=None if with_reason else max(8, width - FIGURES_WIDTH),
    )
    for name in ("covered", "gaps", "missing"):
        table.add_column(name, justify="right", no_wrap=True)
    if with_reason:
        table.add_column("last reason", overflow="fold")
    if with_strip:
        table.add_column("last 24 hours", no_wrap=True, min_width=STRIP_CELLS)
    for subscription in worst[:MAX_ROWS]:
        runs = ((cell, "".join(group)) for cell, group in groupby(strips[subscription.subscription_id]))
        cells = Text.assemble(*((text, _STYLES[cell]) for cell, text in runs))
        name, covered, gaps, missing, reason = _columns(subscription)
        if not with_strip:
            name = f"{subscription.ticker or subscription.params} {subscription.feed}"
        texts = [name, covered, gaps, missing, *([reason] if with_reason else [])]
        table.add_row(*(Text(printable(text)) for text in texts), *([cells] if with_strip else []))
    return table


def _columns(subscription: SubscriptionCoverage) -> tuple[str, ...]:
    from ingestor.config.units import format_duration
    from ingestor.store.read.coverage_report import total_seconds

    percent = _percent(subscription)
    gaps = subscription.gaps
    name = f"{subscription.path} {subscription.ticker or subscription.params}"
    missing = format_duration(round(total_seconds(gaps)))
    reason = (gaps[-1].reason or gaps[-1].states) if gaps else ""
    return name, "" if percent is None else f"{_round_down(percent)} %", str(len(gaps)), missing, reason[:60]


def _round_down(percent: float) -> str:
    """Format with two digits, rounded down: "100.00" means that nothing is missing."""
    return f"{int(percent * 100) / 100:.2f}"


def _format_instances(gaps: Sequence[InstanceGap]) -> list[str]:
    """Say of each instance with gaps of its own how much it did not receive, one per line."""
    from ingestor.config.units import format_duration
    from ingestor.store.read.coverage_report import total_seconds

    by_instance: dict[tuple[str, int], list[InstanceGap]] = {}
    for gap in gaps:
        by_instance.setdefault((gap.instance_name, gap.instance_id), []).append(gap)
    lines = []
    for (name, instance_id), own in sorted(by_instance.items()):
        missed, covered = total_seconds(own), sum(gap.covered_seconds for gap in own)
        lines.append(
            f"{printable(name)} (instance {instance_id}) by itself: {len(own):,} gap{'s' * (len(own) > 1)},"
            f" {format_duration(round(missed))} not received,"
            f" of which {format_duration(round(covered))} covered by another instance or a repair;"
            f" last reason: {printable(own[-1].reason or own[-1].states)}"
        )
    omitted = len(lines) - MAX_INSTANCES
    return [
        *lines[:MAX_INSTANCES],
        *([f"and {omitted:,} more instances; --output json has all"] if omitted > 0 else []),
    ]


def _format_repairs(repairs: Sequence[Repair]) -> list[str]:
    """Describe the newest repairs that are in progress or have failed, one per line."""
    omitted = len(repairs) - MAX_REPAIRS
    summary = [f"and {omitted:,} more repairs in progress or failed; --output json has all"] if omitted > 0 else []
    return [*map(format_repair, repairs[:MAX_REPAIRS]), *summary]


def _render(table: Table, footer: Sequence[str]) -> str:
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    file = StringIO()
    Console(file=file, force_terminal=is_terminal, width=_width()).print(table)
    return "\n".join([file.getvalue().rstrip("\n"), *footer])
