"""The checks of `ingestor check` that need no provider. They change nothing, and each failure says what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingestor.commands.check_conflicts import check_listen, refuse_other_daemon
from ingestor.commands.check_result import CheckResult
from ingestor.config import Config, require_api_key
from ingestor.config.units import format_duration
from ingestor.config.urls import find_unencrypted_hosts, mask_url, origin
from ingestor.errors import IngestorError
from ingestor.provider.catalog import FEEDS, STREAMS, base_name, find_warnings
from ingestor.store import migrate
from ingestor.store.engine import postgres_hosts, sqlite_path
from ingestor.store.open_database import open_database

# Measured: a row of a response has some 85 characters. A response of /real-time/… is a rolling window of about an hour
# of minutes; a stream sends only new rows.
ROW_BYTES = 85
WINDOW_ROWS = 60
DAY_SECONDS = 86_400
# The spool compresses what was committed, as far as there is time. Measured: to a fifth or less, 1.2 MB/s.
COMPRESSED_SHARE = 0.2
COMPRESSED_BYTES_PER_DAY = 1_200_000 * DAY_SECONDS
ASSUMED_TICKERS = 5_000  # for a subscription without ticker
SAFE_SQLITE = (3, 51, 3)


@dataclass(frozen=True, slots=True)
class StoredSize:
    """What is stored of what is received."""

    sample_bytes: float  # with its part of the index
    text_share: float  # of the bytes of responses, if payloads are kept


# Measured with samples of 500 tickers, and with the texts of windows, 1 to 100 a batch: of these SQLite stores 0.32 to
# 0.46, PostgreSQL 0.19 to 0.38, and less of several windows of one ticker in a batch. A text of a single row takes up
# to three times its length if few come in a batch.
IN_SQLITE = StoredSize(80, 0.5)
IN_POSTGRES = StoredSize(120, 0.3)


def run_offline_checks(config: Config) -> Iterator[CheckResult]:
    """Run every check that needs no provider. The database is only read."""
    count = len(config.subscriptions)
    yield CheckResult("config", f"{config.source}: {count} subscription{'s' if count != 1 else ''}")
    yield from (CheckResult("config", str(problem), warning=True) for problem in find_warnings(config))
    yield _check_api_key(config)
    yield _check_folder("spool", config.spool.path)
    if config.proxy is not None:
        proxy = origin(config.proxy.get_secret_value())
        yield CheckResult("proxy", f"{config.provider.url} is reached through {proxy}, set by the environment")
    yield _check_database(config)
    yield from _check_database_tls(config)
    if sqlite_path(config.database.url.get_secret_value()):
        yield _check_sqlite_version()
    yield check_listen(config)
    load = estimate_load(config)
    yield _check_growth(config, load)
    hours = config.spool.max_bytes / load.received_bytes * 24
    message = f"{_format_size(config.spool.max_bytes)} (spool.max_bytes) last for a database outage of {hours:,.1f} h"
    yield CheckResult("outage", message, warning=hours < 1)
    yield _check_keep(config, load)
    yield from _check_disks(config, load)


def _check_api_key(config: Config) -> CheckResult:
    try:
        require_api_key(config)
    except IngestorError as error:
        return CheckResult("API key", str(error), error.exit_code)
    return CheckResult("API key", "found; `ingestor check --connect` tests whether the provider accepts it")


def _check_folder(name: str, path: Path) -> CheckResult:
    existing = _nearest_existing(path)
    if not existing.is_dir():
        message = f"{existing} is a file instead of a folder; move it, or choose another path in config.yaml"
        return CheckResult(name, message, 74)
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        message = f"{existing} is on a read-only file system; mount it writable, or choose another path in config.yaml"
        return CheckResult(name, message, 74)
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        message = f"{existing} is not writable by this user; chown it, or choose another path in config.yaml"
        return CheckResult(name, message, 77)
    return CheckResult(name, f"{path} is writable")


def _nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that this user can see."""
    # Unlike Path.exists, this does not raise below a folder that may not be searched.
    return next(place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110


def _check_database(config: Config) -> CheckResult:
    url = config.database.url.get_secret_value()
    path = sqlite_path(url)
    if path and _nearest_existing(path) != path:
        folder = _check_folder("database", path)
        return folder if folder.exit_code else CheckResult("database", f"{path} is created by the first run")
    try:
        if path:
            refuse_other_daemon(config, path)
        return _check_schema(url, config.database.migrate)
    except IngestorError as error:
        return CheckResult("database", str(error), error.exit_code)


def _check_schema(url: str, migrate_setting: str) -> CheckResult:
    with open_database(url) as engine:
        revision = migrate.current_revision(engine)
        migrate.refuse_unsupported(revision)
        if revision != migrate.head_revision() and migrate_setting == "never":
            migrate.verify_revision(engine)
        if sqlite_path(url) is None:  # a server has permissions, and sessions that only read
            migrate.verify_write_access(engine)
        closed_schema = migrate.find_closed_schema(engine) if migrate_setting == "auto" else None
        hosts = postgres_hosts(engine)
    message = f"{mask_url(url)}: schema {revision or 'empty'}"
    if revision != migrate.head_revision():
        message += f", `ingestor run` upgrades to {migrate.head_revision()}"
    if hosts:
        message += f"; {'; '.join((f'{hosts.answered} answers', *hosts.passed_over))}"
    if closed_schema:
        message += (
            f"; the next upgrade needs a permission that this user lacks: GRANT CREATE ON SCHEMA {closed_schema} to it,"
            " or set database.migrate to never, and let the owner run `ingestor db upgrade`"
        )
    return CheckResult("database", message, warning=bool(closed_schema))


def _check_database_tls(config: Config) -> Iterator[CheckResult]:
    hosts, sslmode = find_unencrypted_hosts(config.database.url.get_secret_value(), os.environ)
    if hosts:
        message = (
            f"the connection to {', '.join(hosts)} may be unencrypted (sslmode {sslmode}), password and data included;"
            " append ?sslmode=verify-full to database.url, or require if its certificate cannot be verified"
        )
        yield CheckResult("database TLS", message, warning=True)


def _check_sqlite_version() -> CheckResult:
    if sqlite3.sqlite_version_info >= SAFE_SQLITE:
        return CheckResult("SQLite", sqlite3.sqlite_version)
    message = (
        f"{sqlite3.sqlite_version}: before 3.51.3, two connections that write to one database may corrupt it at a"
        " checkpoint; the ingestor writes with one connection, so let other programs only read"
    )
    return CheckResult("SQLite", message, warning=True)


@dataclass(frozen=True, slots=True)
class LoadEstimate:
    """An upper bound of what the subscriptions bring per day."""

    samples: float
    received_bytes: float  # of responses, which mostly repeat earlier rows

    @property
    def kept_bytes(self) -> float:
        """What a day of it takes in the spool once it is committed."""
        compressed = min(self.received_bytes, COMPRESSED_BYTES_PER_DAY)
        return self.received_bytes - compressed * (1 - COMPRESSED_SHARE)


def estimate_load(config: Config) -> LoadEstimate:
    """Estimate the load from the catalog. An unknown endpoint counts as one metric per minute."""
    samples = received_bytes = 0.0
    for subscription in config.subscriptions:
        feed = FEEDS.get(base_name(subscription.path))
        buckets = DAY_SECONDS / (feed.cadence_seconds if feed else 60)
        rows = buckets * (1 if subscription.ticker else ASSUMED_TICKERS)
        samples += rows * (len(set(feed.metrics.values())) if feed else 1)
        received_bytes += rows * ROW_BYTES * (1 if subscription.path in STREAMS else WINDOW_ROWS)
    return LoadEstimate(samples, received_bytes)


def _check_growth(config: Config, load: LoadEstimate) -> CheckResult:
    stored = IN_SQLITE if sqlite_path(config.database.url.get_secret_value()) else IN_POSTGRES
    message = f"at most {load.samples:,.0f} samples per day, about {_format_size(load.samples * stored.sample_bytes)}"
    retention, payload_bytes = config.database.retention.payloads, load.received_bytes * stored.text_share
    if retention is None:
        message += f"; payloads add {_format_size(payload_bytes)} per day, see database.retention.payloads"
    elif retention:
        size = _format_size(payload_bytes * retention / DAY_SECONDS)
        message += f"; payloads, kept for {format_duration(retention)}, add {size} in total"
    return CheckResult("growth", message)


def _check_keep(config: Config, load: LoadEstimate) -> CheckResult:
    """How far the database may go back without a loss. Space for this is no space for an outage."""
    keep = config.spool.keep
    if not (keep.time and keep.size):
        return CheckResult("keep", "nothing (spool.keep): if the database goes back, what it had committed is lost")
    hours = keep.size / load.kept_bytes * 24
    bound = f"{_format_size(keep.size)}, spool.keep.size"
    if hours * 3600 >= keep.time:
        hours, bound = keep.time / 3600, f"spool.keep.time, about {_format_size(_kept_bytes(config, load))}"
    return CheckResult("keep", f"the database may go back by {hours:,.1f} h without a loss ({bound})")


def _kept_bytes(config: Config, load: LoadEstimate) -> float:
    """What the spool keeps at most: nothing if either limit is 0."""
    keep = config.spool.keep
    return min(keep.size, load.kept_bytes * keep.time / DAY_SECONDS)


def _check_disks(config: Config, load: LoadEstimate) -> Iterator[CheckResult]:
    """Check that the spool fits on its disk, and estimate how long a SQLite database does."""
    folder = _nearest_existing(config.spool.path)
    free = shutil.disk_usage(folder).free
    spool_bytes = config.spool.max_bytes + _kept_bytes(config, load)
    file = config.spool.path / "spool.db"
    too_small = free + (file.stat().st_size if os.access(file, os.R_OK) else 0) < spool_bytes
    remedy = f", less than the {_format_size(spool_bytes)} for spool.max_bytes and spool.keep: free some, or lower them"
    yield CheckResult("disk", f"{_format_size(free)} free at {folder}{remedy if too_small else ''}", warning=too_small)
    if path := sqlite_path(config.database.url.get_secret_value()):
        folder = _nearest_existing(path)
        free = shutil.disk_usage(folder).free
        retention = config.database.retention.payloads
        payload_bytes = load.received_bytes * IN_SQLITE.text_share  # per day
        bytes_per_day = load.samples * IN_SQLITE.sample_bytes + (payload_bytes if retention is None else 0)
        days = max(free - payload_bytes * (retention or 0) / DAY_SECONDS, 0) / bytes_per_day
        message = f"{_format_size(free)} free at {folder}, enough for about {days:,.0f} days of data"
        yield CheckResult("database disk", message, warning=days < 30)


def _format_size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
