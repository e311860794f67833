"""The common part of outage tests: a feed, a daemon that stores its events, and the reconciliation at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Set
from pathlib import Path
from typing import Any, Self

from .daemon import until, write_config
from .fork_server import ForkedDaemon, ForkServer
from .numbered_feed import KEY, PATH, TICKERS, NumberedFeed
from .reconciliation import Reconciliation, assert_balances, assert_complete

DRAIN_SECONDS = 60
# Between two acknowledgements while the database is down. A busy machine may stand still for half of it; a wait for
# SQLite's lock would take 5 s.
MAX_ACK_PAUSE_SECONDS = 4.0


class OutageScenario:
    """``async with OutageScenario(fork_server, folder, database_url) as outage``: a live daemon and a sending feed."""

    def __init__(
        self,
        fork_server: ForkServer,
        folder: Path,
        database_url: str,
        *,
        rate: float = 300,
        one_row: bool = False,
        **sections: dict[str, Any],
    ) -> None:
        self.feed = NumberedFeed(rate=rate, one_row=one_row)
        self._fork_server = fork_server
        self._folder = folder
        self._database_url = database_url
        self._sections = sections

    async def __aenter__(self) -> Self:
        await self.feed.__aenter__()
        config = write_config(
            self._folder,
            url=self.feed.url,
            database_url=self._database_url,
            subscriptions={PATH: TICKERS},
            **self._sections,
        )
        self.daemon = ForkedDaemon(self._fork_server, config, KEY)
        self.spool = Path(self._sections.get("spool", {}).get("path", self._folder / "spool"))
        self.daemon.start()
        await self.daemon.wait_until_live()
        await until(lambda: self.feed.acknowledged)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.daemon.kill()
        await self.feed.__aexit__()

    async def assert_receives_for(self, seconds: float) -> None:
        """Assert that the daemon acknowledges events for this time, and after it."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            pause = now - max(self.feed.acknowledged_at, end - seconds)
            assert pause < MAX_ACK_PAUSE_SECONDS, self.daemon.stderr
            await asyncio.sleep(0.01)
        await until(lambda: self.feed.acknowledged_at > end, MAX_ACK_PAUSE_SECONDS)

    async def wait_until_drained(self) -> None:
        """Wait until the daemon has written everything it has received so far."""
        received = self.daemon.status["spool"]["head_seq"]
        await until(lambda: self._acked() >= received, DRAIN_SECONDS)

    async def stop_feed(self) -> None:
        """Stop the feed's events, and wait until all of them are written."""
        self.feed.rate = 0
        await asyncio.sleep(0.3)  # until events in flight have arrived
        await self.wait_until_drained()

    async def finish(self, without: Set[int] = frozenset()) -> Reconciliation:
        """Stop feed and daemon, and reconcile. ``without``: events that the test deleted after they were written."""
        await self.stop_feed()
        assert await self.daemon.terminate(timeout_seconds=20) == 0
        await assert_balances(self.daemon, self._fork_server)
        db, feed = self.daemon.db, self.feed
        found = assert_complete(db, self.spool, feed.event_count, feed.acknowledged - without, whole=not without)
        print(found)
        return found

    def _acked(self) -> int:
        status = self.daemon.status
        return int(status["spool"]["acked_seq"]) if status else -1
