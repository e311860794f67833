"""Reload the config while the daemon runs.

A valid config's subscriptions and API key take effect at once; other changes need a restart, and are named. An invalid
config changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ingestor.config import Config, changed_settings, list_files, list_secrets, load, require_api_key
from ingestor.core.clock import wall_us
from ingestor.core.entries import Fact
from ingestor.core.os_errors import describe_os_error
from ingestor.core.redaction import redactor
from ingestor.core.threads import run_in_daemon_thread
from ingestor.errors import ConfigError, ConfigProblem
from ingestor.provider import catalog
from ingestor.provider.subscriptions.supervisor import SubscriptionDiff

WATCH_SECONDS = 1.0
MAX_PROBLEMS = 20  # recorded per fact; the log has all

T = TypeVar("T")

log = logging.getLogger(__name__)


class ConfigReloader:
    """Holds the config in force and replaces it. One reload runs at a time; calls meanwhile share the next one."""

    def __init__(
        self,
        config: Config,
        apply: Callable[[Config], SubscriptionDiff],
        record: Callable[[Fact], object],
        *,
        on_begin: Callable[[], object],
        on_end: Callable[[], object],
    ) -> None:
        """``apply`` puts subscriptions and API key into effect.

        ``on_begin`` is called for every reload, ``on_end`` when none is running or waiting any longer, so that
        a caller that waits for the last reload does not see the end of an earlier one.
        """
        self.config = config  # in force
        self.successful = True  # the last reload
        self._apply = apply
        self._record = record
        self._on_begin = on_begin
        self._on_end = on_end
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Task[dict[str, Any]] | None = None  # the reload that has not read the config yet
        self._pending = 0  # reloads that run or wait for the lock
        self._outcome: object = None  # of the last reload, as it was recorded

    @property
    def is_waiting(self) -> bool:
        """Whether a reload is waiting that will read the config as it is now, or later."""
        return self._waiting is not None

    async def reload(self) -> dict[str, Any]:
        """Read and apply the config. Return the number of changes, and the settings that need a restart.

        Shares the reload that is waiting, if there is one. Raises ConfigError, after recording it; the config in force
        stays.
        """
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._reload(), name="config reload")
            self._waiting.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # all callers may be cancelled
            self._pending += 1
            self._on_begin()
        return await asyncio.shield(self._waiting)

    async def _reload(self) -> dict[str, Any]:
        try:
            async with self._lock:
                self._waiting = None  # the file may be read before a change that is still to come
                config = await _in_thread(partial(read_config, self.config.source))
                return self._accept(config, self._apply(config))
        except ConfigError as error:
            self._reject(error)
            raise
        finally:
            self._pending -= 1
            if not self._pending:
                self._on_end()

    async def watch(self, on_change: Callable[[], object]) -> None:
        """Call ``on_change`` each time a file was changed and stays unchanged for a second. Never returns.

        These are the config file and the files of tickers that it names, even if what it contains is invalid.
        """
        files = _WatchedFiles(self.config.source)
        before = stat = await _in_thread(files.look)
        # A file may have changed between the daemon's start and now.
        is_loaded = await _in_thread(partial(_read_sha256, self.config.source)) == self.config.sha256
        reported = stat if is_loaded else ()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            with suppress(ConfigError):  # no thread
                before, stat = stat, await _in_thread(files.look)
            if stat == before != reported:  # not while somebody is still writing it
                reported = stat
                on_change()

    def _reject(self, error: ConfigError) -> None:
        self.successful = False
        problems = [str(problem) for problem in error.problems]
        for problem in problems:
            log.error("config rejected, keeping the current one: %s", problem)
        reason = "the new config is invalid; the current one stays in force"
        if self._is_news(problems):
            self._record(Fact("config_rejected", wall_us(), {"reason": reason, "problems": problems[:MAX_PROBLEMS]}))

    def _accept(self, config: Config, diff: SubscriptionDiff) -> dict[str, Any]:
        needs_restart = changed_settings(self.config, config)
        # Settings that need a restart are not in force, and must still differ at the next reload.
        self.config = self.config.model_copy(update={"subscriptions": config.subscriptions, "sha256": config.sha256})
        self.successful = True
        changes = {"added": len(diff.added), "removed": len(diff.removed), "needs_restart": list(needs_restart)}
        if self._is_news((config.sha256, needs_restart)) or diff.added or diff.removed:
            self._record(Fact("config_reloaded", wall_us(), {"sha256": config.sha256, **changes}))
        else:
            log.info("config reloaded, nothing has changed since the last reload")
        for warning in catalog.find_warnings(config):
            log.warning("config: %s", warning)
        if needs_restart:
            log.warning("restart required for changes to: %s", ", ".join(needs_restart))
        return changes

    def _is_news(self, outcome: object) -> bool:
        """Return whether this outcome differs from that of the last reload: a script may ask every second, for days."""
        before, self._outcome = self._outcome, outcome
        return outcome != before


async def _in_thread(call: Callable[[], T]) -> T:
    try:
        return await run_in_daemon_thread(call, "config file")
    except OSError as error:
        raise ConfigError([ConfigProblem("", "", describe_os_error(error.errno, str(error)))]) from None


def read_config(source: Path) -> Config:
    """Read the config file. Blocking. Raises ConfigError, also if there is no API key any longer."""
    config = load(source, feed_name=catalog.feed_name)
    require_api_key(config)
    for secret in list_secrets(config):
        redactor.add(secret)
    return config


def _read_sha256(source: Path) -> str:
    try:
        return load(source).sha256
    except ConfigError:
        return ""


class _WatchedFiles:
    """The config file and what it refers to. Reads the config again only if it was changed."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._stat: tuple[int, ...] | None = None
        self._files: tuple[Path, ...] = ()

    def look(self) -> tuple[tuple[int, ...], ...]:
        """Return what changes with any of the files. Blocking."""
        stat = _stat_fields(self._source)
        if stat != self._stat:
            self._stat, self._files = stat, list_files(self._source, os.environ)
        return stat, *map(_stat_fields, self._files)


def _stat_fields(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()  # the file is being replaced, or is gone; then reading it raises the error
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
