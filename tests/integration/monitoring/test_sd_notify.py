from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ingestor.monitoring.sd_notify import SystemdNotifier, feed_watchdog


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """The receiving end, opened as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify") if request.param == "path" else f"\0ingestor-{os.getpid()}")
        channel.settimeout(5)
        yield channel


def environment(manager: socket.socket) -> dict[str, str]:
    name = manager.getsockname()
    return {"NOTIFY_SOCKET": "@" + name[1:].decode() if isinstance(name, bytes) else name}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param(lambda s: s.ready(), "READY=1", id="ready"),
        pytest.param(lambda s: s.ready("drained 3"), "READY=1\nSTATUS=drained 3", id="ready with status"),
        pytest.param(lambda s: s.ready("a\nSTOPPING=1"), "READY=1\nSTATUS=a STOPPING=1", id="status stays on one line"),
        pytest.param(lambda s: s.stopping(), "STOPPING=1", id="stopping"),
        pytest.param(lambda s: s.watchdog(), "WATCHDOG=1", id="watchdog"),
    ],
)
def test_notification_reaches_the_manager(
    manager: socket.socket, call: Callable[[SystemdNotifier], None], expected: str
) -> None:
    call(SystemdNotifier(environment(manager)))
    assert manager.recv(1024).decode() == expected


def test_reload_notification_has_its_time(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    SystemdNotifier(environment(manager)).reloading()
    text, _, microseconds = manager.recv(1024).decode().rpartition("=")
    assert text == "RELOADING=1\nMONOTONIC_USEC"
    assert before <= int(microseconds) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize("env", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_notifier_does_nothing_without_a_manager(env: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    SystemdNotifier(env).ready()
    assert caplog.records == []


def test_missing_manager_is_logged_as_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    (message,) = caplog.messages
    assert message == "could not send READY=1 to systemd, continuing without it: No such file or directory"


async def test_watchdog_is_fed_only_while_the_daemon_is_healthy(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    results = iter([True, True, False, False, True])
    returned: list[bool] = []
    exhausted = asyncio.Event()

    def is_healthy() -> bool:
        result = next(results, None)
        if result is None:
            exhausted.set()
            return False
        returned.append(result)
        return result

    feeding = asyncio.create_task(feed_watchdog(SystemdNotifier(environment(manager)), 0.01, is_healthy))
    await exhausted.wait()
    feeding.cancel()
    with suppress(asyncio.CancelledError):
        await feeding
    manager.setblocking(False)
    received = []
    with suppress(BlockingIOError):
        while True:
            received.append(manager.recv(1024))
    assert received == [b"WATCHDOG=1"] * returned.count(True)
    stopped = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(stopped) == 2  # once each time the health check starts to fail, not on every failure


async def test_watchdog_is_fed_twice_per_timeout(manager: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    manager.setblocking(False)
    feeding = asyncio.create_task(feed_watchdog(SystemdNotifier(environment(manager)), 5.0, lambda: True))
    async with asyncio.timeout(20):
        await loop.sock_recv(manager, 1024)
        first = loop.time()
        await loop.sock_recv(manager, 1024)
    feeding.cancel()
    with suppress(asyncio.CancelledError):
        await feeding
    assert 2.4 < loop.time() - first < 5.0
