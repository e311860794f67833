"""Command status."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config, open_database
from ingestor.cli.output import (
    echo,
    echo_stderr,
    exit_on_interrupt,
    print_result,
    printable,
    sleep_until_closed,
    to_json_line,
)
from ingestor.core.clock import boottime
from ingestor.errors import ConfigError, IngestorError

if TYPE_CHECKING:
    from ingestor.config import Config
    from ingestor.monitoring.status import ConnectionStatus, InstanceStatus, Status, SubscriptionStatus

POLL_SECONDS = 1.0
EXIT_NOT_READY = 1
EXIT_NO_DAEMON = 3
MAX_ERRORS = 5  # of the recent errors that the daemon reports
MIN_SKEW_SECONDS = 60.0  # of the provider's publish clock; a smaller skew is not shown
_STANDBY_TITLES = {"receiver": "receiving", "standby": "standing by", "waiting": "not receiving"}
_SCREEN_ORDER = (("  not ready", "  config:"), ("  rows:", "  rate:", "  spool:", "  database:"))
MAX_NOT_LIVE = 20  # subscriptions listed by name; the others are counted


@dataclass(frozen=True, slots=True)
class StatusSample:
    """The status at one moment, with the counters from which rates are computed."""

    at: float  # seconds on a clock that consecutive samples share
    source_id: str  # counters of different sources cannot be compared
    frames: int
    rows: int
    data: dict[str, Any]  # for JSON output
    lines: tuple[str, ...]  # for text output
    exit_code: int

    def rates(self, before: StatusSample | None) -> dict[str, float]:
        """Return the rates per second since the sample before, or nothing if the two cannot be compared."""
        if before is None or before.source_id != self.source_id or self.at <= before.at:
            return {}
        seconds = self.at - before.at
        return {
            "frames_per_second": round((self.frames - before.frames) / seconds, 3),
            "rows_per_second": round((self.rows - before.rows) / seconds, 3),
        }


def status(
    config: ConfigOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every second until Ctrl-C.")] = False,
    wait_ready: Annotated[
        float,
        typer.Option("--wait-ready", min=0.0, help="Seconds to wait until the daemon is ready.", metavar="SECONDS"),
    ] = 0.0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show connections, subscriptions, spool and database.

    From the running daemon, or from the database if no daemon runs here. Exits with 0 if the daemon is ready: it
    receives, and what it receives can be stored; with 1 if it is not, with 3 if no daemon runs.

    \b
    Examples:
      ingestor status --watch
      ingestor status --wait-ready 60
    """
    spool, loaded = _load(config)
    if watch:
        with exit_on_interrupt():
            _watch(partial(_take_sample, spool, loaded), output)
        return
    sample = _wait_until_ready(partial(_take_sample, spool, loaded), wait_ready)
    print_result(output, sample.data, lambda: "\n".join(map(printable, sample.lines)))
    if sample.exit_code:
        raise typer.Exit(sample.exit_code)


def _wait_until_ready(take_sample: Callable[[], StatusSample], seconds: float) -> StatusSample:
    """Take samples until one is ready, or the time is over; then return or raise what the last one is."""
    end = boottime() + seconds
    while True:
        try:
            sample = take_sample()
            if not sample.exit_code:
                return sample
        except IngestorError:  # neither daemon nor database can be reached yet
            if boottime() >= end:
                raise
        else:
            if boottime() >= end:
                if seconds:
                    echo_stderr(f"not ready within {seconds:g} s")
                return sample
        sleep_until_closed(min(POLL_SECONDS, max(0.0, end - boottime())))


def _load(path: Path | None) -> tuple[Path, Config | ConfigError]:
    """Return the spool's folder and the configuration, or its error: the daemon may run with an earlier version."""
    from ingestor.config.loader import find_spool_folder

    try:
        loaded = load_config(path)
    except ConfigError as error:
        return find_spool_folder(path), error
    return loaded.spool.path, loaded


def _watch(take_sample: Callable[[], StatusSample], output: Output) -> None:
    """Refresh in place on a terminal; else print one block or JSON object after the other."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    if output is Output.JSON:
        _poll(take_sample, lambda _lines, data: echo(to_json_line(data)))
    elif not console.is_terminal or console.is_dumb_terminal:
        _poll(take_sample, lambda lines, _data: echo("\n".join([*lines, ""])))
    with Live(console=console, auto_refresh=False) as live:
        _poll(
            take_sample,
            lambda lines, _data: live.update(
                Text("\n".join(fit_screen(lines, console.width, console.height))), refresh=True
            ),
        )


def fit_screen(lines: list[str], width: int, height: int) -> list[str]:
    """Fit a status into a terminal: trouble first and in full, then the values, and each other line cut at its end."""
    title, *others = lines
    fitted = [_cut(title, width)]
    for line in sorted(others, key=_screen_rank):  # stable
        is_trouble = _screen_rank(line) == 0
        fitted += wrap(line, width, subsequent_indent="    ") if is_trouble else [_cut(line, width)]
    room = height - 1  # the cursor is below
    if len(fitted) <= room:
        return fitted
    return [*fitted[: room - 1], _cut(f"  and {len(fitted) - room + 1:,} more lines", width)]


def _screen_rank(line: str) -> int:
    return next((rank for rank, start in enumerate(_SCREEN_ORDER) if line.startswith(start)), len(_SCREEN_ORDER))


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _poll(take_sample: Callable[[], StatusSample], show: Callable[[list[str], dict[str, Any]], None]) -> NoReturn:
    before: StatusSample | None = None
    while True:
        try:
            sample = take_sample()
        except IngestorError as error:  # may be temporary
            show([printable(line) for line in str(error).split("\n")], {"source": None, "error": str(error)})
        else:
            lines, rates = list(sample.lines), sample.rates(before)
            if rates:
                per_second = f"{rates['frames_per_second']:,.1f} frames/s, {rates['rows_per_second']:,.1f} rows/s"
                lines.append(f"  rate: {per_second}")
            show([printable(line) for line in lines], sample.data | {"rates": rates})
            before = sample
        sleep_until_closed(POLL_SECONDS)


def _take_sample(spool: Path, config: Config | ConfigError) -> StatusSample:
    """Ask the daemon, else the database. Raises ControlError, DatabaseUnavailable and ``config`` if it is an error."""
    from ingestor.daemon import control_socket
    from ingestor.monitoring.status import Status, check_readiness

    response = control_socket.send_request(spool, "status")
    if response is None:
        if isinstance(config, ConfigError):
            raise config
        return _database_sample(config)
    live = Status.from_json(response["status"].encode())
    rows = live.rows
    problems = [f"  config: {problem}" for problem in config.problems] if isinstance(config, ConfigError) else []
    return StatusSample(
        at=live.at.timestamp(),
        source_id=f"{live.pid} {live.started_at}",
        frames=sum(connection.frames for connection in live.connections),
        rows=rows.new + rows.revised + rows.duplicate + rows.dead + rows.expired,
        data={"source": "daemon", **json.loads(live.to_json())},
        lines=(*_format_status(live), *problems),
        exit_code=0 if check_readiness(live).ok else EXIT_NOT_READY,
    )


def _format_status(status: Status) -> Iterator[str]:
    from ingestor.monitoring.status import check_readiness
    from ingestor.pipeline.clock_skew import format_skew

    yield f"{status.instance}: running since {_format_time(status.started_at)}, version {status.version}"
    yield f"  reported by the daemon (process {status.pid})"
    if status.standby:
        yield f"  {_STANDBY_TITLES[status.standby.role]}: {status.standby.reason}"
    for reason in check_readiness(status).reasons:
        yield f"  not ready: {reason}"
    for connection in status.connections:
        yield f"  {_format_connection(connection, status.at)}"
    yield from _format_subscriptions(status)
    yield from _format_flow(status)
    yield from map(_format_instance, status.instances if len(status.instances) > 1 else ())
    for feed, seconds in status.publish_skew_seconds.items():
        if abs(seconds) >= MIN_SKEW_SECONDS:
            yield f"  {feed}: the provider's publish clock is {format_skew(seconds)}"
    if not status.config_reload_successful:
        yield "  config: the last reload was rejected, the previous configuration is in use; run `ingestor check`"
    if status.token.expires_at:
        expires = status.token.expires_at
        yield f"  token: expires {_format_time(expires)}, {_format_distance(expires, status.at)}"
    for error in status.last_errors[-MAX_ERRORS:]:
        yield f"  {error.at:%H:%M:%S} {error.kind}: {error.text}"


def _format_connection(connection: ConnectionStatus, now: datetime) -> str:
    since = f" since {_format_time(connection.since)}" if connection.since else ""
    error = f": {connection.last_error}" if connection.last_error else ""
    protocol = f"Socket.IO protocol {connection.dialect}"
    state = f"connected{since}, {protocol}" if connection.connected else f"not connected{error}"
    last = f", last {_format_distance(connection.last_frame_at, now)}" if connection.last_frame_at else ""
    return f"{connection.path}: {state}, {connection.frames:,} frames{last}"


def _format_subscriptions(status: Status) -> Iterator[str]:
    for state, count in Counter(subscription.state for subscription in status.subscriptions).items():
        yield f"  {count:,} subscriptions {state}"
    not_live = [subscription for subscription in status.subscriptions if subscription.state != "live"]
    for subscription in not_live[:MAX_NOT_LIVE]:
        since = f" since {_format_time(subscription.since)}" if subscription.since else ""
        reason = f": {subscription.reason}" if subscription.reason else ""
        yield f"    {_format_name(subscription)}: {subscription.state}{since}{reason}"
    if len(not_live) > MAX_NOT_LIVE:
        yield f"    and {len(not_live) - MAX_NOT_LIVE:,} more that are not live"


def _format_name(subscription: SubscriptionStatus) -> str:
    params = json.loads(subscription.params)
    return f"{subscription.path} {params['ticker'] if list(params) == ['ticker'] else subscription.params}"


def _format_flow(status: Status) -> Iterator[str]:
    spool, database, rows = status.spool, status.database, status.rows
    fill = f" ({spool.bytes / spool.limit_bytes:.0%})" if spool.limit_bytes else ""
    oldest = f", oldest {spool.oldest_age_seconds:.1f} s" if spool.entries else ""
    kept = f", {spool.kept_bytes:,} bytes kept" if spool.kept_bytes else ""
    size = f"{spool.bytes:,} of {spool.limit_bytes:,} bytes{fill}{kept}"
    yield f"  spool: {spool.entries:,} entries pending{oldest}, {size}"
    state = "up" if database.up else f"unavailable: {database.last_error}"
    last = f", last commit {_format_distance(database.last_commit_at, status.at)}" if database.last_commit_at else ""
    server = f" at {database.server}" if database.server else ""
    yield f"  database: {database.kind}{server}, {state}, lag {database.lag_seconds:.1f} s{last}"
    expired = f", {rows.expired:,} expired" if rows.expired else ""
    counts = f"{rows.new:,} new, {rows.revised:,} revised, {rows.duplicate:,} duplicate, {rows.dead:,} dead"
    yield f"  rows: {counts}{expired}"


def _format_instance(instance: InstanceStatus) -> str:
    from ingestor.config.units import format_duration

    heartbeat = _format_time(instance.heartbeat_at) if instance.heartbeat_at else "it has published none"
    state = f"{instance.state}, last heartbeat {heartbeat}" if instance.state != "alive" else "alive"
    behind = f", {format_duration(round(instance.behind_seconds))} behind" if instance.behind_seconds else ""
    held = f", holds {', '.join(instance.leases)}" if instance.leases else ""
    own = ", this daemon" if instance.own else ""
    return f"  instance {instance.instance_id} ({instance.name}{own}): {state}{behind}{held}"


def _format_time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _format_distance(at: datetime, now: datetime) -> str:
    """Format the time between the two: ``3s ago``, ``in 4h12m``."""
    from ingestor.config.units import format_duration

    seconds = round((at - now).total_seconds())
    return f"in {format_duration(seconds)}" if seconds > 0 else f"{format_duration(-seconds)} ago"


def _database_sample(config: Config) -> StatusSample:
    from ingestor.daemon.instance_cache import instance_status
    from ingestor.store.instances import load_instances
    from ingestor.store.read.status_queries import load_status

    with open_database(config) as engine:
        result = load_status(engine)
        shared = {record.instance_id: instance_status(record, "") for record in load_instances(engine)}
    for row in result["instances"]:
        current = shared.get(row["instance_id"])
        row["state"] = current.state if current else "gone"
        row["behind_seconds"] = current.behind_seconds if current else None
        row["leases"] = list(current.leases) if current else []
    return StatusSample(
        at=time.monotonic(),
        source_id="the database",
        frames=sum(instance["frames"] for instance in result["instances"]),
        rows=sum(instance["row_count"] for instance in result["instances"]),
        data={"source": "database", **result},
        lines=tuple(_format_database_status(result)),
        exit_code=EXIT_NO_DAEMON,
    )


def _format_database_status(result: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield "no running daemon could be reached; reported from the database"
    shown = [instance for instance in result["instances"] if instance["state"] != "gone"] or result["instances"][-1:]
    for instance in shown:
        heartbeat = _format_time(instance["heartbeat_at"]) if instance["heartbeat_at"] else "never"
        holds = f", holds {', '.join(instance['leases'])}" if instance["leases"] else ""
        yield (
            f"  {instance['name']} (instance {instance['instance_id']}): {instance['state']},"
            f" {instance['new_rows']:,} rows, last heartbeat {heartbeat}{holds}"
        )
        for state in result["states"]:
            if state["instance_id"] == instance["instance_id"]:
                yield f"    {state['subscriptions']:,} subscriptions {state['state']}"
    if gone := len(result["instances"]) - len(shown):
        yield f"  and {gone:,} earlier instances, which were replaced or silent for a week; --output json has all"
    for feed in result["feeds"]:
        yield f"  {feed['feed']}: {feed['series']:,} series up to {_format_time(feed['ts'])}"
    for count in result["dead"]:
        yield f"  {count['letters']:,} dead letters ({count['stage']})"
