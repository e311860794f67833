"""Lead a real daemon into each state that the status page must explain, and take pictures in two widths.

The provider is the simulator. The database is SQLite, or a PostgreSQL server that can be stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import SecretStr

from ingestor.config import load
from ingestor.daemon.service import Service
from tests.support.browser import Browser
from tests.support.daemon import until, write_config
from tests.support.faulty_simulator import FaultySimulator
from tests.support.postgres_server import find_binaries, own_server

CROWD, VOLUME = "/real-time/crowd-sentiment", "/real-time/tweet-volume"
WANTED: Mapping[str, Sequence[str]] = {CROWD: ["AAPL", "TSLA", "ON", "6E_F"], VOLUME: ["AAPL", "TSLA"]}
WIDTHS = (1280, 390)
VERDICT = "document.getElementById('verdict').innerText.replace(/\\s+/g, ' ')"
ROWS = "document.querySelectorAll('.row .trace').length > 1"
# What the page shows in the end of each state: its verdict begins with it.
VERDICTS = {
    "starting": "Starting",
    "fine": "Receiving",
    "partly": "Partly receiving",
    "provider-outage": "Not ready",
    "key-refused": "Not ready",
    "database-outage": "Not ready",
    "spool-full": "Not ready",
    "two-instances": "Receiving",
    "many": "Partly receiving",
    "gone": "No response",
}

Look: TypeAlias = Callable[[str], Awaitable[None]]  # looks at the page in the state of this name
Show: TypeAlias = Callable[..., Awaitable[None]]  # waits until the page shows the state, and looks at it


class Daemon:
    """A daemon in this process, and its page."""

    def __init__(self, folder: Path, simulator_url: str, api_key: str, database_url: str, **options: Any) -> None:
        folder.mkdir()
        wanted = options.pop("wanted", WANTED)
        file = write_config(folder, url=simulator_url, database_url=database_url, subscriptions=wanted, **options)
        self.service = Service(load(file, env={"INGESTOR_INSTANCE": folder.name}), SecretStr(api_key))

    async def __aenter__(self) -> Service:
        self._task = asyncio.create_task(self.service.run())
        await until(lambda: self.service.url)
        return self.service

    async def __aexit__(self, *_: object) -> None:
        self.service.stop()
        await self._task


def is_live(service: Service) -> bool:
    return all(item.state == "live" for item in service.status().subscriptions)


async def visit_states(folder: Path, browser: Browser, look: Look) -> None:
    """Lead daemons into each state, open the page, wait for its verdict, and call ``look``."""

    async def show(name: str, service: Service | None, ready: str = "true") -> None:
        if service:
            await browser.open(str(service.url))
        await browser.until(f"{VERDICT}.startsWith('{VERDICTS[name]}') && ({ready})")
        await look(name)

    for visit in (_visit_provider_states, _visit_database_states, _visit_many):
        await visit(folder, show)


async def _visit_provider_states(folder: Path, show: Show) -> None:
    database = f"sqlite:///{folder}/desk.db"
    silent = await asyncio.start_server(_never_answer, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with Daemon(folder / "starting", f"http://127.0.0.1:{port}", "key", f"sqlite:///{folder}/new.db") as service:
        await show("starting", service)
    silent.close()
    async with _simulator() as simulator:
        async with Daemon(folder / "refused", simulator.url, "wrong", f"sqlite:///{folder}/wrong.db") as service:
            await until(lambda: any(item.last_error for item in service.status().connections))
            await show("key-refused", service)
        async with Daemon(folder / "desk", simulator.url, simulator.api_key, database) as service:
            await until(lambda: is_live(service))
            await asyncio.sleep(4)
            await show("fine", service, f"{ROWS} && document.querySelector('.strip .live')")
            await simulator.stop()
            await until(lambda: not any(item.connected for item in service.status().connections))
            await show("provider-outage", service, ROWS)
            await simulator.start()
        await show("gone", None)


async def _visit_database_states(folder: Path, show: Show) -> None:
    binaries = find_binaries()
    assert binaries, "PostgreSQL is needed"
    async with AsyncExitStack() as stack:
        server = stack.enter_context(own_server(binaries))
        simulator = await stack.enter_async_context(_simulator())
        small = {"spool": {"max_bytes": "16MiB"}}
        options = (simulator.url, simulator.api_key, server.url())
        service = await stack.enter_async_context(Daemon(folder / "host1", *options, **small))
        async with Daemon(folder / "host2", *options) as second:
            await until(lambda: is_live(service) and is_live(second))
            await until(lambda: len(service.status().instances) == 2, 90)
            await show("two-instances", service, f"{ROWS} && document.querySelector('.strip')")
        server.stop()
        await until(lambda: not service.status().database.up)
        await asyncio.sleep(12)  # until the strips are old, and the outage has a length
        await show("database-outage", None, "!document.getElementById('coverage-stale').hidden")
        while not service.status().spool.full:
            await simulator.burst(50, rows=1_000)
        await show("spool-full", None, f"{VERDICT}.includes('full')")
        server.start()


async def _visit_many(folder: Path, show: Show) -> None:
    tickers = tuple(f"T{number:04}" for number in range(5_000))
    async with _simulator(tickers=tickers) as simulator:
        simulator.refuse("T0309", "Restricted ticker")
        wanted = {CROWD: list(tickers)}
        database = f"sqlite:///{folder}/many.db"
        async with Daemon(folder / "many", simulator.url, simulator.api_key, database, wanted=wanted) as service:
            await until(lambda: sum(item.state == "live" for item in service.status().subscriptions) > 300, 60)
            await show("many", service, f"{ROWS} && document.querySelector('.strip')")


def _simulator(**options: Any) -> FaultySimulator:
    return FaultySimulator(seed=11, cadence_seconds=1, window_seconds=60, restate_every=9, **options)


async def _never_answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)
    writer.close()
