"""``python -m tests.tools.screenshots``: take a screenshot of the status page after an eventful day.

The events of the day are put into the spool as facts. A real daemon then starts with this spool and the simulator. For
a sixth of the time, its database is locked.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image
from pydantic import SecretStr

from ingestor.config import Config, load
from ingestor.core.clock import wall_us
from ingestor.core.entries import Fact, State, SubscriptionKey
from ingestor.daemon.service import Service
from ingestor.monitoring import log_setup
from ingestor.spool.spool import Spool
from tests.support.browser import Browser, chromium
from tests.support.daemon import until, write_config
from tests.support.faulty_simulator import FaultySimulator
from tests.tools.screenshots import states

PICTURE = Path(__file__).with_name("status.png")
WIDTH, HEIGHT = 1280, 1000
HOUR_US = 3_600_000_000
CROWD, PROPHIT, VOLUME = (
    f"/real-time/{name}" for name in ("crowd-sentiment", "market-prophit-sentiment", "tweet-volume")
)
WANTED = {
    CROWD: ["AAPL", "TSLA", "ON", "6E_F", "CMGO", "EURAUD", "GOOG", "MSFT", "AMZN", "NVDA", "META", "NFLX"],
    PROPHIT: ["AAPL", "TSLA", "NVDA"],
    VOLUME: ["AAPL", "TSLA", "GOOG", "AMZN"],
}
# (path or all, ticker or all, hours ago, state, reason)
DAY: Sequence[tuple[str, str, float, State, str]] = (
    ("", "", 26.0, "live", ""),
    (PROPHIT, "", 21.4, "silent", "no data for 600 s; replacing the connection"),
    (PROPHIT, "", 20.9, "live", ""),
    ("", "", 15.2, "disconnected", "the server closed the connection"),
    ("", "", 14.1, "token_failed", "https://open.marketprophit.com/jwt: 503"),
    ("", "", 13.6, "live", ""),
    (VOLUME, "GOOG", 9.0, "refused", "invalid_request_error: Restricted ticker"),
    (VOLUME, "GOOG", 6.2, "live", ""),
    ("", "", 4.3, "crashed", "previous run did not shut down cleanly"),
    ("", "", 4.1, "live", ""),
    ("", "", 0.005, "stopped", "daemon stopped"),
)


def facts(config: Config) -> Iterator[Fact]:
    """Yield the facts of the day, as its daemon would have recorded them."""
    now = wall_us()
    for path, ticker, hours, state, reason in DAY:
        keys: tuple[SubscriptionKey, ...] = tuple(
            subscription.key
            for subscription in config.subscriptions
            if path in ("", subscription.path) and ticker in ("", subscription.ticker)
        )
        at_us = now - round(hours * HOUR_US)
        yield Fact(state, at_us, {"reason": reason}, state, keys, at_us)


async def fill_spool(config: Config) -> None:
    """Put the day's facts into the spool."""
    spool = Spool(config.spool.path, max_bytes=config.spool.max_bytes, sync_every_seconds=config.spool.sync_every)
    spool.start(lambda failure: None)
    for fact in facts(config):
        spool.append(fact)
    await spool.durable(spool.head)
    await spool.close()


async def lock(database: Path, seconds: float) -> None:
    """Keep the daemon from writing."""
    with sqlite3.connect(database, isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(seconds)
        connection.execute("ROLLBACK")
    connection.close()


async def take_screenshot(browser: Browser, url: str, file: Path, *, width: int = WIDTH, scheme: str = "light") -> None:
    await browser.size(width, HEIGHT, phone=width < 700)
    await browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await browser.open(url)
    await browser.until(
        "document.querySelectorAll('.row .trace').length > 10 && document.querySelector('.strip .live')"
    )
    await asyncio.sleep(0.5)  # until the answers of the first requests are drawn
    save(await browser.screenshot(), file)


async def take_states(folder: Path, pictures: Path) -> None:
    """Take two pictures of each state: ``NAME-1280.png`` and ``NAME-390.png``."""
    pictures.mkdir(parents=True, exist_ok=True)
    with chromium(folder / "profile") as browser:

        async def look(name: str) -> None:
            for width in states.WIDTHS:
                await browser.size(width, HEIGHT, phone=width < 700)
                await asyncio.sleep(0.3)  # until the page has drawn itself in this width
                save(await browser.screenshot(), pictures / f"{name}-{width}.png")
                print(pictures / f"{name}-{width}.png", flush=True)

        await states.visit_states(folder, browser, look)


def save(screenshot: bytes, file: Path) -> None:
    with Image.open(BytesIO(screenshot)) as picture:
        # The page has few colors: a palette makes the file a third as large.
        picture.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


async def main(folder: Path, seconds: float, extra: Path | None) -> None:
    # A value every five seconds, so that a few minutes make a chart.
    async with FaultySimulator(seed=11, cadence_seconds=5, window_seconds=300, restate_every=9) as simulator:
        simulator.refuse("NFLX", "Restricted ticker")
        database = folder / "ingestor.db"
        file = write_config(folder, url=simulator.url, database_url=f"sqlite:///{database}", subscriptions=WANTED)
        config = load(file, env={"INGESTOR_INSTANCE": "desk-2"})
        await fill_spool(config)
        service = Service(config, SecretStr(simulator.api_key))
        daemon = asyncio.create_task(service.run())
        await until(lambda: service.url and service.status().database.up)
        await asyncio.sleep(seconds / 3)
        await lock(database, seconds / 6)
        await asyncio.sleep(seconds / 2)
        with chromium(folder / "profile") as browser:
            await take_screenshot(browser, str(service.url), PICTURE)
            if extra:
                await take_screenshot(browser, str(service.url), extra / "dark.png", scheme="dark")
                await take_screenshot(browser, str(service.url), extra / "phone.png", width=390)
        service.stop()
        await daemon
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.tools.screenshots", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=240, help="how long the daemon runs before the screenshot (default 240)"
    )
    parser.add_argument("--extra", type=Path, help="a folder for two further screenshots: dark.png and phone.png")
    parser.add_argument("--states", type=Path, help="take pictures of every state into this folder instead")
    options = parser.parse_args()
    log_setup.configure("critical", "console")
    logging.getLogger("ingestor").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        if options.states:
            asyncio.run(take_states(Path(name), options.states))
        else:
            asyncio.run(main(Path(name), options.seconds, options.extra))
