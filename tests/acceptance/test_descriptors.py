"""A daemon that can open no more files or sockets, because others have used them up or its limit is low."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.faulty_simulator import FaultySimulator

from ..support.daemon import until, write_config
from ..support.fork_server import ForkedDaemon, ForkServer

SUBSCRIPTIONS = {"/real-time/crowd-sentiment": ["AAPL"], "/real-time/tweet-buzz": ["AAPL"]}


@pytest.fixture
async def daemon(fork_server: ForkServer, simulator: FaultySimulator, tmp_path: Path) -> AsyncIterator[ForkedDaemon]:
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    config = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions=SUBSCRIPTIONS)
    async with ForkedDaemon(fork_server, config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        yield daemon
        assert await daemon.terminate() == 0
    assert "Traceback" not in daemon.stderr


def limit_descriptors(daemon: ForkedDaemon, number: int) -> None:
    hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (number, hard))


@asynccontextmanager
async def no_descriptors(daemon: ForkedDaemon) -> AsyncIterator[None]:
    """Let every attempt of the daemon to open a file or socket fail during the block."""
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0]
    limit_descriptors(daemon, 3)
    yield
    limit_descriptors(daemon, before)


async def test_without_descriptors_daemon_waits_and_says_what_to_do(
    daemon: ForkedDaemon, simulator: FaultySimulator
) -> None:
    async with no_descriptors(daemon):
        await simulator.kick()
        os.kill(daemon.pid, signal.SIGHUP)
        await until(lambda: "LimitNOFILE" in daemon.stderr)
        await asyncio.sleep(0.5)
    await daemon.wait_until_live()


async def test_idle_http_connections_leave_descriptors_for_data(
    daemon: ForkedDaemon, simulator: FaultySimulator
) -> None:
    in_use = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
    limit_descriptors(daemon, in_use + 100)
    host, port = daemon.address
    idle = [await asyncio.open_connection(host, port) for _ in range(300)]
    try:
        assert (await asyncio.to_thread(daemon.get, "/healthz"))[0] == 200
        await simulator.kick()
        await until(lambda: daemon.stderr.count('"kind": "connected"') >= 2 * len(SUBSCRIPTIONS))
        await daemon.wait_until_live()
    finally:
        for _, writer in idle:
            writer.transport.abort()
