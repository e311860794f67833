"""The command status: how the daemon is, once or until Ctrl-C."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor.cli.output import (
    ConfigOption,
    Output,
    OutputOption,
    as_line,
    load_config,
    pause,
    print_as,
    safe,
    say,
    until_interrupted,
)
from ingestor.errors import ConfigError, IngestorError

if TYPE_CHECKING:
    from ingestor.config import Config
    from ingestor.monitoring.status import ConnectionStatus, Status, SubscriptionStatus

LOOK_SECONDS = 1.0
TROUBLES = 5  # that are shown, of those that the daemon remembers
SKEW_SECONDS = 60.0  # of the publish clock, from which on it is worth a line
LISTED = 20  # subscriptions that are not live; the others are counted


@dataclass(frozen=True, slots=True)
class StatusSample:
    """What was seen at one moment, and the counts by which two moments differ."""

    at: float  # seconds of a clock that both looks share
    begun: str  # counts of another beginning have nothing to do with these
    frames: int
    rows: int
    data: dict[str, Any]  # as JSON
    lines: tuple[str, ...]  # as text

    def rates(self, before: StatusSample | None) -> dict[str, float]:
        """Per second since the look before; empty if that tells nothing."""
        if before is None or before.begun != self.begun or self.at <= before.at:
            return {}
        seconds = self.at - before.at
        return {
            "frames_per_second": round((self.frames - before.frames) / seconds, 3),
            "rows_per_second": round((self.rows - before.rows) / seconds, 3),
        }


def status(
    config: ConfigOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look every second, until Ctrl-C.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """How the daemon is: from itself if it runs here, else from the database."""
    spool, loaded = _config(config)
    if watch:
        with until_interrupted():
            _watch(partial(_look, spool, loaded), output)
        return
    look = _look(spool, loaded)
    print_as(output, look.data, lambda: "\n".join(map(safe, look.lines)))


def _config(path: Path | None) -> tuple[Path, Config | ConfigError]:
    """Where the daemon may be asked, and the configuration; or what is wrong with it: a daemon goes on with another."""
    from ingestor.config.loader import spool_folder

    try:
        loaded = load_config(path)
    except ConfigError as error:
        return spool_folder(path), error
    return loaded.spool.path, loaded


def _watch(look: Callable[[], StatusSample], output: Output) -> None:
    """On a terminal in place, else a block or a JSON object after the other."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    if output is Output.JSON or not console.is_terminal or console.is_dumb_terminal:
        _go_on(look, lambda lines, data: say(as_line(data) if output is Output.JSON else "\n".join([*lines, ""])))
        return
    with Live(console=console, auto_refresh=False) as live:
        _go_on(look, lambda lines, _data: live.update(Text("\n".join(lines)), refresh=True))


def _go_on(look: Callable[[], StatusSample], show: Callable[[list[str], dict[str, Any]], None]) -> None:
    before: StatusSample | None = None
    while True:
        try:
            now = look()
        except IngestorError as error:  # it may come back
            show([safe(line) for line in str(error).split("\n")], {"source": None, "error": str(error)})
        else:
            rates = now.rates(before)
            show([safe(line) for line in [*now.lines, *_rates(rates)]], now.data | {"rates": rates})
            before = now
        pause(LOOK_SECONDS)


def _rates(rates: dict[str, float]) -> Iterator[str]:
    if rates:
        yield f"  rate: {rates['frames_per_second']:,.1f} frames/s, {rates['rows_per_second']:,.1f} rows/s"


def _look(spool: Path, config: Config | ConfigError) -> StatusSample:
    """Raises ControlError, DatabaseUnavailable; and what is wrong with the configuration, if no daemon answers."""
    live = _ask_daemon(spool)
    if live is None:
        if isinstance(config, ConfigError):
            raise config
        return _stored(_ask_database(config))
    rows = live.rows
    broken = [f"  config: {problem}" for problem in config.problems] if isinstance(config, ConfigError) else []
    return StatusSample(
        at=live.at.timestamp(),
        begun=f"{live.pid} {live.started_at}",
        frames=sum(one.frames for one in live.connections),
        rows=rows.new + rows.revised + rows.duplicate + rows.dead + rows.expired,
        data={"source": "daemon", **json.loads(live.to_json())},
        lines=(*_lines(live), *broken),
    )


def _ask_daemon(spool: Path) -> Status | None:
    from ingestor.daemon import control
    from ingestor.monitoring.status import Status

    answer = control.send_request(spool, "status")
    return Status.from_json(answer["status"].encode()) if answer else None


# From the daemon.


def _lines(status: Status) -> Iterator[str]:
    from ingestor.monitoring.status import check_readiness
    from ingestor.pipeline.clock_skew import described

    yield f"{status.instance}: running since {_clock(status.started_at)}, version {status.version}"
    yield f"  this is what the daemon says (process {status.pid})"
    for reason in check_readiness(status).reasons:
        yield f"  not ready: {reason}"
    for one in status.connections:
        yield f"  {_connection(one, status.at)}"
    yield from _subscriptions(status)
    yield from _flow(status)
    for feed, seconds in status.publish_skew_seconds.items():
        if abs(seconds) >= SKEW_SECONDS:
            yield f"  {feed}: the provider's publish clock is {described(seconds)}"
    if not status.config_reload_successful:
        yield "  config: the last reload was refused, and the config before it counts; `ingestor check` says why"
    if status.token.expires_at:
        yield f"  token: until {_clock(status.token.expires_at)}, {_away(status.token.expires_at, status.at)}"
    for trouble in status.last_errors[-TROUBLES:]:
        yield f"  {trouble.at:%H:%M:%S} {trouble.kind}: {trouble.text}"


def _connection(one: ConnectionStatus, now: datetime) -> str:
    since = f" since {_clock(one.since)}" if one.since else ""
    why = f": {one.last_error}" if one.last_error else ""
    state = f"connected{since}, Socket.IO dialect {one.dialect}" if one.connected else f"not connected{why}"
    last = f", the last {_away(one.last_frame_at, now)}" if one.last_frame_at else ""
    return f"{one.path}: {state}, {one.frames:,} frames{last}"


def _subscriptions(status: Status) -> Iterator[str]:
    for state, count in Counter(one.state for one in status.subscriptions).items():
        yield f"  {count:,} subscriptions {state}"
    others = [one for one in status.subscriptions if one.state != "live"]
    for one in others[:LISTED]:
        since = f" since {_clock(one.since)}" if one.since else ""
        yield f"    {_name(one)}: {one.state}{since}{f': {one.reason}' if one.reason else ''}"
    if len(others) > LISTED:
        yield f"    and {len(others) - LISTED:,} more that are not live"


def _name(one: SubscriptionStatus) -> str:
    params = json.loads(one.params)
    return f"{one.path} {params['ticker'] if list(params) == ['ticker'] else one.params}"


def _flow(status: Status) -> Iterator[str]:
    spool, database, rows = status.spool, status.database, status.rows
    full = f" ({spool.bytes / spool.limit_bytes:.0%})" if spool.limit_bytes else ""
    oldest = f", the oldest for {spool.oldest_age_seconds:.1f} s" if spool.entries else ""
    yield f"  spool: {spool.entries:,} entries wait{oldest}, {spool.bytes:,} of {spool.limit_bytes:,} bytes{full}"
    up = "up" if database.up else f"away: {database.last_error}"
    last = f", last commit {_away(database.last_commit_at, status.at)}" if database.last_commit_at else ""
    yield f"  database: {database.kind}, {up}, lag {database.lag_seconds:.1f} s{last}"
    expired = f", {rows.expired:,} expired" if rows.expired else ""
    counts = f"{rows.new:,} new, {rows.revised:,} revised, {rows.duplicate:,} duplicate, {rows.dead:,} dead"
    yield f"  rows: {counts}{expired}"


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _away(at: datetime, now: datetime) -> str:
    """How far from now: ``3s ago``, ``in 4h12m``."""
    from ingestor.config.units import format_duration

    seconds = round((at - now).total_seconds())
    return f"in {format_duration(seconds)}" if seconds > 0 else f"{format_duration(-seconds)} ago"


# From the database.


def _ask_database(config: Config) -> dict[str, list[dict[str, Any]]]:
    from ingestor.store.open_database import opened
    from ingestor.store.read import status as query

    with opened(config.database.url.get_secret_value()) as engine:
        return query.load_status(engine)


def _stored(found: dict[str, list[dict[str, Any]]]) -> StatusSample:
    return StatusSample(
        at=time.monotonic(),
        begun="the database",
        frames=sum(one["frames"] for one in found["instances"]),
        rows=sum(one["row_count"] for one in found["instances"]),
        data={"source": "database", **found},
        lines=tuple(_stored_lines(found)),
    )


def _stored_lines(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield "no daemon answers; this is what the database says"
    for one in found["instances"]:
        heard = _clock(one["heartbeat_at"]) if one["heartbeat_at"] else "never"
        yield f"  {one['name']}: {one['new_rows']:,} rows, last heard {heard}"
        for state in found["states"]:
            if state["instance_id"] == one["instance_id"]:
                yield f"    {state['subscriptions']:,} subscriptions {state['state']}"
    for feed in found["feeds"]:
        yield f"  {feed['feed']}: {feed['series']:,} series up to {_clock(feed['ts'])}"
    for dead in found["dead"]:
        yield f"  {dead['letters']:,} dead letters of {dead['stage']}"
