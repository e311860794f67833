"""Command backfill."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from ingestor.cli.options import TIME_HELP, ConfigOption, Output, OutputOption, load_config, parse_time
from ingestor.cli.output import echo_stderr, format_repair, print_result, progress_bar, repair_to_dict

if TYPE_CHECKING:
    from ingestor.config import Config
    from ingestor.store.engine import Engine
    from ingestor.store.maintenance.repairs import BackfillRequest, Repair

POLL_SECONDS = 0.5
RESPONSE_SECONDS = (20, 75)  # per request, from the provider's documentation
EXIT_FAILED = 69
EXIT_INTERRUPTED = 130


def backfill(
    ticker: Annotated[str, typer.Option(help="Ticker to backfill.")],
    since: Annotated[str, typer.Option("--since", "--from", help=f"Start of the range. {TIME_HELP}")],
    until: Annotated[
        str, typer.Option("--until", "--to", help="End of the range, excluded; at the latest today, 00:00 UTC.")
    ] = "today",
    path: Annotated[str | None, typer.Option(help="Endpoint. Default: every subscribed endpoint.")] = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Request history of a ticker and write it.

    The running daemon does the work; without one, this command does. May be interrupted and repeated: what is already
    stored is not duplicated. Exits with 69 if the provider did not deliver everything, or cannot prove yet that it did.

    \b
    Example:
      ingestor backfill --ticker AAPL --since 2026-01-01 --until 2026-02-01
    """
    from ingestor.repair.backfill_requests import build_requests, count_queries

    loaded = load_config(config)
    now = datetime.now(UTC)
    start, end = parse_time(since, now, "--since"), parse_time(until, now, "--until")
    try:
        requests = build_requests(loaded.subscriptions, ticker, path, start, end, now)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    count = sum(map(count_queries, requests))
    _print_estimate(requests, count)
    try:
        repairs = _run(loaded, requests, count)
    except KeyboardInterrupt:
        echo_stderr("interrupted; a running daemon continues, else repeat the command")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    print_result(output, [repair_to_dict(repair) for repair in repairs], lambda: "\n".join(map(format_repair, repairs)))
    are_missing = len(repairs) < len(requests)
    if are_missing:
        problem = "the database went back to a time before it had all of these requests"
        echo_stderr(f"{problem}; the daemon requests them again")
    if are_missing or any(repair.state != "done" for repair in repairs):
        raise typer.Exit(EXIT_FAILED)


def _print_estimate(requests: Sequence[BackfillRequest], count: int) -> None:
    first = requests[0]
    shortest, longest = (timedelta(seconds=count * seconds) for seconds in RESPONSE_SECONDS)
    echo_stderr(
        f"{first.ticker} from {first.from_ts:%Y-%m-%d %H:%M} to {first.to_ts:%Y-%m-%d %H:%M} UTC,"
        f" {len(requests)} feeds: {count} requests, {shortest} to {longest} at the documented response times"
    )


def _run(config: Config, requests: Sequence[BackfillRequest], count: int) -> list[Repair]:
    """Have the daemon backfill, or do it here if none runs. Return the repairs when nothing more can be done today."""
    from ingestor.config import require_api_key
    from ingestor.daemon import control_socket
    from ingestor.repair import backfill_requests
    from ingestor.store.engine import make_engine

    # It connects on first use: the database may not exist before the work begins.
    engine = make_engine(config.database.url.get_secret_value(), read_only=True)
    try:
        with progress_bar("requests", lambda: count) as advance:
            monitor = _RepairMonitor(engine, requests, lambda remaining: advance(count - remaining))
            response = control_socket.send_request(
                config.spool.path, "backfill", requests=backfill_requests.to_json(requests)
            )
            if response is None:
                from ingestor.commands import without_daemon

                without_daemon.backfill(config, require_api_key(config), requests, monitor.is_finished)
            else:
                while not monitor.is_finished(response["repairs"]):
                    time.sleep(POLL_SECONDS)
            return monitor.repairs
    finally:
        engine.dispose()


class _RepairMonitor:
    """Polls repairs and reports their progress and errors."""

    def __init__(
        self, engine: Engine, requests: Sequence[BackfillRequest], show_remaining: Callable[[int], None]
    ) -> None:
        self.repairs: list[Repair] = []  # as requested: a database that went back in time may lack them
        self._engine = engine
        self._requested = {(request.path, request.params, request.from_ts, request.to_ts) for request in requests}
        self._show_remaining = show_remaining
        self._reported_errors: dict[int, str] = {}

    def is_finished(self, repair_ids: Sequence[int]) -> bool:
        """Poll, and return whether every repair is finished, or waits for a later row. Print each new error once."""
        from ingestor.repair.plan import UNPROVEN, remaining_queries
        from ingestor.store.maintenance.repairs import load_repairs

        # A database that went back may have given an id to another repair.
        self.repairs = [
            repair
            for repair in load_repairs(self._engine, repair_ids)
            if (repair.path, repair.params, repair.from_ts, repair.to_ts) in self._requested
        ]
        unfinished = [repair for repair in self.repairs if repair.state == "open"]
        self._show_remaining(sum(1 for repair in unfinished for _ in remaining_queries(repair, [repair.ticker])))
        for repair in unfinished:
            if repair.error not in ("", self._reported_errors.get(repair.repair_id)):
                is_unproven = repair.error.startswith(UNPROVEN)
                outlook = "a running daemon retries, else repeat the command tomorrow" if is_unproven else "retrying"
                echo_stderr(f"{repair.path}: {repair.error}; {outlook}")
                self._reported_errors[repair.repair_id] = repair.error
        return all(repair.error.startswith(UNPROVEN) for repair in unfinished)
