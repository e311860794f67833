"""Commands for those who trust the data: coverage, backfill."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.output import MOMENT, ConfigOption, Output, OutputOption, load_config, moment, print_as, safe
from ingestor.core.redaction import redactor

if TYPE_CHECKING:
    from rich.table import Table

    from ingestor.config import Config
    from ingestor.store.engine import Engine
    from ingestor.store.maintenance.repairs import BackfillRequest, Repair
    from ingestor.store.read.coverage_report import SubscriptionCoverage, TimeSpan

STRIP_TIME = timedelta(days=1)
CELLS = 48
SHOWN = 200  # subscriptions of a table; --output json has all
NOTES = 20  # repairs below it; likewise
# A cell is its shape; the colour says it again. What was wanted: all of it covered, some, nothing; or nothing wanted.
FULL, SOME, NONE, UNWANTED = "█", "▄", "x", "·"
_STYLES = {FULL: "green", SOME: "yellow", NONE: "red", UNWANTED: "dim"}

LOOK_SECONDS = 0.5
ANSWER_SECONDS = (20, 75)  # as printed in the provider's documentation
FAILED = 69
INTERRUPTED = 130


def coverage(
    ticker: Annotated[str, typer.Option(help="Only what brings this ticker.")] = "",
    since: Annotated[str, typer.Option(help=MOMENT)] = "24h",
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Was it listened to? Percent and gaps of each subscription, and its last day as a strip."""
    from ingestor.store.maintenance.repairs import unfinished_repairs
    from ingestor.store.open_database import opened

    loaded = load_config(config)
    now = datetime.now(UTC)
    start = moment(since, now, "--since")
    with opened(loaded.database.url.get_secret_value()) as engine:
        found, last_day = _listening(engine, ticker, start, now)
        repairs = unfinished_repairs(engine, ticker)
    strips = {one.subscription_id: strip(one, now) for one in last_day}
    data = {
        "from": start.isoformat(),
        "to": now.isoformat(),
        "subscriptions": [_covered(one, strips[one.subscription_id]) for one in found],
        "repairs": [_summary(one) for one in repairs],
    }
    print_as(output, data, lambda: _rendered(_table(found, strips, start), _unfinished(repairs)))


def _unfinished(repairs: Sequence[Repair]) -> list[str]:
    """The newest repairs that are under way or have failed, a line each."""
    rest = len(repairs) - NOTES
    more = [f"and {rest:,} more repairs are under way or have failed; --output json has them"] if rest > 0 else []
    return [_told(one) for one in repairs[:NOTES]] + more


def _listening(
    engine: Engine, ticker: str, start: datetime, now: datetime
) -> tuple[list[SubscriptionCoverage], list[SubscriptionCoverage]]:
    """Since ``start``, and of the last day. Nothing can be said of the time after the last heartbeat."""
    from ingestor.store.read.coverage_report import load_coverage

    found = load_coverage(engine, start, now, ticker)
    return found, found if now - start == STRIP_TIME else load_coverage(engine, now - STRIP_TIME, now, ticker)


def strip(one: SubscriptionCoverage, end: datetime) -> str:
    """The day up to ``end`` in cells of half an hour, the oldest first."""
    from ingestor.store.read.coverage_report import TimeSpan

    width = STRIP_TIME / CELLS
    edges = [end - STRIP_TIME + width * number for number in range(CELLS + 1)]
    wanted = [one.wanted] if one.wanted else []
    return "".join(
        _cell(_overlap_seconds(wanted, cell), _overlap_seconds(one.covered, cell))
        for cell in (TimeSpan(start, stop) for start, stop in pairwise(edges))
    )


def _cell(wanted_seconds: float, covered_seconds: float) -> str:
    if not wanted_seconds:
        return UNWANTED
    if not covered_seconds:
        return NONE
    return FULL if covered_seconds >= wanted_seconds else SOME


def _overlap_seconds(spans: Sequence[TimeSpan], cell: TimeSpan) -> float:
    ends = ((max(one.from_at, cell.from_at), min(one.to_at, cell.to_at)) for one in spans)
    return sum(max((stop - start).total_seconds(), 0.0) for start, stop in ends)


def _covered(one: SubscriptionCoverage, cells: str) -> dict[str, Any]:
    return {
        "subscription_id": one.subscription_id,
        "feed": one.feed,
        "path": one.path,
        "params": one.params,
        "ticker": one.ticker,
        "wanted_seconds": one.wanted_seconds,
        "covered_seconds": one.covered_seconds,
        "percent": _percent(one),
        "gaps": [
            {"from": gap.from_at.isoformat(), "to": gap.to_at.isoformat(), "states": gap.states, "reason": gap.reason}
            for gap in one.gaps
        ],
        "last_day": cells,
    }


def _percent(one: SubscriptionCoverage) -> float | None:
    return 100 * one.covered_seconds / one.wanted_seconds if one.wanted_seconds else None


def _table(found: Sequence[SubscriptionCoverage], strips: Mapping[int, str], start: datetime) -> Table:
    from rich.table import Table
    from rich.text import Text

    worst = sorted(found, key=lambda one: one.covered_seconds - one.wanted_seconds)
    rest = f", the {SHOWN} worst of {len(found):,} (--output json has all)" if len(found) > SHOWN else ""
    legend = f"{FULL} covered  {SOME} in part  {NONE} not covered  {UNWANTED} not asked for"
    title = f"since {start:%Y-%m-%d %H:%M} UTC{rest}; at the right the last 24 hours: {legend}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("subscription", overflow="fold")
    for name in ("covered", "gaps", "missing"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("last reason", overflow="fold")
    table.add_column("last 24 hours", no_wrap=True, min_width=CELLS)
    for one in worst[:SHOWN]:
        runs = ((cell, "".join(same)) for cell, same in groupby(strips[one.subscription_id]))
        cells = Text.assemble(*((text, _STYLES[cell]) for cell, text in runs))
        table.add_row(*(Text(safe(text)) for text in _columns(one)), cells)
    return table


def _columns(one: SubscriptionCoverage) -> tuple[str, ...]:
    from ingestor.config.units import format_duration
    from ingestor.store.read.coverage_report import total_seconds

    percent = _percent(one)
    missing = format_duration(round(total_seconds(one.gaps)))
    reason = (one.gaps[-1].reason or one.gaps[-1].states) if one.gaps else ""
    name = f"{one.path} {one.ticker or one.params}"
    return name, "" if percent is None else f"{_floor(percent)} %", str(len(one.gaps)), missing, reason[:60]


def _floor(percent: float) -> str:
    """Two digits, and a hundred only where nothing is missing."""
    return f"{int(percent * 100) / 100:.2f}"


def _rendered(table: Table, notes: Sequence[str]) -> str:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(file=StringIO(), force_terminal=terminal, width=None if terminal else 200)
    console.print(table)
    return "\n".join([console.file.getvalue().rstrip("\n"), *notes])  # type: ignore[attr-defined]  # it is a StringIO


def backfill(
    ticker: Annotated[str, typer.Option(help="Whose past.")],
    since: Annotated[str, typer.Option("--from", help=MOMENT)],
    until: Annotated[str, typer.Option("--to", help="Up to then, not included; at the latest today, 00:00 UTC.")],
    path: Annotated[str | None, typer.Option(help="Of this endpoint; default: of all that are subscribed to.")] = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Ask the provider for past days and write them: by the daemon if one runs. May be repeated and interrupted."""
    loaded = load_config(config)
    now = datetime.now(UTC)
    wishes = _wishes(loaded, ticker, path, moment(since, now, "--from"), moment(until, now, "--to"))
    _estimate(wishes)
    try:
        repairs = _backfill(loaded, wishes)
    except KeyboardInterrupt:
        _note("interrupted; a daemon goes on with it, and so does the same command")
        raise typer.Exit(INTERRUPTED) from None
    print_as(output, [_summary(one) for one in repairs], lambda: "\n".join(_told(one) for one in repairs))
    if any(one.state == "failed" for one in repairs):
        raise typer.Exit(FAILED)


def _wishes(config: Config, ticker: str, path: str | None, start: datetime, end: datetime) -> list[BackfillRequest]:
    from ingestor.repair import backfill_requests

    try:
        return backfill_requests.build_requests(config.subscriptions, ticker, path, start, end, datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _estimate(wishes: Sequence[BackfillRequest]) -> None:
    from ingestor.repair import backfill_requests

    count = sum(map(backfill_requests.count_queries, wishes))
    shortest, longest = (timedelta(seconds=count * seconds) for seconds in ANSWER_SECONDS)
    _note(
        f"{wishes[0].ticker} from {wishes[0].from_ts:%Y-%m-%d %H:%M} to {wishes[0].to_ts:%Y-%m-%d %H:%M} UTC,"
        f" {len(wishes)} feeds: {count} questions, {shortest} to {longest} at the pace that the provider documents"
    )


def _backfill(config: Config, wishes: Sequence[BackfillRequest]) -> list[Repair]:
    """Have it done, watch, and return what became of it."""
    from ingestor.daemon import control
    from ingestor.repair import backfill_requests

    with _watching(config, sum(map(backfill_requests.count_queries, wishes))) as watch:
        answer = control.send_request(config.spool.path, "backfill", requests=backfill_requests.to_json(wishes))
        if answer is None:
            _backfill_offline(config, wishes, watch.ended)
        else:
            while not watch.ended(answer["repairs"]):
                time.sleep(LOOK_SECONDS)
        return watch.repairs


def _backfill_offline(
    config: Config, wishes: Sequence[BackfillRequest], ended: Callable[[Sequence[int]], bool]
) -> None:
    from ingestor.commands import offline
    from ingestor.config import require_api_key
    from ingestor.store.open_database import explained

    with explained(config.database.url.get_secret_value()):
        offline.backfill(config, require_api_key(config), wishes, ended)


class _Watch:
    """Looks at repairs, and shows how far they are."""

    def __init__(self, engine: Engine, show: Callable[[int], None]) -> None:
        self.repairs: list[Repair] = []
        self._engine = engine
        self._show = show
        self._told: dict[int, str] = {}

    def ended(self, repair_ids: Sequence[int]) -> bool:
        """Whether all have come to an end; what keeps one from it is said once."""
        from ingestor.store.maintenance.repairs import load_repairs

        self.repairs = load_repairs(self._engine, repair_ids)
        self._show(sum(map(_questions_left, self.repairs)))
        for one in self.repairs:
            if one.state == "open" and one.error and self._told.get(one.repair_id) != one.error:
                _note(f"{one.path}: {one.error}; it is tried again")
                self._told[one.repair_id] = one.error
        return all(one.state != "open" for one in self.repairs)


@contextmanager
def _watching(config: Config, questions: int) -> Iterator[_Watch]:
    from rich.console import Console
    from rich.progress import Progress

    from ingestor.store.engine import connect

    # Opened when it is looked at first: there may be no database before the work has begun.
    engine = connect(config.database.url.get_secret_value(), read_only=True)
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("backfill", total=questions)
            yield _Watch(engine, lambda left: progress.update(task, completed=questions - left))
    finally:
        engine.dispose()


def _questions_left(repair: Repair) -> int:
    from ingestor.repair import plan

    return sum(1 for _ in plan.remaining_queries(repair, [repair.ticker])) if repair.state == "open" else 0


def _told(one: Repair) -> str:
    outcome = f"{one.new_rows:,} new rows" if one.state == "done" else one.error or f"waits, {one.kind}"
    name = f"{one.path} {one.ticker or one.params}"
    return safe(f"{one.state}: {name} {one.from_ts:%Y-%m-%d %H:%M} to {one.to_ts:%Y-%m-%d %H:%M}: {outcome}")


def _summary(one: Repair) -> dict[str, Any]:
    return {
        "repair_id": one.repair_id,
        "path": one.path,
        "ticker": one.ticker,
        "from": one.from_ts.isoformat(),
        "to": one.to_ts.isoformat(),
        "kind": one.kind,
        "state": one.state,
        "new_rows": one.new_rows,
        "attempts": one.attempts,
        "error": one.error,
    }


def _note(text: str) -> None:
    print(safe(redactor.scrub(text)), file=sys.stderr)
