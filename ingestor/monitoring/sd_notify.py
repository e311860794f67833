"""Tell systemd how we are (sd_notify, by hand: it is one datagram). Without systemd every call does nothing.

The protocol: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class SystemdNotifier:
    """The service manager that started us, if any. The environment is read once, and left as it is."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._address = _address(env.get("NOTIFY_SOCKET", ""))

    def ready(self, status: str = "") -> None:
        """Start-up is over. ``status`` is a line for `systemctl status`."""
        self._send("READY=1", *_status(status))

    def reloading(self) -> None:
        """The config is read anew. ``ready`` ends it, whether the new one was taken or not."""
        # systemd 253 and newer compare the stamp with when they asked, on this very clock.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)  # the event loop sends, and must not wait for a busy manager
                channel.sendto("\n".join(lines).encode(errors="backslashreplace"), self._address)
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", lines[0], error.strerror)


async def feed_watchdog(systemd: SystemdNotifier, seconds: float, advancing: Callable[[], bool]) -> None:
    """Feed the watchdog twice in its ``seconds``, while ``advancing()`` holds. Runs until cancelled."""
    was_advancing = True
    while True:
        now_advancing = advancing()
        if now_advancing:
            systemd.watchdog()
        elif was_advancing:
            log.error("the watchdog is not fed any more: systemd restarts us within %.0f s", seconds)
        was_advancing = now_advancing
        await asyncio.sleep(seconds / 2)


def watchdog_seconds(env: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """How long the watchdog waits for us; None if there is none, or it is meant for another process."""
    if env.get("WATCHDOG_PID", str(pid or os.getpid())) != str(pid or os.getpid()):
        return None
    try:
        microseconds = int(env.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1_000_000 if microseconds > 0 else None


def _address(name: str) -> str:
    if name.startswith("@"):
        return "\0" + name[1:]  # Linux's abstract namespace
    return name if name.startswith("/") else ""


def _status(text: str) -> tuple[str, ...]:
    # A newline would begin another assignment.
    return (f"STATUS={' '.join(text.split())}",) if text else ()
