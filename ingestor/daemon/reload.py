"""The config read anew while the daemon runs: what can change does, the rest is named, a broken one changes nothing.

Subscriptions change on the live connections. All else was given to its part at the start, and waits for the next.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from ingestor.config import Config, changed_settings, list_secrets, load, require_api_key
from ingestor.core.clock import wall_us
from ingestor.core.entries import Fact
from ingestor.core.redaction import redactor
from ingestor.errors import ConfigError
from ingestor.provider import catalog
from ingestor.provider.subscriptions.supervisor import SubscriptionDiff

WATCH_SECONDS = 1.0
TOLD = 20  # problems in one fact

log = logging.getLogger(__name__)


ApplyConfig: TypeAlias = Callable[[Config], SubscriptionDiff]


class ConfigReloader:
    """Takes the place of the config in force, one reload at a time."""

    def __init__(
        self, config: Config, read: Callable[[], Config], apply: ApplyConfig, record: Callable[[Fact], object]
    ) -> None:
        """``read`` may block, and raises ConfigError; ``apply`` brings about a config's subscriptions and key."""
        self.config = config  # in force
        self.successful = True  # the last one
        self._read = read
        self._apply = apply
        self._record = record
        self._one_at_a_time = asyncio.Lock()

    async def reload(self) -> dict[str, Any]:
        """Read and apply; what has changed, as facts and commands tell it.

        Raises ConfigError, and has told of it: then the one in force stays.
        """
        async with self._one_at_a_time:
            try:
                new = await asyncio.to_thread(self._read)
            except ConfigError as error:
                self._rejected(error)
                raise
            return self._accepted(new, self._apply(new))

    async def watch(self, changed: Callable[[], object]) -> None:
        """Call ``changed`` whenever the file is another and at rest again. Runs until cancelled."""
        seen = await self._look()
        # It may be another since it was read at the start, which takes its time.
        known = seen if await asyncio.to_thread(_sha256, self.config.source) == self.config.sha256 else ()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            before, seen = seen, await self._look()
            # At rest: whoever writes it may not be at the end yet.
            if seen == before != known:
                known = seen
                changed()

    async def _look(self) -> tuple[int, ...]:
        return await asyncio.to_thread(_stamp, self.config.source)

    def _rejected(self, error: ConfigError) -> None:
        self.successful = False
        problems = [str(problem) for problem in error.problems]
        for problem in problems:
            log.error("the config is not taken: %s", problem)
        reason = "the new config has mistakes; the one before stays in force"
        self._record(Fact("config_rejected", wall_us(), {"reason": reason, "problems": problems[:TOLD]}))

    def _accepted(self, new: Config, difference: SubscriptionDiff) -> dict[str, Any]:
        waiting = changed_settings(self.config, new)
        # What waits for a restart is not in force, and must still differ at the next reload.
        self.config = self.config.model_copy(update={"subscriptions": new.subscriptions, "sha256": new.sha256})
        self.successful = True
        counts = {"added": len(difference.added), "removed": len(difference.removed), "needs_restart": list(waiting)}
        self._record(Fact("config_reloaded", wall_us(), {"sha256": new.sha256, **counts}))
        if waiting:
            log.warning("these have effect at the next start only: %s", ", ".join(waiting))
        return counts


def read_config(source: Path) -> Config:
    """The config as it is now, blocking. Raises ConfigError, also where there is no key any more."""
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


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()  # between two versions of it, or gone: reading it will say so
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
