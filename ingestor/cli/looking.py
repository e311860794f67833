"""Commands that look and change nothing of the data: check, status, db."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from ingestor.cli.output import ConfigOption, Output, OutputOption, load_config, print_as, safe, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestor.config import Config
    from ingestor.ops.status import Status

db_app = typer.Typer(help="The database's schema.")


def check(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Look for everything that would keep `run` from working; change nothing."""
    from ingestor import checking

    findings = list(checking.offline(load_config(config)))
    marks = {finding.name: "!" if finding.warning else "✗" if finding.exit_code else "✓" for finding in findings}
    print_as(
        output,
        [asdict(finding) for finding in findings],
        lambda: "\n".join(safe(f"{marks[finding.name]} {finding.name}: {finding.message}") for finding in findings),
    )
    code = next((finding.exit_code for finding in findings if finding.exit_code), 0)
    if code:
        raise typer.Exit(code)


def status(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """How the daemon is: from itself if it runs here, else from the database."""
    loaded = load_config(config)
    live = _ask_daemon(loaded)
    if live is not None:
        print_as(output, _plain(live.to_json()), lambda: "\n".join(map(safe, _lines(live))))
        return
    found = _ask_database(loaded)
    print_as(output, {"source": "database", **found}, lambda: "\n".join(map(safe, _stored_lines(found))))


def _ask_daemon(config: Config) -> Status | None:
    from ingestor import control
    from ingestor.ops.status import Status

    answer = control.ask(config.spool.path, "status")
    return Status.from_json(answer["status"].encode()) if answer else None


def _ask_database(config: Config) -> dict[str, list[dict[str, Any]]]:
    from ingestor.store import query
    from ingestor.store.opening import opened

    with opened(config.database.url.get_secret_value()) as engine:
        return query.status(engine)


def _lines(status: Status) -> Iterator[str]:
    yield f"{status.instance}: running since {status.started_at:%Y-%m-%d %H:%M:%S} UTC, version {status.version}"
    for one in status.connections:
        state = f"connected, Socket.IO dialect {one.dialect}" if one.connected else f"not connected: {one.last_error}"
        yield f"  {one.path}: {state}, {one.frames:,} frames"
    for one_state, count in _states(status).items():
        yield f"  {count} subscriptions {one_state}"
    spool, database, rows = status.spool, status.database, status.rows
    yield f"  spool: {spool.entries:,} entries wait, {spool.bytes:,} of {spool.limit_bytes:,} bytes"
    up = "up" if database.up else f"away: {database.last_error}"
    yield f"  database: {database.kind}, {up}, lag {database.lag_seconds:.1f} s"
    yield f"  rows: {rows.new:,} new, {rows.revised:,} revised, {rows.duplicate:,} duplicate, {rows.dead:,} dead"
    if status.token.expires_at:
        yield f"  token: until {status.token.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    for trouble in status.last_errors:
        yield f"  {trouble.at:%H:%M:%S} {trouble.kind}: {trouble.text}"


def _states(status: Status) -> dict[str, int]:
    states: dict[str, int] = {}
    for one in status.subscriptions:
        states[one.state] = states.get(one.state, 0) + 1
    return states


def _stored_lines(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield "no daemon answers; this is what the database says"
    for one in found["instances"]:
        heard = f"{one['heartbeat_at']:%Y-%m-%d %H:%M:%S} UTC" if one["heartbeat_at"] else "never"
        yield f"  {one['name']}: {one['new_rows']:,} rows, last heard {heard}"
    for feed in found["feeds"]:
        yield f"  {feed['feed']}: {feed['series']:,} series up to {feed['ts']:%Y-%m-%d %H:%M:%S} UTC"
    for dead in found["dead"]:
        yield f"  {dead['letters']:,} dead letters of {dead['stage']}"


@db_app.command("upgrade")
def db_upgrade(config: ConfigOption = None) -> None:
    """Bring the tables up to this program's schema; what is up to date stays as it is."""
    from ingestor.store import migrate
    from ingestor.store.opening import opened

    with opened(load_config(config).database.url.get_secret_value(), read_only=False) as engine:
        migrate.upgrade(engine)
        found = migrate.current(engine)
    say(f"schema {found}")


@db_app.command("current")
def db_current(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Say which schema the database has, and which one this program wants."""
    from ingestor.store import migrate
    from ingestor.store.opening import opened

    with opened(load_config(config).database.url.get_secret_value()) as engine:
        found = migrate.current(engine)
    data = {"current": found, "head": migrate.head()}
    print_as(output, data, lambda: f"database {found or 'empty'}, program {migrate.head()}")


def _plain(body: bytes) -> Any:
    import json

    return {"source": "daemon", **json.loads(body)}
