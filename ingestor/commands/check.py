"""What `ingestor check` looks at, without touching anything: one finding each, with what to do. Goes on to the end."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingestor.config import Config, require_api_key
from ingestor.config.units import format_duration
from ingestor.config.urls import find_unencrypted_host, mask_url, origin
from ingestor.errors import IngestorError
from ingestor.provider.catalog import FEEDS, STREAMS, base_name
from ingestor.store import migrate
from ingestor.store.engine import sqlite_path
from ingestor.store.open_database import open_database

# Measured: 200,000 samples took 19.1 MB of a SQLite file. A row of a printed answer has some 85 characters, and an
# answer of /real-time/… is a rolling window of about an hour of minutes; a stream sends what is new.
SAMPLE_BYTES = 100
ROW_BYTES = 85
WINDOW_ROWS = 60
DAY_SECONDS = 86_400
TICKERS_OF_ALL = 5_000  # what a subscription without ticker is taken for
SAFE_SQLITE = (3, 51, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One thing that was looked at. ``exit_code`` is 0 where nothing is in the way."""

    name: str
    message: str
    exit_code: int = 0
    warning: bool = False
    seconds: float | None = None  # that it took, where that tells something


def run_offline_checks(config: Config) -> Iterator[CheckResult]:
    """Everything that can be known without the provider. The database is only read."""
    tickers = len(config.subscriptions)
    yield CheckResult(name="config", message=f"{config.source}: {tickers} subscription{'s' if tickers != 1 else ''}")
    yield _api_key(config)
    yield _folder("spool", config.spool.path)
    yield from _proxy(config)
    yield _database(config)
    yield from _unencrypted(config)
    yield _sqlite_version()
    load = _load(config)
    yield _growth(config, load)
    yield _outage(config, load)
    yield from _disks(config, load)


def _api_key(config: Config) -> CheckResult:
    try:
        require_api_key(config)
    except IngestorError as error:
        return CheckResult(name="API key", message=str(error), exit_code=error.exit_code)
    return CheckResult(name="API key", message="found; whether the provider takes it only it can say")


def _proxy(config: Config) -> Iterator[CheckResult]:
    if config.proxy is not None:
        proxy = origin(config.proxy.get_secret_value())
        yield CheckResult(
            name="proxy", message=f"{config.provider.url} is reached through {proxy}, as the environment says"
        )


def _folder(name: str, path: Path) -> CheckResult:
    existing = _nearest(path)
    if not existing.is_dir():
        message = f"{existing} is a file, and a folder is wanted there; move it, or name another place in config.yaml"
        return CheckResult(name=name, message=message, exit_code=74)
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        message = f"{existing} cannot be written by this user; chown it, or name another place in config.yaml"
        return CheckResult(name=name, message=message, exit_code=77)
    return CheckResult(name=name, message=f"{path}: can be written")


def _nearest(path: Path) -> Path:
    """The path itself or the nearest folder above it that this user can see."""
    # Unlike Path.exists, this does not raise below a folder that may not be searched.
    return next(place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110


def _database(config: Config) -> CheckResult:
    url = config.database.url.get_secret_value()
    path = sqlite_path(url)
    if path and _nearest(path) != path:
        found = _folder("database", path)
        return found if found.exit_code else CheckResult(name="database", message=f"{path}: made at the first run")
    try:
        return _schema(url, config.database.migrate)
    except IngestorError as error:
        return CheckResult(name="database", message=str(error), exit_code=error.exit_code)


def _schema(url: str, migrates: str) -> CheckResult:
    with open_database(url) as engine:
        found = migrate.current_revision(engine)
        migrate.refuse_unsupported(found)
        if found != migrate.head_revision() and migrates == "never":
            migrate.verify_revision(engine)
    if found == migrate.head_revision():
        return CheckResult(name="database", message=f"{mask_url(url)}: schema {found}")
    message = f"{mask_url(url)}: schema {found or 'empty'}, run makes it {migrate.head_revision()}"
    return CheckResult(name="database", message=message)


def _unencrypted(config: Config) -> Iterator[CheckResult]:
    if found := find_unencrypted_host(config.database.url.get_secret_value(), os.environ):
        host, sslmode = found
        message = (
            f"{host} may be spoken to without TLS (sslmode {sslmode}): password and data can be read on the way;"
            " write ?sslmode=verify-full behind database.url, or require where its certificate cannot be verified"
        )
        yield CheckResult(name="database TLS", message=message, warning=True)


def _sqlite_version() -> CheckResult:
    if sqlite3.sqlite_version_info >= SAFE_SQLITE:
        return CheckResult(name="SQLite", message=sqlite3.sqlite_version)
    message = (
        f"{sqlite3.sqlite_version}: before 3.51.3 two connections that write to one database may damage it at a"
        " checkpoint; the ingestor writes with one, so let other programs only read"
    )
    return CheckResult(name="SQLite", message=message, warning=True)


@dataclass(frozen=True, slots=True)
class LoadEstimate:
    """What the subscriptions bring at most, in a day."""

    samples: float
    received_bytes: float  # of answers, most of which repeat what was there

    @property
    def stored_bytes(self) -> float:
        """What stays of it, without payloads."""
        return self.samples * SAMPLE_BYTES


def _load(config: Config) -> LoadEstimate:
    samples = received_bytes = 0.0
    for one in config.subscriptions:
        known = FEEDS.get(base_name(one.path))
        buckets = DAY_SECONDS / (known.cadence_seconds if known else 60)
        rows = buckets * (1 if one.ticker else TICKERS_OF_ALL)
        samples += rows * (len(set(known.metrics.values())) if known else 1)
        received_bytes += rows * ROW_BYTES * (1 if one.path in STREAMS else WINDOW_ROWS)
    return LoadEstimate(samples, received_bytes)


def _growth(config: Config, load: LoadEstimate) -> CheckResult:
    message = f"at most {load.samples:,.0f} samples a day, some {_size(load.stored_bytes)}"
    kept = config.database.retention.payloads
    if kept is None:
        message += f"; payloads add {_size(load.received_bytes)} a day: see database.retention.payloads"
    elif kept:
        message += f"; payloads of {format_duration(kept)} add {_size(load.received_bytes * kept / DAY_SECONDS)}, once"
    return CheckResult(name="growth", message=message)


def _outage(config: Config, load: LoadEstimate) -> CheckResult:
    hours = config.spool.max_bytes / load.received_bytes * 24
    message = f"{_size(config.spool.max_bytes)} (spool.max_bytes) hold some {hours:,.1f} h of a database that is away"
    return CheckResult(name="outage", message=message, warning=hours < 1)


def _disks(config: Config, load: LoadEstimate) -> Iterator[CheckResult]:
    """Room for the spool; and for a SQLite database, for how long."""
    existing = _nearest(config.spool.path)
    free = shutil.disk_usage(existing).free
    short = free < config.spool.max_bytes
    more = ", less than spool.max_bytes: free some, or lower it" if short else ""
    yield CheckResult(name="disk", message=f"{_size(free)} free at {existing}{more}", warning=short)
    if path := sqlite_path(config.database.url.get_secret_value()):
        existing = _nearest(path)
        free = shutil.disk_usage(existing).free
        kept = config.database.retention.payloads
        payloads = load.received_bytes * (kept or 0) / DAY_SECONDS
        per_day = load.stored_bytes + (load.received_bytes if kept is None else 0)
        days = max(free - payloads, 0) / per_day
        message = f"{_size(free)} free at {existing}: some {days:,.0f} days of what is collected"
        yield CheckResult(name="database disk", message=message, warning=days < 30)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
