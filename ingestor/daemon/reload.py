"""Reload the config while the daemon runs.

A valid config's subscriptions and API key take effect at once; other changes need a restart, and are named. An invalid
config changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingestor.config import Config, changed_settings, list_secrets, load, require_api_key
from ingestor.core.clock import wall_us
from ingestor.core.entries import Fact
from ingestor.core.redaction import redactor
from ingestor.errors import ConfigError
from ingestor.provider import catalog
from ingestor.provider.subscriptions.supervisor import SubscriptionDiff

WATCH_SECONDS = 1.0
MAX_PROBLEMS = 20  # recorded per fact; the log has all

log = logging.getLogger(__name__)


class ConfigReloader:
    """Holds the config in force, and replaces it, one reload at a time."""

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
        self._pending = 0  # reloads that run or wait for the lock

    async def reload(self) -> dict[str, Any]:
        """Read and apply the config. Return the number of changes, and the settings that need a restart.

        Raises ConfigError, after recording it; the config in force stays.
        """
        self._on_begin()
        self._pending += 1
        try:
            async with self._lock:
                config = await asyncio.to_thread(read_config, self.config.source)
                return self._accept(config, self._apply(config))
        except ConfigError as error:
            self._reject(error)
            raise
        finally:
            self._pending -= 1
            if not self._pending:
                self._on_end()

    async def watch(self, on_change: Callable[[], object]) -> None:
        """Call ``on_change`` each time the config file was changed and stays unchanged for a second. Never returns."""
        source = self.config.source
        stat = await asyncio.to_thread(_stat_fields, source)
        # The file may have changed between the daemon's start and now.
        is_loaded = await asyncio.to_thread(_sha256, source) == self.config.sha256
        reported = stat if is_loaded else ()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            before, stat = stat, await asyncio.to_thread(_stat_fields, source)
            if stat == before != reported:  # not while somebody is still writing it
                reported = stat
                on_change()

    def _reject(self, error: ConfigError) -> None:
        self.successful = False
        problems = [str(problem) for problem in error.problems]
        for problem in problems:
            log.error("config rejected, keeping the current one: %s", problem)
        reason = "the new config is invalid; the current one stays in force"
        self._record(Fact("config_rejected", wall_us(), {"reason": reason, "problems": problems[:MAX_PROBLEMS]}))

    def _accept(self, config: Config, diff: SubscriptionDiff) -> dict[str, Any]:
        needs_restart = changed_settings(self.config, config)
        # Settings that need a restart are not in force, and must still differ at the next reload.
        self.config = self.config.model_copy(update={"subscriptions": config.subscriptions, "sha256": config.sha256})
        self.successful = True
        changes = {"added": len(diff.added), "removed": len(diff.removed), "needs_restart": list(needs_restart)}
        self._record(Fact("config_reloaded", wall_us(), {"sha256": config.sha256, **changes}))
        if needs_restart:
            log.warning("restart required for changes to: %s", ", ".join(needs_restart))
        return changes


def read_config(source: Path) -> Config:
    """Read the config file. Blocking. Raises ConfigError, also if there is no API key any longer."""
    config = load(source, feed_name=catalog.feed_name)
    require_api_key(config)
    for secret in list_secrets(config):
        redactor.add(secret)
    return config


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _stat_fields(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()  # the file is being replaced, or is gone; then reading it raises the error
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
